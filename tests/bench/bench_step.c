/* bench_step [machine] - steps of models/tiny-llava on the CPU backend, one rank, as CSV on standard output.
 *
 * Steps of 1 to 32 decoding sequences, each with a context of a picture and its question. With `own` every sequence has
 * pages of its own; with `shared` four have one picture's, as when a prefix is found. Verified first: a sequence's
 * scores among others are those that it has alone, to the bit. `floor` is the time in which the machine could make the
 * step's products at its rate of multiply-adds, or read its weights and pages at its read bandwidth, whichever is
 * longer; both are measured in the same run. Then the time of each kind of operation in the fastest step. Compare
 * minima: other processes of the machine disturb everything else. */
#include <omp.h>
#include <string.h>

#include "base/order.h"
#include "shard/decoder.h"
#include "tests/bench/must.h"
#include "tests/bench/yardstick.h"
#include "winnow_version.h"

enum { SEQS = 32, CONTEXT = 600, PAGE = 16, PAGES = CONTEXT / PAGE + 1, GROUP = 4, RUNS = 400, CHUNK = 64 };

static struct wn_backend *be;
static struct wn_stage *stage;
static struct wn_model model;
static uint32_t tables[SEQS][PAGES];
static float *logits, *alone;
static double peak_flops, read_bytes_s;

/* ---- operations, timed ---- */

enum { MATMUL, ATTENTION, NORM, ADD_NORM, ROPE_KV, ADD, SILU_MUL, GATHER, CONVERT, KINDS };
static const char *const kinds[KINDS] = {"matmul", "attn_paged", "norm",   "add_norm", "rope_kv",
                                         "add",    "silu_mul",   "gather", "convert"};
static double spent_us[KINDS];
static const struct wn_backend_ops *real;

#define TIMED(kind, call)                                                                                            \
    const double began = yardstick_now_us();                                                                         \
    const wn_status rc = call;                                                                                       \
    spent_us[kind] += yardstick_now_us() - began;                                                                    \
    return rc

static wn_status t_matmul(struct wn_backend *b, const struct wn_matmul *a)
{
    TIMED(MATMUL, real->matmul(b, a));
}

static wn_status t_matmuls(struct wn_backend *b, const struct wn_matmul *a, uint32_t n)
{
    TIMED(MATMUL, real->matmuls(b, a, n));
}

static wn_status t_attn(struct wn_backend *b, const struct wn_attn_paged *a)
{
    TIMED(ATTENTION, real->attn_paged(b, a));
}

static wn_status t_norm(struct wn_backend *b, const struct wn_norm *a)
{
    TIMED(NORM, real->norm(b, a));
}

static wn_status t_add_norm(struct wn_backend *b, const struct wn_mat *y, const struct wn_norm *a)
{
    TIMED(ADD_NORM, real->add_norm(b, y, a));
}

static wn_status t_rope_kv(struct wn_backend *b, const struct wn_rope *a, const struct wn_kv_write *w)
{
    TIMED(ROPE_KV, real->rope_kv(b, a, w));
}

static wn_status t_add(struct wn_backend *b, const struct wn_mat *o, const struct wn_mat *x, const struct wn_mat *y)
{
    TIMED(ADD, real->add(b, o, x, y));
}

static wn_status t_silu_mul(struct wn_backend *b, const struct wn_mat *o, const struct wn_mat *x,
                            const struct wn_mat *y)
{
    TIMED(SILU_MUL, real->silu_mul(b, o, x, y));
}

static wn_status t_gather(struct wn_backend *b, const struct wn_mat *o, const struct wn_mat *t, const uint32_t *i)
{
    TIMED(GATHER, real->gather_rows(b, o, t, i));
}

static wn_status t_convert(struct wn_backend *b, const struct wn_mat *o, const struct wn_mat *i)
{
    TIMED(CONVERT, real->convert(b, o, i));
}

/* ---- the model ---- */

