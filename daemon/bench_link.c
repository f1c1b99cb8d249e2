/* daemon/bench_link.c - `winnow bench link`: messages and all-reduces of a link by size, as CSV on standard output.
 *
 * Every size is verified, warmed up, then timed on rank 0. ping: half of a round trip between ranks 0 and 1. allreduce:
 * all ranks; algbw is message bytes over time, busbw is that times 2(n-1)/n: what each rank's wire must carry at least,
 * so it can be compared with the wire's speed whatever the number of ranks. Started by itself it starts the ranks, with
 * mpirun or as threads; under mpirun or srun it is one of them. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/order.h"
#include "daemon/launcher.h"
#include "daemon/roles.h"
#include "daemon/worker.h"
#include "transport/nccl.h"
#include "winnow_version.h"

#define DEADLINE_US 60000000
#define SAMPLES_MAX 2000
#define RUN_BYTES   ((size_t)512 << 20) /* moved for one row, about */
#define ROW_US      1500000             /* and no longer than this, where ranks take turns on one GPU */
#define SAMPLES_MIN 10
#define WARM_MIN    3
#define TAG_PING    1
#define TAG_SAMPLES 2
#define THREADS_MAX 16

struct bench {
    const char *name;
    char machine[64];
    struct wn_link *link;
    struct wn_comm all;
    float *data, *back; /* host memory */
    struct wn_backend *be; /* nccl: with the two below in its memory */
    struct wn_buf dev, dev_back;
    double us[SAMPLES_MAX];
    bool failed;
};

static int64_t soon(void)
{
    return wn_deadline_in_us(DEADLINE_US);
}

static bool must(struct bench *b, bool ok, const char *what, size_t bytes)
{
    if (ok) return true;
    if (!b->failed) {
        fprintf(stderr, "winnow: bench link: rank %d: %s of %zu bytes: %s\n", wn_link_rank(b->link), what, bytes,
                wn_link_error(b->link)->code ? wn_link_error(b->link)->text : "wrong result");
    }
    b->failed = true;
    return false;
}

static void row(struct bench *b, const char *what, size_t bytes, int n, double bus)
{
    double p50;

    qsort(b->us, (size_t)n, sizeof(b->us[0]), wn_order_double);
    p50 = b->us[n / 2];
    printf("%s,%s,%s,%d,%s,%zu,%d,%.2f,%.2f,%.2f,%.0f,%.0f\n", WN_COMMIT, b->machine, b->name, b->all.n, what,
           bytes, n, b->us[0], p50, b->us[n * 99 / 100], (double)bytes / p50 * 1e6, (double)bytes / p50 * 1e6 * bus);
    fflush(stdout);
}

static bool ping_gpus(struct bench *b, size_t bytes)
{
    const bool first = wn_link_rank(b->link) == 0;
    wn_status rc = WN_OK;

    if (first) rc = wn_dev_send(b->link, WN_TRAFFIC_ACTIVATION, b->dev.ptr, bytes);
    if (rc == WN_OK) rc = wn_dev_recv(b->link, WN_TRAFFIC_ACTIVATION, b->dev_back.ptr, bytes);
    if (rc == WN_OK && !first) rc = wn_dev_send(b->link, WN_TRAFFIC_ACTIVATION, b->dev_back.ptr, bytes);
    if (rc == WN_OK) rc = wn_dev_reuse(b->link);
    if (rc == WN_OK) rc = wn_dev_sync(b->link, soon());
    return must(b, rc == WN_OK, "ping", bytes);
}

static bool ping_once(struct bench *b, size_t bytes)
{
    const int rank = wn_link_rank(b->link);
    const struct wn_route peer = {.peer = 1 - rank, .tag = TAG_PING, .kind = WN_TRAFFIC_ACTIVATION};
    wn_status rc;

    if (b->be) return ping_gpus(b, bytes);
    if (rank == 0) {
        rc = wn_link_send_now(b->link, peer, b->data, bytes, soon());
        if (rc == WN_OK) rc = wn_link_recv_now(b->link, peer, b->back, bytes, soon());
    } else {
        rc = wn_link_recv_now(b->link, peer, b->back, bytes, soon());
        if (rc == WN_OK) rc = wn_link_send_now(b->link, peer, b->back, bytes, soon());
    }
    return must(b, rc == WN_OK, "ping", bytes);
}

/* Between host and GPU, where there is one. */
static bool place(struct bench *b, struct wn_buf *to, const float *from, size_t bytes)
{
    return !b->be || must(b, b->be->ops->upload(b->be, to->ptr, from, bytes) == WN_OK, "upload", bytes);
}

