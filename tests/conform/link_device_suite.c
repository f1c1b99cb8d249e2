/* tests/conform/link_device_suite.c - see link_device_suite.h. */
#include "tests/conform/link_device_suite.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/progress.h"
#include "tests/conform/link_parts.h"
#ifdef WN_TEST_NCCL
#include "tests/cudasim/cuda_runtime_api.h"
#endif

#define LONG_US 60000000
#define RANKS_MAX 16

struct suite {
    struct wn_link *link;
    struct wn_backend *be;
    int device, rank, size;
    struct wn_comm group;
    int ranks[RANKS_MAX];
    int prev, next;
    bool fast;
    const char *name;
    int bad;
};

static int64_t soon(void)
{
    return wn_deadline_in_us(LONG_US);
}

static void fill(struct suite *s, struct wn_buf *dev, float *host, int rank, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) host[i] = link_element(rank, i, seed);
    CHECK_OK(s, s->be->ops->upload(s->be, dev->ptr, host, count * sizeof(float)));
}

/* Waits for the device, under a deadline, before a download that has none. */
static bool fetch(struct suite *s, float *host, const void *dev, size_t count)
{
    wn_status rc = wn_dev_sync(s->link, soon());

    CHECK_OK(s, rc);
    if (rc != WN_OK) return false;
    CHECK_OK(s, s->be->ops->download(s->be, host, dev, count * sizeof(float)));
    return true;
}

static struct wn_buf device_buf(struct suite *s, size_t floats)
{
    struct wn_buf buf = {0};
    WN_ASSERT(s->be->ops->buf_alloc(s->be, floats * sizeof(float) + 64, &buf) == WN_OK);
    return buf;
}

static float *host_buf(size_t floats)
{
    float *p = malloc(floats * sizeof(float) + 64);
    WN_ASSERT(p);
    return p;
}

static void check_sums(struct suite *s, const float *got, size_t count, uint64_t seed)
{
    int wrong = 0;

    for (size_t i = 0; i < count && wrong == 0; i++) {
        const float want = link_sum(s->ranks, s->group.n, i, seed);
        double exact = 0, scale = 0;
        for (int k = 0; k < s->group.n; k++) {
            const double part = (double)link_element(s->ranks[k], i, seed);
            exact += part;
            scale += fabs(part);
        }
        wrong = s->fast ? fabs((double)got[i] - exact) > scale * 1e-6 : memcmp(&want, &got[i], sizeof(want)) != 0;
    }
    CHECK(s, wrong == 0);
}

static void case_allreduce(struct suite *s)
{
    static const size_t counts[] = {0, 1, 7, 1000, 16384, 16385, 50001, 1 << 18};
    const size_t max = 1 << 18;
    struct wn_buf dev = device_buf(s, max + 1);
    float *host = host_buf(max + 1);

    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        struct wn_traffic_table before[RANKS_MAX] = {0};
        const size_t count = counts[c];
        for (int i = 0; i < s->group.n; i++) wn_link_traffic(s->link, s->ranks[i], &before[i]);
        fill(s, &dev, host, s->rank, count + 1, c);
        CHECK_OK(s, wn_dev_allreduce_f32(s->link, dev.ptr, count));
        if (!fetch(s, host, dev.ptr, count + 1)) break;
        check_sums(s, host, count, c);
        CHECK(s, host[count] == link_element(s->rank, count, c)); /* nothing behind it was touched */
        for (int i = 0; i < s->group.n; i++) {
            struct wn_traffic_table now = {0};
            struct wn_traffic_count *n = &now.of[WN_TRAFFIC_ALLREDUCE], *b = &before[i].of[WN_TRAFFIC_ALLREDUCE];
            wn_link_traffic(s->link, s->ranks[i], &now);
            CHECK(s, n->sent_bytes - b->sent_bytes ==
                         wn_dev_allreduce_bytes(s->group.n, s->fast, s->group.me, i, count));
            CHECK(s, n->received_bytes - b->received_bytes ==
                         wn_dev_allreduce_bytes(s->group.n, s->fast, i, s->group.me, count));
        }
    }
    free(host);
    s->be->ops->buf_free(s->be, &dev);
}

