/* tests/integration/test_soak.c - a real service under random load: every job gets the tokens and, to the bit, the
 * log-probabilities that it gets alone, and afterwards nothing is left: no page, no feature slot, no features, no
 * credit, no growing memory.
 *
 *   test_soak [--jobs N] [--seed S] [--pp P] [--dtype float32|bfloat16] [--all]
 *
 * Alone means: on one stage, nobody else in the service, no prompt row and no picture from a cache, the prompt in one
 * step. Then the load: jobs differ in pictures, pruning, prompt, sampling and length; they arrive in bursts over three
 * connections, some are cancelled, some lose their client, prompts that begin alike share pages, and there are KV pages
 * for one long prompt and a few short ones, of four rows, so jobs are preempted all the time. The same seed makes the
 * same jobs. --all: both types on 1, 2 and 3 stages. A soak is `test_soak --all --jobs 10000`. Prints a CSV row a run.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/integration/service.h"
#include "winnow_version.h"

enum { VARIANTS = 20, PICTURES = 4, CONNECTIONS = 3, IN_FLIGHT = 24, TOKENS_MAX = 64, TOP = 8, PATIENCE_S = 120 };
#define GROWTH_MAX (16u << 20) /* bytes of all processes together; a leak of a page of 4 KiB a job is far above */

static int jobs_n = 100, stages = 2;
static int send_max; /* jobs of this run */
static const char *dtype = "bfloat16";
static uint64_t first_seed = 1;
static bool all;

static uint64_t rng;
static uint32_t pick(uint32_t n)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng >> 33) % n;
}

/* ---- what is asked ---- */

/* One token and its likeliest rivals. The chosen one's log-probability has every logit in it. */
struct token {
    uint32_t id, top[TOP];
    float logprob, top_logprob[TOP];
};

struct variant {
    struct winnow_image images[2];
    struct winnow_request r;
    uint32_t top_n;                           /* that jobs ask for; alone it is TOP */
    struct token alone[TOKENS_MAX];           /* the answer when nobody else is there */
    uint32_t alone_n;
};

static void *picture[PICTURES];
static size_t picture_bytes[PICTURES];
static struct variant variants[VARIANTS];

static void make_variants(void)
{
    static const char *const methods[] = {"cls-topk", "divprune", "random", "visionzip", "uniform"};
    static const char *const prompts[] = {"Describe the picture.", "What color is the object at the bottom right?",
                                          "Describe the picture. Name every object."};

    for (int i = 0; i < VARIANTS; i++) {
        struct variant *v = &variants[i];
        v->r = (struct winnow_request){.prompt = prompts[pick(3)], .images = v->images, .max_tokens = 8 + pick(56)};
        v->r.images_n = i % 6 == 5 ? 0 : 1 + pick(2);
        for (size_t k = 0; k < v->r.images_n; k++) {
            const uint32_t p = pick(PICTURES);
            v->images[k] = (struct winnow_image){.data = picture[p], .bytes = picture_bytes[p]};
        }
        if (i % 5 == 0 && v->r.images_n == 1) { /* 576 rows */
            v->r.pruning_method = "none";
        } else if (v->r.images_n) {
            v->r.pruning_method = methods[pick(5)];
            v->r.pruning_keep = 16 + 16 * pick(3);
        }
        if (i % 2) {
            v->r.temperature = i % 4 == 1 ? 3 : 0.9f;
            v->r.seed = 1 + pick(1000);
        }
        if (i % 7 == 3) v->r.repetition_penalty = 1.3f;
        v->r.ignore_eos = i % 3 != 1; /* or most would end after a few tokens, and need no more pages */
        v->top_n = pick(TOP + 1);
    }
}

/* ---- jobs ---- */

struct job {
    bool used, cancelled;
    int conn;
    uint64_t id;
    struct variant *v;
    uint32_t n; /* tokens that have come */
};

static struct service service;
static struct winnow *conns[CONNECTIONS];
static struct job jobs[IN_FLIGHT];
static int done_n, cancelled_n, abandoned_n;
static uint64_t tokens_n; /* compared */

static void reconnect(int c)
{
    winnow_close(conns[c]);
    if (winnow_connect(&conns[c], service.endpoint, NULL) != WINNOW_OK) fail_msg("%s", winnow_error(NULL));
}

static void submit(struct job *j, int conn, struct variant *v)
{
    *j = (struct job){.used = true, .conn = conn, .v = v};
    v->r.logprobs = 1;
    v->r.top_logprobs = v->top_n;
    if (winnow_submit(conns[conn], &v->r, &j->id) != WINNOW_OK) fail_msg("submit: %s", winnow_error(conns[conn]));
}

