/* Reading a SentencePiece model (ModelProto of sentencepiece_model.proto): pieces with score and
 * type, what training said of them, and how text is normalized. What would change the ids and is
 * not known here is refused by its name: unigram models, tables of normalization, spaces behind
 * words, unused pieces. */
#include "text/proto.h"
#include "text/sp_model.h"

#include <math.h>
#include <stdlib.h>

enum { MODEL_BPE = 2 };

static Status read_bool(const Proto *m, const ProtoField *f, uint32_t number, bool *out)
{
    bool is;
    TRY(proto_is(m, f, number, PROTO_VARINT, &is));
    if (is) *out = f->value != 0;
    return OK;
}

static Status read_bytes(const Proto *m, const ProtoField *f, uint32_t number, Bytes *out)
{
    bool is;
    TRY(proto_is(m, f, number, PROTO_BYTES, &is));
    if (is) *out = f->bytes;
    return OK;
}

/* An empty name means the default one. */
static Status read_name(const Proto *m, const ProtoField *f, uint32_t number, Bytes *out)
{
    Bytes name = *out;
    TRY(read_bytes(m, f, number, &name));
    if (name.n > 0) *out = name;
    return OK;
}

static Status read_piece(SpSpec *spec, Bytes message)
{
    Proto m = {message, spec->name};
    SpPiece piece = {.type = SP_NORMAL};
    ProtoField f;
    for (;;) {
        bool is_score, is_type;
        TRY(proto_next(&m, &f));
        if (f.number == 0) break;
        TRY(read_bytes(&m, &f, 1, &piece.text));
        TRY(proto_is(&m, &f, 2, PROTO_FIXED32, &is_score));
        TRY(proto_is(&m, &f, 3, PROTO_VARINT, &is_type));
        uint32_t bits = (uint32_t)f.value;
        if (is_score) memcpy(&piece.score, &bits, sizeof piece.score);
        if (is_type && (f.value < SP_NORMAL || f.value > SP_BYTE))
            return fail(ERR_UNSUPPORTED, "%s: piece %zu is of the unknown type %llu", spec->name,
                        spec->piece.n, (unsigned long long)f.value);
        if (is_type) piece.type = (SpType)f.value;
    }
    if (spec->piece.n == MAX_TOKENS)
        return fail(ERR_REFUSED, "%s: more than %d pieces", spec->name, MAX_TOKENS);
    VEC_PUSH(&spec->piece, piece);
    return OK;
}

static Status read_trainer(SpSpec *spec, Bytes message)
{
    Proto m = {message, spec->name};
    ProtoField f;
    for (;;) {
        bool is_type;
        TRY(proto_next(&m, &f));
        if (f.number == 0) return OK;
        TRY(proto_is(&m, &f, 3, PROTO_VARINT, &is_type));
        if (is_type) spec->model_type = f.value;
        TRY(read_bool(&m, &f, 24, &spec->whitespace_as_suffix));
        TRY(read_bool(&m, &f, 35, &spec->byte_fallback));
        TRY(read_bytes(&m, &f, 44, &spec->unk_surface));
        TRY(read_name(&m, &f, 46, &spec->bos));
        TRY(read_name(&m, &f, 47, &spec->eos));
        TRY(read_name(&m, &f, 48, &spec->pad));
    }
}

static Status read_normalizer(SpSpec *spec, Bytes message)
{
    Proto m = {message, spec->name};
    ProtoField f;
    for (;;) {
        TRY(proto_next(&m, &f));
        if (f.number == 0) return OK;
        TRY(read_bytes(&m, &f, 1, &spec->normalizer));
        TRY(read_bytes(&m, &f, 2, &spec->charsmap));
        TRY(read_bool(&m, &f, 3, &spec->add_dummy_prefix));
        TRY(read_bool(&m, &f, 4, &spec->remove_extra_whitespaces));
        TRY(read_bool(&m, &f, 5, &spec->escape_whitespaces));
    }
}

static Status read_denormalizer(SpSpec *spec, Bytes message)
{
    Proto m = {message, spec->name};
    ProtoField f;
    for (;;) {
        TRY(proto_next(&m, &f));
        if (f.number == 0) return OK;
        TRY(read_bytes(&m, &f, 2, &spec->denormalizer_charsmap));
    }
}

