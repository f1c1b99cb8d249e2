/* tests/bench/bench_serve.c - a real service under a closed loop of clients: time to first token, time between tokens,
 * tokens a second, beside the same work one job at a time in the same run.
 *
 *   bench_serve [-n JOBS] [-c CONCURRENT[,CONCURRENT...]] [-t NEW_TOKENS] [-- flags of winnowd serve]
 *   bench_serve -u [...]           as above, but the rows say what a token takes of the processors, and for what
 *   bench_serve -p [-- flags]      what a hit in the prefix cache saves, with the encode saved in both cases
 *
 * Verifies first: each job's answer must equal the answer that it gets alone. Then a CSV row a level of concurrency:
 * commit, machine, flags, concurrent, jobs, tokens, seconds, ready_s, ttft_p50_ms, ttft_p95_ms, itl_p50_ms, itl_p95_ms,
 * tokens_s, jobs_s, ratio (tokens_s over that of the first level), bubble (of each stage: the share of the time with
 * something to run in which it waited). Questions: tests/eval, "Describe the picture."
 * With -u: commit, machine, flags, concurrent, tokens, tokens_s, then NAME_us and NAME_switches a token of what
 * cpu_time.h tells apart; messages_us and scheduler_us are the service's own cost of handing tokens out.
 * With -p: commit, machine, flags, pictures, prompt_tokens, cached_tokens, ttft_cold_p50_ms, ttft_hit_p50_ms, ratio. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/cpu_time.h"
#include "tests/bench/serving.h"
#include "tests/integration/service.h"
#include "winnow_version.h"

#define PICTURES   8
#define LEVELS     8
#define TOKENS_MAX 512
#define STAGES     16
#define REPORTED_US 1500000 /* until a heartbeat has the stages' last times */

struct times {
    double *v;
    size_t n, cap;
};

static void add(struct times *t, double v)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 256;
        t->v = realloc(t->v, t->cap * sizeof(double));
        if (!t->v) abort();
    }
    t->v[t->n++] = v;
}

static double quantile_ms(const struct times *t, double q)
{
    return serving_quantile_ms(t->v, t->n, q);
}

struct job {
    uint64_t id;
    int picture;
    double sent, last;
    char text[TOKENS_MAX * 16];
};

static void *pictures[PICTURES];
static size_t pictures_bytes[PICTURES];
static char *answers[PICTURES]; /* each question's answer when it is alone */
static uint32_t new_tokens = 64;
static struct serving_flags flags;
static bool prefix_only, cpu_only;

