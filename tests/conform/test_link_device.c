/* test_link_device threads | mpi [death | leave]: device memory over NCCL, attached to the local link or to mpi.
 *
 * As test_link_cudasim it runs on the simulated device and the simulated NCCL of tests/cudasim; as test_link_device on
 * GPUs, where threads and ranks take the devices in turn, and with one GPU each rank an NCCL_HOSTID of its own.
 * threads: groups of 1 to 4, and what goes wrong. mpi: the processes that mpirun started; with death the last one ends
 * in the middle of an all-reduce, with leave it only aborts its communicators, as one whose lease is over, and stays:
 * nobody but NCCL tells the others, and they must end with code 17. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/conform/link_device_suite.h"
#include "tests/conform/link_parts.h"

struct rank {
    struct wn_link *link;
    struct wn_backend *be;
    int rank, device;
    struct link_suite_result *result;
};

static void expect(struct rank *r, bool ok, const char *what)
{
    r->result->passed += ok;
    if (ok) return;
    r->result->failed++;
    fprintf(stderr, "rank %d: %s\n", r->rank, what);
}

static int64_t soon(void)
{
    return wn_deadline_in_us(20000000);
}

static void run_suite(struct rank *r)
{
    *r->result = link_device_suite_run(r->link, r->be, r->device);
}

/* The first attachment of the process: the library is not where WINNOW_NCCL says. */
static void run_no_library(struct rank *r)
{
    const struct wn_nccl_opts o = link_device_opts(r->be, 0, NULL, -1, -1);
    struct wn_err err = {0};

    expect(r, wn_nccl_attach(r->link, &o, &err) == WN_EUNSUPP, "no library: the code");
    expect(r, strstr(err.text, "/nowhere/libnccl.so") != NULL, err.text);
    expect(r, !wn_link_has_device(r->link), "no library: nothing is attached");
}

/* Two ranks on one device of one host. */
static void run_same_device(struct rank *r)
{
    const int ranks[] = {0, 1};
    const struct wn_comm group = {.ranks = ranks, .n = 2, .me = r->rank};
    const struct wn_nccl_opts o = link_device_opts(r->be, 0, &group, -1, -1);
    struct wn_err err = {0};

    expect(r, wn_nccl_attach(r->link, &o, &err) != WN_OK, "one device for two ranks: refused");
    expect(r, strstr(err.text, "NCCL_HOSTID") != NULL, err.text);
    expect(r, !wn_link_has_device(r->link), "one device for two ranks: nothing is attached");
}

/* One rank has no peer to be connected to: it never comes. */
static void run_absent(struct rank *r)
{
    const int ranks[] = {0, 1};
    const struct wn_comm group = {.ranks = ranks, .n = 2, .me = r->rank};
    struct wn_nccl_opts o = link_device_opts(r->be, r->device, &group, -1, -1);
    int64_t start = wn_now_us();
    struct wn_err err = {0};

    o.deadline_us = start + 300000;
    if (r->rank == 1) {
        usleep(600000);
        return;
    }
    expect(r, wn_nccl_attach(r->link, &o, &err) == WN_ETIME, "a rank that does not come: the deadline");
    expect(r, wn_now_us() - start < 2000000, "a rank that does not come: in time");
}

/* The last of three goes away while the others sum. */
static void run_lost(struct rank *r)
{
    const int ranks[] = {0, 1, 2};
    const struct wn_comm group = {.ranks = ranks, .n = 3, .me = r->rank};
    const struct wn_nccl_opts o = link_device_opts(r->be, r->device, &group, -1, -1);
    struct wn_buf dev = {0};
    struct wn_err err = {0};
    int64_t start;
    wn_status rc;

    expect(r, wn_nccl_attach(r->link, &o, &err) == WN_OK, err.text);
    expect(r, r->be->ops->buf_alloc(r->be, 4000, &dev) == WN_OK, "buffer");
    if (!wn_link_has_device(r->link)) return;
    if (r->rank == 2) {
        usleep(100000);
        wn_link_cancel(r->link); /* ends its communicators without a word to the others */
        wn_nccl_detach(r->link);
    } else {
        start = wn_now_us();
        expect(r, wn_dev_allreduce_f32(r->link, dev.ptr, 1000) == WN_OK, "a sum is queued");
        rc = wn_dev_sync(r->link, soon());
        expect(r, rc == WN_EPEER, "a lost rank: the code");
        expect(r, wn_now_us() - start < 5000000, "a lost rank: within 5 s");
        expect(r, strstr(wn_link_error(r->link)->text, "remote process") != NULL, wn_link_error(r->link)->text);
        expect(r, wn_dev_allreduce_f32(r->link, dev.ptr, 10) != WN_OK, "the link stays broken");
        wn_nccl_detach(r->link);
    }
    r->be->ops->buf_free(r->be, &dev);
}

/* What the ranks of a group do, each with a device. */
struct task {
    void (*run)(struct rank *r);
    bool one_device;
};

