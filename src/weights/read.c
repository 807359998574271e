/* Reading a box of a weight.
 *
 * The box is cut by the pieces that the weight is made of. Of each piece what lies in the box is
 * read in runs along the axis on which the file is contiguous, a tile of runs at a time: where
 * memory is contiguous along another axis (a transposing read) the tile is turned while it is in
 * the cache. Runs are as long as possible: neighbouring axes that are contiguous both in the file
 * and in memory are one axis first. */
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "weights/weights_internal.h"

/* In elements. The conversion of a run is too short to be worth threads of its own. */
enum {
    LONGEST_RUN = 1 << 16,
    TURNED_RUN = 256,
    SPREAD_RUN = 64,
    TILE_RUNS = 64,
    PAGE = 4096,
    AROUND = 64 << 10
};

/* One part of a read: a box of a piece, and where it goes. Axis 0 is outermost. */
typedef struct Part {
    const Stored *from;
    const Scale *scale;
    int rank;
    int64_t dim[MAX_RANK];
    int64_t file[MAX_RANK], memory[MAX_RANK]; /* strides, elements */
    int64_t first;              /* element of the file's tensor where the box begins */
    char *to;                   /* memory of the box's first element */
    DType dtype;                /* there */
    int64_t scale_at[MAX_RANK]; /* index within the piece where the box begins */
    int fd;                     /* sparse boxes are read from here, others from the map: -1 */
} Part;

typedef struct Buffers {
    uint8_t *raw;  /* a run as stored */
    float *wide;   /* the same, f32, with its scales */
    uint8_t *tile; /* runs in the type of memory, before they are turned */
    float *scale;  /* those that the box needs */
    int64_t scale_first;
} Buffers;

/* ---- geometry --------------------------------------------------------------------------- */

/* Joins axes that are one axis in the file and in memory. Scales are found by the index of each
 * axis: they stay apart. */
static void join_axes(Part *p)
{
    int n = 0;
    for (int d = 0; d < p->rank; d++) {
        if (p->dim[d] == 1 && !p->scale) continue;
        bool joins = n > 0 && !p->scale && p->file[n - 1] == p->file[d] * p->dim[d] &&
                     p->memory[n - 1] == p->memory[d] * p->dim[d];
        int at = joins ? n - 1 : n;
        p->dim[at] = joins ? p->dim[at] * p->dim[d] : p->dim[d];
        p->file[at] = p->file[d];
        p->memory[at] = p->memory[d];
        p->scale_at[at] = p->scale_at[d];
        if (!joins) n++;
    }
    if (n == 0) {
        p->dim[0] = 1;
        p->file[0] = p->memory[0] = 1;
        n = 1;
    }
    p->rank = n;
}

/* The axis of the smallest stride that has more than one element. */
static int inner_axis(const Part *p, const int64_t *stride)
{
    int best = p->rank - 1;
    for (int d = p->rank - 1; d >= 0; d--)
        if (p->dim[d] > 1 && (p->dim[best] == 1 || stride[d] < stride[best])) best = d;
    return best;
}

/* ---- scales ----------------------------------------------------------------------------- */

static int64_t scale_index(const Part *p, const int64_t *index)
{
    int64_t at = 0;
    for (int d = 0; d < p->rank; d++)
        at += (p->scale_at[d] + index[d]) / p->scale->block[d] * p->scale->stride[d];
    return at;
}

/* Those between the first and the last that the box needs; fewer than its elements. */
static Status load_scales(const Part *p, Buffers *b)
{
    int64_t low[MAX_RANK] = {0}, high[MAX_RANK] = {0};
    for (int d = 0; d < p->rank; d++) high[d] = p->dim[d] - 1;
    b->scale_first = scale_index(p, low);
    int64_t n = scale_index(p, high) - b->scale_first + 1;
    const Stored *s = &p->scale->from;
    size_t size = dtype_bytes(s->dtype);
    uint8_t *raw = xmalloc((size_t)n * size);
    b->scale = xmalloc((size_t)n * sizeof *b->scale);
    Status status = file_map_copy(s->map, (size_t)s->offset + (size_t)b->scale_first * size, raw,
                                  (size_t)n * size);
    if (status == OK) status = dtype_convert(s->dtype, raw, DTYPE_F32, b->scale, n);
    free(raw);
    return status;
}

