/* tests/integration/test_prune_eval.c - `winnow prune` on a picture of the evaluation set, and `winnow eval` through a
 * real service. argv[1]: the winnow program. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pruning/prune.h"
#include "tests/integration/service.h"

#define MODEL   "models/tiny-llava"
#define PICTURE "tests/eval/images/003.jpg"

static const char *program;
static char output[65536]; /* of the last run: standard output and error */

static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Runs `winnow ARGS`; returns its exit code. */
static int run(const char *format, ...)
{
    char args[1024], command[2048];
    va_list ap;
    size_t n;
    FILE *p;
    int status;

    va_start(ap, format);
    vsnprintf(args, sizeof(args), format, ap);
    va_end(ap);
    snprintf(command, sizeof(command), "'%s' %s 2>&1", program, args);
    p = popen(command, "r");
    assert_non_null(p);
    n = fread(output, 1, sizeof(output) - 1, p);
    output[n] = '\0';
    status = pclose(p);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void says(const char *text)
{
    if (!strstr(output, text)) fail_msg("'%s' is not in: %s", text, output);
}

static const char *scratch(const char *name)
{
    static char path[2][96];
    static int which;
    which = 1 - which;
    snprintf(path[which], sizeof(path[which]), "/tmp/winnow-test-%d-%s", (int)getpid(), name);
    return path[which];
}

/* Reads a picture and removes its file. */
static uint8_t *take_png(const char *path, uint32_t width, uint32_t height)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    uint8_t *rgb;

    if (!png_image_begin_read_from_file(&image, path)) fail_msg("%s: %s", path, image.message);
    assert_int_equal(image.width, width);
    assert_int_equal(image.height, height);
    image.format = PNG_FORMAT_RGB;
    rgb = malloc(PNG_IMAGE_SIZE(image));
    assert_non_null(rgb);
    assert_true(png_image_finish_read(&image, NULL, rgb, 0, NULL));
    unlink(path);
    return rgb;
}

/* Kept patches look as they do unpruned, dropped ones are darker; which is which is what --json says. */
static void test_overlay(void **state)
{
    const uint32_t width = 3 * 16 + 2 * 672, height = 808;
    const char *path = scratch("overlay.png");
    uint8_t kept[576] = {0}, *all, *some;
    int kept_n = 0;
    (void)state;

    assert_int_equal(run("prune --image " PICTURE " --method none -o %s " MODEL, path), 0);
    says("none: 576 of 576 visual tokens kept (100.0 %)");
    all = take_png(path, width, height);
    assert_int_equal(run("prune --image " PICTURE " --method cls-topk --keep 64 --json -o %s " MODEL, path), 0);
    says("\"kept\": 64, \"of\": 576");
    for (char *at = strstr(output, "\"index\": [") + 10, *end; *at != ']'; at = end + strspn(end, ", ")) {
        const unsigned long patch = strtoul(at, &end, 10);
        assert_true(end != at && patch < 576);
        kept[patch] = 1;
        kept_n++;
    }
    assert_int_equal(kept_n, 64);
    some = take_png(path, width, height);
    for (uint32_t patch = 0; patch < 576; patch++) {
        const uint32_t x = 16 + patch % 24 * 28 + 14, y = 40 + patch / 24 * 28 + 14;
        const uint8_t *a = all + 3 * (y * width + x), *s = some + 3 * (y * width + x);
        if (kept[patch]) assert_memory_equal(a, s, 3);
        else if (a[0] + a[1] + a[2] > 90) assert_true(s[0] + s[1] + s[2] < (a[0] + a[1] + a[2]) * 2 / 3);
    }
    free(all);
    free(some);
}

static void test_figures(void **state)
{
    (void)state;
    assert_int_equal(run("prune --image " PICTURE " --method visionzip --rate 0.75 --dtype float32 " MODEL), 0);
    says("visionzip: 144 of 576 visual tokens kept (25.0 %)");
    says("vision link 589824 -> 147456 bytes; encode ");
    says(" ms, prune ");
}

