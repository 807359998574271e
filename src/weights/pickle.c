/* A dictionary of tensors as torch.save pickles it, read without executing anything.
 *
 * A pickle is a program for a stack machine that may call any function of Python. Here it may name
 * only the few things below, none of which is ever called: what looks like a call to
 * torch._utils._rebuild_tensor_v2 is the description of a tensor. Everything else ends the reading
 * with the name of what was asked for.
 *
 * Values are small and copied; tuples and dictionaries are arrays in the arena. What a text makes
 * us allocate is bounded by its length, whatever it says. No value is ever walked deeper than the
 * one level that a description has. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

enum { MAX_STACK = 1 << 16, BYTES_PER_BYTE = 8, EXTRA_BYTES = 1 << 20 };

/* ---- values ----------------------------------------------------------------------------- */

typedef enum Kind { NONE, MARK, BOOL, INT, TEXT, TUPLE, DICT, NAMED, STORAGE, TENSOR } Kind;

/* What a pickle may name. */
typedef enum What {
    ORDERED_DICT,
    REBUILD_V2,
    REBUILD_V3,
    REBUILD_PARAMETER,
    STORAGE_TYPE,
    ELEMENT_TYPE
} What;

typedef struct Known {
    const char *module, *name;
    What what;
    const char *type_name; /* safetensors' */
    DType dtype;           /* DTYPE_COUNT: only its size is known */
    int bytes;
} Known;

static const Known knowns[] = {
    {"collections", "OrderedDict", ORDERED_DICT, NULL, DTYPE_COUNT, 0},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_V2, NULL, DTYPE_COUNT, 0},
    {"torch._utils", "_rebuild_tensor_v3", REBUILD_V3, NULL, DTYPE_COUNT, 0},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, NULL, DTYPE_COUNT, 0},
    {"torch", "FloatStorage", STORAGE_TYPE, "F32", DTYPE_F32, 4},
    {"torch", "BFloat16Storage", STORAGE_TYPE, "BF16", DTYPE_BF16, 2},
    {"torch", "HalfStorage", STORAGE_TYPE, "F16", DTYPE_F16, 2},
    {"torch", "DoubleStorage", STORAGE_TYPE, "F64", DTYPE_F64, 8},
    {"torch", "ByteStorage", STORAGE_TYPE, "U8", DTYPE_U8, 1},
    {"torch", "CharStorage", STORAGE_TYPE, "I8", DTYPE_I8, 1},
    {"torch", "ShortStorage", STORAGE_TYPE, "I16", DTYPE_COUNT, 2},
    {"torch", "IntStorage", STORAGE_TYPE, "I32", DTYPE_I32, 4},
    {"torch", "LongStorage", STORAGE_TYPE, "I64", DTYPE_I64, 8},
    {"torch", "BoolStorage", STORAGE_TYPE, "BOOL", DTYPE_COUNT, 1},
    {"torch.storage", "UntypedStorage", STORAGE_TYPE, "U8", DTYPE_U8, 1},
    {"torch", "float8_e4m3fn", ELEMENT_TYPE, "F8_E4M3", DTYPE_F8_E4M3, 1},
    {"torch", "float8_e5m2", ELEMENT_TYPE, "F8_E5M2", DTYPE_F8_E5M2, 1},
    {"torch", "bfloat16", ELEMENT_TYPE, "BF16", DTYPE_BF16, 2},
    {"torch", "float16", ELEMENT_TYPE, "F16", DTYPE_F16, 2},
    {"torch", "float32", ELEMENT_TYPE, "F32", DTYPE_F32, 4},
};

typedef struct Value {
    Kind kind;
    uint32_t n; /* of a text's bytes, a tuple's values */
    union {
        int64_t number;
        const char *text;
        struct Value *item;
        struct Dict *dict;
        const Known *known;
        const struct Storage *storage;
        const PickleTensor *tensor;
    };
} Value;

typedef struct Dict {
    struct DictPair {
        Value key, value;
    } * pair;
    size_t n, cap;
} Dict;

typedef struct Storage {
    const Known *type;
    const char *key;
    uint64_t count;
} Storage;