static Status read_model(SpSpec *spec, Bytes file)
{
    static Status (*const part[])(SpSpec *, Bytes) = {
        [1] = read_piece, [2] = read_trainer, [3] = read_normalizer, [5] = read_denormalizer};
    Proto m = {file, spec->name};
    ProtoField f;
    for (;;) {
        TRY(proto_next(&m, &f));
        if (f.number == 0) return OK;
        if (f.number >= COUNT_OF(part) || !part[f.number]) continue;
        bool is;
        TRY(proto_is(&m, &f, f.number, PROTO_BYTES, &is));
        TRY(part[f.number](spec, f.bytes));
    }
}

/* ---- what is not supported -------------------------------------------------------------- */

static const char *model_type_name(uint64_t type)
{
    static const char *const name[] = {[1] = "unigram", [2] = "BPE", [3] = "word", [4] = "char"};
    return type >= 1 && type <= 4 ? name[type] : "unknown";
}

static Status check_spec(const SpSpec *s)
{
    if (s->piece.n == 0)
        return fail(ERR_FORMAT, "%s: a SentencePiece model without pieces", s->name);
    if (s->model_type != MODEL_BPE)
        return fail(ERR_UNSUPPORTED, "%s: a SentencePiece model of type %s; only BPE is read",
                    s->name, model_type_name(s->model_type));
    if (s->charsmap.n > 0)
        return fail(ERR_UNSUPPORTED,
                    "%s: normalizer \"%.*s\" has a table of %zu bytes; only identity is supported",
                    s->name, (int)min_i64(40, (int64_t)s->normalizer.n),
                    (const char *)s->normalizer.at, s->charsmap.n);
    if (s->denormalizer_charsmap.n > 0)
        return fail(ERR_UNSUPPORTED, "%s: a denormalizer with a table is not supported", s->name);
    if (s->whitespace_as_suffix)
        return fail(ERR_UNSUPPORTED, "%s: treat_whitespace_as_suffix is not supported", s->name);
    return OK;
}

static size_t n_chars(Bytes text)
{
    size_t n = 0;
    for (size_t i = 0; i < text.n; i++) n += (text.at[i] & 0xc0) != 0x80;
    return n;
}

static Status check_piece(const SpSpec *s, size_t i)
{
    const SpPiece *p = &s->piece.at[i];
    if (p->text.n == 0 || p->text.n > MAX_TOKEN_BYTES)
        return fail(ERR_FORMAT, "%s: piece %zu has %zu bytes; 1 to %d are allowed", s->name, i,
                    p->text.n, MAX_TOKEN_BYTES);
    if (!utf8_valid(p->text.at, p->text.n))
        return fail(ERR_FORMAT, "%s: piece %zu is not UTF-8", s->name, i);
    if (memchr(p->text.at, 0, p->text.n))
        return fail(ERR_FORMAT, "%s: piece %zu has a zero byte", s->name, i);
    if (!isfinite(p->score))
        return fail(ERR_FORMAT, "%s: piece %zu has a score that is not finite", s->name, i);
    if (p->type == SP_UNUSED)
        return fail(ERR_UNSUPPORTED, "%s: piece %zu is marked unused, which is not supported",
                    s->name, i);
    if (p->type == SP_CONTROL && n_chars(p->text) == 1)
        return fail(
            ERR_UNSUPPORTED,
            "%s: piece %zu is a control symbol of one character, so that any text could hold it",
            s->name, i);
    return OK;
}

Status sp_parse(Bytes file, const char *name, Tokenizer **out)
{
    static const char unk_surface[] = " \xe2\x81\x87 ", bos[] = "<s>", eos[] = "</s>",
                      pad[] = "<pad>";
    SpSpec spec = {.name = name,
                   .model_type = 1, /* what the format's defaults say */
                   .add_dummy_prefix = true,
                   .remove_extra_whitespaces = true,
                   .escape_whitespaces = true,
                   .unk_surface = {(const uint8_t *)unk_surface, sizeof unk_surface - 1},
                   .bos = {(const uint8_t *)bos, sizeof bos - 1},
                   .eos = {(const uint8_t *)eos, sizeof eos - 1},
                   .pad = {(const uint8_t *)pad, sizeof pad - 1}};
    Tokenizer *t = tokenizer_new(&kind_sentencepiece);
    Status status;
    TRY_GOTO(read_model(&spec, file), done);
    TRY_GOTO(check_spec(&spec), done);
    for (size_t i = 0; i < spec.piece.n; i++) TRY_GOTO(check_piece(&spec, i), done);
    TRY_GOTO(sp_build(&spec, file, t), done);
    build_finish(t);
    *out = t;
    t = NULL;
done:
    tokenizer_destroy(t);
    VEC_FREE(&spec.piece);
    return status;
}
