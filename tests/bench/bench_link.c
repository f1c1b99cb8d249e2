/* bench_link local|mpi [ranks] - messages and all-reduces of a link by size, as CSV on standard output.
 *
 * Every size is verified, warmed up, then timed on rank 0. ping: half of a round trip between ranks 0 and 1. allreduce:
 * all ranks; algbw is message bytes over time, busbw is that times 2(n-1)/n: what each rank's wire must carry at least,
 * so it can be compared with the wire's speed whatever the number of ranks. Under mpirun the ranks are its own. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/coll.h"
#include "winnow_version.h"

#define DEADLINE_US 60000000
#define SAMPLES_MAX 2000

struct bench {
    const char *name;
    char machine[64];
    struct wn_link *link;
    struct wn_comm all;
    float *data, *back;
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
        fprintf(stderr, "bench_link: rank %d: %s of %zu bytes: %s\n", b->link->rank, what, bytes,
                b->link->error.code ? b->link->error.text : "wrong result");
    }
    b->failed = true;
    return false;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void row(struct bench *b, const char *what, size_t bytes, int n, double bus)
{
    double p50;

    qsort(b->us, (size_t)n, sizeof(b->us[0]), by_value);
    p50 = b->us[n / 2];
    printf("%s,%s,%s,%d,%s,%zu,%d,%.2f,%.2f,%.2f,%.0f,%.0f\n", WN_COMMIT, b->machine, b->name, b->all.n, what,
           bytes, n, b->us[0], p50, b->us[n * 99 / 100], (double)bytes / p50 * 1e6, (double)bytes / p50 * 1e6 * bus);
    fflush(stdout);
}

static bool ping_once(struct bench *b, size_t bytes)
{
    struct wn_route peer = {.peer = 1 - b->link->rank, .tag = 1, .kind = WN_TRAFFIC_ACTIVATION};
    wn_status rc;

    if (b->link->rank == 0) {
        rc = wn_link_send_now(b->link, peer, b->data, bytes, soon());
        if (rc == WN_OK) rc = wn_link_recv_now(b->link, peer, b->back, bytes, soon());
    } else {
        rc = wn_link_recv_now(b->link, peer, b->back, bytes, soon());
        if (rc == WN_OK) rc = wn_link_send_now(b->link, peer, b->back, bytes, soon());
    }
    return must(b, rc == WN_OK, "ping", bytes);
}

/* Enough repetitions for a stable median, few enough for large messages. */
static int repetitions(size_t bytes)
{
    size_t n = ((size_t)512 << 20) / (bytes + 4096);
    return n > SAMPLES_MAX ? SAMPLES_MAX : n < 20 ? 20 : (int)n;
}

static void ping(struct bench *b, size_t bytes)
{
    int n = repetitions(bytes);

    if (b->link->rank > 1 || b->all.n < 2) return;
    for (size_t i = 0; i < bytes / sizeof(float); i++) b->data[i] = (float)i + 0.5f;
    memset(b->back, 0, bytes);
    if (!ping_once(b, bytes)) return;
    if (b->link->rank == 0 && !must(b, memcmp(b->data, b->back, bytes) == 0, "ping", bytes)) return;
    for (int i = 0; i < n / 10 + 1; i++) {
        if (!ping_once(b, bytes)) return;
    }
    for (int i = 0; i < n; i++) {
        int64_t start = wn_now_us();
        for (int k = 0; k < 4; k++) { /* the clock ticks in microseconds */
            if (!ping_once(b, bytes)) return;
        }
        b->us[i] = (double)(wn_now_us() - start) / 8.0;
    }
    if (b->link->rank == 0) row(b, "ping", bytes, n, 1.0);
}

