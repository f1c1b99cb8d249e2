/* transport/mpi.c - ranks are processes of one MPI job. This file is the only one that calls MPI. The kind and the tag
 * of a message share the MPI tag, of which the standard promises 15 bits. Waits poll MPI_Test with back-off, so that
 * they have deadlines and an idle rank leaves its core to others. */
#include <mpi.h>

#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/backoff.h"
#include "transport/link_impl.h"
#include "transport/mpi_check.h"
#include "transport/op_table.h"

#define CLOSE_US    5000000 /* how long close waits for the other ranks */
#define LARGE_BYTES 16384   /* above this MPI may move a message in pieces, each in a call of ours */

struct mpi_op {
    MPI_Request request;
    struct wn_route route;
    size_t bytes; /* size of a send, room of a receive */
    bool send;
    bool left; /* a large send: over, and `code` says how */
    int code;
};

struct mpi_link {
    struct wn_link base;
    MPI_Comm comm; /* ours alone */
    struct wn_op_table table;
    uint32_t large_n; /* large sends in flight: a wait must not sleep, since it moves their pieces */
    uint16_t large[WN_LINK_OPS_MAX]; /* their indices */
    struct mpi_op ops[WN_LINK_OPS_MAX];
};

static int mpi_tag(struct wn_route route)
{
    return (int)((unsigned)route.kind * WN_LINK_TAGS_ALL + route.tag);
}

/* MPI_Init and what must be true after it. */
static wn_status mpi_start(const struct wn_group *group, int *rank, int *size, struct wn_err *err)
{
    int started = 0, level = 0;
    wn_status rc;

    if ((rc = wn_mpi_check(err, MPI_Initialized(&started), "mpi link: MPI_Initialized")) != WN_OK) return rc;
    if (started) return wn_fail(err, WN_EBUSY, "mpi link: MPI can be started once in the life of a process");
    /* Open MPI 4.1 reads a message that is larger than its buffer over the buffer's end when it copies straight from
     * the sender's memory (seen with 4.1.4 and CMA). Through shared segments it reports MPI_ERR_TRUNCATE. */
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    rc = wn_mpi_check(err, MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level), "mpi link: MPI_Init_thread");
    if (rc != WN_OK) return rc;
    if (level < MPI_THREAD_FUNNELED) {
        return wn_fail(err, WN_EUNSUPP, "mpi link: this MPI gives thread level %d, not MPI_THREAD_FUNNELED", level);
    }
    rc = wn_mpi_check(err, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "mpi link: error handler");
    if (rc != WN_OK) return rc;
    rc = wn_mpi_check(err, MPI_Comm_rank(MPI_COMM_WORLD, rank), "mpi link: MPI_Comm_rank");
    if (rc != WN_OK) return rc;
    rc = wn_mpi_check(err, MPI_Comm_size(MPI_COMM_WORLD, size), "mpi link: MPI_Comm_size");
    if (rc != WN_OK) return rc;
    if (group->size != 0 && (group->size != *size || group->rank != *rank)) {
        return wn_fail(err, WN_EINVAL, "mpi link: MPI started rank %d of %d, not rank %d of %d", *rank, *size,
                       group->rank, group->size);
    }
    return WN_OK;
}

static wn_status mpi_open(struct wn_link **out, const struct wn_group *group, struct wn_err *err)
{
    struct mpi_link *l = calloc(1, sizeof(*l));
    int rank = 0, size = 0;
    wn_status rc = WN_OK;

    if (!l) {
        rc = wn_fail(err, WN_ENOMEM, "mpi link");
        goto out;
    }
    l->comm = MPI_COMM_NULL;
    if ((rc = mpi_start(group, &rank, &size, err)) != WN_OK) goto out;
    if ((rc = wn_link_init(&l->base, &wn_link_mpi, rank, size, err)) != WN_OK) goto out;
    rc = wn_mpi_check(err, MPI_Comm_dup(MPI_COMM_WORLD, &l->comm), "mpi link: MPI_Comm_dup");
    if (rc != WN_OK) goto out;
    rc = wn_mpi_check(err, MPI_Comm_set_errhandler(l->comm, MPI_ERRORS_RETURN), "mpi link: error handler");
    if (rc != WN_OK) goto out;
    wn_op_table_init(&l->table);
    *out = &l->base;
    l = NULL;
out:
    if (l) wn_link_fini(&l->base);
    free(l); /* a started MPI stays: without its group this process can only end */
    return rc;
}

