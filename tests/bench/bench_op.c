/* bench_op [machine [op]] - the CPU backend's operations against the machine's limits and oneDNN, as CSV on standard
 * output.
 *
 * Each operation is verified first, then warmed up, then timed for half a second; oneDNN takes turns with ours, so
 * that a disturbance hits both; `op` (gemm, gemv, attn) leaves the others out. Yardsticks are measured in the same run:
 * read bandwidth (all threads sum 256 MiB) and the rate of independent multiply-adds in registers. ratio is ours to
 * the yardstick, in speed. Compare minima: other processes of the machine disturb everything else. */
#include <math.h>
#include <omp.h>
#ifdef WN_HAVE_DNNL
#include <dnnl.h>
#endif

#include "base/order.h"
#include "shard/backend.h"
#include "shard/cpu/cpu.h"
#include "tests/bench/must.h"
#include "tests/bench/yardstick.h"
#include "winnow_version.h"

#define RUNS_MAX 400

static const char *machine = "unnamed", *only = "";
static struct wn_backend *be;
static double read_bytes_s, peak_flops;

struct times {
    double us[RUNS_MAX];
    uint32_t n;
};

static double now_us(void)
{
    return yardstick_now_us();
}

/* Sorts the times and prints one row. Returns the shortest. */
static double row(const char *op, const char *shape, struct times *t, double flops, double bytes, double ratio,
                  const char *yardstick)
{
    qsort(t->us, t->n, sizeof(t->us[0]), wn_order_double);
    double best = t->us[0];
    printf("%s,%s,%s,%s,%s,%u,%.1f,%.1f,%.1f,%.2f,%.2f,", WN_COMMIT, machine, ((struct wn_cpu *)be)->isa->name, op,
           shape, t->n, best, t->us[t->n / 2], t->us[(t->n * 99) / 100], flops / best * 1e-3, bytes / best * 1e-3);
    if (ratio > 0.0)
        printf("%.3f,%s\n", ratio, yardstick);
    else
        printf(",\n");
    fflush(stdout);
    return best;
}

static bool wanted(const char *op)
{
    return !only[0] || strcmp(only, op) == 0;
}

typedef void (*run_fn)(void *arg);

static void time_once(struct times *t, run_fn fn, void *arg)
{
    double start = now_us();
    fn(arg);
    if (t->n < RUNS_MAX) t->us[t->n++] = now_us() - start;
}

/* Runs a (and b, if given, in turn) for about `seconds`, at least three times. */
static void time_both(double seconds, struct times *ta, run_fn a, void *aa, struct times *tb, run_fn b, void *bb)
{
    double start = now_us();
    ta->n = 0;
    if (tb) tb->n = 0;
    a(aa);
    if (tb) b(bb);
    while (ta->n < 3 || (now_us() - start < seconds * 1e6 && ta->n < RUNS_MAX)) {
        time_once(ta, a, aa);
        if (tb) time_once(tb, b, bb);
    }
}

/* ---- yardsticks ---- */

struct memory {
    float *p;
    size_t n;
};

static void read_all(void *arg)
{
    const struct memory *m = arg;
    yardstick_read(m->p, m->n);
}

static void fma_all(void *arg)
{
    *(double *)arg = yardstick_fma();
}

static void yardsticks(void)
{
    struct memory m = {.n = (size_t)1 << 26};
    struct wn_buf buf;
    struct times t;
    double best, flops = yardstick_fma();

    must(be->ops->buf_alloc(be, m.n * sizeof(float), &buf) == WN_OK, "no memory");
    m.p = buf.ptr;
#pragma omp parallel for
    for (size_t i = 0; i < m.n; i++) m.p[i] = 1.0f;
    time_both(1.0, &t, read_all, &m, NULL, NULL, NULL);
    best = row("read_bandwidth", "256MiB", &t, 0.0, (double)m.n * 4, 0.0, NULL);
    read_bytes_s = (double)m.n * 4 / best * 1e6;
    be->ops->buf_free(be, &buf);
    if (flops <= 0.0) return;
    time_both(0.5, &t, fma_all, &flops, NULL, NULL, NULL);
    best = row("fma_peak", "registers", &t, flops, 0.0, 0.0, NULL);
    peak_flops = flops / best * 1e6;
}

/* ---- matmul ---- */

static float value(uint64_t i)
{
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 29)) * 0xbf58476d1ce4e5b9u;
    return (float)(z >> 40) * 0x1p-23f - 1.0f;
}