/* A sum follows what is queued before it, and what is queued afterwards follows the sum, without a host in between. */
static void case_queue(struct suite *s)
{
    const uint32_t cols = 64, rows = 300, turns = 4;
    struct wn_buf dev = device_buf(s, (size_t)rows * cols);
    struct wn_mat m = {dev.ptr, WN_F32, rows, cols, cols};
    float *host = host_buf((size_t)rows * cols), want = (float)(s->rank + 1);
    float sum = 0;

    for (int i = 0; i < s->group.n; i++) sum += (float)(s->ranks[i] + 1);
    for (uint32_t i = 0; i < rows * cols; i++) host[i] = want;
    CHECK_OK(s, s->be->ops->upload(s->be, dev.ptr, host, (size_t)rows * cols * sizeof(float)));
    for (uint32_t t = 0; t < turns; t++) {
        CHECK_OK(s, wn_dev_allreduce_f32(s->link, dev.ptr, (size_t)rows * cols));
        CHECK_OK(s, wn_be_add(s->be, &m, &m, &m));
    }
    want = sum * 2;
    for (uint32_t t = 1; t < turns; t++) want = want * (float)s->group.n * 2;
    if (fetch(s, host, dev.ptr, (size_t)rows * cols)) {
        bool right = true;
        for (uint32_t i = 0; i < rows * cols; i++) right = right && host[i] == want;
        CHECK(s, right);
    }
    free(host);
    s->be->ops->buf_free(s->be, &dev);
}

static void case_gathers(struct suite *s)
{
    static const size_t of[] = {700, 0, 33000, 1};
    const int n = s->group.n;
    size_t bytes_of[RANKS_MAX], total = 0, at = 0;
    struct wn_buf mine = device_buf(s, 40000), all = device_buf(s, 40000 * (size_t)n);
    float *host = host_buf(40000 * (size_t)n);

    for (int i = 0; i < n; i++) {
        bytes_of[i] = of[i % 4] * sizeof(float);
        total += of[i % 4];
    }
    for (int root = 0; root < n; root++, at = 0) {
        fill(s, &mine, host, s->rank, of[s->group.me % 4], 5);
        CHECK_OK(s, wn_dev_gather(s->link, root, WN_TRAFFIC_LOGITS, mine.ptr, s->group.me == root ? all.ptr : NULL,
                                  bytes_of));
        if (!fetch(s, host, s->group.me == root ? all.ptr : mine.ptr, s->group.me == root ? total : 0)) break;
        bool right = true;
        for (int i = 0; s->group.me == root && i < n; at += of[i++ % 4])
            for (size_t k = 0; k < of[i % 4]; k++)
                right = right && host[at + k] == link_element(s->ranks[i], k, 5);
        CHECK(s, right);
        fill(s, &mine, host, s->rank, 33000, 6 + (uint64_t)root);
        CHECK_OK(s, wn_dev_broadcast(s->link, root, WN_TRAFFIC_EMBEDDING, mine.ptr, 33000 * sizeof(float)));
        if (!fetch(s, host, mine.ptr, 33000)) break;
        CHECK(s, host[0] == link_element(s->ranks[root], 0, 6 + (uint64_t)root));
        CHECK(s, host[32999] == link_element(s->ranks[root], 32999, 6 + (uint64_t)root));
    }
    fill(s, &mine, host, s->rank, 777, 9);
    CHECK_OK(s, wn_dev_allgather(s->link, WN_TRAFFIC_ACTIVATION, mine.ptr, all.ptr, 777 * sizeof(float)));
    if (fetch(s, host, all.ptr, 777 * (size_t)n))
        for (int i = 0; i < n; i++) {
            CHECK(s, host[777 * i] == link_element(s->ranks[i], 0, 9));
            CHECK(s, host[777 * i + 776] == link_element(s->ranks[i], 776, 9));
        }
    free(host);
    s->be->ops->buf_free(s->be, &mine);
    s->be->ops->buf_free(s->be, &all);
}

