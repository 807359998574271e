/* bucket: tensors of any shapes one behind the other in one buffer, so that one collective serves
 * all of them; bucket_part: one of them again, a view of the buffer. f32.
 *
 * Where it can, the memory plan lets the producers write straight into the buffer, and nothing is
 * left to do. Both are put in by pass/overlap, once all cuts are made: shapes are those of this
 * rank. */
#include "ops/bucket.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CUDA_DECLARE(bucket);

/* ---- bucket ----------------------------------------------------------------------------- */

static Status infer_bucket(InferCtx *ctx)
{
    int64_t total = 0;
    for (int k = 0; k < ctx->n_in; k++) {
        TRY(need_dtype(ctx->in[k], DTYPE_F32, "every part"));
        if (__builtin_add_overflow(total, shape_count(&ctx->in[k]->shape), &total))
            return fail(ERR_SHAPE, "the parts are too large together");
    }
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(1, &total, (Axis[]){AXIS_ANY}));
    return OK;
}

/* A buffer of summands is a summand; how whole tensors are cut is known again when they are taken
 * out. */
static Status cut_bucket(CutCtx *ctx)
{
    bool partial = ctx->place[0].kind == PLACE_PARTIAL;
    for (int k = 1; k < ctx->n_in; k++)
        if ((ctx->place[k].kind == PLACE_PARTIAL) != partial) ctx->want[k] = ctx->place[0];
    ctx->out[0] = (Place){partial ? PLACE_PARTIAL : PLACE_SAME, 0};
    return OK;
}

static Status run_bucket(KernelArgs *args)
{
    char *at = args->out[0].data;
    for (int k = 0; k < args->n_in; k++) {
        size_t bytes = tensor_bytes(&args->in[k]);
        if (args->in[k].data != at) memcpy(at, args->in[k].data, bytes);
        at += bytes;
    }
    return OK;
}

static Cost cost_bucket(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

static const Kernel bucket_kernel = {.run = run_bucket};

const OpDef op_def_bucket = {
    .name = "bucket",
    .min_in = 1,
    .max_in = -1,
    .n_out = 1,
    .flags = OP_SOURCE | OP_JOINS,
    .infer = infer_bucket,
    .cut_rule = cut_bucket,
    .cost = cost_bucket,
    .cpu = CPU_KERNEL_ANY(&bucket_kernel),
    .cuda = &cuda_bucket,
};

/* ---- bucket_part ------------------------------------------------------------------------ */

static Status infer_part(InferCtx *ctx)
{
    const BucketPartAttr *attr = ctx->attr;
    size_t bytes = (size_t)shape_count(&attr->shape) * dtype_bytes(DTYPE_F32);
    TRY(need_dtype(ctx->in[0], DTYPE_F32, "the bucket"));
    if (attr->offset_bytes + bytes >
        (size_t)shape_count(&ctx->in[0]->shape) * dtype_bytes(DTYPE_F32))
        return fail(ERR_SHAPE, "the part ends behind its bucket");
    ctx->out[0] = infer_out(DTYPE_F32, attr->shape);
    ctx->out[0].alias = 0;
    ctx->out[0].offset_bytes = attr->offset_bytes;
    return OK;
}

static Status cut_part(CutCtx *ctx)
{
    ctx->out[0] = ctx->place[0].kind == PLACE_PARTIAL
                      ? ctx->place[0]
                      : ((const BucketPartAttr *)ctx->attr)->place[ctx->axis];
    return OK;
}

const OpDef op_def_bucket_part = {
    .name = "bucket_part",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(BucketPartAttr),
    .flags = OP_SOURCE | OP_VIEW,
    .infer = infer_part,
    .cut_rule = cut_part,
};

/* ---- builders --------------------------------------------------------------------------- */

Status op_bucket(Graph *g, int n, const ValueId *x, ValueId *bucket)
{
    return graph_add(g, &op_def_bucket, NULL, x, n, bucket);
}

Status op_bucket_part(Graph *g, ValueId bucket, const Value *like, size_t offset_bytes, ValueId *x)
{
    BucketPartAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.offset_bytes = offset_bytes;
    attr.shape = like->shape;
    memcpy(attr.place, like->place, sizeof attr.place);
    TRY(graph_add(g, &op_def_bucket_part, &attr, &bucket, 1, x));
    graph_value(g, *x)->whole = like->whole;
    return OK;
}
