/* client/cmd_wire.c - `winnow bench wire`: what the network costs a request, at several rates and budgets of visual
 * tokens. The part that measures a running service; the part that makes the network slow is another program's, which
 * --shape names, since it needs root and knows the network. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/wire.h"
#include "proto/codec.h"
#include "winnow_version.h"

#define DEFAULT_SET  "tests/eval/questions.jsonl"
#define LIST_MAX     16
#define REQUESTS_MAX 10000
#define REPORTED_US  1500000 /* until a heartbeat has the last counters */
#define PLAN_MAX     (1 << 24)

static const char usage[] =
    "Usage: winnow bench wire [OPTION]...\n"
    "Asks a running service about pictures, at each rate of the network with each budget of visual tokens: first\n"
    "pictures that are new to it, then, with another budget, pictures that it has encoded before. Prints where the\n"
    "time to the first token goes, and the bytes a picture by kind.\n"
    "The service is yours to start, and the network yours to slow down: --shape names a command that is run with each\n"
    "rate as its last argument. scripts/cluster/bench_wire.sh does all of it on a cluster in a box. Where the service\n"
    "has keys, counters are told to its admin only.";
static const struct cli_opt opts[] = {
    {"rates", "LIST", "arguments for --shape, with commas between: none,10gbit,1gbit [the network as it is]"},
    {"shape", "COMMAND", "sets the rate; run by sh"},
    {"budgets", "LIST", "visual tokens kept [576,144,64,32]"},
    {"method", "NAME", "of pruning [cls-topk]"},
    {"requests", "N", "at each rate and budget, each about a picture of its own [4]"},
    {"concurrency", "N", "requests at a time [1]"},
    {"max-tokens", "N", "length of an answer [8]"},
    {"set", "FILE", "questions and pictures [" DEFAULT_SET "]"},
    {"model", "MODEL", "a folder or config.json: bytes a token that plain tensor parallelism would send for it"},
    {"csv", "FILE", "append a row for each rate and budget"},
    {"plot", "FILE", "draw the parts of the time to the first token, as PNG; with --csv all of that file's rows"},
    {"timeout", "S", "give up a request after so many seconds [300]"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum { O_RATES, O_SHAPE, O_BUDGETS, O_METHOD, O_REQUESTS, O_CONCURRENCY, O_MAX, O_SET, O_MODEL, O_CSV, O_PLOT,
       O_TIMEOUT, O_ENDPOINT };

struct wire {
    const char *set_path, *shape, *model, *csv, *plot, *endpoint;
    char rates[LIST_MAX][24];
    uint32_t rates_n, budgets[LIST_MAX], budgets_n, requests;
    struct eval_set set;       /* one question a picture */
    struct eval_outcome *out;  /* [requests] */
    struct eval_runner runner;
    struct wire_counters counters; /* after the last cell */
    struct wire_report report;
};

/* ---- options ---- */

/* Item `i` of a list with commas into out; false: there is none, or it is too long. */
static bool list_item(const char *list, uint32_t i, char *out, size_t room)
{
    for (; i; i--) {
        list += strcspn(list, ",");
        if (!*list++) return false;
    }
    return *list && snprintf(out, room, "%.*s", (int)strcspn(list, ","), list) < (int)room && *out;
}

static uint32_t list_count(const char *list)
{
    uint32_t n = 1;

    for (; *list; list++) n += *list == ',';
    return n;
}

/* A rate becomes part of a command line. */
static bool take_rates(struct wire *b, const char *list)
{
    b->rates_n = list_count(list);
    for (uint32_t i = 0; i < b->rates_n; i++) {
        if (i < LIST_MAX && list_item(list, i, b->rates[i], sizeof(b->rates[i])) &&
            strspn(b->rates[i], "abcdefghijklmnopqrstuvwxyz0123456789.") == strlen(b->rates[i]))
            continue;
        fprintf(stderr, "winnow: --rates: '%.60s' is not a list of at most %d rates such as 1gbit\n", list, LIST_MAX);
        return false;
    }
    return true;
}

static bool take_budgets(struct wire *b, const char *list)
{
    b->budgets_n = list_count(list);
    for (uint32_t i = 0; i < b->budgets_n; i++) {
        char item[16];
        if (i >= LIST_MAX || !list_item(list, i, item, sizeof(item))) {
            fprintf(stderr, "winnow: --budgets: '%.60s' is not a list of at most %d counts\n", list, LIST_MAX);
            return false;
        }
        if (!cli_count("budgets", item, 65536, &b->budgets[i])) return false;
    }
    return true;
}

static bool take_option(void *ctx, int option, const char *value)
{
    struct wire *b = ctx;

    switch (option) {
    case CLI_PLAIN: fprintf(stderr, "winnow: unexpected argument '%.80s'\n", value); return false;
    case O_RATES: return take_rates(b, value);
    case O_SHAPE: b->shape = value; return true;
    case O_BUDGETS: return take_budgets(b, value);
    case O_METHOD: b->report.method = value; return true;
    case O_REQUESTS: return cli_count("requests", value, REQUESTS_MAX, &b->requests);
    case O_CONCURRENCY: return cli_count("concurrency", value, 1024, &b->runner.concurrency);
    case O_MAX: return cli_count("max-tokens", value, WN_EMITTED_MAX, &b->runner.max_tokens);
    case O_SET: b->set_path = value; return true;
    case O_MODEL: b->model = value; return true;
    case O_CSV: b->csv = value; return true;
    case O_PLOT: b->plot = value; return true;
    case O_TIMEOUT: return cli_u32("timeout", value, 86400, &b->runner.timeout_s);
    default: b->endpoint = value; return true;
    }
}

/* -1: go on, else the exit code. */
static int parse(struct wire *b, int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    const int code = cli_take(&args, take_option, b);

    if (code >= 0) return code;
    if (!b->budgets_n && !take_budgets(b, "576,144,64,32")) return CLI_USAGE;
    if (!b->rates_n != !b->shape) {
        fprintf(stderr, "winnow: --rates and --shape go together\n");
        return CLI_USAGE;
    }
    if (2 * (b->rates_n ? b->rates_n : 1) * b->budgets_n > WIRE_CELLS_MAX) {
        fprintf(stderr, "winnow: at most %d rates times budgets\n", WIRE_CELLS_MAX / 2);
        return CLI_USAGE;
    }
    return -1;
}

/* ---- before the measurement ---- */

/* Keeps the first question about each picture, and checks that there are enough of them: a picture that comes twice
 * would be found in a cache. */
static bool thin_out(struct wire *b)
{
    const uint32_t wanted = (b->rates_n ? b->rates_n : 1) * b->budgets_n * b->requests + 1;
    struct eval_set *set = &b->set;

    if (set->pictures_n < wanted) {
        fprintf(stderr, "winnow: %u pictures are needed, and %s has %u: fewer --requests\n", wanted, b->set_path,
                set->pictures_n);
        return false;
    }
    for (uint32_t i = 0, n = 0, last = UINT32_MAX; i < set->n; i++) {
        const struct eval_question q = set->q[i]; /* those about one picture lie together */
        if (q.picture_i == last) continue;
        last = q.picture_i;
        set->q[i] = set->q[n];
        set->q[n++] = q;
    }
    return true;
}

/* What a token would cost on the links of `ranks` tensor ranks, by the planner; 0 if they do not fit the model. */
static double plan_bytes(const char *model, uint32_t ranks)
{
    char command[64], *text = calloc(1, PLAN_MAX);
    double bytes = 0;
    size_t n = 0;
    FILE *f;

    setenv("WINNOW_BENCH_MODEL", model, 1); /* no shell looks at what is in it */
    snprintf(command, sizeof(command), "\"$WINNOW_BENCH_SELF\" plan \"$WINNOW_BENCH_MODEL\" -tp %u --json", ranks);
    if (text && (f = popen(command, "r"))) {
        n = fread(text, 1, PLAN_MAX - 1, f);
        if (pclose(f) != 0 || n == 0 || !wire_token_bytes(text, &bytes)) bytes = 0;
    }
    free(text);
    return bytes;
}

static void plan(struct wire *b)
{
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (!b->model || n < 0) return;
    self[n] = '\0';
    setenv("WINNOW_BENCH_SELF", self, 1);
    for (int i = 0; i < WIRE_PLANS_N; i++) b->report.token_bytes[i] = plan_bytes(b->model, wire_plans[i]);
}

static bool shape(const struct wire *b, const char *rate)
{
    char command[4096];
    int code;

    if (!b->shape) return true;
    if (snprintf(command, sizeof(command), "%s %s", b->shape, rate) >= (int)sizeof(command)) {
        fprintf(stderr, "winnow: --shape is too long\n");
        return false;
    }
    code = system(command);
    if (code != 0) fprintf(stderr, "winnow: '%s' failed\n", command);
    return code == 0;
}

/* ---- the measurement ---- */

static bool read_counters(struct wire *b, struct wire_counters *out)
{
    char *json;
    bool good;

    usleep(REPORTED_US);
    if (!(json = winnow_status_json(b->runner.w, 10000))) {
        fprintf(stderr, "winnow: %s\n", winnow_error(b->runner.w));
        return false;
    }
    good = wire_counters_parse(json, out);
    free(json);
    return good;
}

/* n questions from the first'th on, with `keep` tokens. */
static bool ask(struct wire *b, uint32_t first, uint32_t n, uint32_t keep)
{
    struct eval_setting setting = {.keep = keep};
    struct eval_set part = b->set;

    snprintf(setting.method, sizeof(setting.method), "%s", b->report.method);
    part.q += first;
    part.n = n;
    b->runner.set = &part;
    return eval_run(&b->runner, &setting, b->out);
}

static bool measure_cell(struct wire *b, const char *rate, uint32_t first, uint32_t keep, bool encoded_before)
{
    struct wire_cell *cell = &b->report.cells[b->report.cells_n];
    const struct wire_counters before = b->counters;
    struct eval_set part = b->set;
    char what[64];
    const int64_t began_us = wn_now_us();

    *cell = (struct wire_cell){.keep = keep, .encoded_before = encoded_before};
    snprintf(cell->rate, sizeof(cell->rate), "%s", rate);
    snprintf(what, sizeof(what), "[%s, %s]", rate, encoded_before ? "encoded before" : "new pictures");
    b->runner.what = what;
    if (!ask(b, first, b->requests, keep)) return false;
    cell->wall_s = (double)(wn_now_us() - began_us) / 1e6;
    part.q += first;
    part.n = b->requests;
    if (!read_counters(b, &b->counters) || !wire_cell_fill(cell, &part, b->out, &before, &b->counters)) return false;
    b->report.cells_n++;
    return true;
}

/* New pictures for every budget; then each budget with the pictures of the next one: encoded, but not with these
 * rows. */
static bool measure_rate(struct wire *b, const char *rate, uint32_t first)
{
    for (int again = 0; again < (b->budgets_n > 1 ? 2 : 1); again++)
        for (uint32_t i = 0; i < b->budgets_n; i++) {
            const uint32_t of = again ? (i + 1) % b->budgets_n : i;
            if (!measure_cell(b, rate, first + of * b->requests, b->budgets[i], again)) return false;
        }
    return true;
}

static bool measure(struct wire *b)
{
    const uint32_t rates_n = b->rates_n ? b->rates_n : 1, last = rates_n * b->budgets_n * b->requests;
    struct eval_setting setting = {.keep = 1};
    bool good;

    snprintf(setting.method, sizeof(setting.method), "%s", b->report.method);
    b->runner.what = "warm-up";
    good = eval_check(&b->runner, &setting) && ask(b, last, 1, b->budgets[b->budgets_n - 1]);
    b->report.model = b->counters.model;
    for (uint32_t i = 0; good && i < rates_n; i++) {
        const char *rate = b->rates_n ? b->rates[i] : "as it is";
        good = shape(b, rate) && read_counters(b, &b->counters) &&
               measure_rate(b, rate, i * b->budgets_n * b->requests);
    }
    return good && b->runner.errors == 0 && !cli_stopped;
}

/* What there is, also after a failure. */
static bool report(struct wire *b)
{
    bool good = true;

    if (b->report.cells_n == 0) return true;
    wire_print(stdout, &b->report);
    if (b->csv) good = wire_write_csv(b->csv, &b->report);
    if (b->csv && b->plot) good = good && wire_read_csv(b->csv, &b->report);
    if (b->plot) good = good && wire_write_plot(b->plot, &b->report);
    return good;
}

int bench_wire(int argc, char **argv)
{
    struct wire *b = calloc(1, sizeof(*b));
    int code;

    if (!b) {
        fprintf(stderr, "winnow: out of memory\n");
        return CLI_FAILED;
    }
    b->set_path = DEFAULT_SET;
    b->requests = 4;
    b->report.method = "cls-topk";
    b->report.commit = WN_COMMIT;
    b->runner = (struct eval_runner){.concurrency = 1, .max_tokens = 8, .timeout_s = 300};
    if ((code = parse(b, argc, argv)) >= 0) goto out;
    code = CLI_FAILED;
    if (b->csv && !wire_check_csv(b->csv)) goto out; /* not only when all has been measured */
    b->report.concurrency = b->runner.concurrency;
    b->report.max_tokens = b->runner.max_tokens;
    if (!cli_can_write(b->csv) || !cli_can_write(b->plot)) goto out;
    if (!(b->out = calloc(b->requests, sizeof(*b->out)))) goto out;
    if (!eval_set_load(&b->set, b->set_path, 0) || !thin_out(b)) goto out;
    if (!(b->runner.w = cli_connect(b->endpoint))) goto out;
    plan(b);
    cli_catch_signals();
    if (measure(b)) code = CLI_OK;
    if (!report(b)) code = CLI_FAILED;
out:
    winnow_close(b->runner.w);
    eval_set_free(&b->set);
    free(b->out);
    free(b);
    return code;
}
