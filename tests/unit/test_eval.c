/* tests/unit/test_eval.c - winnow eval without a service: the set's parser, sums, the CSV, the plot. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <png.h>

#include "client/eval.h"

static char path[64];

/* Writes the file `path`, in a folder of its own so that image paths can be told. */
static void write_set(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#define LINE(id, image, family, answer)                                                                                \
    "{\"id\": \"" id "\", \"image\": \"" image "\", \"family\": \"" family                                          \
    "\", \"question\": \"q\", \"answer\": \"" answer "\"}\n"

static void questions_of_a_picture_lie_together(void **state)
{
    struct eval_set set;
    (void)state;
    write_set(LINE("1", "b.png", "shape", "x") LINE("2", "a.png", "color", "y") "\n" LINE("3", "b.png", "color", "z")
                  LINE("4", "/abs.png", "shape", "w"));
    assert_true(eval_set_load(&set, path, 0));
    assert_int_equal(set.n, 4);
    assert_int_equal(set.pictures_n, 3);
    assert_int_equal(set.families_n, 2);
    assert_string_equal(set.families[0], "shape");
    assert_string_equal(set.q[0].image, "/abs.png");
    assert_string_equal(set.q[1].id, "2");
    assert_int_equal(strncmp(set.q[1].image, path, strrchr(path, '/') + 1 - path), 0);
    assert_string_equal(strrchr(set.q[1].image, '/'), "/a.png");
    assert_string_equal(set.q[2].id, "1");
    assert_string_equal(set.q[3].id, "3");
    assert_int_equal(set.q[2].picture_i, set.q[3].picture_i);
    eval_set_free(&set);
    assert_true(eval_set_load(&set, path, 2));
    assert_int_equal(set.n, 2);
    eval_set_free(&set);
}

static void strings_are_json(void **state)
{
    struct eval_set set;
    (void)state;
    write_set("{\"n\": [1, {\"a\": \"]\"}, null], \"question\":\"a\\\"\\\\\\n\\u00e9\\ud83d\\ude00\", \"id\":\"\", "
              "\"image\":\"i\",\"family\":\"f\", \"answer\" : \"\xc3\xa9\", \"m\": -1.5e3, \"t\": true}");
    assert_true(eval_set_load(&set, path, 0));
    assert_string_equal(set.q[0].text, "a\"\\\n\xc3\xa9\xf0\x9f\x98\x80");
    assert_string_equal(set.q[0].answer, "\xc3\xa9");
    eval_set_free(&set);
}

static void bad_lines_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{",
        "{}",
        "{\"id\": 5}",
        "{\"id\": \"5",
        "{\"id\": \"\\x\"}",
        "{\"id\": \"\\u12\"}",
        "{\"id\": \"\\u0000\"}",
        "{\"id\": \"\\ud800\"}",
        "{\"id\": \"\\ud800\\u0041\"}",
        "{\"id\": \"1\", \"id\": \"1\"}",
        "{\"x\": }",
        "{\"x\": [[}",
        "{\"x\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
        "{\"x\": {}",
        LINE("1", "i", "f", "a") "{\"id\": \"2\"}",
        "{\"id\":\"1\",\"image\":\"i\",\"family\":\"f\",\"question\":\"q\",\"answer\":\"a\"} x",
    };
    struct eval_set set;
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_set(bad[i]);
        if (eval_set_load(&set, path, 0)) fail_msg("accepted: %s", bad[i]);
    }
    assert_false(eval_set_load(&set, "/nonexistent/set.jsonl", 0));
}

