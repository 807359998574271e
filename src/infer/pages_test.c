/* Pages against a model: sequences are arrays of what was written at each position, pages arrays of
 * rows. Whatever is done, a sequence reads what it wrote, and what nobody has is free. */
#include "infer/pages.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

enum { PAGES = 24, TOKENS = 16, WIDTH = 12, CONTEXT = WIDTH * TOKENS, SEQUENCES = 6 };

typedef struct World {
    PagePool *pool;
    int32_t row[PAGES][TOKENS]; /* what lies in the pages */
    struct Sequence {
        PageTable table;
        int64_t length, seen; /* seen: positions before it are not read again */
        int32_t said[CONTEXT];
    } at[SEQUENCES];
    int32_t next;
    int copies, refused;
} World;

static void check(const World *w)
{
    bool out[PAGES] = {false};
    int64_t n = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        const struct Sequence *q = &w->at[s];
        for (int64_t i = q->seen; i < q->length; i++) {
            assert_true(i / TOKENS >= q->table.first && i / TOKENS < q->table.end);
            assert_int_equal(w->row[q->table.page[i / TOKENS]][i % TOKENS], q->said[i]);
        }
        for (int64_t i = 0; i < WIDTH; i++) {
            int32_t page = q->table.page[i];
            assert_int_equal(page >= 0, i >= q->table.first && i < q->table.end);
            if (page < 0 || out[page]) continue;
            out[page] = true;
            n++;
        }
    }
    assert_int_equal(page_pool_free(w->pool),
                     PAGES - n); /* nothing is lost, nothing is free twice */
}

static void append(World *w, struct Sequence *q, int64_t n)
{
    int32_t copy;
    n = min_i64(n, CONTEXT - q->length);
    if (n < 1) return;
    int64_t wants = page_table_wants(w->pool, &q->table, q->length, q->length + n);
    wants += page_table_users(w->pool, &q->table, q->length) > 1;
    bool fits = wants <= page_pool_free(w->pool);
    Status status = page_table_extend(w->pool, &q->table, q->length, q->length + n, &copy);
    assert_int_equal(status, fits ? OK : ERR_REFUSED);
    w->refused += !fits;
    if (!fits) return;
    int32_t page = q->table.page[q->length / TOKENS];
    w->copies += copy >= 0;
    for (int64_t i = 0; copy >= 0 && i < q->length % TOKENS; i++) w->row[page][i] = w->row[copy][i];
    for (int64_t i = 0; i < n; i++, q->length++) {
        page = q->table.page[q->length / TOKENS];
        q->said[q->length] = w->row[page][q->length % TOKENS] = w->next++;
    }
}

static void cut(World *w, struct Sequence *q, int64_t length)
{
    page_table_cut(w->pool, &q->table, length);
    q->length = min_i64(q->length, length);
    if (q->length == 0) q->seen = 0;
}

static void share(World *w, struct Sequence *to, const struct Sequence *from, int64_t length)
{
    if (to == from) return;
    cut(w, to, 0);
    page_table_share(w->pool, &to->table, &from->table, length);
    to->length = length;
    to->seen = from->seen;
    memcpy(to->said, from->said, sizeof to->said);
}

/* Lengths from the part that is still read on: what was dropped cannot be gone back to. */
static void step(World *w, uint64_t seed, uint64_t i)
{
    struct Sequence *q = &w->at[rng_below(seed, 4 * i, SEQUENCES)];
    struct Sequence *other = &w->at[rng_below(seed, 4 * i + 1, SEQUENCES)];
    int64_t kept = q->length - q->seen;
    uint64_t what = rng_below(seed, 4 * i + 2, 10), any = rng_below(seed, 4 * i + 3, 1 << 20);
    if (what < 5) append(w, q, 1 + (int64_t)(any % 40));
    if (what == 5) cut(w, q, q->seen + (int64_t)(any % (uint64_t)(kept + 1)));
    if (what == 6) cut(w, q, 0);
    if (what == 7 && kept > 0) {
        q->seen += (int64_t)(any % (uint64_t)kept);
        page_table_drop(w->pool, &q->table, q->seen);
    }
    if (what > 7) share(w, other, q, q->seen + (int64_t)(any % (uint64_t)(kept + 1)));
    check(w);
}

static void test_random(void **state)
{
    (void)state;
    int copies = 0, refused = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        World w = {.pool = page_pool_create(PAGES, TOKENS)};
        for (int s = 0; s < SEQUENCES; s++) w.at[s].table = page_table_make(WIDTH);
        for (uint64_t i = 0; i < 1000; i++) step(&w, seed, i);
        for (int s = 0; s < SEQUENCES; s++) {
            cut(&w, &w.at[s], 0);
            page_table_deinit(&w.at[s].table);
        }
        assert_int_equal(page_pool_free(w.pool), PAGES);
        assert_true(page_pool_most(w.pool) <= PAGES);
        copies += w.copies;
        refused += w.refused;
        page_pool_destroy(w.pool);
    }
    assert_true(copies > 100 && refused > 100);
}

/* The last of those who share a page writes to it; nobody copies at the end of a page. */
static void test_sharing(void **state)
{
    (void)state;
    PagePool *pool = page_pool_create(8, TOKENS);
    PageTable a = page_table_make(4), b = page_table_make(4), c = page_table_make(4);
    int32_t copy;
    assert_int_equal(page_table_extend(pool, &a, 0, 20, &copy), OK);
    assert_int_equal(copy, -1);
    page_table_share(pool, &b, &a, 20);
    page_table_share(pool, &c, &a, 16);
    assert_int_equal(page_pool_free(pool), 6);
    assert_int_equal(page_table_users(pool, &a, 3), 3);
    assert_int_equal(page_table_extend(pool, &b, 20, 21, &copy), OK);
    assert_int_equal(copy, a.page[1]);
    assert_int_not_equal(b.page[1], a.page[1]);
    assert_int_equal(page_table_extend(pool, &a, 20, 21, &copy), OK);
    assert_int_equal(copy, -1);
    assert_int_equal(page_table_extend(pool, &c, 16, 17, &copy), OK);
    assert_int_equal(copy, -1);
    assert_int_equal(page_pool_free(pool), 4);
    page_table_drop(pool, &a, 16);
    assert_int_equal(page_pool_free(pool), 4); /* others read it */
    page_table_cut(pool, &a, 0);
    assert_int_equal(page_pool_free(pool), 5);
    page_table_cut(pool, &b, 0);
    page_table_cut(pool, &c, 0);
    assert_int_equal(page_pool_free(pool), 8);
    assert_int_equal(page_table_extend(pool, &a, 0, 64, &copy), OK);
    assert_int_equal(page_table_extend(pool, &b, 0, 64, &copy), OK);
    assert_int_equal(page_table_extend(pool, &c, 0, 1, &copy), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "0 of 8 are free"));
    assert_int_equal(page_pool_most(pool), 8);
    page_table_deinit(&a);
    page_table_deinit(&b);
    page_table_deinit(&c);
    page_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sharing),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
