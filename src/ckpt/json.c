/* jansson, strictly. */
#include "ckpt/ckpt_internal.h"

/* jansson's parser recurses, once for each level, up to 2,048 of them by itself; nothing of ours is
 * more than a few levels deep, so a text that goes further is refused before it is parsed. */
enum { MAX_DEPTH = 64 };

Status json_parse_object(const char *text, size_t n, const char *what, json_t **out)
{
    if (json_is_deeper(text, n, MAX_DEPTH))
        return fail(ERR_FORMAT, "%s: JSON more than %d levels deep", what, MAX_DEPTH);
    json_error_t error;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!root) return fail(ERR_FORMAT, "%s: line %d: %s", what, error.line, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return fail(ERR_FORMAT, "%s: not a JSON object", what);
    }
    *out = root;
    return OK;
}