typedef struct Machine {
    Arena *arena;
    const char *what;
    Bytes text;
    size_t i;      /* the next byte */
    size_t budget; /* bytes that may still be allocated */
    VEC(Value) stack;
    VEC(Value) memo;
} Machine;

/* ---- the machine ------------------------------------------------------------------------ */

static Status damaged(const Machine *m, const char *why)
{
    return fail(ERR_FORMAT, "%s: the pickle is damaged at byte %zu: %s", m->what, m->i, why);
}

static Status allocate(Machine *m, size_t bytes, void **out)
{
    bytes = round_up(bytes, 16);
    if (bytes > m->budget) return damaged(m, "it describes more than its length can hold");
    m->budget -= bytes;
    *out = arena_alloc(m->arena, bytes);
    return OK;
}

static Status take(Machine *m, size_t n, const uint8_t **at)
{
    if (n > m->text.n - m->i) return damaged(m, "it ends early");
    *at = m->text.at + m->i;
    m->i += n;
    return OK;
}

static Status take_number(Machine *m, int bytes, uint64_t *value)
{
    const uint8_t *at = NULL;
    TRY(take(m, (size_t)bytes, &at));
    *value = 0;
    for (int k = bytes; k-- > 0;) *value = *value << 8 | at[k];
    return OK;
}

static Status push(Machine *m, Value value)
{
    if (m->stack.n >= MAX_STACK) return damaged(m, "its stack grows too high");
    VEC_PUSH(&m->stack, value);
    return OK;
}

static Status pop(Machine *m, Value *value)
{
    if (m->stack.n == 0) return damaged(m, "it takes a value from an empty stack");
    *value = m->stack.at[--m->stack.n];
    if (value->kind == MARK) return damaged(m, "it takes a mark for a value");
    return OK;
}

static Status push_number(Machine *m, int64_t number)
{
    return push(m, (Value){.kind = INT, .number = number});
}

static Status push_text(Machine *m, size_t n)
{
    const uint8_t *at = NULL;
    void *copy = NULL;
    TRY(take(m, n, &at));
    if (memchr(at, 0, n) || !utf8_valid(at, n)) return damaged(m, "a text is not UTF-8");
    TRY(allocate(m, n + 1, &copy));
    memcpy(copy, at, n);
    return push(m, (Value){.kind = TEXT, .n = (uint32_t)n, .text = copy});
}

/* The n values on top of the stack as a tuple. */
static Status push_tuple(Machine *m, size_t n)
{
    void *items = NULL;
    if (n > m->stack.n) return damaged(m, "a tuple has too few values");
    TRY(allocate(m, n * sizeof(Value), &items));
    for (size_t k = m->stack.n - n; k < m->stack.n; k++)
        if (m->stack.at[k].kind == MARK) return damaged(m, "a tuple has a mark inside");
    if (n) memcpy(items, m->stack.at + m->stack.n - n, n * sizeof(Value));
    m->stack.n -= n;
    return push(m, (Value){.kind = TUPLE, .n = (uint32_t)n, .item = items});
}

/* How many values lie above the last mark. */
static Status above_mark(Machine *m, size_t *n)
{
    for (*n = 0; *n < m->stack.n; (*n)++)
        if (m->stack.at[m->stack.n - 1 - *n].kind == MARK) return OK;
    return damaged(m, "a mark is missing");
}

static Status push_marked_tuple(Machine *m)
{
    size_t n = 0;
    TRY(above_mark(m, &n));
    TRY(push_tuple(m, n));
    m->stack.at[m->stack.n - 2] = m->stack.at[m->stack.n - 1]; /* where the mark was */
    m->stack.n--;
    return OK;
}

static Status push_dict(Machine *m)
{
    void *dict = NULL;
    TRY(allocate(m, sizeof(Dict), &dict));
    return push(m, (Value){.kind = DICT, .dict = dict});
}

static Status put_pair(Machine *m, Dict *dict, Value key, Value value)
{
    if (dict->n == dict->cap) {
        void *larger = NULL;
        size_t cap = dict->cap ? 2 * dict->cap : 8;
        TRY(allocate(m, cap * sizeof *dict->pair, &larger));
        if (dict->n) memcpy(larger, dict->pair, dict->n * sizeof *dict->pair);
        dict->pair = larger;
        dict->cap = cap;
    }
    dict->pair[dict->n++] = (struct DictPair){key, value};
    return OK;
}

