/* tests/unit/test_prefix_cache.c - daemon/prefix_cache: what is found, who owns pages, and that none is ever lost. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/prefix_cache.h"

enum { PAGES = 16, ROWS = 4 };

struct fixture {
    struct wn_kvpool *pool;
    struct wn_prefix_cache *c;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_int_equal(wn_kvpool_create(&f->pool, PAGES, NULL), WN_OK);
    assert_int_equal(wn_prefix_cache_create(&f->c, f->pool, NULL), WN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    struct wn_prefix_stats s;
    wn_prefix_stats(f->c, &s);
    assert_int_equal(s.used, 0); /* every test gives back what it took */
    wn_prefix_cache_destroy(f->c);
    wn_kvpool_destroy(f->pool);
    free(f);
    return 0;
}

static uint32_t shift; /* of rotary positions */

/* Keys of the pages of a prompt: `text` has ROWS characters a page; a capital letter is a row of image 'hash'. */
static uint32_t keys_of(const char *text, const uint8_t *hash, struct wn_prefix_key *keys)
{
    uint32_t n = (uint32_t)strlen(text) / ROWS;
    for (uint32_t p = 0; p < n; p++) {
        struct wn_prefix_row rows[ROWS];
        for (int i = 0; i < ROWS; i++) {
            const char ch = text[p * ROWS + (uint32_t)i];
            rows[i] = (struct wn_prefix_row){.id = (uint32_t)ch,
                                             .image = ch >= 'A' && ch <= 'Z' ? hash : NULL,
                                             .position = p * ROWS + (uint32_t)i + shift};
        }
        wn_prefix_key(p ? &keys[p - 1] : NULL, rows, ROWS, &keys[p]);
    }
    return n;
}

/* Takes and publishes the pages of a prompt, and lets them go. */
static void compute(struct fixture *f, const char *text, const uint8_t *hash)
{
    struct wn_prefix_key keys[PAGES] = {0};
    uint32_t pages[PAGES];
    const uint32_t n = keys_of(text, hash, keys), found = wn_prefix_match(f->c, keys, n, pages);
    assert_int_equal(wn_prefix_take(f->c, pages + found, n - found), WN_OK);
    for (uint32_t i = found; i < n; i++) wn_prefix_publish(f->c, pages[i], &keys[i]);
    wn_prefix_release(f->c, pages, n);
}

static uint32_t found_of(struct fixture *f, const char *text, const uint8_t *hash)
{
    struct wn_prefix_key keys[PAGES] = {0};
    uint32_t pages[PAGES];
    const uint32_t found = wn_prefix_match(f->c, keys, keys_of(text, hash, keys), pages);
    wn_prefix_release(f->c, pages, found);
    return found;
}

static const uint8_t one[32] = {1}, two[32] = {2};

static void test_longest_prefix(void **state)
{
    struct fixture *f = *state;
    struct wn_prefix_stats s;
    assert_int_equal(found_of(f, "aaaabbbb", one), 0);
    compute(f, "aaaabbbbcccc", one);
    assert_int_equal(found_of(f, "aaaabbbbcccc", one), 3);
    assert_int_equal(found_of(f, "aaaabbbbdddd", one), 2);
    assert_int_equal(found_of(f, "aaaaBbbbcccc", one), 1);
    assert_int_equal(found_of(f, "bbbbcccc", one), 0); /* the same rows at another place are other pages */
    wn_prefix_stats(f->c, &s);
    assert_int_equal(s.queries, 2 + 3 + 3 + 3 + 3 + 2);
    assert_int_equal(s.hits, 3 + 2 + 1);
}

static void test_images_by_content(void **state)
{
    struct fixture *f = *state;
    compute(f, "aaAABBBB", one);
    assert_int_equal(found_of(f, "aaAABBBB", one), 2);
    assert_int_equal(found_of(f, "aaAABBBB", two), 0); /* other features: another budget, method or picture */
    assert_int_equal(found_of(f, "aaAAbbbb", one), 1);
    shift = 1; /* the same rows at other positions are turned otherwise */
    assert_int_equal(found_of(f, "aaAABBBB", one), 0);
    shift = 0;
}