static struct wn_buf fill(wn_dtype t, size_t n, uint64_t seed)
{
    struct wn_buf b;
    must(be->ops->buf_alloc(be, n * wn_dtype_bytes(t), &b) == WN_OK, "no memory");
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        if (t == WN_F32)
            ((float *)b.ptr)[i] = value(seed + i);
        else
            ((wn_bf16 *)b.ptr)[i] = wn_f32_to_bf16(value(seed + i));
    }
    return b;
}

static float at(const void *p, wn_dtype t, size_t i)
{
    return t == WN_F32 ? ((const float *)p)[i] : wn_bf16_to_f32(((const wn_bf16 *)p)[i]);
}

static void run_matmul(void *arg)
{
    must(wn_be_matmul(be, (struct wn_matmul *)arg) == WN_OK, "matmul failed");
}

#ifdef WN_HAVE_DNNL
struct dnnl {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t prim;
    dnnl_memory_t x, w, out;
};

static dnnl_memory_t dnnl_mem(struct dnnl *d, const dnnl_memory_desc_t *md, void *p)
{
    dnnl_memory_t m;
    must(dnnl_memory_create(&m, md, d->engine, p) == dnnl_success, "oneDNN: memory");
    return m;
}

/* Weights in the layout that oneDNN likes best. False: no implementation but the plain loops. */
static bool dnnl_make(struct dnnl *d, dnnl_data_type_t type, int64_t m, int64_t n, int64_t k, void *x, void *w,
                      void *out)
{
    dnnl_dims_t dx = {m, k}, dw = {k, n}, dout = {m, n}, sw = {1, k};
    dnnl_memory_desc_t mx, any, mw, mo;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd = NULL, rd = NULL;
    dnnl_primitive_t reorder = NULL;
    const char *info = "";

    dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags);
    dnnl_memory_desc_init_by_tag(&mx, 2, dx, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&any, 2, dw, type, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_strides(&mw, 2, dw, type, sw);
    dnnl_memory_desc_init_by_tag(&mo, 2, dout, dnnl_f32, dnnl_ab);
    if (dnnl_matmul_desc_init(&desc, &mx, &any, NULL, &mo) != dnnl_success) return false;
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, d->engine, NULL) != dnnl_success) return false;
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &info);
    if (strstr(info, "ref")) return false;
    const dnnl_memory_desc_t *best = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    d->x = dnnl_mem(d, &mx, x);
    d->out = dnnl_mem(d, &mo, out);
    d->w = dnnl_mem(d, best, DNNL_MEMORY_ALLOCATE);
    dnnl_memory_t plain = dnnl_mem(d, &mw, w);
    must(dnnl_reorder_primitive_desc_create(&rd, &mw, d->engine, best, d->engine, NULL) == dnnl_success &&
             dnnl_primitive_create(&reorder, rd) == dnnl_success,
         "oneDNN: reorder");
    dnnl_exec_arg_t ra[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, d->w}};
    must(dnnl_primitive_execute(reorder, d->stream, 2, ra) == dnnl_success, "oneDNN: reorder");
    dnnl_stream_wait(d->stream);
    must(dnnl_primitive_create(&d->prim, pd) == dnnl_success, "oneDNN: matmul");
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(rd);
    dnnl_primitive_desc_destroy(pd);
    dnnl_memory_destroy(plain);
    return true;
}

static void dnnl_run(void *arg)
{
    struct dnnl *d = arg;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, d->x}, {DNNL_ARG_WEIGHTS, d->w}, {DNNL_ARG_DST, d->out}};
    must(dnnl_primitive_execute(d->prim, d->stream, 3, args) == dnnl_success, "oneDNN: run");
    dnnl_stream_wait(d->stream);
}

static void dnnl_end(struct dnnl *d)
{
    dnnl_primitive_destroy(d->prim);
    dnnl_memory_destroy(d->x);
    dnnl_memory_destroy(d->w);
    dnnl_memory_destroy(d->out);
    dnnl_stream_destroy(d->stream);
    dnnl_engine_destroy(d->engine);
}
#endif

/* A sample of the output against sums in double. int8: what it loses is known, and tested elsewhere. */
static void verify(const void *x, const void *w, wn_dtype t, bool int8, const float *out, uint32_t m, uint32_t n,
                   uint32_t k)
{
    for (uint32_t i = 0; i < 200; i++) {
        size_t r = (i * 7919u) % m, c = (i * 104729u + 13u * i) % n;
        double sum = 0.0;
        for (size_t j = 0; j < k; j++) sum += (double)at(x, t, r * k + j) * at(w, t, c * k + j);
        must(fabs(out[r * n + c] - sum) <= (int8 ? 1e-2 : 1e-4) * sqrt((double)k), "matmul is wrong");
    }
}