static void apply_scales(const Part *p, const Buffers *b, const int64_t *index, int axis, int64_t n)
{
    int64_t at[MAX_RANK];
    memcpy(at, index, sizeof at);
    for (int64_t i = 0; i < n;) {
        int64_t block = p->scale->stride[axis] ? p->scale->block[axis] : INT64_MAX;
        int64_t left = block - (p->scale_at[axis] + at[axis]) % block,
                end = left > n - i ? n : i + left;
        float scale = b->scale[scale_index(p, at) - b->scale_first];
        at[axis] += end - i;
        for (; i < end; i++) b->wide[i] *= scale;
    }
}

/* ---- runs ------------------------------------------------------------------------------- */

static size_t file_offset(const Part *p, const int64_t *index)
{
    int64_t at = p->first;
    for (int d = 0; d < p->rank; d++) at += index[d] * p->file[d];
    return (size_t)p->from->offset + (size_t)at * dtype_bytes(p->from->dtype);
}

static Status fetch_bytes(const Part *p, size_t offset, void *out, size_t n)
{
    const FileMap *map = p->from->map;
    return p->fd >= 0 ? file_pread(p->fd, out, n, offset, map->path)
                      : file_map_copy(map, offset, out, n);
}

/* n elements along `axis`, packed, in the type of the file. */
static Status fetch(const Part *p, const int64_t *index, int axis, int64_t n, void *out)
{
    size_t size = dtype_bytes(p->from->dtype);
    int64_t at[MAX_RANK];
    if (p->file[axis] == 1 || n == 1)
        return fetch_bytes(p, file_offset(p, index), out, (size_t)n * size);
    memcpy(at, index, sizeof at);
    for (int64_t i = 0; i < n; i++, at[axis]++)
        TRY(fetch_bytes(p, file_offset(p, at), (uint8_t *)out + (size_t)i * size, size));
    return OK;
}

/* The same with its scales, in the type of memory. */
static Status read_run(const Part *p, const Buffers *b, const int64_t *index, int axis, int64_t n,
                       void *out)
{
    if (!p->scale && p->from->dtype == p->dtype) return fetch(p, index, axis, n, out);
    TRY(fetch(p, index, axis, n, b->raw));
    if (!p->scale) return dtype_convert(p->from->dtype, b->raw, p->dtype, out, n);
    TRY(dtype_convert(p->from->dtype, b->raw, DTYPE_F32, b->wide, n));
    apply_scales(p, b, index, axis, n);
    return dtype_convert(DTYPE_F32, b->wide, p->dtype, out, n);
}

static char *memory_at(const Part *p, const int64_t *index)
{
    int64_t at = 0;
    for (int d = 0; d < p->rank; d++) at += index[d] * p->memory[d];
    return p->to + at * (int64_t)dtype_bytes(p->dtype);
}

/* ---- tiles ------------------------------------------------------------------------------ */

/* `runs` runs along `axis`, one for each step of `across`, n elements each. */
typedef struct Tile {
    int axis, across;
    int64_t runs, n;
} Tile;

/* tile[r][k] goes to out[r x run_stride + k x stride]; size is a constant in each call, so that
 * memcpy is one move. */
static inline void scatter(const Part *p, const Tile *t, const uint8_t *tile, char *out,
                           size_t size)
{
    const int64_t run_stride = p->memory[t->across], stride = p->memory[t->axis];
    for (int64_t k = 0; k < t->n; k++)
        for (int64_t r = 0; r < t->runs; r++)
            memcpy(out + (r * run_stride + k * stride) * (int64_t)size,
                   tile + (size_t)(r * t->n + k) * size, size);
}

static void scatter_tile(const Part *p, const Tile *t, const uint8_t *tile, char *out)
{
    switch (dtype_bytes(p->dtype)) {
    case 1: scatter(p, t, tile, out, 1); break;
    case 2: scatter(p, t, tile, out, 2); break;
    case 4: scatter(p, t, tile, out, 4); break;
    default: scatter(p, t, tile, out, 8); break;
    }
}

/* Pages of a sliced read are touched in part, and would pile up as memory of this process; the
 * system's cache keeps them. A fault maps what lies around it too. */
static void forget(const Part *p, size_t begin, size_t end)
{
    const FileMap *map = p->from->map;
    if (!p->from->mapped || p->fd >= 0) return;
    begin = begin > AROUND ? (begin - AROUND) / PAGE * PAGE : 0; /* a map begins at a page */
    end = map->n - end > AROUND ? end + AROUND : map->n;
    madvise((char *)(uintptr_t)map->at + begin, end - begin, MADV_DONTNEED);
}