/* Rows go down the chain of neighbours, several in flight; the sender overwrites its buffer as soon as it may. */
static void case_chain(struct suite *s)
{
    static const size_t counts[] = {1, 3, 0, 4097, 300001, 1, 64};
    struct wn_buf dev = device_buf(s, 300001), kept[7];
    struct wn_traffic_table before = {0}, now = {0};
    float *host = host_buf(300001);
    uint64_t bytes = 0;

    if (s->next >= 0) wn_link_traffic(s->link, s->next, &before);
    for (size_t i = 0; i < 7; i++) {
        kept[i] = device_buf(s, counts[i]);
        bytes += counts[i] * sizeof(float);
        if (s->prev >= 0)
            CHECK_OK(s, wn_dev_recv(s->link, WN_TRAFFIC_ACTIVATION, kept[i].ptr, counts[i] * sizeof(float)));
        if (s->next < 0) continue;
        CHECK_OK(s, wn_dev_reuse(s->link));
        fill(s, &dev, host, s->rank, counts[i], 100 + i);
        CHECK_OK(s, wn_dev_send(s->link, WN_TRAFFIC_ACTIVATION, dev.ptr, counts[i] * sizeof(float)));
    }
    for (size_t i = 0; i < 7; i++) {
        if (s->prev >= 0 && fetch(s, host, kept[i].ptr, counts[i]) && counts[i]) {
            CHECK(s, host[0] == link_element(s->prev, 0, 100 + i));
            CHECK(s, host[counts[i] - 1] == link_element(s->prev, counts[i] - 1, 100 + i));
        }
    }
    CHECK_OK(s, wn_dev_reuse(s->link)); /* the last one has left before the buffer goes */
    CHECK_OK(s, wn_dev_sync(s->link, soon()));
    if (s->next >= 0) {
        wn_link_traffic(s->link, s->next, &now);
        CHECK(s, now.of[WN_TRAFFIC_ACTIVATION].sent_bytes - before.of[WN_TRAFFIC_ACTIVATION].sent_bytes == bytes);
    }
    for (size_t i = 0; i < 7; i++) s->be->ops->buf_free(s->be, &kept[i]);
    s->be->ops->buf_free(s->be, &dev);
    free(host);
}

static unsigned long noted(void)
{
    return atomic_load(&wn_progress_count);
}

/* A wait for rows that do not come ends when its deadline passes; when they have come the link goes on, and knows how
 * long the device has waited. To wait for others is no standstill. */
static void case_deadline(struct suite *s)
{
    struct wn_buf dev = device_buf(s, 1000);
    const uint64_t before_us = wn_dev_waited_us(s->link);
    char go = 0;
    struct wn_route ready = {.peer = s->prev, .tag = 77, .kind = WN_TRAFFIC_CONTROL};

    if (s->prev >= 0) {
        int64_t start = wn_now_us(), waited;
        unsigned long was;
        CHECK_OK(s, wn_dev_recv(s->link, WN_TRAFFIC_ACTIVATION, dev.ptr, 4000));
        was = noted();
        CHECK(s, wn_dev_sync(s->link, start + 50000) == WN_ETIME);
        CHECK(s, noted() > was + 2);
        waited = wn_now_us() - start;
        CHECK(s, waited >= 50000 && waited < 50000 + 300000);
        CHECK_OK(s, wn_link_send_now(s->link, ready, &go, 1, soon()));
        CHECK_OK(s, wn_dev_sync(s->link, soon()));
        CHECK(s, wn_dev_waited_us(s->link) - before_us >= 40000);
    }
    if (s->next >= 0) {
        ready.peer = s->next;
        CHECK_OK(s, wn_link_recv_now(s->link, ready, &go, 1, soon()));
        CHECK_OK(s, wn_dev_send(s->link, WN_TRAFFIC_ACTIVATION, dev.ptr, 4000));
        CHECK_OK(s, wn_dev_reuse(s->link));
        CHECK_OK(s, wn_dev_sync(s->link, soon()));
    }
    s->be->ops->buf_free(s->be, &dev);
}

