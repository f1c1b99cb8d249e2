/* tests/unit/test_kvpool.c - which pages are lent, in order and at random. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "shard/kvpool.h"

static void test_take_all_and_give(void **state)
{
    struct wn_kvpool *pool = NULL;
    uint32_t pages[7], more;
    uint32_t seen = 0;
    (void)state;

    assert_int_equal(wn_kvpool_create(&pool, 7, NULL), WN_OK);
    assert_int_equal(wn_kvpool_pages_n(pool), 7);
    assert_int_equal(wn_kvpool_free_n(pool), 7);
    assert_int_equal(wn_kvpool_take(pool, pages, 3), WN_OK);
    assert_int_equal(wn_kvpool_free_n(pool), 4);
    assert_int_equal(wn_kvpool_take(pool, pages + 3, 5), WN_EBUSY); /* all or none */
    assert_int_equal(wn_kvpool_free_n(pool), 4);
    assert_int_equal(wn_kvpool_take(pool, pages + 3, 4), WN_OK);
    for (int i = 0; i < 7; i++) {
        assert_true(pages[i] < 7);
        seen |= 1u << pages[i];
    }
    assert_int_equal(seen, 0x7f); /* each page once */
    assert_int_equal(wn_kvpool_take(pool, &more, 1), WN_EBUSY);
    assert_int_equal(wn_kvpool_take(pool, NULL, 0), WN_OK);
    wn_kvpool_give(pool, pages, 7);
    assert_int_equal(wn_kvpool_free_n(pool), 7);
    wn_kvpool_destroy(pool);
    wn_kvpool_destroy(NULL);
}

/* Random takes and gives against a plain model: no page is lent twice, none is lost. */
static void test_random_traffic(void **state)
{
    enum { PAGES = 97 };
    struct wn_kvpool *pool = NULL;
    uint32_t held[PAGES], held_n = 0, seed = 1;
    unsigned char lent[PAGES] = {0};
    (void)state;

    assert_int_equal(wn_kvpool_create(&pool, PAGES, NULL), WN_OK);
    for (int round = 0; round < 20000; round++) {
        uint32_t n;
        seed = seed * 1664525u + 1013904223u;
        n = (seed >> 20) % 12;
        if (seed >> 31) {
            uint32_t got[12];
            wn_status rc = wn_kvpool_take(pool, got, n);
            assert_int_equal(rc, n <= PAGES - held_n ? WN_OK : WN_EBUSY);
            for (uint32_t i = 0; rc == WN_OK && i < n; i++) {
                assert_true(got[i] < PAGES && !lent[got[i]]);
                lent[got[i]] = 1;
                held[held_n++] = got[i];
            }
        } else {
            if (n > held_n) n = held_n;
            held_n -= n;
            for (uint32_t i = 0; i < n; i++) lent[held[held_n + i]] = 0;
            wn_kvpool_give(pool, held + held_n, n);
        }
        assert_int_equal(wn_kvpool_free_n(pool), PAGES - held_n);
    }
    wn_kvpool_destroy(pool);
}

static void test_need(void **state)
{
    (void)state;
    assert_int_equal(wn_kvpool_need(0, 16), 0);
    assert_int_equal(wn_kvpool_need(1, 16), 1);
    assert_int_equal(wn_kvpool_need(16, 16), 1);
    assert_int_equal(wn_kvpool_need(17, 16), 2);
    assert_int_equal(wn_kvpool_need(UINT32_MAX, 1), UINT32_MAX);
    assert_int_equal(wn_kvpool_need(UINT32_MAX, 16), 1u << 28);
}

static void test_empty_pool(void **state)
{
    struct wn_kvpool *pool = NULL;
    uint32_t page;
    (void)state;

    assert_int_equal(wn_kvpool_create(&pool, 0, NULL), WN_OK);
    assert_int_equal(wn_kvpool_take(pool, &page, 1), WN_EBUSY);
    wn_kvpool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_all_and_give),
        cmocka_unit_test(test_random_traffic),
        cmocka_unit_test(test_need),
        cmocka_unit_test(test_empty_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