/* Four questions: two right, one wrong, one failed. */
static void sums(void **state)
{
    struct eval_outcome out[4] = {{.state = EVAL_ANSWERED, .right = true}, {.state = EVAL_FAILED},
                                  {.state = EVAL_ANSWERED},                {.state = EVAL_ANSWERED, .right = true}};
    struct eval_row row = {.setting = {.method = "cls-topk", .keep = 64}};
    struct eval_set set;
    char label[64];
    (void)state;
    write_set(LINE("1", "a", "f", "x") LINE("2", "a", "f", "x") LINE("3", "a", "g", "x") LINE("4", "a", "g", "x"));
    assert_true(eval_set_load(&set, path, 0));
    for (uint32_t i = 0; i < 4; i++)
        out[i].usage = (struct winnow_usage){.image_tokens = 10 * i,
                                             .image_tokens_before_pruning = 576,
                                             .bytes_embedding = 300 * i,
                                             .bytes_control = 3,
                                             .bytes_image = 9,
                                             .encode_us = 1000 * i,
                                             .cached_tokens = 6,
                                             .vision_cache_hit = i == 2,
                                             .time_to_first_token_us = 9000 - 1000 * i};
    assert_true(eval_summarise(&row, &set, out));
    assert_int_equal(row.answered, 3);
    assert_int_equal(row.failed, 1);
    assert_int_equal(row.cache_hits, 1);
    assert_true(eval_accuracy(&row) == 0.5); /* a failed question counts as wrong */
    assert_int_equal(row.family_n[0], 2);
    assert_int_equal(row.family_right[0], 1);
    assert_int_equal(row.family_right[1], 1);
    assert_true(row.tokens > 16.66 && row.tokens < 16.67);
    assert_true(row.link_bytes[0] == 9 && row.link_bytes[1] == 500 && row.link_bytes[5] == 3);
    assert_true(row.prefix_tokens == 6);
    assert_true(row.ttft_p50_ms == 7 && row.ttft_p95_ms == 9);
    eval_setting_text(&row.setting, label, sizeof(label));
    assert_string_equal(label, "cls-topk:64");
    row.setting = (struct eval_setting){.method = "random", .rate = 0.75f};
    eval_setting_text(&row.setting, label, sizeof(label));
    assert_string_equal(label, "random:0.75");
    assert_memory_equal(row.right_q, ((const uint8_t[]){1, 0, 0, 1}), 4);
    free(row.right_q);
    eval_set_free(&set);
}

/* Rows as --sweep makes them. */
static uint32_t sweep_rows(struct eval_row *rows)
{
    static const char *const methods[] = {"random",    "uniform",   "cls-topk", "prumerge", "prumerge+",
                                          "visionzip", "vispruner", "divprune", "hiprune"};
    static const uint32_t keeps[] = {288, 144, 64, 32, 16};
    uint32_t n = 0;

    rows[n++] = (struct eval_row){
        .setting = {.method = "none"}, .answered = 100, .right = 94, .tokens = 576, .family_n = {100}};
    for (uint32_t m = 0; m < 9; m++)
        for (uint32_t k = 0; k < 5; k++) {
            rows[n] = (struct eval_row){
                .answered = 100, .right = 92 - k * k * (10 - m) / 3 - m / 2, .tokens = keeps[k], .family_n = {100}};
            rows[n].setting.keep = keeps[k];
            snprintf(rows[n++].setting.method, WINNOW_METHOD_MAX, "%s", methods[m]);
        }
    rows[n++] = (struct eval_row){.setting = {.method = "prumerge"}, .answered = 100, .right = 81, .tokens = 104};
    return n;
}

static void twins(void **state)
{
    struct eval_row rows[64];
    const uint32_t n = sweep_rows(rows);
    (void)state;
    assert_null(eval_random_twin(rows, n, &rows[0]));     /* none */
    assert_null(eval_random_twin(rows, n, &rows[1]));     /* random itself */
    assert_null(eval_random_twin(rows, n, &rows[n - 1])); /* its own count */
    assert_ptr_equal(eval_random_twin(rows, n, &rows[6]), &rows[1]);
    assert_ptr_equal(eval_random_twin(rows, n, &rows[15]), &rows[5]);
}

/* By hand: differences 1 1, 0 0, -1 0 on three pictures; the mean 1/6; per picture 5/3, -1/3, -4/3 off it. */
static void differences_are_paired(void **state)
{
    uint8_t right[2][6] = {{1, 1, 1, 0, 0, 1}, {0, 0, 1, 0, 1, 1}};
    const struct eval_row a = {.right_q = right[0]}, b = {.right_q = right[1]};
    struct eval_difference d;
    struct eval_set set;
    (void)state;
    write_set(LINE("1", "a", "f", "x") LINE("2", "a", "g", "x") LINE("3", "b", "f", "x") LINE("4", "b", "f", "x")
                  LINE("5", "c", "f", "x") LINE("6", "c", "h", "x"));
    assert_true(eval_set_load(&set, path, 0));
    d = eval_compare(&set, &a, &b, EVAL_ALL_FAMILIES);
    assert_true(fabs(d.value - 1.0 / 6) < 1e-12 && fabs(d.error - sqrt(7) / 6) < 1e-12);
    d = eval_compare(&set, &b, &a, EVAL_ALL_FAMILIES);
    assert_true(fabs(d.value + 1.0 / 6) < 1e-12 && fabs(d.error - sqrt(7) / 6) < 1e-12);
    d = eval_compare(&set, &a, &a, EVAL_ALL_FAMILIES);
    assert_true(d.value == 0 && d.error == 0);
    d = eval_compare(&set, &a, &b, 0); /* f: 1, 0 0, -1 */
    assert_true(d.value == 0 && fabs(d.error - sqrt(2 * 1.5) / 4) < 1e-12);
    d = eval_compare(&set, &a, &b, 1); /* g: one picture says nothing about others */
    assert_true(d.value == 1 && !(d.error >= 0));
    eval_set_free(&set);
}

