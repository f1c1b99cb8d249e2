/* test_link LINK [death|abort|close]: the conformance suite on one link; a new link adds one line to `links`.
 * local: the ranks are threads, groups of 1 to 4. mpi: the ranks are the processes that mpirun started.
 * death, abort, close (mpi): what happens when a rank is gone; link_mpi_lost.sh looks at the exit codes. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/conform/link_parts.h"
#include "transport/coll.h"

#define HUGE_BYTES ((size_t)64 << 20)

static void run_suite(struct link_thread *r)
{
    struct wn_link *link = link_thread_open(r);
    r->result = link_suite_run(link, HUGE_BYTES);
    wn_link_close(link);
}

static void expect(struct link_thread *r, bool ok, const char *what)
{
    if (ok) return;
    r->result.failed++;
    fprintf(stderr, "rank %d: lost peer: %s\n", r->rank, what);
}

/* Rank 0 sends one small and one large message and leaves; the others notice. */
static void run_lost(struct link_thread *r)
{
    struct wn_link *link = link_thread_open(r);
    struct wn_route small = {.peer = 0, .tag = 1}, large = {.peer = 0, .tag = 2};
    struct wn_comm all = {.ranks = (const int[]){0, 1, 2}, .n = 3, .me = r->rank};
    static char data[3][1 << 20];
    int64_t soon = wn_deadline_in_us(10000000);
    wn_op op = WN_OP_NONE;

    r->result.passed = 1;
    if (r->rank == 0) {
        for (int peer = 1; peer < 3; peer++) {
            small.peer = large.peer = peer;
            expect(r, wn_link_send(link, small, data[0], 10, &op) == WN_OK, "small send");
            expect(r, wn_link_send(link, large, data[0], sizeof(data[0]), &op) == WN_OK, "large send");
        }
        usleep(100000);
        wn_link_close(link);
        return;
    }
    small.tag = 3;
    expect(r, wn_link_recv_now(link, small, data[r->rank], 10, soon) == WN_EPEER, "a wait in progress ends");
    expect(r, strstr(wn_link_error(link)->text, "rank 0") != NULL, "the error names the rank");
    small.tag = 1;
    expect(r, wn_link_recv_now(link, small, data[r->rank], 10, soon) == WN_OK, "what was sent still arrives");
    expect(r, wn_link_recv_now(link, large, data[r->rank], sizeof(data[0]), soon) == WN_EPEER, "what was not");
    expect(r, wn_link_send(link, small, data[r->rank], 10, &op) == WN_EPEER, "send");
    expect(r, wn_coll_barrier(link, &all, wn_deadline_in_us(100000)) != WN_OK, "barrier");
    expect(r, wn_coll_barrier(link, &all, soon) != WN_OK, "the link stays broken");
    wn_link_close(link);
}

static int main_local(const char *mode)
{
    struct link_suite_result sum = {0};

    (void)mode;
    for (int size = 1; size <= 4; size++) link_threads_run(size, run_suite, NULL, &sum);
    link_threads_run(3, run_lost, NULL, &sum);
    return link_suite_report("local", sum);
}

/* The last rank vanishes in one of three ways; rank 0 must end with the code that its caller expects. */
static int lose_rank(struct wn_link *link, const char *mode)
{
    char byte = 0;
    int last = wn_link_size(link) - 1;
    wn_status rc;

    if (wn_link_rank(link) == last) {
        if (strcmp(mode, "death") == 0) _exit(3);
        raise(SIGSTOP);
        return 0;
    }
    if (strcmp(mode, "close") != 0) {
        int64_t wait_us = strcmp(mode, "death") == 0 ? 60000000 : 300000;
        struct wn_route from = {.peer = last, .tag = 1};
        rc = wn_link_recv_now(link, from, &byte, 1, wn_deadline_in_us(wait_us));
        fprintf(stderr, "rank %d: %s\n", wn_link_rank(link), wn_link_error(link)->text);
        if (rc != WN_ETIME && rc != WN_EPEER) return 2;
        wn_link_mpi_abort(17);
    }
    wn_link_close(link);
    return 18;
}

static int main_mpi(const char *mode)
{
    struct wn_link *link = NULL;
    struct wn_err err = {0};
    struct link_suite_result sum = {0};
    int rc = 0;

    if (wn_link_open(&link, "mpi", &(struct wn_group){0}, &err) != WN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (mode) return lose_rank(link, mode);
    sum = link_suite_run(link, HUGE_BYTES);
    if (wn_link_rank(link) == 0) rc = link_suite_report("mpi", sum);
    if (sum.failed) rc = 1;
    wn_link_close(link);
    return rc;
}

static const struct {
    const char *name;
    int (*run)(const char *mode);
} links[] = {{"local", main_local}, {"mpi", main_mpi}};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(links) / sizeof(links[0]); i++) {
        if (strcmp(argv[1], links[i].name) == 0) return links[i].run(argc > 2 ? argv[2] : NULL);
    }
    fprintf(stderr, "usage: test_link local|mpi [death|abort|close]\n");
    return 2;
}