static bool fetch(struct bench *b, float *to, const struct wn_buf *from, size_t bytes)
{
    return !b->be || must(b, b->be->ops->download(b->be, to, from->ptr, bytes) == WN_OK, "download", bytes);
}

static wn_status sum_n(struct bench *b, size_t count, int times)
{
    wn_status rc = WN_OK;

    for (int k = 0; k < times && rc == WN_OK; k++)
        rc = b->be ? wn_dev_allreduce_f32(b->link, b->dev.ptr, count)
                   : wn_coll_allreduce_f32(b->link, &b->all, b->data, count, soon());
    return rc == WN_OK && b->be ? wn_dev_sync(b->link, soon()) : rc;
}

/* Enough repetitions for a stable median, few enough for large messages. */
static int repetitions(size_t bytes)
{
    size_t n = RUN_BYTES / (bytes + 4096);
    return n > SAMPLES_MAX ? SAMPLES_MAX : n < 20 ? 20 : (int)n;
}

/* Samples and runs to warm up before them: fewer where one took long. The ranks below `ranks` do what rank 0 says. */
static bool agree_samples(struct bench *b, int ranks, double sample_us, int *n, int *warm)
{
    struct wn_route route = {.tag = TAG_SAMPLES, .kind = WN_TRAFFIC_CONTROL};
    const double fit = ROW_US / (sample_us + 1);
    wn_status rc = WN_OK;

    *n = fit < SAMPLES_MIN ? SAMPLES_MIN : fit < *n ? (int)fit : *n;
    if (b->all.me > 0) rc = wn_link_recv_now(b->link, route, n, sizeof(*n), soon());
    for (route.peer = 1; b->all.me == 0 && rc == WN_OK && route.peer < ranks; route.peer++)
        rc = wn_link_send_now(b->link, route, n, sizeof(*n), soon());
    *warm = *n / 10 + 1;
    return must(b, rc == WN_OK, "number of samples", sizeof(*n));
}

static void ping(struct bench *b, size_t bytes)
{
    const int rank = wn_link_rank(b->link);
    int n = repetitions(bytes), warm = 0;
    int64_t since, fastest = ROW_US;

    if (rank > 1 || b->all.n < 2 || b->failed) return;
    for (size_t i = 0; i < bytes / sizeof(float); i++) b->data[i] = (float)i + 0.5f;
    memset(b->back, 0, bytes);
    if (!place(b, &b->dev, b->data, bytes) || !ping_once(b, bytes) || !fetch(b, b->back, &b->dev_back, bytes)) return;
    if (rank == 0 && !must(b, memcmp(b->data, b->back, bytes) == 0, "ping", bytes)) return;
    for (int i = 0; i < WARM_MIN; i++) {
        since = wn_now_us();
        if (!ping_once(b, bytes)) return;
        if (wn_now_us() - since < fastest) fastest = wn_now_us() - since;
    }
    if (!agree_samples(b, 2, (double)fastest * 4, &n, &warm)) return;
    for (int i = WARM_MIN; i < warm; i++)
        if (!ping_once(b, bytes)) return;
    for (int i = 0; i < n; i++) {
        int64_t start = wn_now_us();
        for (int k = 0; k < 4; k++) { /* the clock ticks in microseconds */
            if (!ping_once(b, bytes)) return;
        }
        b->us[i] = (double)(wn_now_us() - start) / 8.0;
    }
    if (rank == 0) row(b, "ping", bytes, n, 1.0);
}

static void allreduce(struct bench *b, size_t bytes)
{
    const size_t count = bytes / sizeof(float);
    int n = repetitions(bytes), warm = 0;
    int64_t since, fastest = ROW_US;
    bool right = true;

    if (b->failed) return;
    for (size_t i = 0; i < count; i++) b->data[i] = (float)(i % 1000) + (float)b->all.me;
    if (!place(b, &b->dev, b->data, bytes) || !must(b, sum_n(b, count, 1) == WN_OK, "allreduce", bytes)) return;
    if (!fetch(b, b->data, &b->dev, bytes)) return;
    for (size_t i = 0; i < count && right; i++) { /* small whole numbers: exact */
        right = b->data[i] == (float)(i % 1000) * (float)b->all.n + (float)(b->all.n * (b->all.n - 1) / 2);
    }
    if (!must(b, right, "allreduce", bytes)) return;
    memset(b->data, 0, bytes); /* sums of zeros stay zeros */
    if (!place(b, &b->dev, b->data, bytes)) return;
    for (int i = 0; i < WARM_MIN; i++) {
        since = wn_now_us();
        if (!must(b, sum_n(b, count, 1) == WN_OK, "allreduce", bytes)) return;
        if (wn_now_us() - since < fastest) fastest = wn_now_us() - since;
    }
    if (!agree_samples(b, b->all.n, (double)fastest * 4, &n, &warm)) return;
    for (int i = -warm; i < n; i++) {
        int64_t start;
        wn_status rc = wn_coll_barrier(b->link, &b->all, soon());
        start = wn_now_us();
        if (rc == WN_OK) rc = sum_n(b, count, 4);
        if (!must(b, rc == WN_OK, "allreduce", bytes)) return;
        if (i >= 0) b->us[i] = (double)(wn_now_us() - start) / 4.0;
    }
    if (wn_link_rank(b->link) == 0) row(b, "allreduce", bytes, n, 2.0 * (b->all.n - 1) / b->all.n);
}