static void test_shared_while_used(void **state)
{
    struct fixture *f = *state;
    struct wn_prefix_key keys[PAGES] = {0};
    struct wn_prefix_stats s;
    uint32_t a[PAGES], b[PAGES];
    const uint32_t n = keys_of("aaaabbbb", one, keys);

    compute(f, "aaaabbbb", one);
    assert_int_equal(wn_prefix_match(f->c, keys, n, a), n);
    assert_int_equal(wn_prefix_match(f->c, keys, n, b), n);
    assert_memory_equal(a, b, n * sizeof(*a));
    wn_prefix_stats(f->c, &s);
    assert_int_equal(s.used, 2);
    assert_int_equal(wn_prefix_take(f->c, b + n, PAGES - 1), WN_EBUSY); /* pages in use are not taken away */
    wn_prefix_release(f->c, a, n);
    wn_prefix_release(f->c, b, n);
    assert_int_equal(wn_prefix_take(f->c, b, PAGES), WN_OK); /* unused ones are */
    assert_int_equal(found_of(f, "aaaabbbb", one), 0);
    wn_prefix_release(f->c, b, PAGES);
    assert_int_equal(wn_kvpool_free_n(f->pool), PAGES);
}

static void test_oldest_is_forgotten_first(void **state)
{
    struct fixture *f = *state;
    uint32_t pages[PAGES];

    compute(f, "aaaabbbbcccc", one);
    compute(f, "xxxxyyyy", one);
    assert_int_equal(found_of(f, "aaaabbbbcccc", one), 3); /* now x, y are older */
    assert_int_equal(wn_prefix_take(f->c, pages, PAGES - 5 + 2), WN_OK);
    assert_int_equal(found_of(f, "xxxxyyyy", one), 0);
    assert_int_equal(found_of(f, "aaaabbbbcccc", one), 3);
    wn_prefix_release(f->c, pages, PAGES - 5 + 2);
    assert_int_equal(wn_prefix_take(f->c, pages, PAGES - 3 + 1), WN_OK);
    assert_int_equal(found_of(f, "aaaabbbbcccc", one), 2); /* the end of a prefix goes before its beginning */
    wn_prefix_release(f->c, pages, PAGES - 3 + 1);
}

static void test_two_make_the_same(void **state)
{
    struct fixture *f = *state;
    struct wn_prefix_key keys[PAGES] = {0};
    uint32_t a[PAGES], b[PAGES];
    const uint32_t n = keys_of("aaaabbbb", one, keys);

    assert_int_equal(wn_prefix_take(f->c, a, n), WN_OK);
    assert_int_equal(wn_prefix_take(f->c, b, n), WN_OK);
    for (uint32_t i = 0; i < n; i++) wn_prefix_publish(f->c, a[i], &keys[i]);
    for (uint32_t i = 0; i < n; i++) wn_prefix_publish(f->c, b[i], &keys[i]); /* too late: stays private */
    wn_prefix_release(f->c, b, n);
    assert_int_equal(wn_kvpool_free_n(f->pool), PAGES - n);
    wn_prefix_release(f->c, a, n);
    assert_int_equal(found_of(f, "aaaabbbb", one), 2);
}

