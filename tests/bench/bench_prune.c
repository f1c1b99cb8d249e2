/* bench_prune [-q] [machine] - what choosing and merging costs beside the encode, as CSV on standard output.
 *
 * First verifies a choice and a merge against plain loops in float64. Then times every method at the shape of
 * CLIP ViT-L/14-336 (576 rows of 1024, 16 heads, bfloat16 features), for one picture and for eight, taps in
 * memory as the tower leaves them, rows gathered into the payload at the end. us are for the whole batch, of the
 * thread's own processor time, so that other processes count less. encode_us is the least time of the encode of the
 * same batch in the same run: all 23 layers that LLaVA-1.5 runs, random weights, bfloat16, no taps, on all cores;
 * ratio is the least prune time over it. The target is below 0.02. -q leaves the encode out. On a machine that is busy
 * with other things the encode, which wants all cores, looks slower than it is, and the ratio too small.
 * Needs 2 GB of memory and 600 MB in /tmp. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/order.h"
#include "shard/vision.h"
#include "tests/bench/must.h"
#include "tests/bench/random_weights.h"
#include "tests/scratch.h"
#include "tests/unit/prune_case.h"
#include "winnow_version.h"

#define BATCH    8
#define RUNS_MAX 100
#define RUNS_MIN 5
#define TIME_US  1500000ll
#define LAYER    22
#define OBJECT   8

static const struct wn_prune_shape shape = {.rows = 576,
                                            .width = 1024,
                                            .grid_w = 24,
                                            .grid_h = 24,
                                            .heads = 16,
                                            .feature_layer = LAYER};

static const struct {
    const char *method;
    wn_prune_setting setting;
    uint32_t keep; /* 0: the method's own count */
} rows[] = {
    {"none", WN_PRUNE_FAITHFUL, 0},        {"random", WN_PRUNE_FAITHFUL, 64},
    {"uniform", WN_PRUNE_FAITHFUL, 64},    {"cls-topk", WN_PRUNE_FAITHFUL, 64},
    {"prumerge", WN_PRUNE_FAITHFUL, 0},    {"prumerge", WN_PRUNE_FAITHFUL, 64},
    {"prumerge", WN_PRUNE_PAPER, 64},      {"prumerge+", WN_PRUNE_FAITHFUL, 0},
    {"prumerge+", WN_PRUNE_FAITHFUL, 144}, {"prumerge+", WN_PRUNE_FAITHFUL, 576},
    {"visionzip", WN_PRUNE_FAITHFUL, 64},  {"visionzip", WN_PRUNE_FAITHFUL, 288},
    {"vispruner", WN_PRUNE_FAITHFUL, 64},  {"vispruner", WN_PRUNE_FAITHFUL, 288},
    {"divprune", WN_PRUNE_FAITHFUL, 64},   {"divprune", WN_PRUNE_FAITHFUL, 288},
    {"hiprune", WN_PRUNE_FAITHFUL, 64},    {"matryoshka", WN_PRUNE_FAITHFUL, 64},
};

static uint16_t *payload; /* [577, width] */

static float noise(uint64_t stream, uint64_t i)
{
    return (float)(case_draw(stream, i) >> 40) / 0x1p23f - 1.0f;
}

/* A picture in which some forty patches stand out. */
static void make_picture(struct prune_case *c, uint64_t seed)
{
    const uint32_t w = shape.width, tokens = shape.rows + 1;
    uint16_t *half = malloc(sizeof(*half) * w * tokens);

    must(half != NULL, "features: memory");
    case_init(c, shape, 2);
    for (uint32_t j = 0; j < w; j++) c->query[j] = noise(seed, j);
    for (uint32_t i = 0; i < tokens; i++) {
        const bool hot = case_draw(seed + 1, i) % 14 == 0;
        for (uint32_t j = 0; j < w; j++) {
            c->keys[(size_t)i * w + j] = noise(seed + 2, (size_t)i * w + j) + (hot ? c->query[j] / 5 : 0);
            half[(size_t)i * w + j] = wn_f32_to_bf16(noise(seed + 3, (size_t)i * w + j));
        }
        for (uint32_t h = 0; h < 2 * shape.heads; h++)
            c->cls[h * tokens + i] = (1.5f + noise(seed + 4, h * tokens + i)) * (hot ? 0.01f : 0.001f);
        for (uint32_t l = 0; l < 2; l++) c->mean[l * tokens + i] = (1.5f + noise(seed + 5, l * tokens + i)) * 0.001f;
    }
    c->in.features = half;
    c->in.taps.cls_row = half + (size_t)w * shape.rows;
    c->in.dtype = WN_BF16;
    case_taps(c, (uint64_t)1 << OBJECT | (uint64_t)1 << LAYER, 0);
}

