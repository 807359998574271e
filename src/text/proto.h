/* Protocol buffers, what a SentencePiece model needs of them: fields one after another, by number.
 */
#ifndef TEXT_PROTO_H
#define TEXT_PROTO_H

#include "base/base.h"

/* A message, or what is left of it. */
typedef struct Proto {
    Bytes left;
    const char *name; /* of the file, for sentences */
} Proto;

typedef enum ProtoWire {
    PROTO_VARINT = 0,
    PROTO_FIXED64 = 1,
    PROTO_BYTES = 2,
    PROTO_FIXED32 = 5
} ProtoWire;

typedef struct ProtoField {
    uint32_t number; /* 0: the message has ended */
    ProtoWire wire;
    uint64_t value; /* of the three numeric wire types */
    Bytes bytes;    /* of PROTO_BYTES: within the message */
} ProtoField;

Status proto_next(Proto *message, ProtoField *field);
/* Whether the field has this number; fails when it has another wire type than that one. */
Status proto_is(const Proto *message, const ProtoField *field, uint32_t number, ProtoWire wire,
                bool *is);

#endif
