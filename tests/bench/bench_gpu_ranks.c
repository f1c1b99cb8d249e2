/* mpirun -np P*T bench_gpu_ranks MODEL P T [backend] - a whole model (a folder that random_model has written) cut over
 * ranks, against one rank alone: the same logits, the plan's bytes on every link, and times as they are, as CSV on
 * standard output.
 *
 * Ranks take GPUs in turn; with one GPU they meet over sockets, as two hosts would, and their times are those of one
 * card that two processes share. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/order.h"
#include "shard/decoder.h"
#include "tests/one_seq.h"
#include "transport/nccl.h"

#define PAGE     16u
#define TEXT     40u /* rows of the prompt beside the image's */
#define DECODES  16u
#define ROWS_MAX 1024u
#define WAIT_US  120000000

static struct wn_link *link_;
static struct wn_err err;

static void must(wn_status rc, const char *what)
{
    if (rc == WN_OK) return;
    fprintf(stderr, "bench_gpu_ranks: rank %d: %s: %s\n", link_ ? wn_link_rank(link_) : -1, what,
            err.text[0] ? err.text : wn_status_name(rc));
    if (link_) wn_link_mpi_abort(1);
    exit(1);
}

static int64_t soon(void)
{
    return wn_deadline_in_us(WAIT_US);
}

static struct wn_stage *open_stage(struct wn_backend *be, const struct wn_plan *plan, const struct wn_weights *weights,
                                   struct wn_link *with, uint32_t rank)
{
    const struct wn_stage_opts o = {
        .be = be, .link = with, .plan = plan, .weights = weights, .rank = rank, ONE_SEQ(ROWS_MAX, PAGE)};
    struct wn_stage *s = NULL;

    must(wn_stage_open(&s, &o, &err), "stage");
    return s;
}

/* Step 0 is the prompt, image first; the others are one token each. Returns its microseconds. */
static double run_step(struct wn_stage *s, uint32_t patches, uint32_t vocab, uint32_t step, float *logits)
{
    static uint32_t token[ROWS_MAX], slot[ROWS_MAX], pages[ROWS_MAX / PAGE];
    const uint32_t first = step ? patches + TEXT + step - 1 : 0, rows = step ? 1 : patches + TEXT, wanted = rows - 1;
    const struct wn_seq seq = {.rows = rows, .pos = first, .pages = pages};
    const struct wn_step what = {
        .rows = rows, .token = token, .slot = slot, .seqs_n = 1, .seqs = &seq, .wanted_n = 1, .wanted = &wanted};
    const int64_t start = wn_now_us();

    for (uint32_t i = 0; i < ROWS_MAX / PAGE; i++) pages[i] = i;
    for (uint32_t i = 0; i < rows; i++) {
        slot[i] = first + i < patches ? 0 : WN_SLOT_NONE;
        token[i] = first + i < patches ? first + i : ((first + i) * 7919u + 13u) % vocab;
    }
    must(wn_stage_run(s, &what, soon(), logits, &err), "step");
    return (double)(wn_now_us() - start);
}

/* The others leave the GPU to the one that compares: what a rank waits for spins there. */
static void meet(void)
{
    int ranks[WN_TENSOR_MAX];
    const struct wn_comm all = {.ranks = ranks, .n = wn_link_size(link_), .me = wn_link_rank(link_)};

    for (int i = 0; i < all.n; i++) ranks[i] = i;
    must(wn_coll_barrier(link_, &all, soon()), "barrier");
}

/* What this rank has sent to each other one is what the plan says. */
static void check_bytes(const struct wn_plan *plan, const struct wn_traffic_table *before, bool gpus)
{
    const uint32_t me = (uint32_t)wn_link_rank(link_), ranks = plan->stages * plan->tensors;
    const struct wn_plan_load load = {.text_tokens = TEXT,
                                      .image_rows = plan->model.vision.patches,
                                      .new_tokens = DECODES + 1,
                                      .chunk_tokens = ROWS_MAX,
                                      .gpus = gpus};

    for (uint32_t to = 0; to < ranks; to++) {
        struct wn_traffic_table now = {0};
        wn_link_traffic(link_, (int)to, &now);
        for (int k = WN_TRAFFIC_EMBEDDING; k <= WN_TRAFFIC_LOGITS; k++) {
            uint64_t sent = now.of[k].sent_bytes - before[to].of[k].sent_bytes;
            uint64_t want = to == me ? 0 : wn_plan_link_bytes(plan, &load, me, to, (wn_traffic)k);
            if (sent > 0)
                printf("bytes,%s,%u,%u,%llu,%llu,,\n", wn_traffic_name((wn_traffic)k), me, to, (unsigned long long)sent,
                       (unsigned long long)want);
            if (sent != want) must(WN_EPROTO, "bytes are not the plan's");
        }
    }
    fflush(stdout);
}