static void run_once(struct prune_case *c, const struct wn_prune_method *m)
{
    struct wn_prune_wants w;
    struct wn_err err = {0};

    wn_prune_wants(m, &c->in.ask, LAYER, &w);
    c->in.taps.keys_layers = w.keys_layers;
    must(wn_prune_run(m, &c->in, &c->out, &err) == WN_OK, "%s: %s", m->name, err.text);
    must(wn_prune_gather(&c->in, &c->out, payload, &err) == WN_OK, "%s: %s", m->name, err.text);
}

/* ---- verification: plain loops ---- */

static double cosine(const float *a, const float *b)
{
    double ab = 0, aa = 0, bb = 0;

    for (uint32_t j = 0; j < shape.width; j++) {
        ab += (double)a[j] * (double)b[j];
        aa += (double)a[j] * (double)a[j];
        bb += (double)b[j] * (double)b[j];
    }
    return ab / sqrt(aa * bb);
}

static void verify_merge(struct prune_case *c)
{
    const uint32_t w = shape.width, n = shape.rows;
    const uint16_t *x = c->in.features;
    static double cos[576], row[1024];

    c->in.ask.budget.keep = 40;
    run_once(c, &wn_prune_prumerge);
    must(c->out.rows == 40, "prumerge: keeps another number of rows");
    case_make_values(c);
    for (uint32_t i = 1; i < 39; i++)
        must(c->out.scores[c->out.index[i]] <= c->out.scores[c->out.index[i - 1]], "prumerge: order");
    for (uint32_t r = 0; r < 3; r++) {
        const uint32_t k = c->out.index[r];
        for (uint32_t j = 0; j < w; j++) row[j] = (double)wn_bf16_to_f32(x[(size_t)k * w + j]);
        for (uint32_t i = 0; i < n; i++)
            cos[i] = i == k ? -2 : cosine(c->keys + (size_t)(k + 1) * w, c->keys + (size_t)(i + 1) * w);
        for (int t = 0; t < 32; t++) {
            uint32_t best = 0;
            for (uint32_t i = 1; i < n; i++)
                if (cos[i] > cos[best]) best = i;
            cos[best] = -2;
            for (uint32_t j = 0; j < w; j++)
                row[j] += (double)c->out.scores[best] * (double)wn_bf16_to_f32(x[(size_t)best * w + j]);
        }
        for (uint32_t j = 0; j < w; j++)
            must(fabs(row[j] - (double)c->values[(size_t)r * w + j]) < 1e-5, "prumerge: a merged row is wrong");
    }
}

static void verify_choice(struct prune_case *c)
{
    c->in.ask.budget.keep = 64;
    run_once(c, &wn_prune_cls_topk);
    must(c->out.rows == 64, "cls-topk: keeps another number of rows");
    for (uint32_t i = 0; i < shape.rows; i++) {
        uint32_t better = 0;
        for (uint32_t j = 0; j < shape.rows; j++) better += c->out.scores[j] > c->out.scores[i];
        must((better < 64) == (case_find(c, i) != UINT32_MAX), "cls-topk: the choice is wrong");
    }
}

/* ---- timing ---- */