static void bench_matmul(wn_dtype as, uint32_t m, uint32_t k, uint32_t n, double seconds)
{
    const bool int8 = as == WN_I8;
    const wn_dtype t = int8 ? WN_BF16 : as;
    struct wn_buf x = fill(t, (size_t)m * k, 1), w = fill(t, (size_t)n * k, 1u << 20),
                  out = fill(WN_F32, (size_t)m * n, 3);
    struct wn_mat host = {.ptr = w.ptr, .dtype = t, .rows = n, .cols = k, .stride = k};
    struct wn_matmul a = {.x = {x.ptr, t, m, k, k}, .out = {out.ptr, WN_F32, m, n, n}, .slices = 1};
    struct wn_weight *weight;
    struct times ours, theirs;
    char op[32], shape[64];
    double flops = 2.0 * m * n * k, bytes = (double)n * k * (double)wn_dtype_bytes(as), best;
    bool few = m <= 8;

    must((int8 ? be->ops->weight_i8(be, &weight, &host, 1) : be->ops->weight_create(be, &weight, &host, t)) == WN_OK,
         "weight");
    a.w = weight;
    run_matmul(&a);
    verify(x.ptr, w.ptr, t, int8, out.ptr, m, n, k);
    snprintf(op, sizeof(op), "%s_%s", m <= 32 ? "gemv" : "gemm", int8 ? "i8" : t == WN_F32 ? "f32" : "bf16");
    snprintf(shape, sizeof(shape), "M%u_K%u_N%u", m, k, n);
#ifdef WN_HAVE_DNNL
    struct dnnl d;
    if (!int8 && dnnl_make(&d, t == WN_F32 ? dnnl_f32 : dnnl_bf16, m, n, k, x.ptr, w.ptr, out.ptr)) {
        char their_op[48];
        dnnl_run(&d);
        verify(x.ptr, w.ptr, t, int8, out.ptr, m, n, k);
        time_both(seconds, &ours, run_matmul, &a, &theirs, dnnl_run, &d);
        snprintf(their_op, sizeof(their_op), "onednn_%s", op);
        double their_best = row(their_op, shape, &theirs, flops, bytes, 0.0, NULL);
        qsort(ours.us, ours.n, sizeof(ours.us[0]), wn_order_double);
        row(op, shape, &ours, flops, bytes, their_best / ours.us[0], "onednn");
        dnnl_end(&d);
    } else {
        static bool said;
        if (!said && !int8)
            printf("# oneDNN has no %s matmul for this processor but its plain loops: no ratio\n", wn_dtype_name(t));
        said |= !int8;
        time_both(seconds, &ours, run_matmul, &a, NULL, NULL, NULL);
    }
#else
    (void)theirs;
    time_both(seconds, &ours, run_matmul, &a, NULL, NULL, NULL);
#endif
    qsort(ours.us, ours.n, sizeof(ours.us[0]), wn_order_double);
    best = ours.us[0];
    if (few)
        row(op, shape, &ours, flops, bytes, bytes / best * 1e6 / read_bytes_s, "read_bandwidth");
    else if (peak_flops > 0.0)
        row(op, shape, &ours, flops, bytes, flops / best * 1e6 / peak_flops, "fma_peak");
    be->ops->weight_destroy(be, weight);
    be->ops->buf_free(be, &x);
    be->ops->buf_free(be, &w);
    be->ops->buf_free(be, &out);
}

/* ---- attention ---- */

static void run_paged(void *arg)
{
    must(wn_be_attn_paged(be, (struct wn_attn_paged *)arg) == WN_OK, "attention failed");
}

static void run_full(void *arg)
{
    must(wn_be_attn_full(be, (struct wn_attn_full *)arg) == WN_OK, "attention failed");
}