static struct wn_backend *open_gpu(const char *name, const struct wn_plan *plan, bool *gpus)
{
    const int rank = wn_link_rank(link_);
    struct wn_backend *be = NULL;
    int n = 0, asked, device;
    char host[32];

    must(wn_backend_devices(name, &n, &asked, &err), "devices");
    device = n ? rank % n : 0;
    snprintf(host, sizeof(host), "rank%d", rank);
    if (n && n < wn_link_size(link_)) setenv("NCCL_HOSTID", host, 0);
    must(wn_backend_open(&be, name, device, &err), "backend");
    *gpus = be->ops->device_memory;
    if (*gpus) must(wn_stage_attach(link_, be, plan, (uint32_t)rank, device, false, soon(), &err), "NCCL");
    return be;
}

int main(int argc, char **argv)
{
    struct wn_traffic_table before[WN_TENSOR_MAX] = {0};
    struct wn_model model;
    struct wn_plan plan, one;
    struct wn_weights *weights = NULL;
    struct wn_stage *stage, *alone = NULL;
    struct wn_features f = {.dtype = WN_BF16};
    double us[DECODES + 1], alone_us[DECODES + 1], worst = 0;
    uint32_t equal = 0;
    bool gpus;

    if (argc < 4) {
        fprintf(stderr, "usage: mpirun -np P*T bench_gpu_ranks MODEL P T [backend]\n");
        return 2;
    }
    must(wn_link_open(&link_, "mpi", &(struct wn_group){0}, &err), "link");
    must(wn_model_open(&model, argv[1], &err), "model");
    must(wn_plan_make(&plan, &model, (uint32_t)strtoul(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10), NULL,
                      WN_BF16, &err), "plan");
    must(wn_plan_make(&one, &model, 1, 1, NULL, WN_BF16, &err), "plan");
    must(wn_weights_open(&weights, argv[1], &err), "weights");
    struct wn_backend *be = open_gpu(argc > 4 ? argv[4] : "cuda", &plan, &gpus);
    stage = open_stage(be, &plan, weights, link_, (uint32_t)wn_link_rank(link_));
    const bool root = wn_stage_is_last(stage);
    if (root) alone = open_stage(be, &one, weights, NULL, 0);
    f.rows = model.vision.patches;
    f.width = model.vision.hidden;
    uint16_t *features = malloc((size_t)f.rows * f.width * 2);
    float *logits = malloc(2 * (size_t)model.text.vocab * sizeof(float)), *want = logits + model.text.vocab;
    must(features && logits && f.rows + TEXT + DECODES <= ROWS_MAX ? WN_OK : WN_ENOMEM, "memory");
    for (size_t i = 0; i < (size_t)f.rows * f.width; i++)
        features[i] = wn_f32_to_bf16(((float)(i * 2654435761u >> 9 & 0xffff) * 0x1p-15f - 1.0f) * 0x1p-6f);
    for (int i = 0; i < wn_link_size(link_); i++)
        if (i != wn_link_rank(link_)) wn_link_traffic(link_, i, &before[i]);
    must(wn_stage_features_share(stage, 0, wn_link_rank(link_) == 0 ? features : NULL, &f, soon(), &err), "features");
    if (root) must(wn_stage_features_put(alone, 0, features, &f, &err), "features");
    for (uint32_t i = 0; i <= DECODES; i++) {
        meet();
        us[i] = run_step(stage, f.rows, model.text.vocab, i, root ? logits : NULL);
        meet();
        if (!root) continue;
        alone_us[i] = run_step(alone, f.rows, model.text.vocab, i, want);
        equal += memcmp(logits, want, model.text.vocab * sizeof(float)) == 0;
        double largest = 0, off = 0;
        for (uint32_t k = 0; k < model.text.vocab; k++) {
            largest = fmax(largest, fabs((double)want[k]));
            off = fmax(off, fabs((double)logits[k] - (double)want[k]));
        }
        if (!(off <= largest)) must(WN_EDEVICE, "logits are not finite");
        worst = fmax(worst, off / largest);
    }
    check_bytes(&plan, before, gpus);
    if (root) {
        qsort(us + 1, DECODES, sizeof(us[0]), wn_order_double);
        qsort(alone_us + 1, DECODES, sizeof(us[0]), wn_order_double);
        printf("ranks,P%u_T%u,%.0f,%.0f,%.0f,%.0f,%.2e,%u/%u\n", plan.stages, plan.tensors, us[0], us[1 + DECODES / 2],
               alone_us[0], alone_us[1 + DECODES / 2], worst, equal, DECODES + 1);
        if (worst > 0.05) must(WN_EDEVICE, "logits are not those of one rank alone");
    }
    wn_stage_close(stage);
    wn_stage_close(alone);
    wn_link_close(link_);
    wn_weights_close(weights);
    wn_backend_close(be);
    free(features);
    free(logits);
    return 0;
}
