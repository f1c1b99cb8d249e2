/* daemon/probe_ranks.c - the links of a replica, measured between its ranks: all-reduces inside each stage, all stages
 * at once as in a step; then sends from stage to stage, one boundary after the other. Message sizes are the model's: a
 * row of hidden values is what one sequence needs in a decode step, a chunk is --max-num-batched-tokens rows.
 *
 * Which interface carried a message is read from the kernel's counters, not guessed. See probe.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/order.h"
#include "daemon/probe.h"
#include "transport/coll.h"
#include "transport/link.h"

#define TAG         9
#define DEADLINE_US 20000000ll
#define TIMED_US    150000.0 /* of one size */
#define REPS_MAX    64
#define PINGS       31
#define BYTES_MAX   ((size_t)64 << 20)

struct bench {
    struct wn_probe *p;
    struct wn_link *link;
    int rank, size;
    int ranks[WN_LINK_RANKS_MAX];     /* of the replica: 0, 1, ... */
    char (*hosts)[WN_PROBE_HOST_LEN]; /* [size] */
    char *memory;                     /* [BYTES_MAX at most] */
    size_t row_bytes, chunk_rows;     /* of float32 hidden values */
    size_t at_bytes;                  /* the message that is measured, when smaller ones have come; 0: the first one */
    uint32_t stage, tensor;
    struct wn_comm all, stage_ranks;
};

static int64_t soon(void)
{
    return wn_deadline_in_us(DEADLINE_US);
}

/* How often to repeat what took us. */
static uint32_t repetitions(double us)
{
    const double n = TIMED_US / (us + 1);
    return n < 2 ? 2 : n > REPS_MAX ? REPS_MAX : (uint32_t)n;
}

/* How the bytes went: between ranks of one host, or by the interface that has sent them. */
static void say_link(struct bench *b, const char *what, const char *name, json_t *ranks, bool one_host,
                     const char *interface, json_t *figures)
{
    json_t *body = json_pack("{s:s, s:s, s:o, s:s}", "what", what, "link", name, "ranks", ranks, "transport",
                             one_host       ? "Open MPI, shared memory"
                             : interface[0] ? "Open MPI, TCP"
                                            : "Open MPI, past the kernel's interfaces");

    if (body && interface[0]) json_object_set_new(body, "interface", json_string(interface));
    if (body) json_object_update(body, figures);
    json_decref(figures);
    wn_probe_say(b->p, "link", body);
    if (!one_host && interface[0] && b->p->net.name[0] && strcmp(interface, b->p->net.name) != 0)
        wn_probe_wrong(b->p, "%s goes by interface %s, and everything else by %s: see OMPI_MCA_btl_tcp_if_include",
                       name, interface, b->p->net.name);
}

/* ---- all-reduce ---- */

static wn_status reduce(struct bench *b, size_t rows, uint32_t reps, double *us)
{
    wn_status rc = wn_coll_barrier(b->link, &b->stage_ranks, soon());
    const int64_t began_us = wn_now_us();
    float *data = (float *)(void *)b->memory;

    for (uint32_t i = 0; i < reps && rc == WN_OK; i++)
        rc = wn_coll_allreduce_f32(b->link, &b->stage_ranks, data, rows * b->row_bytes / sizeof(*data), soon());
    *us = (double)(wn_now_us() - began_us) / reps;
    return rc;
}

/* What this rank sends to other hosts in one all-reduce. */
static uint64_t reduce_sends(const struct bench *b, size_t rows)
{
    const struct wn_comm *c = &b->stage_ranks;
    uint64_t sum = 0;

    for (int to = 0; to < c->n; to++)
        if (strcmp(b->hosts[c->ranks[to]], b->hosts[b->rank]) != 0)
            sum += wn_coll_allreduce_bytes(c->n, c->me, to, rows * b->row_bytes / 4);
    return sum;
}

static wn_status time_reduce(struct bench *b, size_t rows, double *us, uint64_t *sent, struct wn_probe_tx *before)
{
    uint32_t reps = 1;
    wn_status rc = reduce(b, rows, 1, us); /* connections are made */

    if (rc == WN_OK) rc = reduce(b, rows, 1, us);
    reps = repetitions(*us);
    if (rc == WN_OK)
        rc = wn_coll_broadcast(b->link, &b->stage_ranks, 0, WN_TRAFFIC_CONTROL, &reps, sizeof(reps), soon());
    wn_probe_tx_read(before);
    if (rc == WN_OK) rc = reduce(b, rows, reps, us);
    *sent = reduce_sends(b, rows) * reps;
    return rc;
}