static void check_end(const struct job *j, const struct winnow_event *ev)
{
    const struct variant *v = j->v;

    if (ev->type != WINNOW_EVENT_DONE) fail_msg("variant %d: %s", (int)(v - variants), ev->text);
    if (strcmp(ev->finish_reason, "cancelled") == 0)
        assert_true(j->cancelled);
    else if (j->n != v->alone_n)
        fail_msg("variant %d: %u tokens, alone %u", (int)(v - variants), j->n, v->alone_n);
}

static bool same_bits(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static void check_token(const struct job *j, uint32_t at, const struct winnow_logprobs *l)
{
    const int variant = (int)(j->v - variants);
    const struct token *alone = &j->v->alone[at];

    if (at >= j->v->alone_n) fail_msg("variant %d: token %u; alone it has %u", variant, at, j->v->alone_n);
    if (l->chosen.id != alone->id)
        fail_msg("variant %d: token %u is %u at %a; alone it is %u at %a", variant, at, l->chosen.id,
                 (double)l->chosen.logprob, alone->id, (double)alone->logprob);
    if (!same_bits(l->chosen.logprob, alone->logprob))
        fail_msg("variant %d: token %u at %a; alone at %a", variant, at, (double)l->chosen.logprob,
                 (double)alone->logprob);
    assert_int_equal(l->top_n, j->v->top_n);
    for (uint32_t k = 0; k < j->v->top_n; k++)
        if (l->top[k].id != alone->top[k] || !same_bits(l->top[k].logprob, alone->top_logprob[k]))
            fail_msg("variant %d: token %u: number %u is %u at %a; alone %u at %a", variant, at, k, l->top[k].id,
                     (double)l->top[k].logprob, alone->top[k], (double)alone->top_logprob[k]);
    tokens_n++;
}

/* Tokens come in order, each once, each with its log-probabilities. */
static const struct winnow_logprobs *next_token(struct job *j, const struct winnow_event *ev, size_t i)
{
    const uint32_t at = ev->first_token + (uint32_t)i;

    if (at != j->n || at >= TOKENS_MAX) fail_msg("token %u after %u", at, j->n);
    assert_non_null(ev->logprobs);
    assert_int_equal(ev->logprobs[i].chosen.id, ev->token_ids[i]);
    j->n++;
    return &ev->logprobs[i];
}

/* One event of the connection, if there is one in time. */
static bool take_event(int c, int timeout_ms)
{
    struct winnow_event ev;

    if (winnow_next(conns[c], &ev, timeout_ms) != WINNOW_OK) return false;
    for (int i = 0; i < IN_FLIGHT; i++) {
        struct job *j = &jobs[i];
        if (!j->used || j->conn != c || j->id != ev.job) continue;
        if (ev.type == WINNOW_EVENT_TEXT) {
            for (size_t k = 0; k < ev.token_ids_n; k++) {
                const uint32_t at = j->n;
                check_token(j, at, next_token(j, &ev, k));
            }
        } else if (ev.type != WINNOW_EVENT_ACCEPTED) {
            check_end(j, &ev);
            cancelled_n += strcmp(ev.finish_reason, "cancelled") == 0;
            done_n++;
            j->used = false;
        }
    }
    return true;
}

static int open_jobs(void)
{
    int n = 0;
    for (int i = 0; i < IN_FLIGHT; i++) n += jobs[i].used;
    return n;
}

static void keep(struct token *t, const struct winnow_logprobs *l)
{
    *t = (struct token){.id = l->chosen.id, .logprob = l->chosen.logprob};
    assert_int_equal(l->top_n, TOP);
    for (int k = 0; k < TOP; k++) {
        t->top[k] = l->top[k].id;
        t->top_logprob[k] = l->top[k].logprob;
    }
}

static void ask_alone(struct variant *v)
{
    const uint32_t top_n = v->top_n;
    struct winnow_event ev;

    v->top_n = TOP;
    submit(&jobs[0], 0, v);
    do {
        if (winnow_next(conns[0], &ev, PATIENCE_S * 1000) != WINNOW_OK) fail_msg("%s", winnow_error(conns[0]));
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY) fail_msg("%s", ev.text);
        for (size_t i = 0; i < ev.token_ids_n; i++) {
            const uint32_t at = jobs[0].n;
            keep(&v->alone[at], next_token(&jobs[0], &ev, i));
        }
    } while (ev.type != WINNOW_EVENT_DONE);
    assert_int_equal(ev.usage.cached_tokens, 0);
    assert_false(ev.usage.vision_cache_hit);
    v->alone_n = jobs[0].n;
    v->top_n = top_n;
    jobs[0].used = false;
}