/* One output row of one head against double. Key j of the row's head is row key_row(j) of k and v. */
static void verify_attention(const struct wn_mat *out, const struct wn_mat *q, const struct wn_mat *k,
                             const struct wn_mat *v, size_t r, size_t qc, size_t kc, size_t hd, size_t keys,
                             double scale)
{
    double *p = calloc(keys, sizeof(*p)), sum = 0.0;
    must(p != NULL, "no memory");
    for (size_t j = 0; j < keys; j++) {
        double dot = 0.0;
        for (size_t d = 0; d < hd; d++)
            dot +=
                (double)at(q->ptr, q->dtype, r * q->stride + qc + d) * at(k->ptr, k->dtype, j * k->stride + kc + d);
        sum += p[j] = exp(dot * scale);
    }
    for (size_t d = 0; d < hd; d++) {
        double want = 0.0;
        for (size_t j = 0; j < keys; j++) want += p[j] / sum * at(v->ptr, v->dtype, j * v->stride + kc + d);
        must(fabs(at(out->ptr, out->dtype, r * out->stride + qc + d) - want) < 1e-5, "attention is wrong");
    }
    free(p);
}

/* `seqs` sequences of `pos` tokens in their pages and `rows` new ones; pages in order, so key j is row j. */
static void bench_paged(wn_dtype t, uint32_t seqs_n, uint32_t pos, uint32_t rows, uint32_t heads, uint32_t kv_heads,
                        uint32_t hd)
{
    enum { PAGE = 16 };
    uint32_t len = pos + rows, pages = (len + PAGE - 1) / PAGE, all = seqs_n * rows;
    uint32_t *tables = calloc((size_t)pages * seqs_n, sizeof(*tables));
    struct wn_seq *seqs = calloc(seqs_n, sizeof(*seqs));
    struct wn_buf q = fill(WN_F32, (size_t)all * heads * hd, 5), out = fill(WN_F32, (size_t)all * heads * hd, 6);
    size_t kv_values = (size_t)seqs_n * pages * PAGE * kv_heads * hd;
    struct wn_buf k = fill(t, kv_values, 7), v = fill(t, kv_values, 8), pk = fill(t, kv_values, 7),
                  pv = fill(t, kv_values, 8);
    struct wn_mat rows_k = {k.ptr, t, seqs_n * pages * PAGE, kv_heads * hd, kv_heads * hd}, rows_v = rows_k;
    struct wn_attn_paged a = {
        .out = {out.ptr, WN_F32, all, heads * hd, heads * hd},
        .q = {q.ptr, WN_F32, all, heads * hd, heads * hd},
        .kv = {.k = rows_k, .v = rows_k, .page_tokens = PAGE},
        .seqs = seqs,
        .seqs_n = seqs_n,
        .heads = heads,
        .kv_heads = kv_heads,
        .head_dim = hd,
        .scale = (float)(1.0 / sqrt((double)hd)),
    };
    struct times times;
    char shape[96];
    double sees = 0.0, bytes, flops;

    must(tables && seqs, "no memory");
    rows_v.ptr = v.ptr;
    a.kv.k.ptr = pk.ptr;
    a.kv.v.ptr = pv.ptr;
    for (uint32_t i = 0; i < pages * seqs_n; i++) tables[i] = i;
    for (uint32_t s = 0; s < seqs_n; s++)
        seqs[s] =
            (struct wn_seq){.first_row = s * rows, .rows = rows, .pos = pos, .pages = tables + (size_t)s * pages};
    for (uint32_t i = 0; i < rows; i++) sees += (double)(pos + i + 1) * seqs_n;
    for (uint32_t s = 0; s < seqs_n; s++) {
        struct wn_seq whole = {.first_row = s * pages * PAGE, .rows = len, .pages = seqs[s].pages};
        struct wn_kv_write w = {.k = rows_k, .v = rows_v, .kv = a.kv, .seqs = &whole, .seqs_n = 1};
        must(wn_be_kv_write(be, &w) == WN_OK, "kv_write failed");
    }
    flops = sees * heads * hd * 4;
    bytes = 2.0 * seqs_n * len * kv_heads * hd * (double)wn_dtype_bytes(t);
    run_paged(&a);
    verify_attention(&a.out, &a.q, &rows_k, &rows_v, rows - 1, (size_t)(heads - 1) * hd, (size_t)(kv_heads - 1) * hd,
                     hd, len, 1.0 / sqrt((double)hd));
    time_both(0.5, &times, run_paged, &a, NULL, NULL, NULL);
    snprintf(shape, sizeof(shape), "S%u_P%u_R%u_H%u_KV%u_D%u_%s", seqs_n, pos, rows, heads, kv_heads, hd,
             t == WN_F32 ? "f32" : "bf16");
    qsort(times.us, times.n, sizeof(times.us[0]), wn_order_double);
    if (rows == 1)
        row("attn_decode", shape, &times, flops, bytes, bytes / times.us[0] * 1e6 / read_bytes_s, "read_bandwidth");
    else if (peak_flops > 0.0)
        row("attn_prefill", shape, &times, flops, bytes, flops / times.us[0] * 1e6 / peak_flops, "fma_peak");
    struct wn_buf *bufs[] = {&q, &out, &k, &v, &pk, &pv};
    for (size_t i = 0; i < 6; i++) be->ops->buf_free(be, bufs[i]);
    free(tables);
    free(seqs);
}