/* A request that nobody waits for any more. */
static void op_drop(struct mpi_op *op)
{
    if (op->request == MPI_REQUEST_NULL) return;
    if (!op->send) MPI_Cancel(&op->request); /* best effort: the link is going away */
    MPI_Request_free(&op->request);
}

/* True once every rank is here. */
static bool close_together(struct mpi_link *l)
{
    MPI_Request request = MPI_REQUEST_NULL;
    struct wn_backoff backoff = wn_backoff_start();
    int64_t deadline_us = wn_deadline_in_us(CLOSE_US);
    int done = 0;

    if (MPI_Ibarrier(l->comm, &request) != MPI_SUCCESS) return false;
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done) {
        if (wn_deadline_passed(deadline_us)) return false;
        wn_backoff_pause(&backoff, deadline_us, true);
    }
    return done != 0;
}

static void mpi_close(struct wn_link *link)
{
    struct mpi_link *l = (struct mpi_link *)link;

    for (uint32_t i = 0; i < WN_LINK_OPS_MAX; i++) {
        if (wn_op_table_taken(&l->table, i)) op_drop(&l->ops[i]);
    }
    if (close_together(l)) {
        MPI_Comm_free(&l->comm);
        MPI_Finalize();
    } else {
        wn_error("mpi", "rank %d: the other ranks did not leave within %d s; MPI is not finalized", link->rank,
                 CLOSE_US / 1000000);
    }
    wn_link_fini(link);
    free(l);
}

static wn_status mpi_start_op(struct mpi_link *l, const struct mpi_op *what, void *data, wn_op *out)
{
    uint32_t index = 0;
    wn_op handle = wn_op_table_take(&l->table, &index);
    struct mpi_op *op = &l->ops[index];
    int code;

    if (handle == WN_OP_NONE) {
        return wn_link_op_failed(&l->base, WN_EBUSY, what->route, what->send, "too many operations in flight");
    }
    *op = *what;
    if (op->send) {
        code = MPI_Isend(data, (int)op->bytes, MPI_BYTE, op->route.peer, mpi_tag(op->route), l->comm, &op->request);
    } else {
        code = MPI_Irecv(data, (int)op->bytes, MPI_BYTE, op->route.peer, mpi_tag(op->route), l->comm, &op->request);
    }
    if (code != MPI_SUCCESS) {
        wn_op_table_give(&l->table, index);
        return wn_mpi_check(&l->base.error, code, op->send ? "mpi link: MPI_Isend" : "mpi link: MPI_Irecv");
    }
    if (op->send && op->bytes > LARGE_BYTES) l->large[l->large_n++] = (uint16_t)index;
    *out = handle;
    return WN_OK;
}

static wn_status mpi_send(struct wn_link *link, struct wn_route to, const void *data, size_t bytes, wn_op *out)
{
    struct mpi_op op = {.request = MPI_REQUEST_NULL, .route = to, .bytes = bytes, .send = true};
    return mpi_start_op((struct mpi_link *)link, &op, (void *)(uintptr_t)data, out);
}

static wn_status mpi_recv(struct wn_link *link, struct wn_route from, void *data, size_t room, wn_op *out)
{
    struct mpi_op op = {.request = MPI_REQUEST_NULL, .route = from, .bytes = room, .send = false};
    return mpi_start_op((struct mpi_link *)link, &op, data, out);
}

/* Notes which large sends are over, so that a wait for something else may sleep, and need not poll until their turn. */
static void test_large(struct mpi_link *l)
{
    for (uint32_t i = l->large_n; i-- > 0;) {
        struct mpi_op *op = &l->ops[l->large[i]];
        int done = 0;
        op->code = MPI_Test(&op->request, &done, MPI_STATUS_IGNORE);
        op->left = op->code != MPI_SUCCESS || done;
        if (op->left) l->large[i] = l->large[--l->large_n];
    }
}