static void open_stage(void)
{
    const struct wn_stage_opts o = {.rows_max = SEQS > CHUNK ? SEQS : CHUNK,
                                    .seqs_max = SEQS,
                                    .wanted_max = SEQS,
                                    .pages = SEQS * PAGES,
                                    .page_tokens = PAGE,
                                    .slots = 1};
    struct wn_stage_opts so = o;
    struct wn_plan plan;
    struct wn_weights *weights = NULL;
    struct wn_err err = {0};

    must(wn_backend_open(&be, "cpu", 0, &err) == WN_OK, "backend: %s", err.text);
    must(wn_model_open(&model, "models/tiny-llava", &err) == WN_OK, "models/tiny-llava: %s", err.text);
    must(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err) == WN_OK, "plan: %s", err.text);
    must(wn_weights_open(&weights, "models/tiny-llava", &err) == WN_OK, "models/tiny-llava: %s", err.text);
    so.be = be;
    so.plan = &plan;
    so.weights = weights;
    must(wn_stage_open(&stage, &so, &err) == WN_OK, "stage: %s", err.text);
    wn_weights_close(weights);
    logits = malloc(2 * (size_t)SEQS * model.text.vocab * sizeof(float));
    must(logits != NULL, "no memory");
    alone = logits + (size_t)SEQS * model.text.vocab;
}

/* Rows [pos, pos + n) of sequences [first, first + seqs_n), scores of the last row of each. */
static void step(uint32_t first, uint32_t seqs_n, uint32_t pos, uint32_t n, float *out)
{
    static uint32_t token[SEQS * CHUNK], wanted[SEQS];
    static struct wn_seq seqs[SEQS];
    struct wn_step s = {.rows = seqs_n * n, .token = token, .seqs_n = seqs_n, .seqs = seqs, .wanted = wanted};
    struct wn_err err = {0};

    for (uint32_t i = 0; i < seqs_n; i++) {
        for (uint32_t r = 0; r < n; r++) token[i * n + r] = 3 + (pos + r) * 37 % 900 + (pos + r == CONTEXT - 1 ? i : 0);
        seqs[i] = (struct wn_seq){.first_row = i * n, .rows = n, .pos = pos, .pages = tables[first + i]};
        wanted[i] = (i + 1) * n - 1;
    }
    s.wanted_n = out ? seqs_n : 0;
    must(wn_stage_run(stage, &s, WN_NEVER, out, &err) == WN_OK, "step: %s", err.text);
}

/* Pages for every sequence, the context in them: its own, or of `GROUP` sequences the same but for the last page. */
static void fill_context(bool shared)
{
    for (uint32_t i = 0; i < SEQS; i++)
        for (uint32_t p = 0; p < PAGES; p++)
            tables[i][p] = shared && p + 1 < PAGES ? i / GROUP * PAGES + p : i * PAGES + p;
    for (uint32_t i = 0; i < SEQS; i++)
        for (uint32_t at = 0; at < CONTEXT - 1; at += CHUNK)
            step(i, 1, at, CONTEXT - 1 - at < CHUNK ? CONTEXT - 1 - at : CHUNK, NULL);
}

static void verify(uint32_t rows)
{
    const size_t one = model.text.vocab;

    step(0, rows, CONTEXT - 1, 1, logits);
    for (uint32_t i = 0; i < rows; i++) {
        float *a = alone + (size_t)i * one;
        static uint32_t token, wanted;
        struct wn_seq q = {.rows = 1, .pos = CONTEXT - 1, .pages = tables[i]};
        struct wn_step s = {.rows = 1, .token = &token, .seqs_n = 1, .seqs = &q, .wanted_n = 1, .wanted = &wanted};
        struct wn_err err = {0};
        token = 3 + (CONTEXT - 1) * 37 % 900 + i;
        must(wn_stage_run(stage, &s, WN_NEVER, a, &err) == WN_OK, "step: %s", err.text);
        must(memcmp(a, logits + (size_t)i * one, one * sizeof(float)) == 0, "a row's scores depend on its neighbours");
    }
}

/* Weights that a step multiplies: all but the embedding. */
static double weights_n(void)
{
    const struct wn_text_config *t = &model.text;
    const double q = (double)t->heads * t->head_dim, kv = (double)t->kv_heads * t->head_dim;

    return t->layers * ((2 * q + 2 * kv) * t->hidden + 3.0 * t->hidden * t->mlp) +
           (double)t->hidden * t->vocab;
}