/* Key and value alternate in the n values on top; below them (and below the mark) is the
 * dictionary. */
static Status set_items(Machine *m, size_t n, size_t below)
{
    if (n % 2 || n + below + 1 > m->stack.n)
        return damaged(m, "a dictionary gets an odd number of values");
    const Value *values = m->stack.at + (m->stack.n - n), *dict = values - below - 1;
    if (dict->kind != DICT) return damaged(m, "what should be a dictionary is none");
    for (size_t k = 0; k < n; k += 2) {
        if (values[k].kind == MARK || values[k + 1].kind == MARK)
            return damaged(m, "a dictionary holds a mark");
        TRY(put_pair(m, dict->dict, values[k], values[k + 1]));
    }
    m->stack.n -= n + below;
    return OK;
}

static Status put_memo(Machine *m, uint64_t index)
{
    if (index > m->memo.n || m->stack.n == 0) return damaged(m, "its memo is not in order");
    Value top = m->stack.at[m->stack.n - 1];
    if (index < m->memo.n)
        m->memo.at[index] = top;
    else
        VEC_PUSH(&m->memo, top);
    return OK;
}

static Status get_memo(Machine *m, uint64_t index)
{
    if (index >= m->memo.n) return damaged(m, "it reads from its memo what is not there");
    return push(m, m->memo.at[index]);
}

/* ---- names ------------------------------------------------------------------------------ */

static Status push_named(Machine *m, const char *module, const char *name)
{
    for (int i = 0; i < COUNT_OF(knowns); i++)
        if (!strcmp(module, knowns[i].module) && !strcmp(name, knowns[i].name))
            return push(m, (Value){.kind = NAMED, .known = &knowns[i]});
    return fail(ERR_UNSUPPORTED,
                "%s asks for %.100s.%.100s: refused; drover reads dictionaries of tensors and "
                "executes nothing",
                m->what, module, name);
}

/* Up to a line's end, which goes. */
static Status take_line(Machine *m, char **out)
{
    const uint8_t *at = m->text.at + m->i, *end = memchr(at, '\n', m->text.n - m->i);
    void *copy = NULL;
    if (!end) return damaged(m, "a name has no end");
    size_t n = (size_t)(end - at);
    if (memchr(at, 0, n) || !utf8_valid(at, n)) return damaged(m, "a name is not UTF-8");
    TRY(allocate(m, n + 1, &copy));
    memcpy(copy, at, n);
    m->i += n + 1;
    *out = copy;
    return OK;
}

static Status global(Machine *m)
{
    char *module = NULL, *name = NULL;
    TRY(take_line(m, &module));
    TRY(take_line(m, &name));
    return push_named(m, module, name);
}

static Status stack_global(Machine *m)
{
    Value module = {0}, name = {0};
    TRY(pop(m, &name));
    TRY(pop(m, &module));
    if (module.kind != TEXT || name.kind != TEXT) return damaged(m, "a name is no text");
    return push_named(m, module.text, name.text);
}

/* ---- storages and tensors --------------------------------------------------------------- */

static bool is_known(const Value *v, What what)
{
    return v->kind == NAMED && v->known->what == what;
}

/* ("storage", type, key, location, elements) */
static Status push_storage(Machine *m)
{
    Value id = {0};
    void *room = NULL;
    TRY(pop(m, &id));
    const Value *v = id.item;
    bool good = id.kind == TUPLE && id.n == 5 && v[0].kind == TEXT &&
                !strcmp(v[0].text, "storage") && is_known(&v[1], STORAGE_TYPE) &&
                v[2].kind == TEXT && v[4].kind == INT && v[4].number >= 0;
    if (!good) return damaged(m, "a persistent id is no storage");
    TRY(allocate(m, sizeof(Storage), &room));
    *(Storage *)room = (Storage){
        .type = v[1].known, .key = v[2].text, .count = (uint64_t)v[4].number};
    return push(m, (Value){.kind = STORAGE, .storage = room});
}

