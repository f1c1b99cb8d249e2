/* The sharded decoder against Transformers and against itself. For two tiny checkpoints, float32 and bfloat16:
 *   - logits at every position within 1e-4 of the row's largest and greedy continuations equal; in bfloat16 near;
 *   - every plan gives the bits of one rank alone, whole prompts, chunks, single tokens and mixed steps alike;
 *   - pruned image rows that keep their positions, in any order, are near Transformers and have those same bits;
 *   - what each link counted is what wn_plan_link_bytes says, to the byte.
 * Without arguments: all plans, ranks are threads on the local link, and what goes wrong when a rank does not come.
 * With argument "gpus": plans of up to four ranks on the backend cuda, whose links are NCCL or, where that is not, host
 * memory; a thread and a device for each rank (tests/cudasim has as many as it likes).
 * Under mpirun with argument "mpi": the plans whose ranks are as many as the processes; "mpi gpus": on GPUs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "shard/loader.h"
#include "tests/integration/golden_rank.h"

static const char *const names[] = {"llava-a", "llava-b"};
static const struct {
    uint32_t stages, tensors;
} plans[] = {{1, 1}, {1, 2}, {2, 1}, {3, 1}, {1, 4}, {2, 2}, {3, 2}, {2, 4}, {3, 4}};

static enum { NONE, NCCL, STAGED } gpus; /* how the ranks of a device backend speak */
static bool everything;                  /* every check, also where a simulated device makes it slow */

static struct rank rank_of(const struct golden *g, size_t plan, wn_dtype dtype, const char *backend)
{
    struct rank r = {.g = g, .backend = backend};
    struct wn_err err = {0};

    if (wn_plan_make(&r.plan, &g->model, plans[plan].stages, plans[plan].tensors, NULL, dtype, &err))
        failed(&r, "%s", err.text);
    return r;
}

/* --- ranks as threads --- */

static void *thread_main(void *arg)
{
    struct rank *r = arg;
    bool good = check_rank(r);

    if (good) close_all(r);
    if (r->link) {
        if (!good) wn_link_cancel(r->link);
        wn_link_close(r->link);
        r->link = NULL;
    }
    if (!good) close_all(r);
    return NULL;
}

