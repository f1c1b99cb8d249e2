/* tests/unit/test_wire.c - what `winnow bench wire` makes of counters and answers: a cell, its CSV row, its bar. */
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

#include "client/wire.h"
#include "tests/file_read.h"

static const char wn_status_json[] =
    "{\"model\": \"/of/a/site/some model\", \"sent_bytes\": {\"control\": 100, \"image\": 5000},"
    " \"workers\": [{\"role\": \"vision\", \"sent_bytes\": {\"embedding\": 7000, \"control\": 1}},"
    "  {\"role\": \"replica\", \"stages\": [{\"busy_us\": 1, \"wait_us\": 2, \"link_us\": 3000},"
    "    {\"busy_us\": 1, \"wait_us\": 2, \"link_us\": 45000}],"
    "   \"sent_bytes\": {\"activation\": 90000, \"tokens\": 12, \"control\": 10}}]}";

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-6;
}

static void test_counters(void **state)
{
    static char many[64 * WIRE_STAGES_MAX];
    struct wire_counters c;
    char *at;
    (void)state;

    assert_true(wire_counters_parse(wn_status_json, &c));
    assert_string_equal(c.model, "some model");
    assert_int_equal(c.stages_n, 2);
    assert_true(near(c.link_ms[0], 3) && near(c.link_ms[1], 45));
    for (int k = 0; k < WIRE_KINDS_N; k++) {
        const double sum[WIRE_KINDS_N] = {5000, 7000, 90000, 0, 0, 12, 111};
        if (!near(c.bytes[k], sum[k])) fail_msg("%s: %f", wire_kinds[k], c.bytes[k]);
    }
    /* of several replicas the first says how long links took; a server of more stages than we know is no harm */
    assert_true(wire_counters_parse("{\"workers\": [{\"stages\": [{\"link_us\": 1000}]},"
                                    " {\"stages\": [{\"link_us\": 7}, {\"link_us\": 8}]}]}",
                                    &c));
    assert_int_equal(c.stages_n, 1);
    assert_true(near(c.link_ms[0], 1));
    at = many + snprintf(many, sizeof(many), "{\"workers\": [{\"stages\": [{}");
    for (int i = 1; i < 3 * WIRE_STAGES_MAX; i++)
        at += snprintf(at, (size_t)(many + sizeof(many) - at), ", {\"link_us\": 1}");
    snprintf(at, (size_t)(many + sizeof(many) - at), "]}]}");
    assert_true(wire_counters_parse(many, &c));
    assert_int_equal(c.stages_n, WIRE_STAGES_MAX);
    assert_false(wire_counters_parse("[]", &c));
    assert_false(wire_counters_parse("not JSON", &c));
}

static void fill(struct wire_cell *cell)
{
    struct eval_question q[3] = {{.family = "f"}, {.family = "f"}, {.family = "f"}};
    const struct eval_set set = {.q = q, .n = 3, .pictures_n = 3, .families_n = 1};
    struct eval_outcome out[3] = {{.state = EVAL_ANSWERED}, {.state = EVAL_ANSWERED}, {.state = EVAL_FAILED}};
    struct wire_counters before, after;

    for (int i = 0; i < 2; i++)
        out[i].usage = (struct winnow_usage){.queue_us = 500,
                                             .preprocess_us = 1000,
                                             .encode_us = 8000,
                                             .prune_us = 1000,
                                             .transfer_us = 2000,
                                             .prefill_us = 40000,
                                             .time_to_first_token_us = 53000 + 2000 * (uint64_t)i,
                                             .vision_cache_hit = i};
    assert_true(wire_counters_parse(wn_status_json, &before));
    after = before;
    after.bytes[1] += 3000;
    after.link_ms[0] += 1;
    after.link_ms[1] += 16; /* the longest: 8 ms an answer */
    assert_true(wire_cell_fill(cell, &set, out, &before, &after));
}