static bool read_numbers(const Value *tuple, int64_t *out)
{
    if (tuple->kind != TUPLE || tuple->n > MAX_RANK) return false;
    for (uint32_t d = 0; d < tuple->n; d++) {
        if (tuple->item[d].kind != INT || tuple->item[d].number < 0) return false;
        out[d] = tuple->item[d].number;
    }
    return true;
}

/* (storage, first element, sizes, strides, requires_grad, hooks), and for v3 the type of the
 * elements. */
static Status push_tensor(Machine *m, const Value *args, bool v3)
{
    int64_t dims[MAX_RANK] = {0};
    void *room = NULL;
    const Value *v = args->item;
    bool good = args->n >= (v3 ? 7u : 6u) && v[0].kind == STORAGE && v[1].kind == INT &&
                v[1].number >= 0 && v[2].kind == TUPLE && v[3].kind == TUPLE && v[2].n == v[3].n &&
                (!v3 || is_known(&v[6], ELEMENT_TYPE));
    TRY(allocate(m, sizeof(PickleTensor), &room));
    PickleTensor *t = room;
    if (!good || !read_numbers(&v[2], dims) || !read_numbers(&v[3], t->stride))
        return damaged(m, "a tensor's description is none (at most 5 dimensions are accepted)");
    const Storage *s = v[0].storage;
    const Known *type = v3 ? v[6].known : s->type;
    t->shape = shape_make((int)v[2].n, dims, NULL);
    t->key = s->key;
    t->type_name = type->type_name;
    t->dtype = type->dtype;
    t->storage_count = s->count;
    t->storage_size = (uint64_t)s->type->bytes;
    t->first = (uint64_t)v[1].number;
    t->element_bytes = (uint64_t)type->bytes;
    return push(m, (Value){.kind = TENSOR, .tensor = t});
}

static Status reduce(Machine *m)
{
    Value args = {0}, function = {0};
    TRY(pop(m, &args));
    TRY(pop(m, &function));
    if (args.kind != TUPLE || function.kind != NAMED)
        return damaged(m, "it calls what is no function");
    switch (function.known->what) {
    case ORDERED_DICT:
        return args.n == 0 ? push_dict(m) : damaged(m, "an OrderedDict is made from something");
    case REBUILD_V2: return push_tensor(m, &args, false);
    case REBUILD_V3: return push_tensor(m, &args, true);
    case REBUILD_PARAMETER:
        if (args.n < 1 || args.item[0].kind != TENSOR)
            return damaged(m, "a parameter is no tensor");
        return push(m, args.item[0]);
    case STORAGE_TYPE:
    case ELEMENT_TYPE: break;
    }
    return damaged(m, "it calls a type");
}

/* The attributes of an OrderedDict: torch keeps version numbers there, which do not matter. */
static Status build(Machine *m)
{
    Value state = {0};
    TRY(pop(m, &state));
    if (m->stack.n && m->stack.at[m->stack.n - 1].kind == DICT && state.kind == DICT) return OK;
    return damaged(m, "it sets attributes of something");
}

/* ---- instructions ----------------------------------------------------------------------- */

static Status long_number(Machine *m)
{
    uint64_t length = 0, value = 0;
    const uint8_t *at = NULL;
    TRY(take_number(m, 1, &length));
    if (length > 8) return damaged(m, "a number is too large");
    TRY(take(m, (size_t)length, &at));
    for (uint64_t k = length; k-- > 0;) value = value << 8 | at[k];
    if (length && length < 8 && at[length - 1] & 0x80)
        value |= ~(uint64_t)0 << (8 * length); /* two's complement */
    return push_number(m, (int64_t)value);
}

static Status pop_value(Machine *m)
{
    if (m->stack.n == 0) return damaged(m, "it takes a value from an empty stack");
    m->stack.n--;
    return OK;
}

static Status marked_items(Machine *m)
{
    size_t n = 0;
    TRY(above_mark(m, &n));
    return set_items(m, n, 1);
}