/* What each variant gets when nothing is shared with anybody. */
static void find_answers(void)
{
    char type[32];
    const char *flags[] = {type, "-pp=1", "--max-num-seqs=1", "--max-num-batched-tokens=2048",
                           "--no-enable-prefix-caching", "--vision-cache-bytes=0", NULL};

    snprintf(type, sizeof(type), "--dtype=%s", dtype);
    service_start(&service, "models/tiny-llava", flags);
    reconnect(0);
    for (int i = 0; i < VARIANTS; i++) ask_alone(&variants[i]);
    winnow_close(conns[0]);
    conns[0] = NULL;
    assert_int_equal(service_stop(&service), 0);
}

/* Somebody loses the connection: the server finishes the jobs for nobody. */
static void lose_client(int c)
{
    for (int i = 0; i < IN_FLIGHT; i++) {
        if (!jobs[i].used || jobs[i].conn != c) continue;
        jobs[i].used = false;
        abandoned_n++;
        done_n++;
    }
    reconnect(c);
}

static void burst(int *sent, uint32_t n)
{
    for (uint32_t i = 0; i < IN_FLIGHT && n && *sent < send_max; i++) {
        if (jobs[i].used) continue;
        submit(&jobs[i], (int)pick(CONNECTIONS), &variants[pick(VARIANTS)]);
        (*sent)++;
        n--;
    }
}

/* What clients may do now and then, by the number of events and not by the clock. */
static void act(int *sent)
{
    struct job *j = &jobs[pick(IN_FLIGHT)];

    if (pick(8) == 0) burst(sent, 1 + pick(12));
    if (pick(70) == 0 && j->used && !j->cancelled) {
        j->cancelled = true;
        if (winnow_cancel(conns[j->conn], j->id) != WINNOW_OK) fail_msg("cancel: %s", winnow_error(conns[j->conn]));
    }
    if (pick(700) == 0) lose_client((int)pick(CONNECTIONS));
}

/* Until `until` jobs have ended, sending up to send_max. */
static void run_until(int *sent, int until)
{
    double last = now_s();

    while (done_n < until) {
        const int before = done_n;
        bool any = false;
        for (int c = 0; c < CONNECTIONS; c++) any = take_event(c, 0) || any;
        if (any) act(sent);
        if (open_jobs() == 0) burst(sent, IN_FLIGHT); /* more than there are pages for */
        if (!any) usleep(1000);
        if (done_n != before) last = now_s();
        if (now_s() - last > PATIENCE_S)
            fail_msg("%d of %d jobs ended, and no more in %d s", done_n, until, PATIENCE_S);
    }
}

/* ---- accounts ---- */

static uint64_t number(json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_integer(v)) fail_msg("the status has no %s", key);
    return (uint64_t)json_integer_value(v);
}

static uint64_t resident_bytes(void)
{
    pid_t pids[32];
    const int n = service_pids(&service, NULL, pids, 32);
    uint64_t sum = 0;

    for (int i = 0; i < n; i++) {
        char path[64];
        unsigned long size, resident;
        FILE *f;
        snprintf(path, sizeof(path), "/proc/%d/statm", (int)pids[i]);
        if (!(f = fopen(path, "r"))) continue;
        if (fscanf(f, "%lu %lu", &size, &resident) == 2) sum += resident * (uint64_t)sysconf(_SC_PAGESIZE);
        fclose(f);
    }
    return sum;
}

/* The accounts of what the leader and the vision worker have lent; *preemptions since the start. */
static uint64_t lent(uint64_t *preemptions)
{
    char *text = winnow_status_json(conns[0], 10000);
    json_t *status, *w;
    uint64_t sum;
    size_t i;

    if (!text) fail_msg("status: %s", winnow_error(conns[0]));
    status = json_loads(text, 0, NULL);
    assert_non_null(status);
    sum = number(status, "queued") + number(status, "running");
    json_array_foreach(json_object_get(status, "workers"), i, w)
    {
        sum += number(w, "running") + number(w, "waiting") + number(w, "features"); /* of a vision worker: credit */
        if (strcmp(json_string_value(json_object_get(w, "role")), "replica") != 0) continue;
        sum += number(w, "kv_pages_used") + number(w, "feature_slots");
        *preemptions = number(w, "preemptions");
    }
    json_decref(status);
    free(text);
    return sum;
}

