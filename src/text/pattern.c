/* Pre-tokenizer patterns other than the published ones: PCRE2 with its compiler to machine code. */
#include "text/text_internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    MATCH_LIMIT = 1000 * 1000, /* steps of one match: a sane pattern takes a few dozen */
    HEAP_LIMIT_KIB = 64 << 10,
    JIT_STACK_START = 32 << 10,
    JIT_STACK_MAX = 1 << 20,
};

Status pattern_compile(const char *pattern, const char *where, void **regex)
{
    size_t n = strlen(pattern);
    if (n == 0 || n > MAX_PATTERN_BYTES)
        return fail(ERR_FORMAT, "%s: a pre-tokenizer pattern of %zu bytes; 1 to %d are allowed",
                    where, n, MAX_PATTERN_BYTES);
    int error;
    PCRE2_SIZE at;
    /* \C would cut characters in two, which the split must not. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, n, options, &error, &at, NULL);
    if (!code) {
        PCRE2_UCHAR reason[128];
        pcre2_get_error_message(error, reason, sizeof reason);
        return fail(ERR_FORMAT, "%s: the pre-tokenizer pattern is wrong at its byte %zu: %s", where,
                    at, (const char *)reason);
    }
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without it pcre2_match interprets */
    *regex = code;
    return OK;
}

void pattern_free(void *regex) { pcre2_code_free(regex); }

void matcher_init(Matcher *m, const void *regex)
{
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    m->data = pcre2_match_data_create_from_pattern(regex, NULL);
    m->jit_stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
    m->context = context;
    CHECK(context && m->data && m->jit_stack);
    pcre2_set_match_limit(context, MATCH_LIMIT);
    pcre2_set_heap_limit(context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(context, NULL, m->jit_stack);
}

void matcher_deinit(Matcher *m)
{
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->jit_stack);
    *m = (Matcher){0};
}

/* The piece that begins at pos: a match there, or else what lies before the next match, since text
 * between matches is a piece too (Hugging Face's "Isolated"). */
Status matcher_split(Matcher *m, const void *regex, Bytes text, size_t pos, size_t *end)
{
    uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int found = pcre2_match(regex, text.at, text.n, pos, options, m->data, m->context);
    if (found == PCRE2_ERROR_NOMATCH) {
        *end = text.n;
        return OK;
    }
    if (found < 0) {
        PCRE2_UCHAR reason[128];
        pcre2_get_error_message(found, reason, sizeof reason);
        return fail(ERR_REFUSED, "the tokenizer's pattern gave up at byte %zu of the text: %s", pos,
                    (const char *)reason);
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(m->data);
    *end = span[0] > pos ? span[0] : span[1];
    if (*end <= pos) *end = text.n; /* \K can put the start behind the end */
    return OK;
}