static wn_status allreduces(struct bench *b)
{
    const size_t rows[] = {1, b->chunk_rows < 64 ? b->chunk_rows : 64, b->chunk_rows};
    json_t *sizes = json_array(), *ranks = json_array();
    char name[64], interface[WN_NETIF_NAME_LEN] = "";
    struct wn_probe_tx before;
    uint64_t sent = 0;
    size_t bytes;
    bool one_host = true;
    wn_status rc = WN_OK;

    for (int i = 0; i < 3 && rc == WN_OK; i++) {
        double us = 0;
        if (i > 0 && rows[i] == rows[i - 1]) continue;
        b->at_bytes = i > 0 ? rows[i] * b->row_bytes : 0;
        if ((rc = time_reduce(b, rows[i], &us, &sent, &before)) != WN_OK) break;
        bytes = rows[i] * b->row_bytes;
        json_array_append_new(sizes, json_pack("{s:I, s:f, s:f}", "bytes", (json_int_t)bytes, "us", us, "bytes_per_s",
                                               (double)bytes * 1e6 / us));
    }
    for (int i = 0; i < b->stage_ranks.n; i++) {
        json_array_append_new(ranks, json_integer(b->stage_ranks.ranks[i]));
        one_host &= strcmp(b->hosts[b->stage_ranks.ranks[i]], b->hosts[b->rank]) == 0;
    }
    if (rc == WN_OK && sent) wn_probe_tx_by(&before, sent, interface);
    snprintf(name, sizeof(name), "%s stage %u", b->p->cfg.name, b->stage);
    if (rc == WN_OK && b->tensor == 0)
        say_link(b, "all-reduce", name, json_incref(ranks), one_host, interface, json_pack("{s:O}", "sizes", sizes));
    json_decref(ranks);
    json_decref(sizes);
    return rc;
}

/* ---- stage to stage ---- */

struct pair {
    struct wn_route to; /* the other one */
    bool sender;
    size_t row, chunk; /* bytes of this tensor rank's columns */
};

static wn_status pass(struct bench *b, const struct pair *pr, size_t bytes, bool out)
{
    return out ? wn_link_send_now(b->link, pr->to, b->memory, bytes, soon())
               : wn_link_recv_now(b->link, pr->to, b->memory, bytes, soon());
}

static wn_status ping_pong(struct bench *b, const struct pair *pr, double *us)
{
    double took[PINGS];
    wn_status rc = WN_OK;

    for (int i = -1; i < PINGS && rc == WN_OK; i++) {
        const int64_t began_us = wn_now_us();
        rc = pass(b, pr, pr->row, pr->sender);
        if (rc == WN_OK) rc = pass(b, pr, pr->row, !pr->sender);
        if (i >= 0) took[i] = (double)(wn_now_us() - began_us) / 2;
    }
    if (rc != WN_OK) return rc;
    qsort(took, PINGS, sizeof(took[0]), wn_order_double);
    *us = took[PINGS / 2];
    return WN_OK;
}

/* reps chunks, two in flight, and one byte back. */
static wn_status chunks(struct bench *b, const struct pair *pr, uint32_t reps, double *us)
{
    wn_op ops[2] = {WN_OP_NONE, WN_OP_NONE};
    const int64_t began_us = wn_now_us();
    wn_status rc = WN_OK;

    for (uint32_t i = 0; i < reps + 2 && rc == WN_OK; i++) {
        rc = wn_link_wait(b->link, ops[i % 2], NULL, soon());
        ops[i % 2] = WN_OP_NONE;
        if (rc != WN_OK || i >= reps) continue;
        rc = pr->sender ? wn_link_send(b->link, pr->to, b->memory, pr->chunk, &ops[i % 2])
                        : wn_link_recv(b->link, pr->to, b->memory, pr->chunk, &ops[i % 2]);
    }
    if (rc == WN_OK) rc = pass(b, pr, 1, !pr->sender);
    *us = (double)(wn_now_us() - began_us);
    return rc;
}

static wn_status measure_pair(struct bench *b, const struct pair *pr)
{
    const bool one_host = strcmp(b->hosts[pr->to.peer], b->hosts[b->rank]) == 0;
    char name[80], interface[WN_NETIF_NAME_LEN] = "";
    struct wn_probe_tx before;
    double latency_us = 0, us = 0;
    uint32_t reps = 1;
    wn_status rc = ping_pong(b, pr, &latency_us);

    if (rc == WN_OK) b->at_bytes = pr->chunk;
    if (rc == WN_OK) rc = chunks(b, pr, 1, &us);
    reps = repetitions(us);
    if (rc == WN_OK)
        rc = pr->sender ? wn_link_send_now(b->link, pr->to, &reps, sizeof(reps), soon())
                        : wn_link_recv_now(b->link, pr->to, &reps, sizeof(reps), soon());
    wn_probe_tx_read(&before);
    if (rc == WN_OK) rc = chunks(b, pr, reps, &us);
    if (rc != WN_OK || !pr->sender) return rc;
    if (!one_host) wn_probe_tx_by(&before, pr->chunk * reps, interface);
    snprintf(name, sizeof(name), "%s rank %d - rank %d", b->p->cfg.name, b->rank, pr->to.peer);
    say_link(b, "stage to stage", name, json_pack("[i, i]", b->rank, pr->to.peer), one_host, interface,
             json_pack("{s:f, s:I, s:f}", "latency_us", latency_us, "bytes", (json_int_t)pr->chunk, "bytes_per_s",
                       (double)pr->chunk * reps * 1e6 / us));
    return WN_OK;
}