static bool bench_run(const char *name, struct wn_link *link, struct wn_backend *be, size_t bytes_max)
{
    static const size_t sizes[] = {4,       1024,    4096,     10240,    65536,     65540,
                                   655360, 1 << 20, 5 << 20, 20 << 20, 100 << 20, 1 << 30};
    struct bench *b = calloc(1, sizeof(*b));
    int *ranks = calloc((size_t)wn_link_size(link), sizeof(*ranks));
    size_t n = 0;
    bool ok = false;

    if (!b || !ranks) goto out;
    b->name = name;
    b->link = link;
    b->be = be;
    gethostname(b->machine, sizeof(b->machine) - 1);
    for (int i = 0; i < wn_link_size(link); i++) ranks[i] = i;
    b->all = (struct wn_comm){.ranks = ranks, .n = wn_link_size(link), .me = wn_link_rank(link)};
    b->data = aligned_alloc(64, (bytes_max + 63) / 64 * 64);
    b->back = aligned_alloc(64, (bytes_max + 63) / 64 * 64);
    if (!b->data || !b->back) goto out;
    if (be && (be->ops->buf_alloc(be, bytes_max, &b->dev) || be->ops->buf_alloc(be, bytes_max, &b->dev_back))) goto out;
    if (b->all.me == 0) {
        printf("commit,machine,link,ranks,what,bytes,n,min_us,p50_us,p99_us,algbw_bytes_s,busbw_bytes_s\n");
    }
    while (n < sizeof(sizes) / sizeof(sizes[0]) && sizes[n] <= bytes_max) n++;
    for (size_t i = 0; i < n; i++) ping(b, sizes[i]);
    for (size_t i = 0; i < n; i++) allreduce(b, sizes[i]);
    ok = !b->failed;
out:
    if (b) {
        if (b->dev.ptr) be->ops->buf_free(be, &b->dev);
        if (b->dev_back.ptr) be->ops->buf_free(be, &b->dev_back);
        free(b->data);
        free(b->back);
    }
    free(b);
    free(ranks);
    return ok;
}

/* ---- the ranks ---- */

struct rank {
    pthread_t thread;
    struct wn_group group;
    size_t bytes_max;
    bool ok;
};

static void *local_rank(void *arg)
{
    struct rank *r = arg;
    struct wn_link *link = NULL;
    struct wn_err err = {0};

    if (wn_link_open(&link, "local", &r->group, &err) != WN_OK) {
        fprintf(stderr, "winnow: bench link: %s\n", err.text);
        return NULL;
    }
    r->ok = bench_run("local", link, NULL, r->bytes_max);
    wn_link_close(link);
    return NULL;
}

static bool run_threads(const struct wn_config *cfg)
{
    const int size = (int)cfg->tensor_parallel_size;
    struct rank ranks[THREADS_MAX] = {0};
    struct wn_local_hub *hub = NULL;
    struct wn_err err = {0};
    bool ok = true;

    if (size > THREADS_MAX || wn_local_hub_create(&hub, size, &err) != WN_OK) {
        fprintf(stderr, "winnow: bench link: %d threads (1 to %d) %s\n", size, THREADS_MAX, err.text);
        return false;
    }
    for (int i = 0; i < size; i++) {
        ranks[i].group = (struct wn_group){.rank = i, .size = size, .hub = hub};
        ranks[i].bytes_max = cfg->bytes_max;
        WN_ASSERT(pthread_create(&ranks[i].thread, NULL, local_rank, &ranks[i]) == 0);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(ranks[i].thread, NULL);
        ok = ok && ranks[i].ok;
    }
    wn_local_hub_destroy(hub);
    return ok;
}

