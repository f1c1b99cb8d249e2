/* client/cmd_eval.c - `winnow eval`: an evaluation set through the running service, once for each way of pruning. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/eval.h"
#include "proto/codec.h"

#define DEFAULT_SET     "tests/eval/questions.jsonl"
#define CONCURRENCY_MAX 1024

/* --sweep: these at these counts. Those with `free` also with the count that they choose themselves. */
static const struct { const char *method; bool free; } sweep_methods[] = {
    {"random", false},   {"uniform", false},   {"cls-topk", false}, {"prumerge", true}, {"prumerge+", true},
    {"visionzip", false}, {"vispruner", false}, {"divprune", false}, {"hiprune", false},  {"matryoshka", false},
};
static const uint32_t sweep_keeps[] = {288, 144, 64, 32, 16};
#define SWEEP_METHODS_N (sizeof(sweep_methods) / sizeof(sweep_methods[0]))
#define SWEEP_KEEPS_N   (sizeof(sweep_keeps) / sizeof(sweep_keeps[0]))

static const char usage[] =
    "Usage: winnow eval [OPTION]...\n"
    "Asks the service the questions of an evaluation set, once for each way of pruning, and prints accuracy and\n"
    "costs. The set is a file of JSON objects, one a line, with the strings id, image (a path, relative to the file),\n"
    "family, question and answer; an answer is right if it is the same text.\n"
    "--sweep runs none, and random, uniform, cls-topk, prumerge, prumerge+, visionzip, vispruner, divprune,\n"
    "hiprune and matryoshka with 288, 144, 64, 32 and 16 tokens.";
