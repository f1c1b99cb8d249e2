/* bench_gpu MODEL [backend [steps|int8]] - a whole model on one device: load, vision encode, pruning, prefill and
 * decode, as CSV on standard output. MODEL is a folder that random_model has written (26 GB for LLaVA-1.5-13B; /dev/shm
 * is a good place). steps: prefill and decode only; int8: the same, with the layers' matrices in int8.
 *
 * Yardsticks are measured in the same run: a device-to-device copy, and a large matmul through the backend. floor_us is
 * the least time that the bytes or the operations of a case take at those rates; ratio is floor to time. Results are
 * checked to be finite, and the same in a second run. */
#include <math.h>
#include <string.h>

#include "base/order.h"
#include "pruning/prune.h"
#include "shard/decoder.h"
#include "shard/row_worker.h"
#include "shard/sample.h"
#include "shard/vision.h"
#include "tests/bench/must.h"

#define PAGE      16u
#define CONTEXT   640u /* positions a sequence may have */
#define SEQS_MAX  64u
#define PAGES     (SEQS_MAX * (CONTEXT / PAGE))
#define RUNS_MAX  200u
#define BLOCK     ((size_t)32 << 20) /* random bytes, repeated */

static struct wn_backend *be;
static struct wn_model model;
static struct wn_err err;
static double copy_bytes_us, matmul_flops_us;

static void done(wn_status rc, const char *what)
{
    must(rc == WN_OK, "%s: %s", what, err.text[0] ? err.text : wn_status_name(rc));
}

/* Values of +-2^-6 at most, so that sums of some thousands stay small. */
static void fill_block(uint16_t *block, size_t n)
{
    uint64_t z = 88172645463325252u;
    for (size_t i = 0; i < n; i++) {
        z ^= z << 13, z ^= z >> 7, z ^= z << 17;
        block[i] = wn_f32_to_bf16(((float)(z >> 40) * 0x1p-23f - 1.0f) * 0x1p-6f);
    }
}

/* ---- timing ---- */

typedef void (*run_fn)(void *arg);

/* Runs for about `seconds`, three times at least, after one run to warm up; WN_BENCH_BRIEF: only those. The median;
 * *best is the shortest. */
static double time_it(run_fn fn, void *arg, double seconds, double *best)
{
    static double us[RUNS_MAX];
    uint32_t n = 0;
    int64_t start;

    if (getenv("WN_BENCH_BRIEF")) seconds = 0;
    fn(arg);
    start = wn_now_us();
    while (n < 3 || (n < RUNS_MAX && (double)(wn_now_us() - start) < seconds * 1e6)) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        fn(arg);
        clock_gettime(CLOCK_MONOTONIC, &b);
        us[n++] = (double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) * 1e-3;
    }
    qsort(us, n, sizeof(us[0]), wn_order_double);
    *best = us[0];
    return us[n / 2];
}

static void report(const char *what, const char *shape, double median, double best, double floor_us, double flops,
                   double bytes)
{
    printf("%s,%s,%.1f,%.1f,%.1f,%.3f,%.2f,%.2f\n", what, shape, median, best, floor_us, floor_us / median,
           flops / median * 1e-6, bytes / median * 1e-3);
    fflush(stdout);
}

static double floor_of(double flops, double bytes)
{
    return fmax(flops / matmul_flops_us, bytes / copy_bytes_us);
}

struct copy {
    struct wn_mat out, in;
};

static void run_copy(void *arg)
{
    struct copy *c = arg;
    done(wn_be_convert(be, &c->out, &c->in), "copy");
    done(be->ops->sync(be, WN_NEVER), "copy");
}

static void run_matmul(void *arg)
{
    done(wn_be_matmul(be, (struct wn_matmul *)arg), "matmul");
    done(be->ops->sync(be, WN_NEVER), "matmul");
}

/* Random rows from the host; a block of them, repeated by upload. */
static struct wn_buf random_buf(size_t bytes)
{
    struct wn_buf b;
    uint16_t *block = malloc(BLOCK);