static int64_t cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void measure(const char *machine, int64_t encode_us, struct prune_case *pictures, uint32_t images, size_t r)
{
    const struct wn_prune_method *m = wn_prune_find(rows[r].method, NULL);
    const int64_t began_us = wn_now_us();
    int64_t us[RUNS_MAX];
    uint32_t n = 0;
    char ratio[32] = "";

    for (uint32_t i = 0; i < images; i++) {
        pictures[i].in.ask = (struct wn_prune_ask){.budget = {.keep = rows[r].keep},
                                                   .setting = rows[r].setting,
                                                   .projected = !(m->spaces & WN_PRUNE_TOWER)};
        run_once(&pictures[i], m); /* warm */
    }
    while (n < RUNS_MIN || (n < RUNS_MAX && wn_now_us() - began_us < TIME_US)) {
        const int64_t t = cpu_us();
        for (uint32_t i = 0; i < images; i++) run_once(&pictures[i], m);
        us[n++] = cpu_us() - t;
    }
    qsort(us, n, sizeof(*us), wn_order_int64);
    if (encode_us > 0) snprintf(ratio, sizeof(ratio), "%.5f", (double)us[0] / (double)encode_us);
    printf("%s,%s,%s%s,576x1024,%u,%u,%u,%u,%lld,%lld,%lld,%lld,%s\n", WN_COMMIT, machine, m->name,
           rows[r].setting == WN_PRUNE_PAPER ? " paper" : "", rows[r].keep, pictures[0].out.rows, images, n,
           (long long)us[0], (long long)us[n / 2], (long long)us[n * 99 / 100], (long long)encode_us, ratio);
    fflush(stdout);
}

/* ---- the encode ---- */

/* The least time that the tower takes for 1 and for BATCH pictures. */
static void measure_encode(int64_t us[2])
{
    const struct wn_model model = {.vision = {.hidden = 1024,
                                              .mlp = 4096,
                                              .layers = 24,
                                              .heads = 16,
                                              .head_dim = 64,
                                              .image_side = 336,
                                              .patch_side = 14,
                                              .patches = 576,
                                              .layers_run = LAYER + 1,
                                              .eps = 1e-5f,
                                              .act = WN_ACT_QUICK_GELU}};
    const size_t floats = (size_t)BATCH * 3 * 336 * 336;
    char dir[64];
    float *pixels = malloc(floats * sizeof(*pixels));
    struct wn_backend *be = NULL;
    struct wn_weights *w = NULL;
    struct wn_vision *v = NULL;
    struct wn_vision_out out;
    struct wn_err err = {0};
    bool good;

    must(pixels && scratch_make(dir, sizeof(dir), "bench-prune"), "encode: memory or /tmp");
    for (size_t i = 0; i < floats; i++) pixels[i] = 4.0f * random_noise();
    good = random_weights_write(dir, &model.vision, NULL) && !wn_weights_open(&w, dir, &err);
    scratch_remove(dir); /* what is mapped stays */
    must(good && !wn_backend_open(&be, wn_backends[0]->name, 0, &err), "encode: %s", err.text);
    must(!wn_vision_open(&v, be, &model, w, WN_BF16, BATCH, &err), "encode: %s", err.text);
    wn_weights_close(w);
    for (int b = 0; b < 2; b++) {
        us[b] = INT64_MAX;
        for (int i = 0; i < (b ? 2 : 4); i++) {
            const int64_t t = wn_now_us();
            must(!wn_vision_encode(v, pixels, b ? BATCH : 1, NULL, WN_NEVER, &out, &err), "encode: %s", err.text);
            if (wn_now_us() - t < us[b]) us[b] = wn_now_us() - t;
        }
        fprintf(stderr, "bench_prune: encode of %d: %.1f ms\n", b ? BATCH : 1, (double)us[b] / 1e3);
    }
    wn_vision_close(v);
    wn_backend_close(be);
    free(pixels);
}

int main(int argc, char **argv)
{
    static struct prune_case pictures[BATCH];
    const bool quick = argc > 1 && strcmp(argv[1], "-q") == 0;
    const char *machine = argc > 1 + quick ? argv[1 + quick] : "unnamed";
    int64_t encode_us[2] = {0};

    payload = malloc(577 * shape.width * sizeof(*payload));
    must(payload != NULL, "payload: memory");
    for (uint32_t i = 0; i < BATCH; i++) make_picture(&pictures[i], 100 * (i + 1));
    verify_merge(&pictures[0]);
    verify_choice(&pictures[0]);
    if (!quick) measure_encode(encode_us);
    printf("commit,machine,method,shape,keep,rows,images,n,min_us,p50_us,p99_us,encode_us,ratio\n");
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        measure(machine, encode_us[0], pictures, 1, r);
        measure(machine, encode_us[1], pictures, BATCH, r);
    }
    for (uint32_t i = 0; i < BATCH; i++) {
        free((void *)(uintptr_t)pictures[i].in.features);
        case_fini(&pictures[i]);
    }
    free(payload);
    return 0;
}
