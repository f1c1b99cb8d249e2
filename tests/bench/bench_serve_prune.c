/* bench_serve_prune [-n JOBS] [-c LEVEL[,LEVEL...]] [-t NEW_TOKENS] [-p METHOD[:K][,...]] [-r RUNS] [-x]
 *                   [-- flags of winnowd serve]
 *
 * Does pruning ever cost throughput? A service for each level, a closed loop of clients at 1, 8 and 32 jobs in
 * flight. Each way of pruning runs between two runs of `none` and is compared with both, so a machine that becomes
 * slower or faster meanwhile does not decide; -r times. Verifies that every answer under load is the one that its
 * question gets alone. There is no prefix cache, which would hide what a prompt costs that comes again. Before a way is
 * timed its method chooses one token of each picture, so that it finds the vision cache warm, taps and all: what is
 * compared is selection, features, prefill and decode. With -x there is no vision cache, and each job encodes.
 *
 * CSV: commit, machine, flags, vision_cache, pruning, concurrent, jobs, image_tokens (of an answer, mean), tokens,
 * seconds, ttft_p50_ms, ttft_p95_ms, tokens_s, jobs_s, over_none (the mean time of `none` before and after over the
 * time of this run: below 1 pruning would cost; of `none` itself: over the `none` before it, the machine's drift).
 * Nothing is asserted about times. Run from the repository's root. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/serving.h"
#include "tests/integration/service.h"
#include "winnow_version.h"

#define PICTURES   100 /* of tests/eval */
#define LEVELS     8
#define WAYS       16
#define IN_FLIGHT  256
#define VERIFIED   4 /* pictures whose answers are compared, at every level and way */

struct way {
    char text[WINNOW_METHOD_MAX + 12], method[WINNOW_METHOD_MAX];
    uint32_t keep;
    char *alone[VERIFIED]; /* answers with nothing else to do */
};

struct job {
    uint64_t id; /* 0: free */
    int picture;
    double sent, first;
};

static void *pictures[PICTURES];
static size_t pictures_bytes[PICTURES];
static struct way ways[WAYS];
static int ways_n, levels[LEVELS] = {1, 8, 32}, levels_n = 3, jobs_n = PICTURES, runs_n = 1;
static bool cold;
static uint32_t new_tokens = 16;
static struct serving_flags flags;

static void submit(struct winnow *w, const struct way *way, struct job *j, int picture)
{
    const struct winnow_image image = {.data = pictures[picture], .bytes = pictures_bytes[picture]};
    const struct winnow_request r = {.prompt = "Describe the picture.",
                                     .images = &image,
                                     .images_n = 1,
                                     .max_tokens = new_tokens,
                                     .pruning_method = way->method,
                                     .pruning_keep = way->keep};

    *j = (struct job){.picture = picture, .sent = now_s()};
    if (winnow_submit(w, &r, &j->id) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
}

static void verify(struct way *way, const struct job *j, const char *answer)
{
    if (j->picture >= VERIFIED) return;
    if (!way->alone[j->picture]) way->alone[j->picture] = strdup(answer);
    if (strcmp(way->alone[j->picture], answer) != 0)
        fail_msg("%s, picture %d among others: '%s', alone: '%s'", way->text, j->picture, answer,
                 way->alone[j->picture]);
}

struct outcome {
    double seconds, ttft_p50_ms, ttft_p95_ms;
    uint64_t tokens, image_tokens;
};

/* Asks about the first `jobs` pictures. */
static struct outcome run(struct winnow *w, struct way *way, int concurrent, int jobs)
{
    struct job running[IN_FLIGHT] = {0};
    double *ttft = calloc((size_t)jobs, sizeof(*ttft)), began = now_s();
    struct outcome o = {0};
    int sent = 0, done = 0, ttft_n = 0;

    assert_non_null(ttft);
    for (; sent < concurrent && sent < jobs; sent++) submit(w, way, &running[sent], sent);
    while (done < jobs) {
        struct winnow_event ev;
        struct job *j = NULL;
        if (winnow_next(w, &ev, 300000) != WINNOW_OK) fail_msg("%s", winnow_error(w));
        for (int i = 0; i < concurrent; i++)
            if (running[i].id && running[i].id == ev.job) j = &running[i];
        if (!j) continue;
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY) fail_msg("job failed: %s", ev.text);
        if (ev.type == WINNOW_EVENT_TEXT && !(j->first > 0) && ttft_n < jobs)
            ttft[ttft_n++] = (j->first = now_s()) - j->sent;
        if (ev.type != WINNOW_EVENT_DONE) continue;
        verify(way, j, ev.text);
        o.tokens += ev.usage.completion_tokens;
        o.image_tokens += ev.usage.image_tokens;
        done++;
        j->id = 0;
        if (sent < jobs) submit(w, way, j, sent++);
    }
    o.image_tokens /= (uint64_t)jobs;
    o.seconds = now_s() - began;
    o.ttft_p50_ms = serving_quantile_ms(ttft, (size_t)ttft_n, .5);
    o.ttft_p95_ms = serving_quantile_ms(ttft, (size_t)ttft_n, .95);
    free(ttft);
    return o;
}