static void bench_full(uint32_t tokens, uint32_t heads, uint32_t hd, bool taps)
{
    uint32_t cols = heads * hd;
    struct wn_buf b[4], cls = fill(WN_F32, (size_t)heads * tokens, 1), mean = fill(WN_F32, tokens, 1);
    struct wn_mat m[4];
    struct times times;
    char shape[64];
    double flops = 4.0 * tokens * tokens * cols;

    for (uint32_t i = 0; i < 4; i++) {
        b[i] = fill(WN_F32, (size_t)tokens * cols, 11 + i);
        m[i] = (struct wn_mat){b[i].ptr, WN_F32, tokens, cols, cols};
    }
    struct wn_attn_full a = {.out = m[0],
                             .q = m[1],
                             .k = m[2],
                             .v = m[3],
                             .images = 1,
                             .tokens = tokens,
                             .heads = heads,
                             .head_dim = hd,
                             .scale = (float)(1.0 / sqrt((double)hd)),
                             .cls_rows = taps ? cls.ptr : NULL,
                             .mean_cols = taps ? mean.ptr : NULL};
    run_full(&a);
    verify_attention(&m[0], &m[1], &m[2], &m[3], tokens / 2, cols - hd, cols - hd, hd, tokens,
                     1.0 / sqrt((double)hd));
    time_both(0.5, &times, run_full, &a, NULL, NULL, NULL);
    snprintf(shape, sizeof(shape), "T%u_H%u_D%u%s", tokens, heads, hd, taps ? "_taps" : "");
    qsort(times.us, times.n, sizeof(times.us[0]), wn_order_double);
    if (peak_flops > 0.0)
        row("attn_vision", shape, &times, flops, 16.0 * tokens * cols, flops / times.us[0] * 1e6 / peak_flops,
            "fma_peak");
    for (uint32_t i = 0; i < 4; i++) be->ops->buf_free(be, &b[i]);
    be->ops->buf_free(be, &cls);
    be->ops->buf_free(be, &mean);
}

int main(int argc, char **argv)
{
    static const uint32_t gemm[][3] = {{577, 1024, 4096}, {577, 4096, 1024}, {640, 5120, 13824}};
    static const uint32_t gemv[][3] = {{1, 4096, 11008}, {1, 5120, 13824}, {4, 5120, 13824}, {32, 5120, 13824}};
    static const wn_dtype types[] = {WN_F32, WN_BF16, WN_I8};
    struct wn_err err = {0};

    if (argc > 1) machine = argv[1];
    only = argc > 2 ? argv[2] : "";
    must(wn_backend_open(&be, "cpu", 0, &err) == WN_OK, "backend: %s", err.text);
    printf("# %d threads; each operation verified before it is timed. Other processes disturb p50 and p99: compare "
           "minima\n",
           omp_get_max_threads());
    printf("commit,machine,isa,op,shape,n,min_us,p50_us,p99_us,gflops,gbytes_s,ratio,yardstick\n");
    yardsticks();
    for (int t = 0; t < 3; t++) {
        const wn_dtype type = types[t];
        for (size_t i = 0; wanted("gemm") && i < sizeof(gemm) / sizeof(gemm[0]); i++)
            bench_matmul(type, gemm[i][0], gemm[i][1], gemm[i][2], 0.6);
        for (size_t i = 0; wanted("gemv") && i < sizeof(gemv) / sizeof(gemv[0]); i++)
            bench_matmul(type, gemv[i][0], gemv[i][1], gemv[i][2], 0.5);
        if (!wanted("attn") || type == WN_I8) continue;
        bench_paged(type, 1, 0, 640, 32, 8, 128);
        bench_paged(type, 1, 2000, 1, 32, 32, 128);
        bench_paged(type, 16, 700, 1, 32, 8, 128);
        bench_paged(type, 32, 620, 1, 8, 4, 32); /* tiny-llava */
    }
    if (wanted("attn")) {
        bench_full(577, 16, 64, false);
        bench_full(577, 16, 64, true);
    }
    wn_backend_close(be);
    return 0;
}
