/* tests/unit/test_mates.c - daemon/mates: who goes into the next step, and that mates find each other. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "daemon/mates.h"

enum { SEQS = 32, PAGES = 8, DEPTH = 3, SHARE = 11 };

/* Pages as letters, those that fly in capitals; chosen comes back as the letters of who was. */
static const char *chosen_of(const char *all, const char *passed, uint32_t share, bool may_wait)
{
    static char out[SEQS + 1];
    struct wn_mate m[SEQS];
    uint32_t order[SEQS], n = (uint32_t)strlen(all), k = 0;

    for (uint32_t i = 0; i < n; i++)
        m[i] = (struct wn_mate){.page = (uint32_t)all[i] | 32, .ready = all[i] >= 'a', .passed = passed[i] == '1'};
    wn_mates_choose(m, n, order, share, may_wait);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(m[i].ready || !m[i].chosen);
        if (m[i].chosen) out[k++] = all[i];
    }
    out[k] = '\0';
    return out;
}

static void test_chosen(void **state)
{
    (void)state;
    assert_string_equal(chosen_of("abc", "000", 3, false), "abc");
    assert_string_equal(chosen_of("aBc", "000", 3, false), "ac");
    assert_string_equal(chosen_of("", "", 3, true), "");
    /* whole groups first, the oldest before others; then whoever there is room for */
    assert_string_equal(chosen_of("abab", "0000", 2, false), "aa");
    assert_string_equal(chosen_of("abbcc", "00000", 3, false), "abb");
    assert_string_equal(chosen_of("aaabb", "00000", 2, false), "bb");
    assert_string_equal(chosen_of("aaabbb", "000000", 2, false), "aa");
    assert_string_equal(chosen_of("babab", "00000", 2, false), "aa"); /* the oldest one's group is as large as any */
    /* one whose mates are elsewhere waits, but only once, and not for a single mate */
    assert_string_equal(chosen_of("abbBAA", "000000", 3, true), "bb");
    assert_string_equal(chosen_of("abbBAA", "000000", 3, false), "abb");
    assert_string_equal(chosen_of("abbBAA", "100000", 3, true), "abb");
    assert_string_equal(chosen_of("abbA", "0000", 3, true), "abb");
    assert_string_equal(chosen_of("abcdAABBCCDD", "000000000000", 4, true), "abc");
    /* who was passed takes its mates along, and goes first even where there is no room for them */
    assert_string_equal(chosen_of("aabb", "0001", 2, false), "bb");
    assert_string_equal(chosen_of("aaabb", "00101", 1, false), "a");
}

/* Jobs about a few pictures come in turn, and end after as many tokens as their picture has. */
static void test_mates_find_each_other(void **state)
{
    struct {
        uint32_t page, left, passed, flight; /* 0: ready */
    } seqs[SEQS];
    uint32_t next = 0, groups = 0, rows = 0, steps = 0, longest = 0;
    (void)state;

    for (uint32_t i = 0; i < SEQS; i++, next++) {
        seqs[i].page = next % PAGES;
        seqs[i].left = 40 + seqs[i].page * 3;
        seqs[i].passed = seqs[i].flight = 0;
    }
    for (uint32_t step = 1; step < 2000; step++) {
        struct wn_mate m[SEQS];
        uint32_t order[SEQS], in_step = 0;
        bool seen[PAGES] = {false};
        for (uint32_t i = 0; i < SEQS; i++) { /* the step that lands: its jobs end, and others take their places */
            if (seqs[i].flight != 0 && seqs[i].flight + DEPTH == step) {
                seqs[i].flight = 0;
                if (--seqs[i].left == 0) {
                    seqs[i].page = next++ % PAGES;
                    seqs[i].left = 40 + seqs[i].page * 3;
                }
            }
            m[i] = (struct wn_mate){.page = seqs[i].page, .passed = seqs[i].passed, .ready = seqs[i].flight == 0};
        }
        wn_mates_choose(m, SEQS, order, SHARE, step > DEPTH);
        for (uint32_t i = 0; i < SEQS; i++) {
            if (!m[i].ready) continue;
            seqs[i].passed = m[i].chosen ? 0 : seqs[i].passed + 1;
            if (seqs[i].passed > longest) longest = seqs[i].passed;
            if (!m[i].chosen) continue;
            seqs[i].flight = step;
            groups += !seen[m[i].page];
            seen[m[i].page] = true;
            in_step++;
        }
        assert_true(in_step <= SHARE && in_step > 0);
        rows += in_step;
        steps++;
    }
    assert_true(longest <= DEPTH);
    assert_true(10 * rows > 25 * groups); /* by age alone it is 1.6 in a group */
    assert_true(10 * rows > 101 * steps); /* of 10.7 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chosen),
        cmocka_unit_test(test_mates_find_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