/* The vision cache gets the pictures with what this method reads. */
static void warm(struct winnow *w, const struct way *way)
{
    struct way one = {.text = "to warm the vision cache", .keep = 1};
    const bool none = strcmp(way->method, "none") == 0;

    snprintf(one.method, sizeof(one.method), "%s", none ? "uniform" : way->method);
    run(w, &one, 8, jobs_n);
    for (int k = 0; k < VERIFIED; k++) free(one.alone[k]);
}

static struct outcome run_way(struct winnow *w, struct way *way, int concurrent)
{
    if (!cold) warm(w, way);
    if (!way->alone[0] && concurrent > 1) run(w, way, 1, VERIFIED);
    return run(w, way, concurrent, jobs_n);
}

static void print_row(const char *machine, const struct way *way, int concurrent, const struct outcome *o,
                      double over_none)
{
    printf("%s,%s,\"%s\",%s,%s,%d,%d,%llu,%llu,%.2f,%.1f,%.1f,%.1f,%.2f,%.2f\n", WN_COMMIT, machine, flags.text,
           cold ? "none" : "warm", way->text, concurrent, jobs_n, (unsigned long long)o->image_tokens,
           (unsigned long long)o->tokens, o->seconds, o->ttft_p50_ms, o->ttft_p95_ms, (double)o->tokens / o->seconds,
           jobs_n / o->seconds, over_none);
    fflush(stdout);
}

static void bench_level(int concurrent, const char *machine)
{
    struct outcome before, way, after;
    struct service s;
    struct winnow *w = NULL;

    service_start(&s, "models/tiny-llava", flags.list);
    assert_int_equal(winnow_connect(&w, s.endpoint, NULL), WINNOW_OK);
    before = run_way(w, &ways[0], concurrent);
    print_row(machine, &ways[0], concurrent, &before, 1);
    for (int i = runs_n; i < ways_n * runs_n; i++) {
        way = run_way(w, &ways[i / runs_n], concurrent);
        after = run_way(w, &ways[0], concurrent);
        print_row(machine, &ways[i / runs_n], concurrent, &way, (before.seconds + after.seconds) / 2 / way.seconds);
        print_row(machine, &ways[0], concurrent, &after, before.seconds / after.seconds);
        before = after;
    }
    winnow_close(w);
    assert_int_equal(service_stop(&s), 0);
}

static void bench(void **state)
{
    char machine[160];

    (void)state;
    serving_machine(machine, sizeof(machine));
    serving_pictures(pictures, pictures_bytes, PICTURES);
    printf("commit,machine,flags,vision_cache,pruning,concurrent,jobs,image_tokens,tokens,seconds,ttft_p50_ms,"
           "ttft_p95_ms,tokens_s,jobs_s,over_none\n");
    for (int l = 0; l < levels_n; l++) bench_level(levels[l], machine);
    for (int i = 0; i < PICTURES; i++) free(pictures[i]);
    for (int i = 0; i < ways_n; i++)
        for (int k = 0; k < VERIFIED; k++) free(ways[i].alone[k]);
}

/* "cls-topk:64,prumerge"; `none` is way 0. */
static void add_ways(const char *list)
{
    ways_n = 1;
    snprintf(ways[0].text, sizeof(ways[0].text), "none");
    snprintf(ways[0].method, sizeof(ways[0].method), "none");
    for (; ways_n < WAYS && *list; ways_n++) {
        struct way *way = &ways[ways_n];
        const size_t n = strcspn(list, ","), name = strcspn(list, ":,");
        snprintf(way->text, sizeof(way->text), "%.*s", (int)n, list);
        snprintf(way->method, sizeof(way->method), "%.*s", (int)name, list);
        way->keep = list[name] == ':' ? (uint32_t)strtoul(list + name + 1, NULL, 10) : 0;
        list += n + (list[n] == ',');
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bench)};
    int opt;

    add_ways("cls-topk:288,cls-topk:64,prumerge:64,prumerge+,visionzip:64,vispruner:288,divprune:288,divprune:64,"
             "hiprune:64");
    while ((opt = getopt(argc, argv, "n:c:t:p:r:x")) != -1) {
        if (opt == 'n') jobs_n = (int)strtol(optarg, NULL, 10);
        if (opt == 't') new_tokens = (uint32_t)strtoul(optarg, NULL, 10);
        if (opt == 'p') add_ways(optarg);
        if (opt == 'r') runs_n = (int)strtol(optarg, NULL, 10);
        if (opt == 'x') cold = true;
        if (opt == 'c') {
            char *at = optarg;
            for (levels_n = 0; levels_n < LEVELS && *at; at += *at == ',') {
                levels[levels_n] = (int)strtol(at, &at, 10);
                if (levels[levels_n] < 1 || levels[levels_n++] > IN_FLIGHT) return 2;
            }
        }
        if (opt == '?') return 2;
    }
    serving_flags_take(&flags, argv + optind, argc - optind);
    flags.list[flags.n++] = "--no-enable-prefix-caching";
    if (cold) flags.list[flags.n] = "--vision-cache-bytes=0";
    if (new_tokens < 1 || jobs_n < VERIFIED || jobs_n > PICTURES || levels_n < 1 || runs_n < 1) return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