/* All tensor ranks of a boundary at once: they share its wire in a step, too. */
static wn_status boundaries(struct bench *b)
{
    const struct wn_plan *plan = &b->p->plan;
    const size_t row = (size_t)plan->model.text.hidden / plan->tensors * wn_dtype_bytes(plan->dtype);
    struct pair pr = {.to = {.tag = TAG, .kind = WN_TRAFFIC_ACTIVATION}, .row = row, .chunk = row * b->chunk_rows};
    wn_status rc = WN_OK;

    for (uint32_t s = 0; s + 1 < plan->stages && rc == WN_OK; s++) {
        b->at_bytes = 0;
        if ((rc = wn_coll_barrier(b->link, &b->all, soon())) != WN_OK) break;
        if (b->stage != s && b->stage != s + 1) continue;
        pr.sender = b->stage == s;
        pr.to.peer = (int)wn_plan_rank(plan, pr.sender ? s + 1 : s, b->tensor);
        rc = measure_pair(b, &pr);
    }
    return rc;
}

/* ---- all of it ---- */

/* Everybody's host name, the groups, and memory for the largest message. */
static wn_status prepare(struct bench *b, struct wn_err *err)
{
    const struct wn_plan *plan = &b->p->plan;
    size_t *bytes = calloc((size_t)b->size, sizeof(*bytes)), chunk;
    wn_status rc = WN_OK;

    b->row_bytes = (size_t)plan->model.text.hidden * sizeof(float);
    b->chunk_rows = b->p->cfg.max_num_batched_tokens;
    if (b->chunk_rows * b->row_bytes > BYTES_MAX) b->chunk_rows = BYTES_MAX / b->row_bytes;
    chunk = b->chunk_rows * b->row_bytes;
    b->hosts = calloc((size_t)b->size, sizeof(*b->hosts));
    b->memory = aligned_alloc(64, (chunk + 127) / 64 * 64);
    if (!bytes || !b->hosts || !b->memory) {
        free(bytes);
        return wn_fail(err, WN_ENOMEM, "%zu bytes to send", chunk);
    }
    memset(b->memory, 0, chunk + 64);
    for (int i = 0; i < b->size; i++) {
        b->ranks[i] = i;
        bytes[i] = sizeof(*b->hosts);
    }
    b->stage = (uint32_t)b->rank / plan->tensors;
    b->tensor = (uint32_t)b->rank % plan->tensors;
    b->all = (struct wn_comm){.ranks = b->ranks, .n = b->size, .me = b->rank};
    b->stage_ranks =
        (struct wn_comm){.ranks = b->ranks + b->stage * plan->tensors, .n = (int)plan->tensors, .me = (int)b->tensor};
    memcpy(b->hosts[b->rank], b->p->host, sizeof(*b->hosts));
    rc = wn_coll_allgather(b->link, &b->all, WN_TRAFFIC_CONTROL, b->hosts[b->rank], b->hosts, bytes, soon());
    free(bytes);
    return rc == WN_OK ? rc : wn_fail(err, rc, "%s", wn_link_error(b->link)->text);
}

wn_status wn_probe_ranks(struct wn_probe *p, struct wn_err *err)
{
    struct bench *b = calloc(1, sizeof(*b));
    const struct wn_group group = {0};
    wn_status rc = b ? WN_OK : wn_fail(err, WN_ENOMEM, "links");

    if (rc != WN_OK) return rc;
    b->p = p;
    if ((rc = wn_link_open(&b->link, "mpi", &group, err)) != WN_OK) goto out;
    b->rank = wn_link_rank(b->link);
    b->size = wn_link_size(b->link);
    if (b->size != (int)p->size) {
        rc = wn_fail(err, WN_EINVAL, "MPI started %d processes as one job, and the plan has %u ranks", b->size,
                     p->size);
        goto out;
    }
    if ((rc = prepare(b, err)) != WN_OK) goto out;
    if (b->stage_ranks.n > 1) rc = allreduces(b);
    if (rc == WN_OK) rc = boundaries(b);
    if (rc != WN_OK) wn_fail(err, rc, "%s", wn_link_error(b->link)->text);
    if (rc == WN_ETIME && b->at_bytes) wn_probe_blame_size(p, b->at_bytes, err);
out:
    if (rc == WN_OK) wn_link_close(b->link); /* a broken one cannot be left in order */
    if (rc == WN_OK || !b->link) {
        free(b->hosts);
        free(b->memory);
        free(b);
    }
    return rc;
}
