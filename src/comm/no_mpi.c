/* Stands in for the MPI transport where MPI was not found when building. */
#include "comm/comm_internal.h"

Status comm_world_create_mpi(const CommOptions *options, CommWorld **world)
{
    (void)options;
    (void)world;
    return fail(
        ERR_UNSUPPORTED,
        "comm: this build has no MPI; install libopenmpi-dev and openmpi-bin, then build again");
}

const char *comm_mpi_version(char buf[64])
{
    buf[0] = 0;
    return NULL;
}