static void run_task(struct link_thread *t)
{
    const struct task *task = t->arg;
    struct rank r = {.rank = t->rank, .device = task->one_device ? 0 : t->rank, .result = &t->result};
    struct wn_err err = {0};
    bool open;

    r.link = link_thread_open(t);
    open = wn_backend_open(&r.be, "cuda", r.device, &err) == WN_OK;
    expect(&r, open, err.text);
    WN_ASSERT(open);
    task->run(&r);
    wn_link_close(r.link);
    wn_backend_close(r.be);
}

static void run_threads(int size, void (*run)(struct rank *r), bool one_device, struct link_suite_result *sum)
{
    struct task task = {run, one_device};
    link_threads_run(size, run_task, &task, sum);
}

static int main_threads(void)
{
    struct link_suite_result sum = {0};

    setenv("WINNOW_NCCL", "/nowhere/libnccl.so", 1);
    run_threads(2, run_no_library, false, &sum);
#ifdef WN_TEST_NCCL
    setenv("WINNOW_NCCL", WN_TEST_NCCL, 1);
#else
    unsetenv("WINNOW_NCCL");
#endif
    for (int size = 1; size <= LINK_THREADS_MAX; size++) run_threads(size, run_suite, false, &sum);
    run_threads(2, run_same_device, true, &sum);
    run_threads(2, run_absent, false, &sum);
    run_threads(3, run_lost, false, &sum);
#ifdef WN_TEST_NCCL
    setenv("NCCL_COMM_BLOCKING", "1", 1); /* NCCL's own setting: fewer threads, and calls that wait */
    run_threads(3, run_suite, false, &sum);
    unsetenv("NCCL_COMM_BLOCKING");
#endif
    return link_suite_report("threads", sum);
}

/* When the last rank goes, in seconds: link_mpi_lost.sh counts from there. */
static void say_gone(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(stderr, "gone at %lld\n", (long long)now.tv_sec);
}

/* The last rank goes while the others wait for its part; they must end with 17. */
static int lose(const char *mode, struct wn_link *link, struct wn_backend *be, int device)
{
    int ranks[16];
    struct wn_comm all = {.ranks = ranks, .n = wn_link_size(link), .me = wn_link_rank(link)};
    struct wn_nccl_opts o = link_device_opts(be, device, &all, -1, -1);
    struct wn_buf dev = {0};
    struct wn_err err = {0};
    wn_status rc;

    WN_ASSERT(all.n <= 16);
    for (int i = 0; i < all.n; i++) ranks[i] = i;
    if (wn_nccl_attach(link, &o, &err) != WN_OK || be->ops->buf_alloc(be, 4096, &dev) != WN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (all.me == all.n - 1) {
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* the others' part of the sum is on its way */
        say_gone();
        if (strcmp(mode, "death") == 0) _exit(3);
        wn_link_cancel(link);
        wn_nccl_detach(link);
        sleep(60);
        return 1;
    }
    rc = wn_dev_allreduce_f32(link, dev.ptr, 1024);
    if (rc == WN_OK) rc = wn_dev_sync(link, soon());
    fprintf(stderr, "rank %d: %s\n", all.me, wn_link_error(link)->text);
    wn_link_mpi_abort(rc == WN_EPEER || rc == WN_ETIME ? 17 : 1);
}

static int main_mpi(const char *mode)
{
    struct link_suite_result sum = {0};
    struct wn_backend *be = NULL;
    struct wn_link *link = NULL;
    struct wn_err err = {0};
    char host[32];
    int n = 0, asked, device, rc = 1;

#ifdef WN_TEST_NCCL
    setenv("WINNOW_NCCL", WN_TEST_NCCL, 0);
#endif
    if (wn_link_open(&link, "mpi", &(struct wn_group){0}, &err) != WN_OK ||
        wn_backend_devices("cuda", &n, &asked, &err) != WN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    device = wn_link_rank(link) % (n > 0 ? n : 1);
    snprintf(host, sizeof(host), "rank%d", wn_link_rank(link));
    if (n < wn_link_size(link)) setenv("NCCL_HOSTID", host, 0); /* ranks on one device meet as if on two hosts */
    if (wn_backend_open(&be, "cuda", device, &err) != WN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (mode) return lose(mode, link, be, device);
    sum = link_device_suite_run(link, be, device);
    rc = wn_link_rank(link) == 0 ? link_suite_report("mpi", sum) : sum.failed != 0;
    wn_link_close(link);
    wn_backend_close(be);
    return rc;
}

int main(int argc, char **argv)
{
    setenv("WN_CUDASIM_DEVICES", "4", 0);
    setenv("WINNOW_CUDA_KERNELS", "exact", 0);
    if (argc > 1 && strcmp(argv[1], "threads") == 0) return main_threads();
    if (argc > 1 && strcmp(argv[1], "mpi") == 0) return main_mpi(argc > 2 ? argv[2] : NULL);
    fprintf(stderr, "usage: test_link_device threads | mpi [death | leave]\n");
    return 2;
}