/* The first member comes late to a sum: the others wait, and are seen to. */
static void case_late(struct suite *s)
{
    struct wn_buf dev = device_buf(s, 1000);
    unsigned long was;

    if (s->group.me == 0) nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    CHECK_OK(s, wn_dev_allreduce_f32(s->link, dev.ptr, 1000));
    was = noted();
    CHECK_OK(s, wn_dev_sync(s->link, soon()));
    CHECK(s, s->group.me == 0 || noted() > was);
    s->be->ops->buf_free(s->be, &dev);
}

/* Does the library know more buffers than *n? A real one does not say: yes. */
static bool registered(unsigned long *n)
{
    bool more = true;

#ifdef WN_TEST_NCCL
    more = sim_counts.lent > *n;
    *n = sim_counts.lent;
#else
    (void)n;
#endif
    return more;
}

/* Memory that was lent is used as any other, and may be freed once it is taken back; the next at its place is lent
 * anew. */
static void case_lend(struct suite *s)
{
    unsigned long known = 0;

    for (int turn = 0; turn < 2; turn++) {
        struct wn_buf dev = device_buf(s, 1000);
        (void)registered(&known);
        wn_dev_lend(s->link, dev.ptr, 4000);
        CHECK(s, registered(&known) || s->size == 1);
        CHECK_OK(s, wn_dev_allreduce_f32(s->link, dev.ptr, 1000));
        CHECK_OK(s, wn_dev_sync(s->link, soon()));
        wn_dev_unlend(s->link);
        s->be->ops->buf_free(s->be, &dev);
    }
}

static void *cancel_later(void *link)
{
    nanosleep(&(struct timespec){.tv_nsec = 250000000}, NULL); /* time to queue, on a busy machine, too */
    wn_link_cancel(link);
    return NULL;
}

/* A lease that ends: another thread cancels while a sum waits for a member that never comes, and behind rows of the
 * neighbour that do not come either. The device is free again, so that even a wait of the backend's own, which knows of
 * no link, ends. full: the thread that queues is inside a call, because the device takes no more work. */
static void case_cancel(struct suite *s, const struct wn_comm *all, bool full)
{
    struct wn_buf dev = device_buf(s, 1000);
    pthread_t thread;
    int64_t start, waited;

    CHECK_OK(s, wn_coll_barrier(s->link, all, soon()));
    start = wn_now_us();
    WN_ASSERT(pthread_create(&thread, NULL, cancel_later, s->link) == 0);
    if (s->group.me > 0) { /* member 0 takes no part */
        wn_status rc = WN_OK;
        if (s->prev >= 0) CHECK_OK(s, wn_dev_recv(s->link, WN_TRAFFIC_ACTIVATION, dev.ptr, 4000));
        CHECK_OK(s, wn_dev_allreduce_f32(s->link, dev.ptr, 1000));
        for (int i = 0; full && rc == WN_OK && i < 2000; i++) rc = wn_dev_allreduce_f32(s->link, dev.ptr, 1000);
        CHECK(s, rc == (full ? WN_ECANCEL : WN_OK));
        CHECK_OK(s, s->be->ops->sync(s->be, WN_NEVER));
        waited = wn_now_us() - start;
        CHECK(s, waited >= 245000 && waited < 3000000);
    }
    pthread_join(thread, NULL);
    CHECK(s, wn_dev_sync(s->link, soon()) == WN_ECANCEL);
    CHECK(s, wn_dev_allreduce_f32(s->link, dev.ptr, 1000) == WN_ECANCEL);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* a rank that leaves would end the others' waits, too */
    wn_nccl_detach(s->link);
    s->be->ops->buf_free(s->be, &dev);
}