static void submit(struct winnow *w, struct job *j, int picture)
{
    const struct winnow_image im = {.data = pictures[picture], .bytes = pictures_bytes[picture]};
    const struct winnow_request r = {
        .prompt = "Describe the picture.", .images = &im, .images_n = 1, .max_tokens = new_tokens};
    j->picture = picture;
    j->sent = now_s();
    j->last = 0;
    j->text[0] = '\0';
    if (winnow_submit(w, &r, &j->id) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
}

/* Each stage's time without work since `before`, in percent of the time in which the replica had some. */
static void print_bubble(struct winnow *w, const struct stage_time *before)
{
    struct stage_time now[STAGES];
    int n;

    usleep(REPORTED_US);
    n = service_stages(w, now, STAGES);
    for (int i = 0; i < n; i++) {
        const double wait = now[i].wait_us - before[i].wait_us;
        const double all = wait + now[i].busy_us - before[i].busy_us + now[i].link_us - before[i].link_us;
        printf("%s%.1f%%", i ? " " : ",", all > 0 ? 100 * wait / all : 0);
    }
    putchar('\n');
    fflush(stdout);
}

/* What each kind of work took since `before`, for a token. */
static void print_cpu(const char *run_dir, const struct cpu_time *before, uint64_t tokens)
{
    struct cpu_time now;

    cpu_time_read(run_dir, &now);
    for (int k = 0; k < CPU_WORKS; k++)
        printf(",%.1f,%.2f", (now.us[k] - before->us[k]) / (double)tokens,
               (double)(now.switches[k] - before->switches[k]) / (double)tokens);
    putchar('\n');
    fflush(stdout);
}

/* The first level has no machine: it warms up, and says nothing. */
static void run_level(struct winnow *w, int concurrent, int jobs, const char *machine, const struct service *s,
                      double *first_rate)
{
    struct job *running = calloc((size_t)concurrent, sizeof(*running));
    struct times ttft = {0}, itl = {0};
    struct stage_time before[STAGES] = {{0}};
    struct cpu_time cpu = {0};
    double began;
    int sent = 0, done = 0;
    uint64_t tokens = 0;
    double seconds, rate;

    if (!running) abort();
    if (machine) {
        usleep(REPORTED_US);
        (void)service_stages(w, before, STAGES);
        cpu_time_read(s->run_dir, &cpu);
    }
    began = now_s();
    for (; sent < concurrent && sent < jobs; sent++) submit(w, &running[sent], sent % PICTURES);
    while (done < jobs) {
        struct winnow_event ev;
        struct job *j = NULL;
        if (winnow_next(w, &ev, 120000) != WINNOW_OK) fail_msg("%s", winnow_error(w));
        for (int i = 0; i < concurrent; i++)
            if (running[i].id == ev.job) j = &running[i];
        if (!j) continue;
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY)
            fail_msg("job failed: %s", ev.text);
        if (ev.type == WINNOW_EVENT_TEXT && ev.token_ids_n) {
            const double now = now_s();
            add(j->last > 0 ? &itl : &ttft, now - (j->last > 0 ? j->last : j->sent));
            j->last = now;
            tokens += ev.token_ids_n;
        }
        if (ev.type != WINNOW_EVENT_DONE) continue;
        if (answers[j->picture] && strcmp(answers[j->picture], ev.text) != 0)
            fail_msg("picture %d among others: '%s', alone: '%s'", j->picture, ev.text,
                     answers[j->picture]);
        if (!answers[j->picture]) answers[j->picture] = strdup(ev.text);
        done++;
        if (sent < jobs) submit(w, j, sent++ % PICTURES);
    }
    seconds = now_s() - began;
    rate = (double)tokens / seconds;
    if (machine && cpu_only) {
        printf("%s,%s,\"%s\",%d,%llu,%.1f", WN_COMMIT, machine, flags.text, concurrent, (unsigned long long)tokens,
               rate);
        print_cpu(s->run_dir, &cpu, tokens);
    } else if (machine) {
        if (*first_rate <= 0) *first_rate = rate;
        printf("%s,%s,\"%s\",%d,%d,%llu,%.2f,%.2f,%.1f,%.1f,%.2f,%.2f,%.1f,%.2f,%.2f", WN_COMMIT,
               machine, flags.text, concurrent, jobs, (unsigned long long)tokens, seconds, s->ready_s,
               quantile_ms(&ttft, .5), quantile_ms(&ttft, .95), quantile_ms(&itl, .5),
               quantile_ms(&itl, .95), rate, (double)jobs / seconds, rate / *first_rate);
        print_bubble(w, before);
    }
    free(ttft.v);
    free(itl.v);
    free(running);
}

/* Milliseconds to the first token of one unloaded job. */
static double first_token_ms(struct winnow *w, int p, const char *method, uint32_t keep, struct winnow_usage *usage)
{
    const struct winnow_image im = {.data = pictures[p], .bytes = pictures_bytes[p]};
    const struct winnow_request r = {.prompt = "Describe the picture.", .images = &im, .images_n = 1, .max_tokens = 2,
                                     .pruning_method = method, .pruning_keep = keep};
    const double began = now_s();
    struct winnow_event ev;
    double first = 0;
    uint64_t id;

    if (winnow_submit(w, &r, &id) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
    do {
        if (winnow_next(w, &ev, 120000) != WINNOW_OK) fail_msg("%s", winnow_error(w));
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY) fail_msg("job failed: %s", ev.text);
        if (ev.type == WINNOW_EVENT_TEXT && first <= 0) first = now_s() - began;
    } while (ev.type != WINNOW_EVENT_DONE);
    *usage = ev.usage;
    return first * 1e3;
}