    done(be->ops->buf_alloc(be, bytes, &b), "memory");
    must(block, "random block: memory");
    fill_block(block, BLOCK / 2);
    for (size_t at = 0; at < bytes; at += BLOCK)
        done(be->ops->upload(be, (char *)b.ptr + at, block, bytes - at < BLOCK ? bytes - at : BLOCK), "upload");
    free(block);
    return b;
}

static void yardsticks(uint32_t side, size_t copy_bytes)
{
    uint32_t rows = (uint32_t)(copy_bytes / 2 / 8192);
    struct wn_buf a = random_buf(copy_bytes), b = random_buf(copy_bytes);
    struct copy c = {.out = {b.ptr, WN_BF16, rows, 8192, 8192}, .in = {a.ptr, WN_BF16, rows, 8192, 8192}};
    double best, median = time_it(run_copy, &c, 1.0, &best), bytes = 2.0 * (double)copy_bytes,
                 flops = 2.0 * side * side * side;
    uint16_t *host = malloc((size_t)side * side * 2);
    struct wn_weight *w;
    char shape[32];

    copy_bytes_us = bytes / best;
    snprintf(shape, sizeof(shape), "%zuMiB", copy_bytes >> 20);
    report("copy", shape, median, best, best, 0.0, bytes);
    must(host, "matrix: memory");
    fill_block(host, (size_t)side * side);
    struct wn_mat m = {host, WN_BF16, side, side, side};
    done(be->ops->weight_create(be, &w, &m, WN_BF16), "matrix");
    struct wn_matmul mm = {
        .out = {b.ptr, WN_BF16, side, side, side}, .x = {a.ptr, WN_BF16, side, side, side}, .w = w, .slices = 1};
    median = time_it(run_matmul, &mm, 1.0, &best);
    matmul_flops_us = flops / best;
    snprintf(shape, sizeof(shape), "%u^3", side);
    report("matmul", shape, median, best, best, flops, 0.0);
    be->ops->weight_destroy(be, w);
    be->ops->buf_free(be, &a);
    be->ops->buf_free(be, &b);
    free(host);
}

/* ---- the model ---- */

struct step_case {
    struct wn_stage *stage;
    struct wn_step step;
    struct wn_seq seqs[SEQS_MAX];
    uint32_t token[CONTEXT + SEQS_MAX], slot[CONTEXT + SEQS_MAX], wanted[SEQS_MAX];
    float *logits; /* NULL: tokens are picked on the device, as in a service */
    struct wn_pick each[SEQS_MAX];
    uint32_t picked[SEQS_MAX];
};

static void run_step(void *arg)
{
    struct step_case *c = arg;
    if (!c->logits)
        done(wn_stage_pick(c->stage, &c->step, WN_NEVER, c->each, c->picked, &err), "step");
    else
        done(wn_stage_run(c->stage, &c->step, WN_NEVER, c->logits, &err), "step");
}

static void check_picked(const struct step_case *c, uint32_t n, const float *logits)
{
    const struct wn_sample_opts greedy = WN_SAMPLE_GREEDY;
    struct wn_sampler *sampler = NULL;
    struct wn_sampled want;

    done(wn_sampler_create(&sampler, model.text.vocab, &err), "sampler");
    for (uint32_t i = 0; i < n; i++) {
        done(wn_sampler_pick(sampler, &greedy, logits + (size_t)i * model.text.vocab, NULL, 0, 0, false, &want, &err),
             "sampler");
        must(c->picked[i] == want.token, "the token that was picked is not the likeliest");
    }
    wn_sampler_destroy(sampler);
}

/* Of the layers, whose matrices have `params` elements; int8 has scales, too. */
static double weight_bytes(const struct wn_plan *plan, double params)
{
    const struct wn_text_config *t = &model.text;
    const double rows = t->head_dim * (t->heads + 2.0 * t->kv_heads) + 2.0 * t->mlp,
                 parts = 2.0 * plan->slices * t->hidden;

    return plan->linear == WN_I8 ? params + 4.0 * t->layers * (rows + parts) : 2.0 * params;
}

