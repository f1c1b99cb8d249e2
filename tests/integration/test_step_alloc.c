/* tests/integration/test_step_alloc.c - after warm-up a step allocates nothing, on the leader and on every other rank:
 * the batcher and a real replica of models/tiny-llava with two stages, every call of malloc and its family counted,
 * while jobs decode, draw, are preempted and come again, and new ones with pictures are let in and read.
 *
 * Under mpirun with 2 processes. What MPI allocates inside its own libraries is not counted. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/batcher.h"
#include "daemon/replica.h"
#include "shard/model.h"
#include "shard/weights.h"
#include "transport/link.h"

enum { JOBS = 7, LATE = 2, PROMPT = 40, IMAGE_ROWS = 24, NEW = 120, PAGE = 16, WARM = 30, TIMEOUT_US = 60000000 };

/* ---- counting (-Wl,--wrap) ---- */

static unsigned long calls;
static bool counting;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    calls += counting;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    calls += counting;
    return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    calls += counting;
    return __real_realloc(p, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    calls += counting;
    return __real_aligned_alloc(align, bytes);
}

/* ---- */

static struct wn_model model;
static struct wn_err err;

static int give_up(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, err.text);
    wn_link_mpi_abort(1);
    return 1;
}

/* A picture in the middle of the prompt. */
static bool add_image(struct wn_gen_job *job)
{
    static uint16_t features[IMAGE_ROWS * 1024]; /* bfloat16, zero: nobody looks at the answer */
    struct wn_gen_image *im = &job->images[0];

    if (model.vision.hidden > 1024 || !(im->msg = calloc(1, sizeof(*im->msg)))) return false;
    wn_msg_init(&im->msg->msg);
    im->msg->payload = features;
    im->rows = im->rows_before = IMAGE_ROWS;
    im->width = model.vision.hidden;
    im->dtype = WN_BF16;
    job->images_n = 1;
    job->image_rows = IMAGE_ROWS;
    job->tokens.ids[PROMPT / 2] = model.image_token;
    return true;
}

/* Every second job draws from the distribution, one of them with a penalty; two want log-probabilities; the late ones
 * have a picture, the same. */
static bool add_job(struct wn_batcher *b, uint32_t i)
{
    static Wn__Generate g[JOBS];
    static Wn__Sampling s[JOBS];
    const struct wn_gen_limits limits = {
        .model = &model, .page_tokens = PAGE, .tokens_max = PROMPT + IMAGE_ROWS + NEW};
    struct wn_gen_job *job = calloc(1, sizeof(*job));

    if (!job) return false;
    wn__generate__init(&g[i]);
    wn__sampling__init(&s[i]);
    g[i].sampling = &s[i];
    s[i].seed = i;
    s[i].temperature = i % 2 ? 0.8f : 0;
    s[i].repetition_penalty = i == 3 ? 1.2f : 0;
    s[i].logprobs = i == 2 || i == JOBS - 1;
    s[i].top_logprobs = 5;
    job->g = &g[i];
    job->max_new = NEW;
    job->tokens.ids = calloc(PROMPT, sizeof(uint32_t));
    if (!job->tokens.ids) return false;
    for (uint32_t k = 0; k < PROMPT; k++) job->tokens.ids[k] = 3 + (i * 31 + k * 7) % 900;
    job->tokens.n = PROMPT;
    if (i >= JOBS - LATE && !add_image(job)) return false;
    wn_batcher_add(b, job);
    return wn_gen_job_layout(job, &limits, &err) == WN_OK;
}

static wn_status collect(struct wn_replica *r, struct wn_batcher *b, uint32_t *ended)
{
    struct wn_step_token tokens[JOBS];
    struct wn_replica_stats stats;
    const struct wn_flight *f;
    uint32_t n = 0;
    const wn_status rc = wn_replica_collect(r, tokens, &n, &stats, &err);

    if (rc != WN_OK) return rc;
    f = wn_batcher_landed(b);
    for (uint32_t i = 0; i < n; i++) {
        struct wn_gen_job *job = f->order[tokens[i].seq];
        if (!wn_gen_apply(&job->life, WN_GEN_TOKEN)) continue;
        wn_gen_job_push(job, tokens[i].id);
        if (job->new_n < job->max_new) continue;
        wn_batcher_end(b, job, WN_GEN_FINISH);
        (*ended)++;
    }
    return WN_OK;
}

