/* Several tensors in one buffer (bucket.c). Internal to ops/ and pass/. */
#ifndef OPS_BUCKET_H
#define OPS_BUCKET_H

#include "ops/ops.h"

typedef struct BucketPartAttr {
    size_t offset_bytes;
    Shape shape;
    Place place[MESH_AXES]; /* where the bucket is no sum of summands */
} BucketPartAttr;

Status op_bucket(Graph *g, int n, const ValueId *x, ValueId *bucket);
/* The part that begins so far into the bucket, with the shape and placement of `like`. */
Status op_bucket_part(Graph *g, ValueId bucket, const Value *like, size_t offset_bytes, ValueId *x);

#endif