/* `seqs` sequences of `pos` tokens in their pages, `rows` new ones each, of which `image` are image rows. */
static void bench_step(struct wn_stage *s, const struct wn_plan *plan, uint32_t seqs, uint32_t pos, uint32_t rows,
                       uint32_t image, uint32_t *pages, float *logits, float *again)
{
    static struct step_case c;
    const struct wn_text_config *t = &model.text;
    double params = (double)t->layers * ((double)t->hidden * t->head_dim * (2.0 * t->heads + 2.0 * t->kv_heads) +
                                         3.0 * t->hidden * (double)t->mlp),
           head = (double)t->vocab * t->hidden, sees = 0.0, flops, bytes, best, median;
    size_t values = (size_t)seqs * t->vocab;
    char shape[64];

    c = (struct step_case){.stage = s, .logits = logits};
    c.step = (struct wn_step){.rows = seqs * rows, .token = c.token, .slot = c.slot, .seqs_n = seqs, .seqs = c.seqs,
                              .wanted_n = seqs, .wanted = c.wanted};
    for (uint32_t i = 0; i < seqs; i++) {
        c.seqs[i] = (struct wn_seq){
            .first_row = i * rows, .rows = rows, .pos = pos, .pages = pages + (size_t)i * (CONTEXT / PAGE)};
        c.wanted[i] = (i + 1) * rows - 1;
        c.each[i] = (struct wn_pick){.top_p = 1.0f, .wanted = 1};
    }
    for (uint32_t i = 0; i < seqs * rows; i++) {
        c.slot[i] = i < image ? 0 : WN_SLOT_NONE;
        c.token[i] = i < image ? i : (i * 7919u + 13u) % t->vocab;
    }
    for (uint32_t r = 0; r < rows; r++) sees += (double)seqs * (pos + r + 1);
    flops = 2.0 * (params * seqs * rows + head * seqs) + 4.0 * sees * t->heads * t->head_dim * t->layers;
    bytes = weight_bytes(plan, params) + 2.0 * head + (double)wn_plan_kv_bytes_per_token(plan, 0) * seqs * (pos + rows);
    c.logits = again; /* the first run launches one by one, later ones of a decode step replay a graph */
    run_step(&c);
    c.logits = logits;
    run_step(&c);
    run_step(&c);
    for (size_t i = 0; i < values; i++) must(isfinite(logits[i]), "logits are not finite");
    must(memcmp(logits, again, values * sizeof(float)) == 0, "two runs of a step differ");
    if (wn_stage_can_pick(s)) c.logits = NULL;
    median = time_it(run_step, &c, 2.0, &best);
    if (wn_stage_can_pick(s)) check_picked(&c, seqs, logits);
    snprintf(shape, sizeof(shape), "B%u_P%u_R%u_I%u", seqs, pos, rows, image);
    report(rows == 1 ? "decode" : "prefill", shape, median, best, floor_of(flops, bytes), flops, bytes);
}

struct encode_case {
    struct wn_vision *tower;
    float *pixels;
    uint32_t images;
    struct wn_vision_taps taps;
    struct wn_vision_out out;
};

static void run_encode(void *arg)
{
    struct encode_case *c = arg;
    done(wn_vision_encode(c->tower, c->pixels, c->images, &c->taps, WN_NEVER, &c->out, &err), "encode");
}

/* A picture's features and taps on the device, and the method that chooses among them. */
struct prune_case {
    const struct wn_prune_method *method;
    struct wn_prune_in in;
    struct wn_prune_out out;
    void *rows; /* on the host */
};

static void run_prune(void *arg)
{
    struct prune_case *c = arg;
    struct wn_row_sums sums;
    struct wn_mat kept;

    done(wn_prune_run(c->method, &c->in, &c->out, &err), c->method->name);
    sums = wn_prune_sums(&c->in, &c->out);
    if (!c->in.worker) { /* a backend of the host's memory */
        done(wn_prune_gather(&c->in, &c->out, c->rows, &err), "rows");
        return;
    }
    done(c->in.worker->sums(c->in.worker, &sums, &kept, &err), "rows");
    done(be->ops->download(be, c->rows, kept.ptr, kept.rows * wn_mat_row_bytes(&kept)), "rows");
}