static double floor_us(uint32_t rows, bool shared)
{
    const struct wn_text_config *t = &model.text;
    const double kv = (double)CONTEXT * t->layers * t->kv_heads * t->head_dim * 2, /* values of one context */
        attn = 2 * kv * t->heads / t->kv_heads;
    const uint32_t contexts = shared ? (rows + GROUP - 1) / GROUP : rows;
    const double products = rows * (2 * weights_n() + attn) / peak_flops, /* a multiply-add is two */
        bytes = (weights_n() + contexts * kv) * 2 / read_bytes_s;

    return (products > bytes ? products : bytes) * 1e6;
}

static void bench(const char *machine, uint32_t rows, bool shared)
{
    static double us[RUNS];
    double began = yardstick_now_us(), floor = floor_us(rows, shared), of_best_us[KINDS] = {0}, best = 1e30;
    int n = 0;

    verify(rows);
    while (n < 3 || (n < RUNS && yardstick_now_us() - began < 1e6)) {
        const double start = yardstick_now_us();
        memset(spent_us, 0, sizeof(spent_us));
        step(0, rows, CONTEXT - 1, 1, logits);
        us[n] = yardstick_now_us() - start;
        if (us[n] < best) memcpy(of_best_us, spent_us, sizeof(of_best_us));
        if (us[n] < best) best = us[n];
        n++;
    }
    qsort(us, (size_t)n, sizeof(us[0]), wn_order_double);
    printf("%s,%s,%d,%s,%u,%d,%.1f,%.1f,%.0f,%.1f,%.3f", WN_COMMIT, machine, omp_get_max_threads(),
           shared ? "shared" : "own", rows, n, us[0], us[n / 2], rows * 1e6 / us[0], floor, floor / us[0]);
    for (int k = 0; k < KINDS; k++) printf(",%.1f", of_best_us[k]);
    putchar('\n');
    fflush(stdout);
}

static void yardsticks(void)
{
    const size_t n = (size_t)1 << 26;
    struct wn_buf buf;
    double best = 1e30, flops = yardstick_fma();

    must(be->ops->buf_alloc(be, n * sizeof(float), &buf) == WN_OK, "no memory");
    memset(buf.ptr, 0, buf.bytes);
    for (int i = 0; i < 20; i++) {
        const double began = yardstick_now_us();
        yardstick_read(buf.ptr, n);
        if (yardstick_now_us() - began < best) best = yardstick_now_us() - began;
    }
    read_bytes_s = (double)n * 4 / best * 1e6;
    be->ops->buf_free(be, &buf);
    best = 1e30;
    for (int i = 0; i < 200; i++) {
        const double began = yardstick_now_us();
        flops = yardstick_fma();
        if (yardstick_now_us() - began < best) best = yardstick_now_us() - began;
    }
    must(flops > 0, "no yardstick for multiply-adds on this processor");
    peak_flops = flops / best * 1e6;
    printf("# %d threads: %.1f GFLOP/s of multiply-adds, %.1f GB/s read; %.2f M weights\n", omp_get_max_threads(),
           peak_flops * 1e-9, read_bytes_s * 1e-9, weights_n() * 1e-6);
}

int main(int argc, char **argv)
{
    struct wn_backend_ops timed;

    open_stage();
    yardsticks();
    real = be->ops;
    timed = *real;
    timed.matmul = t_matmul;
    timed.matmuls = t_matmuls;
    timed.attn_paged = t_attn;
    timed.norm = t_norm;
    timed.add_norm = t_add_norm;
    timed.rope_kv = t_rope_kv;
    timed.add = t_add;
    timed.silu_mul = t_silu_mul;
    timed.gather_rows = t_gather;
    timed.convert = t_convert;
    be->ops = &timed;
    printf("commit,machine,threads,pages,rows,n,min_us,p50_us,rows_s,floor_us,floor_ratio");
    for (int k = 0; k < KINDS; k++) printf(",%s", kinds[k]);
    putchar('\n');
    for (int shared = 0; shared < 2; shared++) {
        fill_context(shared);
        for (uint32_t rows = 1; rows <= SEQS; rows *= 2) bench(argc > 1 ? argv[1] : "unnamed", rows, shared);
    }
    wn_stage_close(stage);
    be->ops = real;
    wn_backend_close(be);
    free(logits);
    return 0;
}