static void csv_is_whole(void **state)
{
    struct eval_row rows[64];
    const uint32_t n = sweep_rows(rows);
    char out[80], line[4096];
    struct eval_set set;
    uint32_t lines = 0, commas = 0;
    FILE *f;
    (void)state;
    write_set(LINE("1", "a", "f,\\\"1", "x") LINE("2", "a", "g", "x"));
    assert_true(eval_set_load(&set, path, 0));
    snprintf(out, sizeof(out), "%s.csv", path);
    assert_true(eval_write_csv(out, &set, rows, n));
    f = fopen(out, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        uint32_t here = 0;
        bool quoted = false;
        for (const char *c = line; *c; c++) {
            quoted = quoted != (*c == '"');
            here += *c == ',' && !quoted;
        }
        if (lines == 0) assert_non_null(strstr(line, "\"accuracy_f,\"\"1\",accuracy_g,tokens,"));
        if (lines == 0) commas = here;
        assert_int_equal(here, commas);
        lines++;
    }
    fclose(f);
    unlink(out);
    assert_int_equal(lines, n + 1);
    assert_false(eval_write_csv("/nonexistent/x.csv", &set, rows, n));
    assert_false(eval_write_csv("/dev/full", &set, rows, n));
    eval_set_free(&set);
}

/* Pixels of a colour in the picture. */
static uint32_t count(const uint8_t *rgb, uint32_t pixels, uint8_t r, uint8_t g, uint8_t b)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < pixels; i++) n += rgb[3 * i] == r && rgb[3 * i + 1] == g && rgb[3 * i + 2] == b;
    return n;
}

static void plot_has_every_line(void **state)
{
    static const uint8_t colors[][3] = {{150, 150, 150}, {40, 40, 40}, {214, 39, 40}, {31, 119, 180}, {44, 160, 44}};
    struct eval_row rows[64];
    uint32_t n = sweep_rows(rows);
    png_image image = {.version = PNG_IMAGE_VERSION};
    struct eval_set set = {.n = 100, .pictures_n = 20};
    const char *keep = getenv("WINNOW_TEST_PLOT"); /* a file to look at */
    char out[80];
    uint8_t *rgb;
    (void)state;
    snprintf(out, sizeof(out), "%s.png", path);
    assert_true(eval_write_plot(keep ? keep : out, &set, rows, n));
    assert_true(png_image_begin_read_from_file(&image, keep ? keep : out));
    assert_int_equal(image.width, 1280);
    assert_int_equal(image.height, 800);
    image.format = PNG_FORMAT_RGB;
    rgb = malloc(PNG_IMAGE_SIZE(image));
    assert_true(png_image_finish_read(&image, NULL, rgb, 0, NULL));
    for (size_t i = 0; i < sizeof(colors) / sizeof(colors[0]); i++)
        if (count(rgb, image.width * image.height, colors[i][0], colors[i][1], colors[i][2]) < 500)
            fail_msg("line %zu is not there", i);
    free(rgb);
    /* one point, all wrong, no tokens: nothing to spread the axes with */
    rows[0] = (struct eval_row){.setting = {.method = "foo"}, .failed = 1};
    assert_true(eval_write_plot(out, &set, rows, 1));
    assert_false(eval_write_plot("/nonexistent/x.png", &set, rows, 1));
    unlink(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(questions_of_a_picture_lie_together),
        cmocka_unit_test(strings_are_json),
        cmocka_unit_test(bad_lines_are_refused),
        cmocka_unit_test(sums),
        cmocka_unit_test(twins),
        cmocka_unit_test(differences_are_paired),
        cmocka_unit_test(csv_is_whole),
        cmocka_unit_test(plot_has_every_line),
    };
    int failed;

    snprintf(path, sizeof(path), "/tmp/winnow-test-eval-%d.jsonl", (int)getpid());
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