/* From the tower's rows, where they are, to kept rows on the host. Floor: the products' operations. */
static void bench_prune(struct encode_case *e)
{
    static const char *const names[] = {"cls-topk", "prumerge", "visionzip", "vispruner", "divprune"};
    const struct wn_vision_config *v = &model.vision;
    const double n = v->patches, products[] = {0, 64 * n, 10 * n / v->heads, n * n / 2, n * n / 2};
    const uint64_t last = (uint64_t)1 << (v->layers_run - 1), side = v->image_side / v->patch_side;
    struct prune_case c = {.rows = malloc((size_t)(v->patches + 1) * v->hidden * 4)};
    uint32_t *index = calloc(v->patches + 1, sizeof(*index));
    uint8_t *flags = calloc(v->patches + 1, 1);

    must(c.rows && index && flags, "rows: memory");
    e->images = 1;
    e->taps = (struct wn_vision_taps){
        .cls_layers = last, .keys_layers = last | last << 1, .cls_features = true, .stay = true};
    run_encode(e);
    c.out = (struct wn_prune_out){.index = index, .flags = flags};
    c.in = (struct wn_prune_in){
        .shape = {v->patches, v->hidden, (uint32_t)side, (uint32_t)side, v->heads, v->layers_run - 1, false},
        .ask.budget.keep = 64,
        .features = e->out.features,
        .dtype = e->out.dtype,
        .taps = {.cls_layers = e->taps.cls_layers,
                 .keys_layers = e->taps.keys_layers,
                 .cls_attention = e->out.cls_attention,
                 .keys = e->out.keys,
                 .cls_query = e->out.cls_query,
                 .keys_stride = (size_t)e->out.tokens * e->out.width,
                 .query_stride = e->out.width,
                 .cls_row = e->out.cls_features}};
    done(wn_row_worker_open(&c.in.worker, be, &err), "row worker");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const double flops = 2.0 * products[i] * v->hidden;
        double best, median;
        c.method = wn_prune_find(names[i], &err);
        run_prune(&c);
        median = time_it(run_prune, &c, 0.5, &best);
        report("prune", names[i], median, best, floor_of(flops, 2.0 * 64 * v->hidden), flops, 2.0 * 64 * v->hidden);
    }
    wn_row_worker_close(c.in.worker);
    wn_prune_out_fini(&c.out);
    free(c.rows);
    free(index);
    free(flags);
}

static void bench_vision(const struct wn_weights *weights)
{
    const struct wn_vision_config *v = &model.vision;
    size_t image = 3 * (size_t)v->image_side * v->image_side;
    struct encode_case c = {.pixels = malloc(8 * image * sizeof(float))};

    must(c.pixels, "pixels: memory");
    for (size_t i = 0; i < 8 * image; i++) c.pixels[i] = (float)((i * 2654435761u) >> 8 & 0xffff) * 0x1p-15f - 1.0f;
    done(wn_vision_open(&c.tower, be, &model, weights, WN_BF16, 8, &err), "tower");
    for (uint32_t images = 1; images <= 8; images *= 8)
        for (int taps = 0; taps < 2; taps++) {
            double tokens = v->patches + 1,
                   params = (double)v->layers_run * v->hidden * (4.0 * v->hidden + 2.0 * v->mlp);
            double flops = images * tokens * (2.0 * params + 4.0 * tokens * v->hidden * v->layers_run), best, median;
            char shape[32];
            c.images = images;
            c.taps = (struct wn_vision_taps){0};
            if (taps) c.taps.cls_layers = c.taps.mean_layers = (uint64_t)1 << (v->layers_run - 1);
            median = time_it(run_encode, &c, 1.0, &best);
            snprintf(shape, sizeof(shape), "I%u%s", images, taps ? "_taps" : "");
            report("vision", shape, median, best, floor_of(flops, 2.0 * params), flops, 2.0 * params);
        }
    bench_prune(&c);
    wn_vision_close(c.tower);
    free(c.pixels);
}

/* Fills the pages of `seqs` sequences but the first, so that a decode reads real keys. */
static void fill_pages(struct wn_stage *stage, uint32_t seqs, uint32_t rows, uint32_t *pages)
{
    static struct step_case c;

    for (uint32_t s = 1; s < seqs; s++)
        for (uint32_t pos = 0; pos + 1 < rows; pos += 64) {
            const uint32_t n = rows - pos < 64 ? rows - pos : 64;
            c.seqs[0] = (struct wn_seq){.rows = n, .pos = pos, .pages = pages + (size_t)s * (CONTEXT / PAGE)};
            for (uint32_t i = 0; i < n; i++) c.token[i] = (pos + i + s) % model.text.vocab;
            c.step = (struct wn_step){.rows = n, .token = c.token, .seqs_n = 1, .seqs = c.seqs};
            done(wn_stage_run(stage, &c.step, WN_NEVER, NULL, &err), "pages");
        }
}