static void test_cell(void **state)
{
    struct wire_cell c = {.rate = "1gbit", .keep = 64, .wall_s = 0.5};
    (void)state;

    fill(&c);
    assert_int_equal(c.answered, 2);
    assert_int_equal(c.failed, 1);
    assert_int_equal(c.cache_hits, 1);
    assert_true(near(c.ttft_ms, 54) && near(c.ttft_p50_ms, 53) && near(c.ttft_p95_ms, 55));
    assert_true(near(c.part_ms[WIRE_ENCODE], 10));
    assert_true(near(c.part_ms[WIRE_WIRE], 2 + 8));
    assert_true(near(c.part_ms[WIRE_PREFILL], 40 - 8));
    assert_true(near(c.part_ms[WIRE_OTHER], 54 - 10 - 10 - 32));
    assert_true(near(c.bytes[1], 1500) && near(c.bytes[2], 0));
}

static void test_report(void **state)
{
    static struct wire_report r;
    char csv[] = "/tmp/wn_wire_csv_XXXXXX", png[] = "/tmp/wn_wire_png_XXXXXX", *text, *row;
    size_t n;
    (void)state;

    r = (struct wire_report){.model = "m", .method = "cls-topk", .commit = "c", .concurrency = 1, .cells_n = 2};
    r.token_bytes[0] = 2048;
    r.cells[0] = (struct wire_cell){.rate = "none", .keep = 576, .wall_s = 0.5};
    r.cells[1] = (struct wire_cell){.rate = "1gbit", .keep = 64, .wall_s = 0.5, .encoded_before = true};
    fill(&r.cells[0]);
    fill(&r.cells[1]);
    close(mkstemp(csv));
    close(mkstemp(png));
    assert_true(wire_check_csv(csv));
    assert_true(wire_write_csv(csv, &r) && wire_write_csv(csv, &r)); /* the heading once */
    assert_true(wire_check_csv(csv));
    assert_non_null(text = file_read(csv, &n));
    assert_int_equal(strncmp(text, "time,commit,host,model,method,rate,", 35), 0);
    assert_null(strstr(text + 1, "time,commit"));
    row = strstr(text, ",none,576,new,");
    assert_non_null(row);
    assert_non_null(strstr(row, ",53.000,55.000,54.000,10.000,10.000,32.000,2.000,2.000,8.000,0.1852,4.0000,0,1500,"));
    assert_non_null(strstr(row, ",2048,0\n"));
    assert_non_null(strstr(row, ",1gbit,64,encoded,"));
    free(text);
    r.cells_n = 0;
    assert_true(wire_read_csv(csv, &r)); /* both times */
    assert_int_equal(r.cells_n, 4);
    assert_string_equal(r.cells[1].rate, "1gbit"); /* sorted: 1gbit twice, none twice */
    assert_true(r.cells[1].encoded_before && !r.cells[2].encoded_before && r.cells[2].keep == 576);
    assert_true(near(r.cells[2].ttft_ms, 54) && near(r.cells[2].part_ms[WIRE_PREFILL], 32));
    r.model = "another";
    assert_true(wire_read_csv(csv, &r));
    assert_int_equal(r.cells_n, 0);
    assert_false(wire_read_csv(png, &r));
    r.model = "m";
    assert_true(wire_read_csv(csv, &r));
    assert_true(wire_write_plot(png, &r));
    assert_non_null(text = file_read(png, &n));
    assert_true(n > 1000 && memcmp(text, "\x89PNG", 4) == 0);
    free(text);
    assert_false(wire_check_csv(png));
    assert_false(wire_check_csv("/nowhere/at/all.csv"));
    assert_false(wire_write_csv("/nowhere/at/all.csv", &r));
    unlink(csv);
    unlink(png);
}

static void test_token_bytes(void **state)
{
    double bytes = 5;
    (void)state;

    assert_true(wire_token_bytes("{\"token_bytes\": {\"allreduce\": 1000, \"logits\": 24}}", &bytes));
    assert_true(near(bytes, 1024));
    assert_false(wire_token_bytes("{}", &bytes));
    assert_true(near(bytes, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_cell),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_token_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