struct wn_nccl_opts link_device_opts(struct wn_backend *be, int device, const struct wn_comm *group, int prev, int next)
{
    return (struct wn_nccl_opts){.device = device,
                                 .queue = be->ops->queue(be),
                                 .group = group,
                                 .prev = prev,
                                 .next = next,
                                 .sum = be->ops->sum_parts,
                                 .backend = be,
                                 .deadline_us = soon()};
}

/* Stages of `tensors` ranks each; turned: members the other way round, so that sums follow the comm, not the ranks. */
static void lay_out(struct suite *s, int tensors, bool turned)
{
    const int stage = s->rank / tensors, t = s->rank % tensors, stages = s->size / tensors;

    for (int i = 0; i < tensors; i++) s->ranks[i] = stage * tensors + (turned ? tensors - 1 - i : i);
    s->group = (struct wn_comm){.ranks = s->ranks, .n = tensors, .me = turned ? tensors - 1 - t : t};
    s->prev = stage > 0 ? s->rank - tensors : -1;
    s->next = stage + 1 < stages ? s->rank + tensors : -1;
}

static const struct {
    const char *name;
    void (*run)(struct suite *s);
} cases[] = {
    {"all-reduce", case_allreduce}, {"queue", case_queue},       {"gathers", case_gathers},
    {"chain", case_chain},          {"deadline", case_deadline}, {"late", case_late},
    {"lend", case_lend},
};

static bool attach(struct suite *s, int tensors, int kind) /* ordered, turned, fast */
{
    struct wn_nccl_opts opts;
    struct wn_err err = {0};

    s->fast = kind == 2;
    lay_out(s, tensors, kind == 1);
    opts = link_device_opts(s->be, s->device, &s->group, s->prev, s->next);
    opts.fast_sums = s->fast;
    if (wn_nccl_attach(s->link, &opts, &err) == WN_OK) return true;
    fprintf(stderr, "rank %d: %s\n", s->rank, err.text);
    return false;
}

/* False: the group does not hold together. */
static bool run_cases(struct suite *s, const struct wn_comm *all, struct link_suite_result *result)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        wn_status agreed = WN_OK;
        s->name = cases[i].name;
        s->bad = 0;
        cases[i].run(s);
        if (wn_coll_max_status(s->link, all, s->bad ? WN_EIO : WN_OK, &agreed, soon()) != WN_OK) {
            fprintf(stderr, "rank %d: %s: %s\n", s->rank, s->name, wn_link_error(s->link)->text);
            result->failed++;
            return false;
        }
        if (agreed == WN_OK) result->passed++;
        else result->failed++;
    }
    return true;
}

struct link_suite_result link_device_suite_run(struct wn_link *link, struct wn_backend *be, int device)
{
    struct link_suite_result result = {0};
    struct suite s = {.link = link, .be = be, .device = device, .rank = wn_link_rank(link), .size = wn_link_size(link)};
    int everyone[RANKS_MAX];
    struct wn_comm all = {.ranks = everyone, .n = s.size, .me = s.rank};
    const int last = s.size == 4 ? 2 : s.size; /* tensor ranks of the last case */

    WN_ASSERT(s.size <= RANKS_MAX);
    for (int i = 0; i < s.size; i++) everyone[i] = i;
    for (int tensors = 1; tensors <= s.size; tensors++) {
        for (int kind = 0; s.size % tensors == 0 && kind < (tensors == 1 ? 1 : 3); kind++) {
            if (!attach(&s, tensors, kind)) {
                result.failed++;
                return result;
            }
            if (!run_cases(&s, &all, &result)) return result;
            wn_nccl_detach(link);
        }
    }
    s.name = "cancel";
    s.bad = 0;
    if (s.size > 1 && attach(&s, last, s.size == 4 ? 0 : 2)) case_cancel(&s, &all, s.size == 4);
    else s.bad = s.size > 1;
    if (s.bad) result.failed++;
    else result.passed++;
    return result;
}