/* All ranks are one tensor group, and the first two are neighbours both ways. */
static wn_status open_gpus(const struct wn_config *cfg, struct wn_link *link, struct wn_backend **be,
                           struct wn_err *err)
{
    const int rank = wn_link_rank(link), size = wn_link_size(link), peer = rank < 2 ? 1 - rank : -1;
    const char *backend = strncmp(cfg->backend, "cuda", 4) == 0 ? cfg->backend : "cuda";
    struct wn_config gpu = *cfg;
    int ranks[WN_DEV_GROUP_MAX], device = 0;
    const struct wn_comm all = {.ranks = ranks, .n = size, .me = rank};
    struct wn_nccl_opts o = {.group = &all,
                             .prev = peer,
                             .next = peer,
                             .fast_sums = cfg->allreduce == WN_CONFIG_ALLREDUCE_FAST,
                             .deadline_us = soon()};
    wn_status rc;

    if (size > WN_DEV_GROUP_MAX) return wn_fail(err, WN_ELIMIT, "%d ranks (at most %d)", size, WN_DEV_GROUP_MAX);
    for (int i = 0; i < size; i++) ranks[i] = i;
    snprintf(gpu.backend, sizeof(gpu.backend), "%s", backend);
    if ((rc = wn_worker_device(&gpu, (uint32_t)rank, (uint32_t)size, &device, err)) != WN_OK) return rc;
    if ((rc = wn_backend_open(be, backend, device, err)) != WN_OK) return rc;
    o.device = device;
    o.queue = (*be)->ops->queue(*be);
    o.sum = (*be)->ops->sum_parts;
    o.backend = *be;
    return wn_nccl_attach(link, &o, err);
}

static bool run_rank(const struct wn_config *cfg)
{
    const bool gpus = cfg->link == WN_CONFIG_LINK_NCCL;
    struct wn_link *link = NULL;
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    bool ok = false;

    if (wn_link_open(&link, "mpi", &(struct wn_group){0}, &err) != WN_OK) {
        fprintf(stderr, "winnow: bench link: %s\n", err.text);
        return false;
    }
    if (gpus && open_gpus(cfg, link, &be, &err) != WN_OK)
        fprintf(stderr, "winnow: bench link: rank %d: %s\n", wn_link_rank(link), err.text);
    else
        ok = bench_run(!gpus ? "mpi" : cfg->allreduce ? "nccl-fast" : "nccl", link, be, cfg->bytes_max);
    if (!ok) wn_link_mpi_abort(1); /* the others wait for this rank */
    wn_link_close(link);
    wn_backend_close(be);
    return true;
}

static bool is_rank(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK");
}

/* mpirun, with this program and its arguments. */
static int start_ranks(const struct wn_config *cfg, char **argv, int argc)
{
    char **args = calloc((size_t)argc + 2, sizeof(*args)), self[WN_PATH_LEN];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    const struct wn_launch l = {.argv = args, .ranks = cfg->tensor_parallel_size, .name = "bench-link", .cfg = cfg};
    struct wn_err err = {0};
    pid_t pid;
    int status = 1;

    if (!args || n < 0) {
        fprintf(stderr, "winnow: bench link: cannot start its ranks\n");
        free(args);
        return 1;
    }
    self[n] = '\0';
    args[0] = self;
    memcpy(args + 1, argv, (size_t)argc * sizeof(*args));
    if (wn_launcher_local.start(&l, &pid, &err) != WN_OK)
        fprintf(stderr, "winnow: bench link: %s\n", err.text);
    else if (waitpid(pid, &status, 0) == pid)
        status = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    free(args);
    return status;
}

int wn_cmd_bench_link(int argc, char **argv)
{
    struct wn_config cfg;
    int code = wn_config_start(&cfg, argc, argv,
                               "winnow bench link -tp RANKS [--link mpi|nccl|local] [OPTION]...\n"
                               "Latency and bandwidth of messages and all-reduces between ranks, by size, as CSV;\n"
                               "nccl: between GPUs.",
                               WN_OPTIONS_MODEL | WN_OPTIONS_CLUSTER | WN_OPTIONS_BENCH_LINK);

    if (code >= 0) return code;
    if (is_rank()) return run_rank(&cfg) ? 0 : 1;
    if (cfg.tensor_parallel_size < 2) {
        fprintf(stderr, "winnow: bench link: one rank has nobody to speak to: -tp 2\n");
        return 2;
    }
    if (cfg.link == WN_CONFIG_LINK_LOCAL) return run_threads(&cfg) ? 0 : 1;
    return start_ranks(&cfg, argv, argc);
}