/* Which patches the last `prune --json` kept. */
static char *kept_list(void)
{
    char *at = strstr(output, "\"index\": [");
    assert_non_null(at);
    return strdup(at);
}

/* The same picture and seed keep the same patches; another picture or another seed others. */
static void test_random_draws_by_picture(void **state)
{
    static const char *const runs[] = {PICTURE, PICTURE, "tests/eval/images/007.jpg", PICTURE " --pruning-seed 1"};
    char *kept[4];
    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(run("prune --method random --json --image %s " MODEL, runs[i]), 0);
        says("\"kept\": 64, \"of\": 576"); /* no budget was named */
        kept[i] = kept_list();
    }
    assert_string_equal(kept[0], kept[1]);
    assert_string_not_equal(kept[0], kept[2]);
    assert_string_not_equal(kept[0], kept[3]);
    for (int i = 0; i < 4; i++) free(kept[i]);
}

/* The edges of a budget, on the command line. */
static void test_budget_edges(void **state)
{
    static const struct { const char *flags, *says; } cases[] = {
        {"--keep 1", "uniform: 1 of 576"},        {"--keep 577", "uniform: 576 of 576"},
        {"--rate 0", "uniform: 576 of 576"},      {"--rate 0.99", "uniform: 6 of 576"},
        {"--rate 1", "uniform: 1 of 576"},        {"--method prumerge --cap 5", "prumerge: 5 of 576"},
        {"--method prumerge --keep 9 --pruning-options neighbours=4 --setting paper", "prumerge: 9 of 576"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(run("prune --image " PICTURE " --method uniform %s " MODEL, cases[i].flags), 0);
        says(cases[i].says);
    }
    assert_int_equal(run("prune --image " PICTURE " --method uniform --setting paper " MODEL), 1);
    says("'uniform' has no setting 'paper'");
}

static void test_sheet(void **state)
{
    const char *path = scratch("sheet.png");
    (void)state;
    assert_int_equal(run("prune --image " PICTURE " --all --keep=64 -o %s " MODEL, path), 0);
    free(take_png(path, 1600, 1552));
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        char line[128];
        const struct wn_prune_method *m = wn_prune_methods[i];
        snprintf(line, sizeof(line), "%s: %s", m->name,
                 m->all ? "576 of 576" : "64 of 576");
        says(line);
    }
    says("vision link 294912 -> 32768 bytes");
}

static void test_prune_refusals(void **state)
{
    (void)state;
    assert_int_equal(run("prune --image " PICTURE), 2);
    says("no MODEL");
    assert_int_equal(run("prune " MODEL), 2);
    says("no --image");
    assert_int_equal(run("prune --image " PICTURE " --method sharpen " MODEL), 1);
    says("sharpen");
    assert_int_equal(run("prune --image tests/eval/questions.jsonl " MODEL), 1);
    says("tests/eval/questions.jsonl: ");
    assert_int_equal(run("prune --image " PICTURE " -o /nonexistent/x.png " MODEL), 1);
    says("/nonexistent/x.png");
}

/* Each option's bad values, by name; nothing is encoded or written. */
static void test_bad_options(void **state)
{
    static const struct { const char *flags; int code; const char *says; } cases[] = {
        {"--keep many", 2, "--keep"},
        {"--keep 65537", 2, "--keep"},
        {"--rate 1.5", 2, "--rate"},
        {"--rate x", 2, "--rate"},
        {"--cap -1", 2, "--cap"},
        {"--setting sharp", 1, "sharp"},
        {"--method divprune --setting paper", 1, "'divprune' has no setting 'paper'"},
        {"--position sideways", 2, "--position"},
        {"--projected=perhaps", 2, "--projected"},
        {"--pruning-seed -3", 2, "--pruning-seed"},
        {"--pruning-options colour=3", 1, "pruning option 'colour' is not known; known: neighbours"},
        {"--pruning-options neighbours", 1, "pruning option 'neighbours' has no value"},
        {"--pruning-options anchors=2", 1, "pruning option 'anchors' is no number from 0 to 1"},
        {"--method hiprune --pruning-options object-layer=40", 1, "object-layer 40, and 6 layers are run"},
        {"--dtype half", 2, "--dtype"},
        {"--backend abacus", 1, "abacus"},
        {"--sharpen", 2, "--sharpen"},
        {"--image-bytes-max 100", 1, "100"},
        {"--image-pixels-max 100", 1, "pixels"},
    };
    const char *path = scratch("none.png");
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const int code = run("prune --image " PICTURE " -o %s %s " MODEL, path, cases[i].flags);
        if (code != cases[i].code) fail_msg("%s: exit code %d: %s", cases[i].flags, code, output);
        says(cases[i].says);
        assert_int_not_equal(access(path, F_OK), 0);
    }
    assert_int_equal(run("prune --image /nonexistent.jpg " MODEL), 1);
    says("/nonexistent.jpg");
    assert_int_equal(run("prune --image " PICTURE " /nonexistent"), 1);
    says("/nonexistent");
}