/* The operation is over, well or not: its size or its error, and its place back. */
static wn_status mpi_end(struct mpi_link *l, wn_op handle, int code, const MPI_Status *status, size_t *bytes)
{
    uint32_t index = wn_op_table_index(&l->table, handle);
    struct mpi_op op = l->ops[index];
    wn_status rc = wn_mpi_status(code);
    int count = 0;

    wn_op_table_give(&l->table, index);
    if (rc == WN_EPROTO) {
        return wn_link_op_failed(&l->base, rc, op.route, op.send, "the message is larger than the buffer");
    }
    if (rc != WN_OK) {
        wn_mpi_check(&l->base.error, code, "MPI_Test");
        return wn_err_prefix(&l->base.error, "mpi link: rank %d, %s rank %d", l->base.rank,
                             op.send ? "send to" : "receive from", op.route.peer);
    }
    if (op.send) {
        *bytes = op.bytes;
        return WN_OK;
    }
    rc = wn_mpi_check(&l->base.error, MPI_Get_count(status, MPI_BYTE, &count), "mpi link: MPI_Get_count");
    if (rc != WN_OK) return rc;
    *bytes = (size_t)count;
    wn_traffic_received(&l->base.meters[op.route.peer], op.route.kind, *bytes);
    return WN_OK;
}

static wn_status mpi_wait(struct wn_link *link, wn_op handle, size_t *bytes, int64_t deadline_us)
{
    struct mpi_link *l = (struct mpi_link *)link;
    struct mpi_op *op = &l->ops[wn_op_table_index(&l->table, handle)];
    const bool may_sleep = op->send || op->bytes <= LARGE_BYTES; /* else it moves the pieces that it waits for */
    struct wn_backoff backoff = wn_backoff_start();
    MPI_Status status;

    while (true) {
        int done = 0, code;
        if (atomic_load_explicit(&link->cancelled, memory_order_relaxed)) {
            return wn_link_op_failed(link, WN_ECANCEL, op->route, op->send, "cancelled");
        }
        test_large(l);
        code = op->send && op->bytes > LARGE_BYTES ? op->code : MPI_Test(&op->request, &done, &status);
        if (code != MPI_SUCCESS || done || op->left) return mpi_end(l, handle, code, &status, bytes);
        if (deadline_us == WN_LINK_POLL) return WN_ETIME;
        if (wn_deadline_passed(deadline_us)) {
            return wn_link_op_failed(link, WN_ETIME, op->route, op->send, "the deadline passed");
        }
        wn_backoff_pause(&backoff, deadline_us, may_sleep && l->large_n == 0);
    }
}

static wn_status mpi_withdraw(struct wn_link *link, wn_op handle, int64_t deadline_us)
{
    struct mpi_link *l = (struct mpi_link *)link;
    struct mpi_op *op = &l->ops[wn_op_table_index(&l->table, handle)];
    struct wn_backoff backoff = wn_backoff_start();
    MPI_Status status;
    size_t bytes = 0;
    int done = 0, code = MPI_Cancel(&op->request), cancelled = 0;

    WN_ASSERT(!op->send);
    while (code == MPI_SUCCESS && (code = MPI_Test(&op->request, &done, &status)) == MPI_SUCCESS && !done) {
        if (wn_deadline_passed(deadline_us))
            return wn_link_op_failed(link, WN_ETIME, op->route, false, "a message comes while it is withdrawn");
        wn_backoff_pause(&backoff, deadline_us, false);
    }
    if (code == MPI_SUCCESS) code = MPI_Test_cancelled(&status, &cancelled);
    if (!cancelled) return mpi_end(l, handle, code, &status, &bytes);
    wn_op_table_give(&l->table, wn_op_table_index(&l->table, handle));
    return WN_OK;
}

void wn_link_mpi_abort(int code)
{
    int started = 0, ended = 0;

    if (MPI_Initialized(&started) == MPI_SUCCESS && MPI_Finalized(&ended) == MPI_SUCCESS && started && !ended) {
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    _exit(code);
}

const struct wn_link_ops wn_link_mpi = {
    .name = "mpi",
    .open = mpi_open,
    .close = mpi_close,
    .send = mpi_send,
    .recv = mpi_recv,
    .wait = mpi_wait,
    .withdraw = mpi_withdraw,
};