/* The tile whose first element is at the index. */
static Status read_tile(const Part *p, const Buffers *b, const int64_t *index, const Tile *t)
{
    size_t size = dtype_bytes(p->dtype), begin = file_offset(p, index);
    bool direct = p->memory[t->axis] == 1 || t->n == 1;
    int64_t at[MAX_RANK];
    memcpy(at, index, sizeof at);
    for (int64_t r = 0; r < t->runs; r++) {
        void *out = direct ? (void *)memory_at(p, at) : b->tile + (size_t)(r * t->n) * size;
        TRY(read_run(p, b, at, t->axis, t->n, out));
        if (r + 1 < t->runs) at[t->across]++;
    }
    if (!direct) scatter_tile(p, t, b->tile, memory_at(p, index));
    at[t->axis] += t->n - 1;
    forget(p, begin, file_offset(p, at) + dtype_bytes(p->from->dtype));
    return OK;
}

/* Advances the index over all axes but two; false at the end. */
static bool next_index(const Part *p, int64_t *index, int axis, int across)
{
    for (int d = p->rank - 1; d >= 0; d--) {
        if (d == axis || d == across) continue;
        if (++index[d] < p->dim[d]) return true;
        index[d] = 0;
    }
    return false;
}

static Status read_tiles(const Part *p, Buffers *b)
{
    int axis = inner_axis(p, p->file), across = inner_axis(p, p->memory);
    if (across == axis)
        across = p->rank == 1 ? axis : axis == p->rank - 1 ? p->rank - 2 : p->rank - 1;
    bool turned = p->memory[axis] != 1;
    int64_t longest = turned              ? TURNED_RUN
                      : p->file[axis] > 1 ? SPREAD_RUN
                                          : LONGEST_RUN,
            index[MAX_RANK] = {0};
    do {
        for (int64_t i = 0; i < (across == axis ? 1 : p->dim[across]); i += TILE_RUNS)
            for (int64_t k = 0; k < p->dim[axis]; k += longest) {
                index[axis] = k;
                if (across != axis) index[across] = i;
                int64_t runs = across == axis ? 1 : min_i64(TILE_RUNS, p->dim[across] - i);
                TRY(read_tile(p, b, index,
                              &(Tile){axis, across, runs, min_i64(longest, p->dim[axis] - k)}));
            }
        index[axis] = index[across] = 0;
    } while (next_index(p, index, axis, across));
    return OK;
}

/* Whether the box is a small part of each row, with pages in between that it does not need: a few
 * columns. */
static bool is_sparse(const Part *p)
{
    int axis = inner_axis(p, p->file);
    size_t size = dtype_bytes(p->from->dtype), run = (size_t)p->dim[axis] * size, pitch = SIZE_MAX;
    if (p->file[axis] > 1) { /* a single column */
        run = size;
        pitch = (size_t)p->file[axis] * size;
    }
    for (int d = 0; d < p->rank; d++)
        if (d != axis && p->dim[d] > 1 && (size_t)p->file[d] * size < pitch)
            pitch = (size_t)p->file[d] * size;
    return p->from->mapped && pitch != SIZE_MAX && pitch / 4 > run && pitch - run > 4 * PAGE;
}

/* A map would have the system read ahead into what is not wanted, all of the tensor in the end. */
static Status open_sparse(Part *p)
{
    p->fd = -1;
    if (!is_sparse(p)) return OK;
    TRY(file_open_read(p->from->map->path, &p->fd));
    posix_fadvise(p->fd, 0, 0, POSIX_FADV_RANDOM);
    return OK;
}

static Status read_part(Part *p)
{
    Buffers b = {0};
    join_axes(p);
    Status status = open_sparse(p);
    if (status == OK && p->scale) status = load_scales(p, &b);
    int64_t count = 1; /* a rank may ask for thousands of small boxes */
    for (int d = 0; d < p->rank; d++) count *= p->dim[d];
    b.raw = xmalloc((size_t)min_i64(LONGEST_RUN, count) * 8);
    b.wide = xmalloc((size_t)min_i64(LONGEST_RUN, count) * sizeof *b.wide);
    b.tile = xmalloc((size_t)min_i64(TILE_RUNS * TURNED_RUN, count) * 8);
    if (status == OK) status = read_tiles(p, &b);
    free(b.raw);
    free(b.wide);
    free(b.tile);
    free(b.scale);
    if (p->fd >= 0) close(p->fd);
    if (status != OK)
        fail_context("tensor %s (bytes %llu to %llu)", p->from->name,
                     (unsigned long long)p->from->offset,
                     (unsigned long long)(p->from->offset + p->from->bytes));
    return status;
}