/* Each picture pruned first, so that its encode is cached; then whole, twice: without and with its pages. */
static void run_prefix(struct winnow *w, const char *machine)
{
    struct times cold = {0}, hit = {0};
    struct winnow_usage usage, again;
    double cold_ms, hit_ms;

    for (int p = 0; p < PICTURES; p++) {
        first_token_ms(w, p, "uniform", 64, &usage);
        add(&cold, first_token_ms(w, p, "none", 0, &usage) / 1e3);
        add(&hit, first_token_ms(w, p, "none", 0, &again) / 1e3);
        if (usage.cached_tokens >= 64 || again.cached_tokens < 512)
            fail_msg("%u rows found cold, %u again", usage.cached_tokens, again.cached_tokens);
    }
    cold_ms = quantile_ms(&cold, .5);
    hit_ms = quantile_ms(&hit, .5);
    printf("commit,machine,flags,pictures,prompt_tokens,cached_tokens,ttft_cold_p50_ms,ttft_hit_p50_ms,ratio\n");
    printf("%s,%s,\"%s\",%d,%u,%u,%.1f,%.1f,%.1f\n", WN_COMMIT, machine, flags.text, PICTURES, again.prompt_tokens,
           again.cached_tokens, cold_ms, hit_ms, cold_ms / hit_ms);
    free(cold.v);
    free(hit.v);
}

static int levels[LEVELS] = {1, 4, 16}, levels_n = 3, jobs_n = 16;
static void bench(void **state)
{
    struct service s;
    struct winnow *w = NULL;
    char machine[160];
    double first_rate = 0;
    (void)state;

    serving_machine(machine, sizeof(machine));
    serving_pictures(pictures, pictures_bytes, PICTURES);
    service_start(&s, "models/tiny-llava", flags.list);
    assert_int_equal(winnow_connect(&w, s.endpoint, NULL), WINNOW_OK);
    if (prefix_only)
        run_prefix(w, machine);
    else
        run_level(w, 1, PICTURES, NULL, &s, NULL); /* answers alone; warm-up */
    if (cpu_only) {
        printf("commit,machine,flags,concurrent,tokens,tokens_s");
        for (int k = 0; k < CPU_WORKS; k++) printf(",%s_us,%s_switches", cpu_work_names[k], cpu_work_names[k]);
        putchar('\n');
    } else if (!prefix_only)
        printf("commit,machine,flags,concurrent,jobs,tokens,seconds,ready_s,ttft_p50_ms,ttft_p95_ms,"
           "itl_p50_ms,itl_p95_ms,"
           "tokens_s,jobs_s,ratio,bubble\n");
    for (int i = 0; i < levels_n && !prefix_only; i++)
        run_level(w, levels[i], jobs_n, machine, &s, &first_rate);
    winnow_close(w);
    assert_int_equal(service_stop(&s), 0);
    for (int i = 0; i < PICTURES; i++) {
        free(pictures[i]);
        free(answers[i]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bench)};
    int opt;

    while ((opt = getopt(argc, argv, "n:c:t:pu")) != -1) {
        if (opt == 'p') prefix_only = true;
        if (opt == 'u') cpu_only = true;
        if (opt == 'n') jobs_n = (int)strtol(optarg, NULL, 10);
        if (opt == 't') new_tokens = (uint32_t)strtoul(optarg, NULL, 10);
        if (opt == 'c') {
            char *at = optarg;
            for (levels_n = 0; levels_n < LEVELS && *at; at += *at == ',')
                levels[levels_n++] = (int)strtol(at, &at, 10);
        }
        if (opt == '?') return 2;
    }
    serving_flags_take(&flags, argv + optind, argc - optind);
    if (new_tokens > TOKENS_MAX || jobs_n < 1 || levels_n < 1) return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
