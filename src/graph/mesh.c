/* The mesh of ranks, and how a value lies along one of its axes. */
#include "graph/graph.h"

const char *mesh_axis_name(MeshAxis axis)
{
    static const char *const names[MESH_AXES] = {"pp", "dp", "fsdp", "ep", "cp", "tp"};
    return names[axis];
}

int mesh_axis_nesting(MeshAxis axis)
{
    static const int order[MESH_AXES] = {
        [MESH_PP] = 0, [MESH_CP] = 1, [MESH_TP] = 2, [MESH_EP] = 3, [MESH_DP] = 4, [MESH_FSDP] = 5};
    return order[axis];
}

int mesh_data_ranks(const Mesh *mesh)
{
    return mesh_size(mesh, MESH_DP) * mesh_size(mesh, MESH_EP) * mesh_size(mesh, MESH_FSDP);
}

int mesh_data_rank(const Mesh *mesh)
{
    int rank = mesh->coord[MESH_EP] * mesh_size(mesh, MESH_DP) + mesh->coord[MESH_DP];
    return rank * mesh_size(mesh, MESH_FSDP) + mesh->coord[MESH_FSDP];
}

int mesh_ranks(const Mesh *mesh)
{
    int n = 1;
    for (int a = 0; a < MESH_AXES; a++) n *= mesh_size(mesh, (MeshAxis)a);
    return n;
}

int mesh_rank(const Mesh *mesh)
{
    int rank = 0;
    for (int a = 0; a < MESH_AXES; a++) rank = rank * mesh_size(mesh, (MeshAxis)a) + mesh->coord[a];
    return rank;
}

Mesh mesh_at(const Mesh *mesh, int rank)
{
    Mesh at = *mesh;
    for (int a = MESH_AXES - 1; a >= 0; a--) {
        int n = mesh_size(mesh, (MeshAxis)a);
        at.coord[a] = rank % n;
        rank /= n;
    }
    return at;
}

const char *place_text(Place place, char text[16])
{
    if (place.kind == PLACE_SAME) return "same";
    if (place.kind == PLACE_PARTIAL) return "partial";
    if (place.kind == PLACE_CUT && place.dim == PLACE_FLAT) return "cut flat";
    static const char *const names[] = {[PLACE_CUT] = "cut",
                                        [PLACE_OWNED] = "owned",
                                        [PLACE_PASSED] = "passed",
                                        [PLACE_GROWING] = "growing"};
    snprintf(text, 16, "%s %d", names[place.kind], place.dim);
    return text;
}