/* One instruction; *done at STOP. NOLINT: a table of codes. */
static Status step(Machine *m, bool *done)
{
    const uint8_t *code = NULL;
    uint64_t n = 0;
    TRY(take(m, 1, &code));
    switch (*code) {
    case 0x80:
        TRY(take_number(m, 1, &n));
        return n <= 5 ? OK : damaged(m, "its protocol is unknown"); /* PROTO */
    case 0x95: return take_number(m, 8, &n);                        /* FRAME */
    case '.': *done = true; return OK;                              /* STOP */
    case '(': return push(m, (Value){.kind = MARK});
    case '0': return pop_value(m);
    case 'N': return push(m, (Value){.kind = NONE});
    case 0x88: return push(m, (Value){.kind = BOOL, .number = 1});
    case 0x89: return push(m, (Value){.kind = BOOL});
    case 'J': TRY(take_number(m, 4, &n)); return push_number(m, (int32_t)n);
    case 'K': TRY(take_number(m, 1, &n)); return push_number(m, (int64_t)n);
    case 'M': TRY(take_number(m, 2, &n)); return push_number(m, (int64_t)n);
    case 0x8a: return long_number(m);
    case 'X': TRY(take_number(m, 4, &n)); return push_text(m, n);
    case 0x8c: TRY(take_number(m, 1, &n)); return push_text(m, n);
    case ')': return push_tuple(m, 0);
    case 't': return push_marked_tuple(m);
    case 0x85: return push_tuple(m, 1);
    case 0x86: return push_tuple(m, 2);
    case 0x87: return push_tuple(m, 3);
    case '}': return push_dict(m);
    case 's': return set_items(m, 2, 0);
    case 'u': return marked_items(m);
    case 'q': TRY(take_number(m, 1, &n)); return put_memo(m, n);
    case 'r': TRY(take_number(m, 4, &n)); return put_memo(m, n);
    case 0x94: return put_memo(m, m->memo.n);
    case 'h': TRY(take_number(m, 1, &n)); return get_memo(m, n);
    case 'j': TRY(take_number(m, 4, &n)); return get_memo(m, n);
    case 'c': return global(m);
    case 0x93: return stack_global(m);
    case 'Q': return push_storage(m);
    case 'R': return reduce(m);
    case 'b': return build(m);
    default: break;
    }
    return fail(
        ERR_UNSUPPORTED,
        "%s: instruction 0x%02x at byte %zu of the pickle is none that tensors need: refused",
        m->what, *code, m->i - 1);
}

/* ---- the result ------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const PickleTensor *)a)->name, ((const PickleTensor *)b)->name);
}

static Status collect(Machine *m, Pickle *pickle)
{
    if (m->stack.n != 1 || m->stack.at[0].kind != DICT)
        return damaged(m, "it is no dictionary of tensors");
    const Dict *dict = m->stack.at[0].dict;
    pickle->tensor = ARENA_ARRAY(m->arena, PickleTensor, dict->n + 1);
    pickle->n = (int)dict->n;
    for (size_t i = 0; i < dict->n; i++) {
        const struct DictPair *p = &dict->pair[i];
        if (p->key.kind != TEXT || p->value.kind != TENSOR)
            return fail(ERR_UNSUPPORTED,
                        "%s: %.200s is no tensor; a dictionary of tensors is needed", m->what,
                        p->key.kind == TEXT ? p->key.text : "a key");
        pickle->tensor[i] = *p->value.tensor;
        pickle->tensor[i].name = p->key.text;
    }
    if (pickle->n) qsort(pickle->tensor, (size_t)pickle->n, sizeof *pickle->tensor, by_name);
    for (int i = 1; i < pickle->n; i++)
        if (!strcmp(pickle->tensor[i - 1].name, pickle->tensor[i].name))
            return fail(ERR_FORMAT, "%s: tensor %s is there twice", m->what,
                        pickle->tensor[i].name);
    return OK;
}

Status pickle_read(Arena *arena, const char *what, Bytes text, Pickle *pickle)
{
    Machine m = {.arena = arena, .what = what, .text = text};
    if (text.n > PICKLE_MAX_BYTES)
        return fail(ERR_FORMAT, "%s has a pickle of %zu bytes; at most %d are accepted", what,
                    text.n, PICKLE_MAX_BYTES);
    m.budget = text.n * BYTES_PER_BYTE + EXTRA_BYTES;
    bool done = false;
    Status status = OK;
    while (status == OK && !done) status = step(&m, &done);
    if (status == OK) status = collect(&m, pickle);
    VEC_FREE(&m.stack);
    VEC_FREE(&m.memo);
    return status;
}