static wn_status lead(struct wn_replica *r, const struct wn_step_limits *limits, uint64_t *preemptions)
{
    struct wn_batcher *b = NULL;
    struct wn_step_record *rec = NULL;
    struct wn_batcher_load load;
    uint32_t ended = 0, steps = 0, added = 0;
    const struct wn_pipeline pipe = {.depth = wn_replica_depth(r), .stages = 2, .chunk_min = 8};
    wn_status rc = wn_batcher_create(&b, limits, &pipe, &err);

    while (rc == WN_OK && ended < JOBS) {
        counting = false; /* jobs come with memory of their own, and with pages to find others' rows in */
        while (rc == WN_OK && added < (steps < 2 * WARM ? JOBS - LATE : JOBS))
            if (!add_job(b, added++)) rc = WN_ENOMEM;
        counting = steps >= WARM;
        if (wn_batcher_in_flight(b) < wn_replica_depth(r)) {
            rec = wn_replica_record(r);
            wn_batcher_fill(b, rec);
            if (!wn_batcher_is_idle(rec)) {
                if ((rc = wn_replica_begin(r, wn_batcher_features(b), &err)) != WN_OK) break;
                wn_batcher_begun(b, rec);
                steps++;
                continue;
            }
        }
        rc = collect(r, b, &ended);
    }
    while (rc == WN_OK && wn_batcher_in_flight(b)) rc = collect(r, b, &ended);
    counting = false;
    if (rc == WN_OK) {
        rec = wn_replica_record(r);
        rec->flags = WN_STEP_STOP;
        rc = wn_replica_begin(r, NULL, &err);
        if (rc == WN_OK) rc = wn_replica_collect(r, NULL, &(uint32_t){0}, NULL, &err);
    }
    wn_batcher_load(b, &load);
    *preemptions = load.preemptions;
    wn_batcher_destroy(b);
    return rc;
}

static wn_status follow(struct wn_replica *r)
{
    bool stop = false;
    wn_status rc = WN_OK;

    for (uint32_t steps = 0; rc == WN_OK && !stop; steps++) {
        counting = steps >= WARM;
        rc = wn_replica_follow(r, &stop, &err);
    }
    counting = false;
    return rc;
}

int main(void)
{
    const struct wn_group group = {0};
    struct wn_step_limits limits = {.rows_max = 64,
                                    .seqs_max = JOBS,
                                    .pages_max = 40, /* of 70 that all jobs would like: some are preempted */
                                    .table_max = 80,
                                    .features_max = 2,
                                    .page_tokens = PAGE};
    struct wn_replica_opts opts = {.tokens_max = PROMPT + IMAGE_ROWS + NEW, .step_timeout_us = TIMEOUT_US};
    struct wn_link *link = NULL;
    struct wn_backend *be = NULL;
    struct wn_weights *weights = NULL;
    struct wn_replica *replica = NULL;
    struct wn_plan plan;
    uint64_t preemptions = 1;
    int rank;

    if (wn_link_open(&link, "mpi", &group, &err) != WN_OK) return give_up("link");
    rank = wn_link_rank(link);
    if (wn_model_open(&model, "models/tiny-llava", &err) != WN_OK) return give_up("model");
    if (wn_plan_make(&plan, &model, (uint32_t)wn_link_size(link), 1, NULL, WN_BF16, &err) != WN_OK)
        return give_up("plan");
    if (wn_weights_open(&weights, "models/tiny-llava", &err) != WN_OK) return give_up("weights");
    if (wn_backend_open(&be, "cpu", 0, &err) != WN_OK) return give_up("backend");
    limits.vocab = model.text.vocab;
    limits.positions_max = model.text.positions_max;
    opts.be = be;
    opts.link = link;
    opts.plan = &plan;
    opts.weights = weights;
    opts.limits = limits;
    if (wn_replica_open(&replica, &opts, &err) != WN_OK) return give_up("replica");
    wn_weights_close(weights);
    if ((rank == 0 ? lead(replica, &limits, &preemptions) : follow(replica)) != WN_OK) return give_up("step");
    wn_replica_close(replica);
    wn_link_close(link);
    wn_backend_close(be);
    printf("rank %d: %lu allocations in the steps after the first %d\n", rank, calls, WARM);
    if (calls) fprintf(stderr, "rank %d: a step allocates\n", rank);
    if (!preemptions) fprintf(stderr, "nobody was preempted\n");
    return calls || !preemptions;
}