static bool local_plan(const struct golden *g, size_t plan, wn_dtype dtype, const char *backend)
{
    uint32_t n = plans[plan].stages * plans[plan].tensors;
    struct wn_local_hub *hub = NULL;
    struct rank ranks[12];
    pthread_t threads[12];
    struct wn_err err = {0};
    bool good = true;

    if (wn_local_hub_create(&hub, (int)n, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct wn_group group = {.rank = (int)i, .size = (int)n, .hub = hub};
        ranks[i] = rank_of(g, plan, dtype, backend);
        ranks[i].me = i;
        ranks[i].device = gpus == NONE ? 0 : i;
        ranks[i].nccl = gpus == NCCL;
        ranks[i].quick = gpus != NONE && !everything;
        if (n > 1 && wn_link_open(&ranks[i].link, "local", &group, &err)) failed(&ranks[i], "%s", err.text);
    }
    for (uint32_t i = 0; i < n; i++) pthread_create(&threads[i], NULL, thread_main, &ranks[i]);
    for (uint32_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < n; i++) {
        if (ranks[i].failure[0]) fprintf(stderr, "FAILED %s\n", ranks[i].failure);
        good = good && !ranks[i].failure[0];
    }
    wn_local_hub_destroy(hub);
    printf("%-6s %s %s %s P=%u T=%u: error %.2e\n", good ? "ok" : "FAILED", g->dir, wn_dtype_name(dtype), backend,
           plans[plan].stages, plans[plan].tensors, ranks[n - plans[plan].tensors].error);
    return good;
}

/* Ranks on GPUs: as on CPUs, but that messages go from device to device, or (staged) by way of host memory. */
static bool gpu_plan(const struct golden *g, size_t plan, wn_dtype dtype, bool staged)
{
    gpus = staged ? STAGED : NCCL;
    return local_plan(g, plan, dtype, "cuda");
}

static int gpus_main(void)
{
    struct golden g;
    struct wn_err err = {0};
    int bad = 0;

    if (golden_open(&g, names[0], &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (size_t p = 1; p < sizeof(plans) / sizeof(plans[0]); p++) {
        uint32_t n = plans[p].stages * plans[p].tensors;
        if (n > 4 || plans[p].stages == 3) continue;
        bad += !gpu_plan(&g, p, n == 2 ? WN_F32 : WN_BF16, false);
        if (n == 4 && plans[p].stages == 2) bad += !gpu_plan(&g, p, WN_F32, true);
    }
    golden_close(&g);
    printf("%d failed\n", bad);
    return bad != 0;
}

/* What a rank loads is what the plan says that it holds, for every rank of every plan. */
static bool local_weight_bytes(const struct golden *g)
{
    struct wn_backend *be = NULL;
    struct wn_weights *w = NULL;
    struct wn_err err = {0};
    bool good = !wn_backend_open(&be, wn_backends[0]->name, 0, &err) && !wn_weights_open(&w, g->dir, &err);

    for (size_t p = 0; good && p < sizeof(plans) / sizeof(plans[0]); p++) {
        struct rank r = rank_of(g, p, WN_BF16, wn_backends[0]->name);
        for (uint32_t i = 0; good && i < plans[p].stages * plans[p].tensors; i++) {
            struct wn_loader *l = NULL;
            good = !wn_loader_open(&l, be, WN_BF16, &err) && !wn_loader_plan(l, w, &r.plan, i, &err) &&
                   wn_loader_bytes(l) == wn_plan_weight_bytes(&r.plan, i);
            wn_loader_close(l);
        }
    }
    printf("%-6s %s: bytes held are the plan's %s\n", good ? "ok" : "FAILED", g->dir, err.text);
    wn_weights_close(w);
    wn_backend_close(be);
    return good;
}

/* Steps that the stage has to refuse, and one that it then still runs. */
static bool local_refusals(const struct golden *g)
{
    struct rank r = rank_of(g, 0, WN_F32, wn_backends[0]->name);
    uint32_t pages[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct piece text = {1, 0, 5, pages}, image = {0, 0, 10, pages};
    struct filled f;
    bool good = open_all(&r);
    int refused = 0, tried = 0;

#define REFUSED(piece, change, code)                                                                                 \
    do {                                                                                                             \
        fill(g, &f, &(piece), 1, true);                                                                              \
        change;                                                                                                      \
        tried++;                                                                                                     \
        refused += wn_stage_run(r.stage, &f.step, WN_NEVER, r.got, NULL) == (code);                                  \
    } while (0)
    if (good) {
        REFUSED(text, f.step.rows = 0, WN_ELIMIT);
        REFUSED(text, f.step.rows = ROWS_MAX + 1, WN_ELIMIT);
        REFUSED(text, f.step.seqs_n = GOLDEN_PROMPTS_MAX + 1, WN_ELIMIT);
        REFUSED(text, f.step.wanted_n = ROWS_MAX + 1, WN_ELIMIT);
        REFUSED(text, f.step.seqs_n = 0, WN_EINVAL);
        REFUSED(text, f.seqs[0].rows = 4, WN_EINVAL);
        REFUSED(text, f.seqs[0].rows = 6, WN_EINVAL);
        REFUSED(text, f.seqs[0].first_row = 1, WN_EINVAL);
        REFUSED(text, f.seqs[0].pos = UINT32_MAX, WN_ELIMIT);
        REFUSED(text, f.seqs[0].pos = g->model.text.positions_max, WN_ELIMIT);
        REFUSED(text, pages[0] = PAGES, WN_EINVAL);
        pages[0] = 0;
        REFUSED(text, f.token[2] = g->model.text.vocab, WN_EINVAL);
        REFUSED(text, f.slot[2] = g->images, WN_EINVAL);
        f.position[0] = g->model.text.positions_max;
        REFUSED(text, f.step.position = f.position, WN_ELIMIT);
        REFUSED(text, f.wanted[1] = 0, WN_EINVAL);
        REFUSED(text, f.wanted[4] = 5, WN_EINVAL);
        REFUSED(image, (void)0, WN_ENOENT);
        good = share_images(&r, 0, 1, false);
        REFUSED(image, f.token[8] = g->model.vision.patches, WN_EINVAL);
        wn_stage_features_drop(r.stage, 0);
        REFUSED(image, (void)0, WN_ENOENT);
        REFUSED(text, (void)0, WN_OK);
    }
#undef REFUSED
    good = good && refused == tried && golden_error(r.got, g->prompt[1].logits, 5, g->model.text.vocab) <= TOLERANCE;
    printf("%-6s %s: %d of %d steps refused (the last one runs) %s\n", good ? "ok" : "FAILED", g->dir, refused, tried,
           r.failure);
    close_all(&r);
    return good;
}

/* Features of a wrong shape are refused; projected ones give what Transformers' own projector gave. */
static bool local_projected(const struct golden *g)
{
    struct rank r = rank_of(g, 0, WN_F32, wn_backends[0]->name);
    uint32_t pages[16], hidden = g->model.text.hidden, patches = g->model.vision.patches, rows = g->prompt[0].rows;
    struct wn_features f = {.rows = patches, .width = hidden, .dtype = WN_F32, .projected = true};
    struct piece all = {0, 0, rows, pages};
    bool good = open_all(&r);
    double e = 1e9;

    for (uint32_t i = 0; i < 16; i++) pages[i] = PAGES - 1 - 3 * i;
    if (good) {
        struct wn_features wrong = f;
        wrong.width--;
        good = wn_stage_features_put(r.stage, 0, g->projected, &wrong, NULL) == WN_EINVAL;
        wrong = (struct wn_features){.rows = 0, .width = hidden, .projected = true};
        good = good && wn_stage_features_put(r.stage, 0, g->projected, &wrong, NULL) == WN_ELIMIT;
        good = good && wn_stage_features_put(r.stage, g->images, g->projected, &f, NULL) == WN_EINVAL;
        good = good && wn_stage_features_put(r.stage, 0, g->projected, &f, NULL) == WN_OK;
        good = good && run(&r, r.stage, &all, 1, true, r.got);
    }
    if (good) e = golden_error(r.got, g->prompt[0].logits, rows, g->model.text.vocab);
    good = good && e <= TOLERANCE;
    printf("%-6s %s: projected features: error %.2e %s\n", good ? "ok" : "FAILED", g->dir, e, r.failure);
    close_all(&r);
    return good;
}

/* Rank 0 of two runs a step that rank 1 never runs: it leaves at its deadline, and again at once. */
static bool local_lost_rank(const struct golden *g, size_t plan)
{
    struct rank ranks[2];
    struct wn_local_hub *hub = NULL;
    uint32_t pages[8] = {0, 1, 2, 3, 4, 5, 6, 7}, waits = plans[plan].tensors == 2 ? 0 : 1;
    struct piece text = {1, 0, 5, pages};
    struct filled f;
    struct wn_err err = {0};
    bool good = !wn_local_hub_create(&hub, 2, &err);

    for (uint32_t i = 0; i < 2; i++) {
        struct wn_group group = {.rank = (int)i, .size = 2, .hub = hub};
        ranks[i] = rank_of(g, plan, WN_F32, wn_backends[0]->name);
        ranks[i].me = i;
        good = good && !wn_link_open(&ranks[i].link, "local", &group, &err) && open_all(&ranks[i]);
    }
    if (good) {
        int64_t start = wn_now_us(), took;
        struct rank *r = &ranks[waits];
        fill(g, &f, &text, 1, true);
        good = wn_stage_run(r->stage, &f.step, wn_deadline_in_us(100000), r->got, &err) == WN_ETIME;
        took = wn_now_us() - start;
        good = good && took > 90000 && took < 2000000;
        good = good && wn_stage_run(r->stage, &f.step, wn_deadline_in_us(100000), r->got, NULL) == WN_EPEER;
    }
    for (uint32_t i = 0; i < 2; i++) wn_link_close(ranks[i].link);
    for (uint32_t i = 0; i < 2; i++) close_all(&ranks[i]);
    wn_local_hub_destroy(hub);
    printf("%-6s a lost rank, P=%u T=%u: %s\n", good ? "ok" : "FAILED", plans[plan].stages, plans[plan].tensors,
           err.text);
    return good;
}

static int local_main(void)
{
    int bad = 0;

    for (size_t m = 0; m < sizeof(names) / sizeof(names[0]); m++) {
        struct golden g;
        struct wn_err err = {0};
        if (golden_open(&g, names[m], &err)) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        for (size_t p = 0; p < sizeof(plans) / sizeof(plans[0]); p++) {
            bad += !local_plan(&g, p, WN_F32, wn_backends[0]->name);
            bad += !local_plan(&g, p, WN_BF16, wn_backends[0]->name);
        }
        setenv("WINNOW_CUDA_KERNELS", "exact", 0); /* rows have to keep their bits here */
        for (size_t b = 1; wn_backends[b]; b++)
            if (golden_backend_usable(wn_backends[b]->name)) bad += !local_plan(&g, 0, WN_F32, wn_backends[b]->name);
        bad += !local_weight_bytes(&g);
        bad += !local_refusals(&g);
        bad += !local_projected(&g);
        golden_close(&g);
    }
    struct golden g;
    if (golden_open(&g, names[0], NULL)) return 1;
    bad += !local_lost_rank(&g, 1);
    bad += !local_lost_rank(&g, 2);
    golden_close(&g);
    printf("%d failed\n", bad);
    return bad != 0;
}

/* --- ranks as processes --- */

static int mpi_main(void)
{
    struct wn_group group = {0};
    struct wn_link *link = NULL;
    struct wn_err err = {0};
    int passed = 0, all[WN_TENSOR_MAX], devices = 0, asked;
    char host[32];

    if (wn_link_open(&link, "mpi", &group, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (gpus && wn_backend_devices("cuda", &devices, &asked, &err)) {
        fprintf(stderr, "%s\n", err.text);
        wn_link_mpi_abort(1);
    }
    snprintf(host, sizeof(host), "rank%d", wn_link_rank(link));
    if (devices < wn_link_size(link)) setenv("NCCL_HOSTID", host, 0); /* ranks on one device meet as if on two hosts */
    for (int i = 0; i < wn_link_size(link); i++) all[i] = i;
    for (size_t m = 0; m < sizeof(names) / sizeof(names[0]); m++) {
        struct golden g;
        if (golden_open(&g, names[m], &err)) {
            fprintf(stderr, "%s\n", err.text);
            wn_link_mpi_abort(1);
        }
        for (size_t p = 0; p < sizeof(plans) / sizeof(plans[0]); p++) {
            if ((int)(plans[p].stages * plans[p].tensors) != wn_link_size(link)) continue;
            for (int t = 0; t < 2; t++) {
                struct rank r = rank_of(&g, p, t ? WN_BF16 : WN_F32, gpus ? "cuda" : wn_backends[0]->name);
                struct wn_comm comm = {all, wn_link_size(link), wn_link_rank(link)};
                r.link = link;
                r.me = (uint32_t)wn_link_rank(link);
                r.device = devices ? r.me % (uint32_t)devices : 0;
                r.nccl = gpus == NCCL;
                r.quick = gpus != NONE && !everything; /* ranks that take turns on one GPU are slow */
                if (!check_rank(&r)) {
                    fprintf(stderr, "FAILED %s\n", r.failure);
                    wn_link_mpi_abort(1);
                }
                if (r.root)
                    printf("ok     %s %s P=%u T=%u: error %.2e\n", g.dir, wn_dtype_name(r.plan.dtype), r.plan.stages,
                           r.plan.tensors, r.error);
                close_all(&r);
                if (wn_coll_barrier(link, &comm, wn_deadline_in_us(PATIENCE_US))) wn_link_mpi_abort(1);
                passed++;
            }
        }
        golden_close(&g);
    }
    wn_link_close(link);
    return passed == 0; /* no plan of this size: the test is wired wrongly */
}

int main(int argc, char **argv)
{
    setenv("WN_CUDASIM_DEVICES", "4", 0);
    if (argc > 1 && strcmp(argv[argc - 1], "gpus") == 0) {
        setenv("WINNOW_CUDA_KERNELS", "exact", 0); /* rows have to keep their bits here */
        gpus = NCCL;
        everything = getenv("WN_TEST_EVERYTHING") != NULL;
    }
#ifdef WN_TEST_NCCL
    setenv("WINNOW_NCCL", WN_TEST_NCCL, 0);
#endif
    if (argc > 1 && strcmp(argv[1], "mpi") == 0) return mpi_main();
    return gpus == NONE ? local_main() : gpus_main();
}