static const struct cli_opt opts[] = {
    {"set", "FILE", "the evaluation set [" DEFAULT_SET "]"},
    {"pruning", "LIST", "METHOD, METHOD:64 (a count), METHOD:0.5 (a share removed), with commas between [none]"},
    {"sweep", NULL, "all methods at five counts, beside random and uniform"},
    {"limit", "N", "only the first N questions"},
    {"concurrency", "N", "questions that are asked at a time [8]"},
    {"max-tokens", "N", "length of an answer [256]"},
    CLI_PRUNING_OPTS,
    {"timeout", "S", "give up a question after so many seconds [300]"},
    {"csv", "FILE", "write the table there, too"},
    {"plot", "FILE", "draw accuracy against tokens kept, as PNG"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum { O_SET, O_PRUNING, O_SWEEP, O_LIMIT, O_CONCURRENCY, O_MAX, O_CAP,
       O_TIMEOUT = O_CAP + CLI_PRUNING_N, O_CSV, O_PLOT, O_ENDPOINT };

struct eval {
    const char *set_path, *csv, *plot, *endpoint;
    uint32_t limit;
    struct eval_setting settings[EVAL_SETTINGS_MAX];
    uint32_t settings_n;
    struct eval_set set;
    struct eval_runner runner;
    struct eval_row rows[EVAL_SETTINGS_MAX];
    uint32_t rows_n;
};

static struct eval_setting *add_setting(struct eval *e)
{
    if (e->settings_n < EVAL_SETTINGS_MAX) return &e->settings[e->settings_n++];
    fprintf(stderr, "winnow: at most %d ways of pruning are allowed\n", EVAL_SETTINGS_MAX);
    return NULL;
}

static bool add_list(struct eval *e, const char *list)
{
    for (;;) {
        const size_t n = strcspn(list, ",");
        struct eval_setting *s = add_setting(e);
        char item[WINNOW_METHOD_MAX + 32];
        if (!s) return false;
        snprintf(item, sizeof(item), "%.*s", n < sizeof(item) ? (int)n : (int)sizeof(item) - 1, list);
        if (!cli_pruning(item, s->method, &s->keep, &s->rate)) return false;
        if (!list[n]) return true;
        list += n + 1;
    }
}

static bool add_sweep(struct eval *e)
{
    struct eval_setting *s = add_setting(e);

    if (!s) return false;
    *s = (struct eval_setting){.method = "none"};
    for (size_t i = 0; i < SWEEP_METHODS_N; i++)
        for (size_t k = 0; k < SWEEP_KEEPS_N + sweep_methods[i].free; k++) {
            if (!(s = add_setting(e))) return false;
            snprintf(s->method, sizeof(s->method), "%s", sweep_methods[i].method);
            s->keep = k < SWEEP_KEEPS_N ? sweep_keeps[k] : 0;
        }
    return true;
}

static bool take_option(void *ctx, int option, const char *value)
{
    struct eval *e = ctx;

    switch (option) {
    case CLI_PLAIN:
        fprintf(stderr, "winnow: unexpected argument '%.80s'; --set names the evaluation set\n", value);
        return false;
    case O_SET: e->set_path = value; return true;
    case O_PRUNING: return add_list(e, value);
    case O_SWEEP: return add_sweep(e);
    case O_LIMIT: return cli_u32("limit", value, EVAL_QUESTIONS_MAX, &e->limit);
    case O_CONCURRENCY: return cli_count("concurrency", value, CONCURRENCY_MAX, &e->runner.concurrency);
    case O_MAX: return cli_count("max-tokens", value, WN_EMITTED_MAX, &e->runner.max_tokens);
    case O_TIMEOUT: return cli_u32("timeout", value, 86400, &e->runner.timeout_s);
    case O_CSV: e->csv = value; return true;
    case O_PLOT: e->plot = value; return true;
    case O_ENDPOINT: e->endpoint = value; return true;
    default: return cli_pruning_option(&e->runner.base, option - O_CAP, value);
    }
}

/* -1: go on, else the exit code. */
static int parse(struct eval *e, int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    const int code = cli_take(&args, take_option, e);

    if (code >= 0) return code;
    if (e->settings_n == 0 && !add_list(e, "none")) return CLI_USAGE;
    return -1;
}

/* Fills e->rows as far as it gets; false: not all, or not all answered. */
static bool run(struct eval *e)
{
    struct eval_outcome *out = calloc(e->set.n, sizeof(*out));
    bool good = out != NULL;

    if (!out) fprintf(stderr, "winnow: out of memory\n");
    for (uint32_t i = 0; good && i < e->settings_n; i++) good = eval_check(&e->runner, &e->settings[i]);
    for (uint32_t i = 0; good && i < e->settings_n; i++) {
        struct eval_row *row = &e->rows[i];
        const int64_t began_us = wn_now_us();
        char what[32];
        snprintf(what, sizeof(what), "[%u/%u]", i + 1, e->settings_n);
        e->runner.what = what;
        row->setting = e->settings[i];
        good = eval_run(&e->runner, &e->settings[i], out) && eval_summarise(row, &e->set, out);
        row->wall_s = (double)(wn_now_us() - began_us) / 1e6;
        e->rows_n += good;
    }
    free(out);
    return good && e->runner.errors == 0;
}

/* What there is, also after a failure: a long evaluation should not be lost. */
static bool report(const struct eval *e)
{
    bool good = true;

    if (e->rows_n == 0) return true;
    eval_print(stdout, &e->set, e->rows, e->rows_n);
    if (e->csv) good = eval_write_csv(e->csv, &e->set, e->rows, e->rows_n);
    if (e->plot) good = eval_write_plot(e->plot, &e->set, e->rows, e->rows_n) && good;
    if (e->rows_n < e->settings_n)
        fprintf(stderr, "winnow: stopped after %u of %u ways of pruning\n", e->rows_n, e->settings_n);
    if (e->runner.errors) fprintf(stderr, "winnow: %u questions failed\n", e->runner.errors);
    return good;
}

int cmd_eval(int argc, char **argv)
{
    struct eval *e = calloc(1, sizeof(*e));
    int code = CLI_FAILED;

    if (!e) {
        fprintf(stderr, "winnow: out of memory\n");
        return CLI_FAILED;
    }
    e->set_path = DEFAULT_SET;
    e->runner = (struct eval_runner){.concurrency = 8, .max_tokens = 256, .timeout_s = 300};
    if ((code = parse(e, argc, argv)) >= 0) goto out;
    code = CLI_FAILED;
    if (!cli_can_write(e->csv) || !cli_can_write(e->plot)) goto out;
    if (!eval_set_load(&e->set, e->set_path, e->limit)) goto out;
    if (!(e->runner.w = cli_connect(e->endpoint))) goto out;
    e->runner.set = &e->set;
    cli_catch_signals();
    if (run(e)) code = CLI_OK;
    if (!report(e)) code = CLI_FAILED;
out:
    winnow_close(e->runner.w);
    eval_set_free(&e->set);
    for (uint32_t i = 0; i < EVAL_SETTINGS_MAX; i++) free(e->rows[i].right_q);
    free(e);
    return code;
}