static void bench_steps(struct wn_stage *stage, const struct wn_plan *plan)
{
    static const uint32_t batches[] = {1, 8, 32, 64};
    static uint32_t pages[PAGES];
    const size_t n = getenv("WN_BENCH_BRIEF") ? 2 : sizeof(batches) / sizeof(batches[0]);
    const struct wn_features f = {.rows = model.vision.patches, .width = model.vision.hidden, .dtype = WN_BF16};
    const uint32_t whole = f.rows, part = f.rows < 64 ? f.rows : 64;
    uint16_t *features = malloc((size_t)f.rows * f.width * 2);
    float *logits = malloc((size_t)SEQS_MAX * model.text.vocab * sizeof(float)),
          *again = malloc((size_t)SEQS_MAX * model.text.vocab * sizeof(float));

    must(features && logits && again, "memory");
    for (uint32_t i = 0; i < PAGES; i++) pages[i] = (i * 7u + 3u) % PAGES; /* 7 and PAGES share no factor */
    fill_block(features, (size_t)f.rows * f.width);
    done(wn_stage_features_put(stage, 0, features, &f, &err), "features");
    bench_step(stage, plan, 1, 0, whole + 40, whole, pages, logits, again);
    bench_step(stage, plan, 1, 0, part + 40, part, pages, logits, again);
    fill_pages(stage, batches[n - 1], whole + 40, pages);
    for (size_t i = 0; i < n; i++)
        bench_step(stage, plan, batches[i], whole + 40, 1, 0, pages, logits, again);
    free(features);
    free(logits);
    free(again);
}

static struct wn_stage *load_stage(const struct wn_plan *plan, const struct wn_weights *weights)
{
    const struct wn_stage_opts o = {.be = be,
                                    .plan = plan,
                                    .weights = weights,
                                    .pages = PAGES,
                                    .page_tokens = PAGE,
                                    .rows_max = CONTEXT,
                                    .seqs_max = SEQS_MAX,
                                    .wanted_max = SEQS_MAX,
                                    .slots = 1};
    const int64_t start = wn_now_us();
    struct wn_stage *stage = NULL;

    done(wn_stage_open(&stage, &o, &err), "stage");
    done(be->ops->sync(be, WN_NEVER), "load");
    const double took = (double)(wn_now_us() - start);
    report("load", "weights", took, took, 0.0, 0.0, (double)wn_plan_weight_bytes(plan, 0));
    return stage;
}

int main(int argc, char **argv)
{
    struct wn_plan plan;
    struct wn_weights *weights = NULL;
    struct wn_stage *stage;
    const bool int8 = argc == 4 && strcmp(argv[3], "int8") == 0;

    if (argc < 2 || argc > 4 || (argc == 4 && !int8 && strcmp(argv[3], "steps") != 0)) {
        fprintf(stderr, "usage: bench_gpu MODEL [backend [steps|int8]]\n");
        return 2;
    }
    done(wn_model_open(&model, argv[1], &err), "model");
    done(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err), "plan");
    if (int8) plan.linear = WN_I8;
    done(wn_weights_open(&weights, argv[1], &err), "weights");
    done(wn_backend_open(&be, argc > 2 ? argv[2] : "cuda", 0, &err), "backend");
    printf("what,shape,p50_us,min_us,floor_us,ratio,tflops,gbytes_s\n");
    yardsticks(model.text.hidden >= 4096 ? 8192 : 256, model.text.hidden >= 4096 ? (size_t)2 << 30 : (size_t)8 << 20);
    if (argc < 4) bench_vision(weights);
    stage = load_stage(&plan, weights);
    wn_weights_close(weights);
    bench_steps(stage, &plan);
    wn_stage_close(stage);
    wn_backend_close(be);
    return 0;
}