static void allreduce(struct bench *b, size_t bytes)
{
    size_t count = bytes / sizeof(float);
    int n = repetitions(bytes);
    bool right = true;

    for (size_t i = 0; i < count; i++) b->data[i] = (float)(i % 1000) + (float)b->all.me;
    if (!must(b, wn_coll_allreduce_f32(b->link, &b->all, b->data, count, soon()) == WN_OK, "allreduce", bytes)) return;
    for (size_t i = 0; i < count && right; i++) { /* small whole numbers: exact */
        right = b->data[i] == (float)(i % 1000) * (float)b->all.n + (float)(b->all.n * (b->all.n - 1) / 2);
    }
    if (!must(b, right, "allreduce", bytes)) return;
    memset(b->data, 0, bytes); /* sums of zeros stay zeros */
    for (int i = -(n / 10) - 1; i < n; i++) {
        int64_t start;
        wn_status rc = wn_coll_barrier(b->link, &b->all, soon());
        start = wn_now_us();
        for (int k = 0; k < 4 && rc == WN_OK; k++) rc = wn_coll_allreduce_f32(b->link, &b->all, b->data, count, soon());
        if (!must(b, rc == WN_OK, "allreduce", bytes)) return;
        if (i >= 0) b->us[i] = (double)(wn_now_us() - start) / 4.0;
    }
    if (b->link->rank == 0) row(b, "allreduce", bytes, n, 2.0 * (b->all.n - 1) / b->all.n);
}

static bool bench_run(const char *name, struct wn_link *link)
{
    static const size_t sizes[] = {4,     1024,      4096,      10240,     65536,   65540,
                                   655360, 1 << 20,   5 << 20,   20 << 20};
    struct bench *b = calloc(1, sizeof(*b));
    int *ranks = calloc((size_t)link->size, sizeof(*ranks));
    bool ok = false;

    if (!b || !ranks) goto out;
    b->name = name;
    b->link = link;
    gethostname(b->machine, sizeof(b->machine) - 1);
    for (int i = 0; i < link->size; i++) ranks[i] = i;
    b->all = (struct wn_comm){.ranks = ranks, .n = link->size, .me = link->rank};
    b->data = aligned_alloc(64, 20 << 20);
    b->back = aligned_alloc(64, 20 << 20);
    if (!b->data || !b->back) goto out;
    if (link->rank == 0) {
        printf("commit,machine,link,ranks,what,bytes,n,min_us,p50_us,p99_us,algbw_bytes_s,busbw_bytes_s\n");
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) ping(b, sizes[i]);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) allreduce(b, sizes[i]);
    ok = !b->failed;
out:
    if (b) {
        free(b->data);
        free(b->back);
    }
    free(b);
    free(ranks);
    return ok;
}

struct rank {
    pthread_t thread;
    struct wn_group group;
    bool ok;
};

static void *local_rank(void *arg)
{
    struct rank *r = arg;
    struct wn_link *link = NULL;

    if (wn_link_open(&link, "local", &r->group, NULL) != WN_OK) return NULL;
    r->ok = bench_run("local", link);
    wn_link_close(link);
    return NULL;
}

static bool bench_local(int size)
{
    struct rank ranks[16] = {0};
    struct wn_local_hub *hub = NULL;
    bool ok = true;

    if (size < 1 || size > 16 || wn_local_hub_create(&hub, size, NULL) != WN_OK) return false;
    for (int i = 0; i < size; i++) {
        ranks[i].group = (struct wn_group){.rank = i, .size = size, .hub = hub};
        WN_ASSERT(pthread_create(&ranks[i].thread, NULL, local_rank, &ranks[i]) == 0);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(ranks[i].thread, NULL);
        ok = ok && ranks[i].ok;
    }
    wn_local_hub_destroy(hub);
    return ok;
}

static bool bench_mpi(void)
{
    struct wn_link *link = NULL;
    struct wn_err err = {0};
    bool ok;

    if (wn_link_open(&link, "mpi", &(struct wn_group){0}, &err) != WN_OK) {
        fprintf(stderr, "bench_link: %s\n", err.text);
        return false;
    }
    ok = bench_run("mpi", link);
    wn_link_close(link);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "local") == 0) {
        return bench_local(argc > 2 ? (int)strtol(argv[2], NULL, 10) : 2) ? 0 : 1;
    }
    if (argc > 1 && strcmp(argv[1], "mpi") == 0) return bench_mpi() ? 0 : 1;
    fprintf(stderr, "usage: bench_link local [ranks], or mpirun -np N bench_link mpi\n");
    return 2;
}