/* Idle: after the next heartbeats every account is zero. */
static uint64_t settle(void)
{
    const double until = now_s() + 60;
    uint64_t preemptions = 0, left;

    do {
        usleep(600000); /* more than a heartbeat */
        left = lent(&preemptions);
    } while (left && now_s() < until);
    if (left) fail_msg("%llu pages, slots, features or jobs were never given back", (unsigned long long)left);
    return preemptions;
}

/* ---- the runs ---- */

static void soak(uint64_t seed)
{
    char pp[16], type[32];
    const char *flags[] = {pp, type, "--block-size=4", "--kv-pages=168", "--max-num-seqs=20",
                           "--max-num-batched-tokens=96", "--max-results=64", NULL};
    uint64_t tenth, warm, end, preemptions;
    int sent = 0;
    double began;

    send_max = jobs_n;
    rng = seed;
    snprintf(pp, sizeof(pp), "-pp=%d", stages);
    snprintf(type, sizeof(type), "--dtype=%s", dtype);
    service_start(&service, "models/tiny-llava", flags);
    for (int c = 0; c < CONNECTIONS; c++) reconnect(c);
    began = now_s();
    done_n = cancelled_n = abandoned_n = 0;
    tokens_n = 0;
    run_until(&sent, send_max / 10);
    tenth = resident_bytes();
    run_until(&sent, send_max / 2);
    warm = resident_bytes();
    run_until(&sent, send_max);
    began = now_s() - began;
    preemptions = settle();
    for (int more = 0; preemptions == 0 && more < 4; more++) { /* how many come together is a matter of time */
        run_until(&sent, send_max += IN_FLIGHT);
        preemptions = settle();
    }
    end = resident_bytes();
    printf("%s,%s,%d,%llu,%d,%.1f,%llu,%d,%d,%llu,0,%.1f,%.1f,%.1f\n", WN_COMMIT, dtype, stages,
           (unsigned long long)seed, done_n, began, (unsigned long long)tokens_n, cancelled_n, abandoned_n,
           (unsigned long long)preemptions, (double)tenth / 1e6, (double)warm / 1e6, (double)end / 1e6);
    fflush(stdout);
    if (jobs_n >= 80) assert_true(preemptions > 0); /* or it has shown nothing */
    assert_true(end < warm + GROWTH_MAX);
    for (int c = 0; c < CONNECTIONS; c++) {
        winnow_close(conns[c]);
        conns[c] = NULL;
    }
    assert_int_equal(service_stop(&service), 0);
}

static void test_soak(void **state)
{
    static const char *const types[] = {"float32", "bfloat16"};
    (void)state;
    rng = first_seed;
    make_variants();
    printf("commit,dtype,stages,seed,jobs,seconds,tokens_compared,cancelled,without_client,preemptions,not_given_back,"
           "mb_after_a_tenth,mb_half,mb_end\n");
    if (!all) {
        find_answers();
        soak(first_seed);
        return;
    }
    for (int t = 0; t < 2; t++) {
        dtype = types[t];
        find_answers();
        for (stages = 1; stages <= 3; stages++) soak(first_seed + (uint64_t)stages); /* one set of answers for all */
    }
}

static int load_pictures(void **state)
{
    (void)state;
    for (int i = 0; i < PICTURES; i++) {
        char path[64];
        snprintf(path, sizeof(path), "tests/eval/images/%03d.jpg", i);
        picture[i] = read_file(path, &picture_bytes[i]);
    }
    return 0;
}

static int free_pictures(void **state)
{
    (void)state;
    if (service.pid > 0 && conns[0]) service_stop(&service); /* after a failure */
    for (int i = 0; i < PICTURES; i++) free(picture[i]);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"jobs", required_argument, NULL, 'j'},  {"seed", required_argument, NULL, 's'},
        {"pp", required_argument, NULL, 'p'},    {"dtype", required_argument, NULL, 'd'},
        {"all", no_argument, NULL, 'a'},         {0}};
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_soak)};

    for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (opt == 'j') jobs_n = (int)strtol(optarg, NULL, 10);
        else if (opt == 's') first_seed = strtoull(optarg, NULL, 10);
        else if (opt == 'p') stages = (int)strtol(optarg, NULL, 10);
        else if (opt == 'd') dtype = optarg;
        else if (opt == 'a') all = true;
        else return 2;
    }
    return cmocka_run_group_tests(tests, load_pictures, free_pictures);
}