/* What each option changes. */
static void test_options(void **state)
{
    char *kept;
    (void)state;
    assert_int_equal(run("prune --image " PICTURE " --method cls-topk --keep 9 --projected --dtype float32 " MODEL), 0);
    says("vision link 589824 -> 9216 bytes"); /* the language model is as wide as the tower here */
    assert_int_equal(run("prune --image " PICTURE " --method visionzip --keep 20 --json " MODEL), 0);
    says("\"merged\": 3,"); /* 5 of 32 */
    says("\"index\": [null,"); /* CLS */
    assert_int_equal(run("prune --image " PICTURE
                         " --method visionzip --keep 20 --pruning-options contextual=8 --json " MODEL), 0);
    says("\"merged\": 8,");
    assert_int_equal(run("prune --image " PICTURE " --method prumerge --keep 20 --json " MODEL), 0);
    says("\"merged\": 19, \"extra\": 1,");
    kept = kept_list();
    assert_int_equal(run("prune --image " PICTURE " --method prumerge --keep 20 --setting paper --json " MODEL), 0);
    says("\"merged\": 20, \"extra\": 0,");
    assert_null(strstr(output, kept));
    free(kept);
    assert_int_equal(run("prune --image " PICTURE " --method vispruner --keep 20 --json " MODEL), 0);
    kept = kept_list();
    assert_int_equal(run("prune --image " PICTURE
                         " --method vispruner --keep 20 --pruning-options important=1 --json " MODEL), 0);
    assert_null(strstr(output, kept));
    free(kept);
    assert_int_equal(run("prune --image " PICTURE " --method cls-topk --keep 20 --json " MODEL), 0);
    kept = kept_list();
    assert_int_equal(run("prune --image " PICTURE
                         " --method vispruner --keep 20 --pruning-options important=1 --json " MODEL), 0);
    assert_non_null(strstr(output, kept)); /* all by attention: cls-topk */
    free(kept);
}

/* ---- eval ---- */

/* The value of a column in a line of the CSV that is in `output`; line 0 has the names. */
static double cell(int line, const char *column)
{
    const char *head = output, *row = output;
    int which = 0;

    while (strncmp(head, column, strlen(column)) != 0 || !strchr(",\n", head[strlen(column)])) {
        head += strcspn(head, ",\n");
        if (*head++ != ',') fail_msg("no column %s in %s", column, output);
        which++;
    }
    for (; line > 0; line--) {
        if (!(row = strchr(row, '\n')) || !*++row) fail_msg("line %d is missing in %s", line, output);
    }
    while (which-- > 0) {
        row += strcspn(row, ",\n");
        if (*row++ != ',') fail_msg("a line is too short in %s", output);
    }
    return strtod(row, NULL);
}

static void load_output(const char *path)
{
    size_t n;
    char *text = read_file(path, &n);
    snprintf(output, sizeof(output), "%s", text);
    free(text);
    unlink(path);
}

static struct service service;

static int start(void **state)
{
    const char *flags[] = {"-tp=1", "-pp=2", NULL};
    (void)state;
    service_start(&service, MODEL, flags);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    assert_int_equal(service_stop(&service), 0);
    return 0;
}