/* ---- boxes ------------------------------------------------------------------------------ */

/* What of the piece lies in the box `first`, `out`: false when nothing does. */
static bool cut_piece(const WeightPiece *piece, const int64_t *first, const Tensor *out, Part *p)
{
    *p = (Part){.from = piece->from,
                .scale = piece->scale,
                .rank = out->shape.rank,
                .first = piece->first,
                .dtype = out->dtype};
    int64_t memory = 0;
    for (int d = 0; d < p->rank; d++) {
        int64_t begin = max_i64(piece->at[d], first[d]);
        int64_t end = min_i64(piece->at[d] + piece->dim[d], first[d] + out->shape.dim[d]);
        if (begin >= end) return false;
        p->dim[d] = end - begin;
        p->file[d] = piece->stride[d];
        p->memory[d] = out->stride[d];
        p->scale_at[d] = begin - piece->at[d];
        p->first += p->scale_at[d] * piece->stride[d];
        memory += (begin - first[d]) * out->stride[d];
    }
    p->to = (char *)out->data + memory * (int64_t)dtype_bytes(out->dtype);
    return true;
}

static Status check_box(const Weight *weight, const int64_t *first, const Tensor *out)
{
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    if (weight->dtype == DTYPE_COUNT)
        return fail(ERR_UNSUPPORTED,
                    "%s: tensor %s has elements of type %s, which drover cannot read",
                    weight->piece->from->map->path, weight->name, weight->kind);
    bool inside = out->shape.rank == weight->shape.rank;
    for (int d = 0; inside && d < out->shape.rank; d++)
        inside = first[d] >= 0 && out->shape.dim[d] <= weight->shape.dim[d] &&
                 first[d] <= weight->shape.dim[d] - out->shape.dim[d];
    if (inside) return OK;
    return fail(ERR_SHAPE, "a box of [%s] from %lld, %lld, %lld on is not inside %s, which is [%s]",
                shape_text(&out->shape, want), (long long)first[0], (long long)first[1],
                (long long)first[2], weight->name, shape_text(&weight->shape, have));
}

Status weights_read(const Weight *weight, const int64_t *first, const Tensor *out)
{
    static const int64_t origin[MAX_RANK] = {0};
    if (!first) first = origin;
    int64_t from[MAX_RANK] = {0};
    memcpy(from, first, sizeof *from * (size_t)min_i64(out->shape.rank, MAX_RANK));
    TRY(check_box(weight, from, out));
    for (int i = 0; i < weight->n_pieces; i++) {
        Part part;
        if (cut_piece(&weight->piece[i], from, out, &part)) TRY(read_part(&part));
    }
    return OK;
}

/* The largest box of whole slabs that begins at element `at` and has at most n elements. */
static int64_t slab(const Shape *shape, int64_t at, int64_t n, int64_t *first, int64_t *dim)
{
    int64_t inner = 1, rest = at;
    for (int d = shape->rank - 1; d >= 0; d--) {
        first[d] = rest % shape->dim[d];
        rest /= shape->dim[d];
        dim[d] = 1;
    }
    for (int d = shape->rank - 1; d >= 0; d--) {
        dim[d] = min_i64(shape->dim[d] - first[d], n / inner);
        if (first[d] || dim[d] < shape->dim[d]) return inner * dim[d];
        inner *= shape->dim[d];
    }
    return inner;
}

Status weights_read_range(const Weight *weight, int64_t first, int64_t n, DType to, void *out)
{
    int64_t count = shape_count(&weight->shape);
    if (first < 0 || n < 0 || first > count || n > count - first)
        return fail(ERR_ARG, "elements %lld to %lld of %s, which has %lld", (long long)first,
                    (long long)first + n, weight->name, (long long)count);
    for (int64_t done = 0; done < n;) {
        int64_t at[MAX_RANK] = {0}, dim[MAX_RANK] = {0};
        int64_t length = slab(&weight->shape, first + done, n - done, at, dim);
        Tensor box = tensor_make((char *)out + (size_t)done * dtype_bytes(to), to,
                                 shape_make(weight->shape.rank, dim, NULL));
        TRY(weights_read(weight, at, &box));
        done += length;
    }
    return OK;
}
