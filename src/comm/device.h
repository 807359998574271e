/* Of comm/, for who exchanges on GPUs: groups are told before their first exchange. */
#ifndef COMM_DEVICE_H
#define COMM_DEVICE_H

#include "comm/comm.h"

/* The group will exchange on this stream of the rank's GPU (comm_enqueue), on all of its ranks.
 * GPUs are joined at the first exchange of any group, then those of all groups that were told of by
 * then, on all ranks in one order: while one rank waits for another in one group, that one does not
 * wait for it in another. */
void comm_expect(Comm *group, GpuStream *stream);

#endif