/* The first rows of a page that its user fills: found until the page is forgotten, and never lent. */
static void test_heads(void **state)
{
    struct fixture *f = *state;
    const struct wn_prefix_row rows[ROWS] = {{.id = 7}, {.id = 8}, {.id = 9}, {.id = 10}};
    struct wn_prefix_key whole, head, shorter;
    struct wn_prefix_stats s;
    uint32_t pages[PAGES], p;

    wn_prefix_key(NULL, rows, ROWS, &whole);
    wn_prefix_key(NULL, rows, 3, &head);
    wn_prefix_key(NULL, rows, 2, &shorter);
    assert_int_equal(wn_prefix_take(f->c, pages, 1), WN_OK);
    assert_false(wn_prefix_find_head(f->c, &head, &p));
    wn_prefix_publish_head(f->c, pages[0], &head);
    wn_prefix_publish(f->c, pages[0], &whole);
    wn_prefix_stats(f->c, &s);
    assert_int_equal(s.cached, 1);
    for (int used = 1; used >= 0; used--) { /* while it is used, and afterwards */
        assert_true(wn_prefix_find_head(f->c, &head, &p));
        assert_int_equal(p, pages[0]);
        assert_false(wn_prefix_find_head(f->c, &shorter, &p));
        wn_prefix_stats(f->c, &s);
        assert_int_equal(s.used, used);
        if (used) wn_prefix_release(f->c, pages, 1);
    }
    compute(f, "aaaabbbb", one); /* newer, until the head is asked for */
    assert_true(wn_prefix_find_head(f->c, &head, &p));
    assert_int_equal(wn_prefix_take(f->c, pages, PAGES - 1), WN_OK);
    assert_int_equal(found_of(f, "aaaa", one), 0);
    assert_true(wn_prefix_find_head(f->c, &head, &p));
    wn_prefix_release(f->c, pages, PAGES - 1);
    assert_int_equal(wn_prefix_match(f->c, &whole, 1, pages), 1);
    assert_int_equal(pages[0], p);
    wn_prefix_release(f->c, pages, 1);
    assert_int_equal(wn_prefix_take(f->c, pages, PAGES), WN_OK);
    assert_false(wn_prefix_find_head(f->c, &head, &p)); /* both keys went with the page */
    assert_int_equal(wn_prefix_match(f->c, &whole, 1, &p), 0);
    wn_prefix_release(f->c, pages, PAGES);
    wn_prefix_stats(f->c, &s);
    assert_int_equal(s.cached, 0);
}

/* Random jobs over a few prompts: used + unused + free is always the whole, and all are free or cached at the end. */
static void test_accounts(void **state)
{
    static const char *const prompts[] = {"aaaabbbbcccc", "aaaabbbbdddd", "AAAABBBBcccc", "xxxxyyyyzzzzwwww", "aaaa"};
    struct fixture *f = *state;
    struct {
        uint32_t pages[PAGES], n;
    } jobs[4] = {0};
    struct wn_prefix_stats s;
    uint32_t seed = 1;

    for (int turn = 0; turn < 20000; turn++) {
        struct wn_prefix_key keys[PAGES] = {0};
        uint32_t n, found, j, extra;
        seed = seed * 1664525u + 1013904223u;
        j = seed >> 30;
        if (jobs[j].n) {
            wn_prefix_release(f->c, jobs[j].pages, jobs[j].n);
            jobs[j].n = 0;
            continue;
        }
        n = keys_of(prompts[(seed >> 8) % 5], (seed >> 16) & 1 ? one : two, keys);
        extra = (seed >> 20) & 3;
        found = wn_prefix_match(f->c, keys, n, jobs[j].pages);
        if (wn_prefix_take(f->c, jobs[j].pages + found, n - found + extra) != WN_OK) {
            wn_prefix_release(f->c, jobs[j].pages, found);
            continue;
        }
        for (uint32_t i = found; i < n; i++) wn_prefix_publish(f->c, jobs[j].pages[i], &keys[i]);
        if (n) keys[n - 1].bytes[31] ^= 1; /* what a head of the next page could have */
        if (extra) wn_prefix_publish_head(f->c, jobs[j].pages[n], &keys[n - 1]);
        jobs[j].n = n + extra;
    }
    for (int j = 0; j < 4; j++) wn_prefix_release(f->c, jobs[j].pages, jobs[j].n);
    wn_prefix_stats(f->c, &s);
    assert_int_equal(wn_kvpool_free_n(f->pool) + s.cached, PAGES);
    assert_true(s.hits > 1000 && s.evicted > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_longest_prefix, setup, teardown),
        cmocka_unit_test_setup_teardown(test_images_by_content, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shared_while_used, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oldest_is_forgotten_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_make_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(test_heads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_accounts, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
