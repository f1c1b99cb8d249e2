/* bench_vision [machine] - the vision tower, as CSV on standard output.
 *
 * First verifies the tower against tests/golden/llava-a; then times encode for a tower of the shape of
 * models/tiny-llava and for one layer of CLIP ViT-L/14-336 (patch embedding included), random weights, bfloat16, one
 * picture and a batch.
 * ratio is the encode's rate over the rate of the backend's own matmul [2304, 1024] x [4096, 1024]^T, measured in this
 * run just before. Compare minima: other processes of the machine disturb everything else.
 * Run from the repository's root. */
#include "base/order.h"
#include "shard/vision.h"
#include "tests/bench/must.h"
#include "tests/bench/random_weights.h"
#include "tests/integration/golden.h"
#include "tests/scratch.h"
#include "winnow_version.h"

#define RUNS_MAX 200

static const char *machine = "unnamed";
static struct wn_backend *be;

/* --- verify, measure --- */

static void verify(void)
{
    struct golden g;
    struct wn_weights *w = NULL;
    struct wn_vision *v = NULL;
    struct wn_vision_out out;
    struct wn_err err = {0};
    double e = 1e9;

    must(!golden_open(&g, "llava-a", &err) && !wn_weights_open(&w, g.dir, &err), "golden: %s", err.text);
    must(!wn_vision_open(&v, be, &g.model, w, WN_F32, g.images, &err), "tower: %s", err.text);
    must(!wn_vision_encode(v, g.pixels, g.images, NULL, WN_NEVER, &out, &err), "encode: %s", err.text);
    e = golden_error(out.features, g.features, (size_t)out.images * out.rows, out.width);
    must(e <= 1e-4, "features: are not those of Transformers");
    fprintf(stderr, "bench_vision: verified, relative error %.1e\n", e);
    wn_vision_close(v);
    wn_weights_close(w);
    golden_close(&g);
}

/* Multiply-adds count as two. */
static double flops_of(const struct wn_vision_config *c)
{
    double n = c->patches + 1.0, h = c->hidden, layers = c->layers_run;
    double layer = 2.0 * n * (4.0 * h * h + 2.0 * h * c->mlp) + 4.0 * n * n * h;
    return layers * layer + 2.0 * c->patches * h * 3.0 * c->patch_side * c->patch_side;
}

/* The backend's best rate on one large product, flop/s. */
static double matmul_peak(void)
{
    enum { M = 2304, N = 4096, K = 1024 };
    wn_bf16 *host = malloc((size_t)N * K * sizeof(*host));
    struct wn_mat from = {host, WN_BF16, N, K, K};
    struct wn_weight *w = NULL;
    struct wn_buf x, out;
    struct wn_matmul m;
    int64_t best = INT64_MAX;

    must(host != NULL, "matmul: memory");
    for (size_t i = 0; i < (size_t)N * K; i++) host[i] = wn_f32_to_bf16(random_noise());
    must(!be->ops->weight_create(be, &w, &from, WN_BF16) &&
             !be->ops->buf_alloc(be, (size_t)M * K * 2, &x) &&
             !be->ops->buf_alloc(be, (size_t)M * N * 2, &out),
         "matmul: memory");
    must(!be->ops->upload(be, x.ptr, host, (size_t)M * K * 2), "matmul: upload");
    m = (struct wn_matmul){
        .out = {out.ptr, WN_BF16, M, N, N}, .x = {x.ptr, WN_BF16, M, K, K}, .w = w, .slices = 1};
    for (int i = 0; i < 8; i++) {
        int64_t start = wn_now_us();
        must(!wn_be_matmul(be, &m) && !be->ops->sync(be, WN_NEVER), "matmul: failed");
        if (wn_now_us() - start < best) best = wn_now_us() - start;
    }
    be->ops->weight_destroy(be, w);
    be->ops->buf_free(be, &x);
    be->ops->buf_free(be, &out);
    free(host);
    return 2.0 * M * N * K / (double)best * 1e6;
}

static void measure(const char *shape, const struct wn_model *model, const struct wn_weights *w,
                    uint32_t images)
{
    const struct wn_vision_config *c = &model->vision;
    size_t floats = (size_t)images * 3 * c->image_side * c->image_side;
    float *pixels = malloc(floats * sizeof(float));
    int64_t us[RUNS_MAX], start = wn_now_us();
    struct wn_vision *v = NULL;
    struct wn_vision_out out;
    struct wn_err err = {0};
    double flops = flops_of(c) * images, peak;
    uint32_t n = 0;

    must(pixels != NULL, "%s: memory", shape);
    for (size_t i = 0; i < floats; i++) pixels[i] = 4.0f * random_noise();
    must(!wn_vision_open(&v, be, model, w, WN_BF16, images, &err), "%s: %s", shape, err.text);
    must(!wn_vision_encode(v, pixels, images, NULL, WN_NEVER, &out, &err), "%s: %s", shape, err.text); /* warm */
    peak = matmul_peak();
    while (n < 5 || (wn_now_us() - start < 4000000 && n < RUNS_MAX)) {
        int64_t t = wn_now_us();
        must(!wn_vision_encode(v, pixels, images, NULL, WN_NEVER, &out, &err), "%s: %s", shape, err.text);
        us[n++] = wn_now_us() - t;
    }
    qsort(us, n, sizeof(us[0]), wn_order_int64);
    printf("%s,%s,%s,%s,%u,%u,%lld,%lld,%lld,%.1f,%.1f,%.3f\n", WN_COMMIT, machine, be->ops->name,
           shape, images, n, (long long)us[0], (long long)us[n / 2], (long long)us[n * 99 / 100],
           flops / (double)us[0] * 1e-3, peak * 1e-9, flops / (double)us[0] * 1e6 / peak);
    fflush(stdout);
    wn_vision_close(v);
    free(pixels);
}

static void measure_random(const char *shape, struct wn_vision_config c)
{
    char dir[64];
    struct wn_model model = {.vision = c};
    struct wn_weights *w = NULL;
    struct wn_err err = {0};

    must(scratch_make(dir, sizeof(dir), "bench-vision"), "scratch folder");
    must(random_weights_write(dir, &c, NULL), "%s: write", dir);
    must(!wn_weights_open(&w, dir, &err), "%s: %s", shape, err.text);
    scratch_remove(dir); /* what is mapped stays */
    measure(shape, &model, w, 1);
    measure(shape, &model, w, 4);
    wn_weights_close(w);
}

int main(int argc, char **argv)
{
    const struct wn_vision_config tiny = {.hidden = 256,
                                          .mlp = 768,
                                          .layers = 6,
                                          .heads = 4,
                                          .head_dim = 64,
                                          .image_side = 336,
                                          .patch_side = 14,
                                          .patches = 576,
                                          .layers_run = 6,
                                          .eps = 1e-5f,
                                          .act = WN_ACT_QUICK_GELU};
    struct wn_vision_config large = tiny;
    struct wn_err err = {0};

    if (argc > 1) machine = argv[1];
    large.hidden = 1024;
    large.mlp = 4096;
    large.heads = 16;
    large.layers = large.layers_run = 1;
    must(!wn_backend_open(&be, wn_backends[0]->name, 0, &err), "backend: %s", err.text);
    verify();
    printf("commit,machine,backend,shape,images,n,min_us,p50_us,p99_us,gflop_s,matmul_gflop_s,"
           "ratio\n");
    measure_random("tiny-llava tower", tiny);
    measure_random("ViT-L/14-336 one layer", large);
    wn_backend_close(be);
    return 0;
}
