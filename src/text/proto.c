/* The wire format of protocol buffers: a key (field number and wire type), then a varint, four or
 * eight bytes, or a length and as many bytes. Groups, which nobody has written for long, are
 * refused. */
#include "text/proto.h"

enum { MAX_VARINT_BYTES = 10, MAX_FIELD = (1 << 29) - 1 };

static Status damaged(const Proto *m, const char *what)
{
    return fail(ERR_FORMAT, "%s: not a SentencePiece model: %s with %zu bytes left", m->name, what,
                m->left.n);
}

static Status read_varint(Proto *m, uint64_t *value)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < MAX_VARINT_BYTES && i < m->left.n; i++) {
        uint8_t byte = m->left.at[i];
        if (i == MAX_VARINT_BYTES - 1 && byte > 1) break;
        bits |= (uint64_t)(byte & 0x7f) << 7 * i;
        if (byte & 0x80) continue;
        m->left = (Bytes){m->left.at + i + 1, m->left.n - i - 1};
        *value = bits;
        return OK;
    }
    return damaged(m, "a number that does not end");
}

/* Little-endian. */
static Status read_fixed(Proto *m, size_t n, uint64_t *value)
{
    if (m->left.n < n) return damaged(m, "a number that is cut off");
    *value = 0;
    for (size_t i = 0; i < n; i++) *value |= (uint64_t)m->left.at[i] << 8 * i;
    m->left = (Bytes){m->left.at + n, m->left.n - n};
    return OK;
}

Status proto_next(Proto *m, ProtoField *field)
{
    uint64_t key = 0, length = 0;
    *field = (ProtoField){0};
    if (m->left.n == 0) return OK;
    TRY(read_varint(m, &key));
    if (key >> 3 == 0 || key >> 3 > MAX_FIELD) return damaged(m, "a field without a valid number");
    field->number = (uint32_t)(key >> 3);
    field->wire = (ProtoWire)(key & 7);
    switch (field->wire) {
    case PROTO_VARINT: return read_varint(m, &field->value);
    case PROTO_FIXED64: return read_fixed(m, 8, &field->value);
    case PROTO_FIXED32: return read_fixed(m, 4, &field->value);
    case PROTO_BYTES: break;
    default: return damaged(m, "a field of an unknown wire type");
    }
    TRY(read_varint(m, &length));
    if (length > m->left.n) return damaged(m, "a field that is longer than its message");
    field->bytes = (Bytes){m->left.at, (size_t)length};
    m->left = (Bytes){m->left.at + length, m->left.n - (size_t)length};
    return OK;
}

Status proto_is(const Proto *m, const ProtoField *field, uint32_t number, ProtoWire wire, bool *is)
{
    *is = field->number == number;
    if (!*is || field->wire == wire) return OK;
    return fail(ERR_FORMAT, "%s: not a SentencePiece model: field %u is of wire type %d, not %d",
                m->name, number, (int)field->wire, (int)wire);
}