static void test_eval(void **state)
{
    const char *csv = scratch("eval.csv"), *plot = scratch("eval.png");
    (void)state;

    assert_int_equal(run("eval --endpoint %s --limit 6 --max-tokens 8 --csv %s --plot %s --position original "
                         "--pruning none,uniform:64,random:64,uniform:0.99,uniform:1.0,uniform:0.0",
                         service.endpoint, csv, plot),
                     0);
    says("6 questions about 2 pictures");
    says("uniform:64 original        64.0");
    says("uniform:all original      576.0");
    load_output(csv);
    says(",faithful,original,0,0,0,");
    for (int line = 1; line <= 6; line++) { /* a rate of 0 is asked for as a count that no picture has */
        static const double of[] = {576, 64, 64, 6, 1, 576}, keep[] = {0, 64, 64, 0, 0, 65536};
        const double tokens = of[line - 1];
        assert_true(cell(line, "keep") == keep[line - 1]);
        assert_true((cell(line, "minus_random_se") > 0) <= (line == 2)); /* against line 3 */
        assert_true(cell(line, "questions") == 6 && cell(line, "failed") == 0);
        assert_true(cell(line, "accuracy") >= 0 && cell(line, "accuracy") <= 1);
        assert_true(cell(line, "accuracy_color") >= 0);
        assert_true(cell(line, "tokens") == tokens && cell(line, "tokens_before") == 576);
        assert_true(cell(line, "embedding_bytes") == tokens * 256 * 2);
        assert_true(cell(line, "image_bytes") > 2 * 5000); /* of a JPEG that came here and went on */
        /* what the prefix cache does not know goes from stage to stage */
        assert_true(cell(line, "activation_bytes") > (tokens - cell(line, "prefix_tokens")) * 256 * 2);
        assert_true(cell(line, "ttft_p50_ms") > 0 && cell(line, "ttft_p95_ms") >= cell(line, "ttft_p50_ms"));
        assert_true(cell(line, "prefill_ms") > 0 && cell(line, "wall_s") > 0);
    }
    free(take_png(plot, 1280, 800));
    assert_int_equal(run("eval --endpoint %s --limit 2 --max-tokens 1 --pruning none,sharpen:9", service.endpoint), 1);
    says("winnow: sharpen:9: pruning method 'sharpen' is not known; known: none, random"); /* before any question */
    assert_null(strstr(output, "Accuracy"));
}

/* A new method has to be added to --sweep by hand, for clients do not know the server's table. */
static void test_sweep_knows_every_method(void **state)
{
    (void)state;
    assert_int_equal(run("eval --help"), 0);
    for (char *c = output; *c; c++)
        if (*c == '\n' || *c == ',') *c = ' ';
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        char word[64];
        snprintf(word, sizeof(word), " %s ", wn_prune_methods[i]->name);
        says(word);
    }
}

static void test_eval_usage(void **state)
{
    (void)state;
    assert_int_equal(run("eval --pruning cls-topk:x"), 2);
    assert_int_equal(run("eval --pruning none,,none"), 2);
    assert_int_equal(run("eval --concurrency 0"), 2);
    assert_int_equal(run("eval --sweep --sweep --sweep --sweep --sweep --sweep"), 2);
    says("at most 256");
    assert_int_equal(run("eval something"), 2);
    assert_int_equal(run("eval --endpoint tcp://127.0.0.1:1 --limit 2"), 1);
    assert_int_equal(run("eval --set /nonexistent/set.jsonl"), 1);
    says("/nonexistent/set.jsonl");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlay),        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_random_draws_by_picture), cmocka_unit_test(test_budget_edges),
        cmocka_unit_test(test_sheet),          cmocka_unit_test(test_prune_refusals),
        cmocka_unit_test(test_bad_options),    cmocka_unit_test(test_options),
        cmocka_unit_test_setup_teardown(test_eval, start, stop),
        cmocka_unit_test(test_sweep_knows_every_method), cmocka_unit_test(test_eval_usage),
    };

    if (argc < 2) return 2;
    program = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
