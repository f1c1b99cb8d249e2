/* tests/unit/test_bench.c - arrivals, order, quantiles, objectives and the report of `winnow bench serve`. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/bench.h"

#define N 20000

static bool near(double a, double b, double by)
{
    return fabs(a - b) <= by;
}

static void test_poisson_arrivals(void **state)
{
    double *at = malloc(N * sizeof(*at)), *again = malloc(N * sizeof(*at)), sum = 0, squares = 0;
    int over = 0;
    struct bench_rng r = {7};
    (void)state;

    bench_arrivals(at, N, 5, &r);
    assert_true(at[0] == 0);
    for (int i = 1; i < N; i++) {
        const double gap = at[i] - at[i - 1];
        assert_true(gap >= 0);
        sum += gap;
        squares += gap * gap;
        over += gap > 0.2;
    }
    /* an exponential gap of mean 0.2: variance 0.04, and a share 1/e above the mean; within 5 standard errors */
    assert_true(near(sum / (N - 1), 0.2, 5 * 0.2 / sqrt(N)));
    assert_true(near(squares / (N - 1) - 0.04, 0.04, 5 * 0.04 * sqrt(8.0 / N)));
    assert_true(near((double)over / (N - 1), exp(-1), 5 * sqrt(exp(-1) * (1 - exp(-1)) / N)));
    r.state = 7;
    bench_arrivals(again, N, 5, &r);
    assert_memory_equal(at, again, N * sizeof(*at)); /* the same seed */
    r.state = 8;
    bench_arrivals(again, N, 5, &r);
    assert_memory_not_equal(at, again, N * sizeof(*at));
    bench_arrivals(at, N, 0, &r); /* no rate: all at once */
    assert_true(at[N - 1] == 0);
    free(at);
    free(again);
}

static void test_shuffle(void **state)
{
    uint32_t order[100], seen[100] = {0}, moved = 0;
    struct bench_rng r = {1};
    (void)state;

    bench_shuffle(order, 100, &r);
    for (uint32_t i = 0; i < 100; i++) {
        assert_true(order[i] < 100);
        assert_int_equal(seen[order[i]]++, 0);
        moved += order[i] != i;
    }
    assert_true(moved > 80);
}

static void test_percentiles(void **state)
{
    struct bench_series s = {0};
    (void)state;

    assert_true(bench_percentile(&s, 50) == 0 && bench_mean(&s) == 0);
    for (int i = 0; i < 1000; i++) assert_int_equal(bench_series_add(&s, (i * 7 + 3) % 1000, NULL), WN_OK);
    bench_series_sort(&s);
    assert_true(near(bench_percentile(&s, 0), 0, 1e-9));
    assert_true(near(bench_percentile(&s, 50), 499.5, 1e-9));
    assert_true(near(bench_percentile(&s, 95), 949.05, 1e-9));
    assert_true(near(bench_percentile(&s, 99), 989.01, 1e-9));
    assert_true(near(bench_percentile(&s, 100), 999, 1e-9));
    assert_true(near(bench_mean(&s), 499.5, 1e-9));
    bench_series_fini(&s);
    assert_int_equal(bench_series_add(&s, 3, NULL), WN_OK);
    assert_true(bench_percentile(&s, 1) == 3 && bench_percentile(&s, 99) == 3);
    bench_series_fini(&s);
}

static void test_objectives(void **state)
{
    static const char *const bad[] = {"",        "ttft",    "ttft:",   "ttft:x", "ttft:0",
                                      "ttft:-1", "ttft:1x", "ttft:1,", "foo:1",  "ttft:inf"};
    struct bench_slo slo = {0};
    (void)state;

    assert_true(bench_slo_met(&slo, 1e9, 1e9, 1e9));
    assert_true(bench_slo_parse(&slo, "ttft:500,e2e:3000"));
    assert_true(bench_slo_parse(&slo, "tpot:12.5"));
    assert_true(near(slo.ttft_ms, 500, 0) && near(slo.tpot_ms, 12.5, 0) && near(slo.e2e_ms, 3000, 0));
    assert_true(bench_slo_met(&slo, 0.5, 0.0125, 3));
    assert_false(bench_slo_met(&slo, 0.501, 0, 3));
    assert_false(bench_slo_met(&slo, 0.5, 0.0126, 3));
    assert_false(bench_slo_met(&slo, 0.5, 0, 3.001));
    assert_true(bench_slo_parse(&slo, "e2el:1000"));
    assert_false(bench_slo_met(&slo, 0.5, 0, 1.5));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (bench_slo_parse(&slo, bad[i])) fail_msg("'%s' was taken", bad[i]);
}

static int commas(const char *line)
{
    int n = 0;
    bool quoted = false;

    for (; *line; line++) {
        quoted ^= *line == '"';
        n += *line == ',' && !quoted;
    }
    return n;
}

static void test_report(void **state)
{
    char csv[] = "/tmp/winnow-test-bench-XXXXXX", png[64], head[2048], row[2048], sign[4];
    struct bench_report r = {.model = "a \"b\", c",
                             .dataset = "d",
                             .pruning = "cls-topk:64",
                             .rate = 2,
                             .prompts = 4,
                             .done = 3,
                             .failed = 1,
                             .good = 2,
                             .duration_s = 2,
                             .answer_tokens = 30,
                             .slo = {.ttft_ms = 100}};
    const int fd = mkstemp(csv);
    FILE *f;
    (void)state;

    assert_true(fd >= 0);
    close(fd);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(bench_series_add(&r.ttft, i * 0.05, NULL), WN_OK);
        assert_int_equal(bench_series_add(&r.e2e, i * 0.5, NULL), WN_OK);
    }
    assert_int_equal(bench_report_csv(&r, csv, "abc", NULL), WN_OK);
    assert_int_equal(bench_report_csv(&r, csv, "abc", NULL), WN_OK);
    f = fopen(csv, "r");
    assert_non_null(fgets(head, sizeof(head), f));
    assert_non_null(fgets(row, sizeof(row), f));
    assert_int_equal(commas(head), commas(row));
    assert_non_null(strstr(row, ",\"a \"\"b\"\", c\",\"d\",\"cls-topk:64\",2,0,4,0,0,3,1,0,2.0000,1.5000,15.000,"));
    assert_non_null(fgets(row, sizeof(row), f)); /* the second row, and no second heading */
    assert_int_equal(commas(head), commas(row));
    assert_null(fgets(head, sizeof(head), f));
    fclose(f);
    snprintf(png, sizeof(png), "%s.png", csv);
    assert_int_equal(bench_report_plot(&r, png, NULL), WN_OK);
    f = fopen(png, "rb");
    assert_int_equal(fread(sign, 1, 4, f), 4);
    assert_memory_equal(sign, "\x89PNG", 4);
    fclose(f);
    unlink(csv);
    unlink(png);
    assert_int_equal(bench_report_csv(&r, "/nonexistent/x.csv", "abc", NULL), WN_EIO);
    bench_series_fini(&r.ttft);
    bench_series_fini(&r.e2e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poisson_arrivals), cmocka_unit_test(test_shuffle), cmocka_unit_test(test_percentiles),
        cmocka_unit_test(test_objectives),       cmocka_unit_test(test_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
