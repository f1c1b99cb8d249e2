/* shard/decoder_link.c - what a stage says to the other ranks: sums, rows, scores, features.
 *
 * Three ways. Host memory: messages go from and to the matrices themselves, after a sync. Device memory with a link
 * that has a device (transport/device.h): everything is queued, and the host waits at the end of the step. Device
 * memory with a link that has none: by way of a host buffer, so that GPUs work together where NCCL is not. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/decoder_impl.h"
#include "transport/nccl.h"

#define TAG_ROWS  16              /* hidden rows, stage to stage */
#define TAG_BEGUN 17              /* an empty message ahead of them: the stage before is done with its share */
#define LARGE     ((size_t)16384) /* bytes; smaller messages travel by themselves */

wn_status wn_stage_attach(struct wn_link *link, struct wn_backend *be, const struct wn_plan *plan, uint32_t rank,
                          int device, bool fast_sums, int64_t deadline_us, struct wn_err *err)
{
    const uint32_t stage = rank / plan->tensors, tensor = rank % plan->tensors;
    int ranks[WN_TENSOR_MAX];
    const struct wn_comm group = {.ranks = ranks, .n = (int)plan->tensors, .me = (int)tensor};
    const struct wn_nccl_opts o = {.device = device,
                                   .queue = be->ops->queue ? be->ops->queue(be) : NULL,
                                   .group = &group,
                                   .prev = stage > 0 ? (int)(rank - plan->tensors) : -1,
                                   .next = stage + 1 < plan->stages ? (int)(rank + plan->tensors) : -1,
                                   .fast_sums = fast_sums,
                                   .sum = be->ops->sum_parts,
                                   .backend = be,
                                   .deadline_us = deadline_us};

    if (!o.queue) return wn_fail(err, WN_EINVAL, "backend '%s' has no device for NCCL to reach", be->ops->name);
    for (uint32_t t = 0; t < plan->tensors; t++) ranks[t] = (int)wn_plan_rank(plan, stage, t);
    return wn_nccl_attach(link, &o, err);
}

wn_status wn_stage_links_open(struct wn_stage *s, struct wn_err *err)
{
    const size_t rows = s->o.rows_max, hidden = s->plan.model.text.hidden;
    const struct wn_mat *lent[] = {&s->x, &s->sums, &s->part, &s->parts};
    size_t sums = rows * hidden * sizeof(float);
    size_t scores = (size_t)s->o.wanted_max * s->plan.model.text.vocab * sizeof(float), most;

    for (size_t i = 0; s->device && i < sizeof(lent) / sizeof(lent[0]); i++)
        if (lent[i]->ptr)
            wn_dev_lend(s->o.link, lent[i]->ptr,
                        (size_t)lent[i]->rows * lent[i]->stride * wn_dtype_bytes(lent[i]->dtype));
    if (s->device && s->plan.tensors > 1 &&
        wn_dev_reserve(s->o.link, (size_t)s->sums.rows * s->sums.cols) != WN_OK)
        return wn_fail(err, WN_ENOMEM, "stage %u: %s", s->stage, wn_link_error(s->o.link)->text);
    if (!s->staged) return WN_OK;
    most = sums > scores ? sums : scores;
    s->host = malloc(most);
    s->host_part = malloc(most);
    s->host_next = malloc(most);
    if (!s->host || !s->host_part || !s->host_next)
        return wn_fail(err, WN_ENOMEM, "stage %u: host buffers of messages", s->stage);
    return WN_OK;
}

void wn_stage_links_close(struct wn_stage *s)
{
    const int64_t deadline_us = wn_deadline_in_us(WN_STAGE_CLOSE_US);
    bool left = true;

    /* After a failed run the link may be gone already, and what is in flight ends with it. */
    if (!s->failed && s->sending != WN_OP_NONE) left = wn_link_wait(s->o.link, s->sending, NULL, deadline_us) == WN_OK;
    if (!s->failed && s->device)
        left = wn_dev_reuse(s->o.link) == WN_OK && wn_dev_sync(s->o.link, deadline_us) == WN_OK;
    if (!left) wn_warn("shard", "stage %u: the rows of the last step did not leave", s->stage);
    if (!s->failed && s->device && left) wn_dev_unlend(s->o.link);
    if (s->device && !left) wn_link_cancel(s->o.link); /* else to free what they lie in would wait for them */
    if (!s->failed && wn_link_withdraw(s->o.link, s->coming, deadline_us) != WN_OK)
        wn_warn("shard", "stage %u: rows came that no step was for", s->stage);
    free(s->host);
    free(s->host_part);
    free(s->host_next);
    free(s->spread);
}

wn_status wn_stage_sync(struct wn_stage *s, int64_t deadline_us)
{
    return s->device ? wn_dev_sync(s->o.link, deadline_us) : s->o.be->ops->sync(s->o.be, deadline_us);
}

/* Where the link finds `bytes` bytes at `ptr`, in `host` if that is not where they lie. */
static wn_status to_host(struct wn_stage *s, void *host, void **ptr, size_t bytes)
{
    void *from = *ptr;

    if (!s->staged) return WN_OK;
    *ptr = host;
    return s->o.be->ops->download(s->o.be, host, from, bytes);
}

static wn_status to_device(struct wn_stage *s, void *ptr, const void *host, size_t bytes)
{
    return s->staged ? s->o.be->ops->upload(s->o.be, ptr, host, bytes) : WN_OK;
}

wn_status wn_stage_sum(struct wn_stage *s, uint32_t rows, int64_t deadline_us)
{
    const size_t floats = (size_t)rows * s->sums.cols;
    void *sums = s->sums.ptr;
    int64_t since_us;
    wn_status rc;

    if (s->plan.tensors == 1) return WN_OK;
    if (s->device) return wn_dev_allreduce_f32(s->o.link, sums, floats);
    if ((rc = wn_stage_sync(s, deadline_us)) != WN_OK) return rc;
    if ((rc = to_host(s, s->host, &sums, floats * sizeof(float))) != WN_OK) return rc;
    since_us = wn_now_us();
    rc = wn_coll_allreduce_f32(s->o.link, &s->comm, sums, floats, deadline_us);
    s->waits.link_us += (uint64_t)(wn_now_us() - since_us);
    return rc == WN_OK ? to_device(s, s->sums.ptr, sums, floats * sizeof(float)) : rc;
}

/* Large messages move on in pieces, each while a call of the link runs: so the rows of the last step leave, and those
 * of the next one come, while this one computes. */
wn_status wn_stage_drive(struct wn_stage *s)
{
    bool done;
    wn_status rc = WN_OK;

    if (s->sending != WN_OP_NONE && s->sending_bytes > LARGE) {
        rc = wn_link_test(s->o.link, s->sending, &done, NULL);
        if (done) s->sending = WN_OP_NONE;
    }
    if (rc == WN_OK && s->coming != WN_OP_NONE && s->large) {
        rc = wn_link_test(s->o.link, s->coming, &s->came, &s->came_bytes);
        if (s->came) s->coming = WN_OP_NONE;
    }
    return rc;
}

/* Posts the receive of the next step's rows, so that they may come while this one computes. */
static wn_status expect_rows(struct wn_stage *s)
{
    const struct wn_route from = {
        .peer = (int)(s->o.rank - s->plan.tensors), .tag = TAG_ROWS, .kind = WN_TRAFFIC_ACTIVATION};

    return wn_link_recv(s->o.link, from, s->staged ? s->host_next : s->next.ptr,
                        (size_t)s->next.rows * s->next.cols * wn_dtype_bytes(s->plan.dtype), &s->coming);
}

/* Waits for `bytes` of rows; says apart how long for the stage before and how long for the network. */
static wn_status await_rows(struct wn_stage *s, size_t bytes, int64_t deadline_us)
{
    const struct wn_route begun = {
        .peer = (int)(s->o.rank - s->plan.tensors), .tag = TAG_BEGUN, .kind = WN_TRAFFIC_CONTROL};
    const int64_t asked_us = wn_now_us();
    int64_t begun_us;
    wn_status rc = wn_link_recv_now(s->o.link, begun, NULL, 0, deadline_us);

    begun_us = wn_now_us();
    s->waits.step_us += (uint64_t)(begun_us - asked_us);
    if (rc == WN_OK && !s->came) {
        rc = wn_link_wait(s->o.link, s->coming, &s->came_bytes, deadline_us);
        if (rc == WN_OK) s->coming = WN_OP_NONE;
    }
    s->came = false;
    s->waits.link_us += (uint64_t)(wn_now_us() - begun_us);
    return rc == WN_OK && s->came_bytes != bytes ? WN_EPROTO : rc;
}

/* The parts of the tensor ranks, this rank's from the stage before, `bytes` each. */
static wn_status receive_parts(struct wn_stage *s, char *parts, size_t bytes, int64_t deadline_us)
{
    size_t bytes_of[WN_TENSOR_MAX];
    int64_t since_us;
    wn_status rc = wn_stage_sync(s, deadline_us);

    if (rc != WN_OK) return rc; /* else nothing queued uses the memory any more */
    if (s->coming == WN_OP_NONE && !s->came) rc = expect_rows(s);
    if (rc == WN_OK) rc = await_rows(s, bytes, deadline_us);
    if (rc != WN_OK) return rc;
    memcpy(parts + s->tensor * bytes, s->staged ? s->host_next : s->next.ptr, bytes);
    s->large = bytes > LARGE;
    if ((rc = expect_rows(s)) != WN_OK || s->plan.tensors == 1) return rc;
    for (uint32_t t = 0; t < s->plan.tensors; t++) bytes_of[t] = bytes;
    since_us = wn_now_us();
    rc = wn_coll_allgather(s->o.link, &s->comm, WN_TRAFFIC_ACTIVATION, parts + s->tensor * bytes, parts, bytes_of,
                           deadline_us);
    s->waits.link_us += (uint64_t)(wn_now_us() - since_us);
    return rc;
}

wn_status wn_stage_receive(struct wn_stage *s, uint32_t rows, int64_t deadline_us)
{
    const uint32_t cols = s->next.cols, tensors = s->plan.tensors;
    const size_t bytes = (size_t)rows * cols * wn_dtype_bytes(s->plan.dtype);
    char *parts = tensors == 1 ? s->x.ptr : s->parts.ptr, *mine = parts + s->tensor * bytes;
    wn_status rc;

    if (s->device) {
        rc = wn_dev_recv(s->o.link, WN_TRAFFIC_ACTIVATION, mine, bytes);
        if (rc == WN_OK && tensors > 1) rc = wn_dev_allgather(s->o.link, WN_TRAFFIC_ACTIVATION, mine, parts, bytes);
    } else {
        void *at = s->staged ? s->host : parts;
        rc = receive_parts(s, at, bytes, deadline_us);
        if (rc == WN_OK) rc = to_device(s, parts, at, bytes * tensors);
    }
    for (uint32_t t = 0; rc == WN_OK && tensors > 1 && t < tensors; t++) {
        struct wn_mat to = wn_mat_cols(wn_mat_rows(s->x, 0, rows), t * cols, cols),
                      part = wn_mat_rows(s->parts, 0, rows);
        part.ptr = parts + t * bytes;
        rc = wn_be_convert(s->o.be, &to, &part);
    }
    return rc;
}

wn_status wn_stage_send(struct wn_stage *s, uint32_t rows, int64_t deadline_us)
{
    const uint32_t cols = s->part.cols;
    const struct wn_mat x = wn_mat_cols(wn_mat_rows(s->x, 0, rows), s->tensor * cols, cols),
                        part = wn_mat_rows(s->part, 0, rows);
    const struct wn_route to = {
        .peer = (int)(s->o.rank + s->plan.tensors), .tag = TAG_ROWS, .kind = WN_TRAFFIC_ACTIVATION};
    const struct wn_route begun = {.peer = to.peer, .tag = TAG_BEGUN, .kind = WN_TRAFFIC_CONTROL};
    const size_t bytes = (size_t)rows * cols * wn_dtype_bytes(s->plan.dtype);
    const int64_t since_us = wn_now_us();
    void *from = part.ptr;
    wn_status rc;

    if (s->device) {
        rc = wn_dev_reuse(s->o.link);
        if (rc == WN_OK) rc = wn_be_convert(s->o.be, &part, &x);
        return rc == WN_OK ? wn_dev_send(s->o.link, WN_TRAFFIC_ACTIVATION, part.ptr, bytes) : rc;
    }
    rc = wn_link_wait(s->o.link, s->sending, NULL, deadline_us);
    s->waits.link_us += (uint64_t)(wn_now_us() - since_us);
    if (rc != WN_OK) return rc;
    s->sending = WN_OP_NONE;
    rc = wn_be_convert(s->o.be, &part, &x);
    if (rc == WN_OK) rc = wn_stage_sync(s, deadline_us);
    if (rc == WN_OK) rc = to_host(s, s->host_part, &from, bytes);
    if (rc == WN_OK) rc = wn_link_send_now(s->o.link, begun, NULL, 0, deadline_us);
    if (rc == WN_OK) rc = wn_link_send(s->o.link, to, from, bytes, &s->sending);
    s->sending_bytes = bytes;
    return rc;
}

/* Scores of rank after rank, [wanted, part of the vocabulary] each, to rows of the whole vocabulary. */
static void lay_scores(const struct wn_stage *s, const float *from, uint32_t wanted, float *logits)
{
    for (uint32_t t = 0; t < s->plan.tensors; t++) {
        struct wn_range part = wn_plan_vocab(&s->plan, t);
        for (uint32_t r = 0; r < wanted; r++, from += part.n)
            memcpy(logits + (size_t)r * s->plan.model.text.vocab + part.first, from, part.n * sizeof(float));
    }
}

static void score_bytes(const struct wn_stage *s, uint32_t wanted, size_t bytes_of[WN_TENSOR_MAX])
{
    for (uint32_t t = 0; t < s->plan.tensors; t++)
        bytes_of[t] = (size_t)wanted * wn_plan_vocab(&s->plan, t).n * sizeof(float);
}

wn_status wn_stage_gather_scores(struct wn_stage *s, uint32_t wanted)
{
    float *from = s->tensor == 0 ? s->all_scores.ptr : NULL;
    size_t bytes_of[WN_TENSOR_MAX];
    wn_status rc;

    score_bytes(s, wanted, bytes_of);
    rc = wn_dev_gather(s->o.link, 0, WN_TRAFFIC_LOGITS, s->scores.ptr, from, bytes_of);
    for (uint32_t t = 0; rc == WN_OK && s->tensor == 0 && t < s->plan.tensors; t++) {
        const struct wn_range cols = wn_plan_vocab(&s->plan, t);
        const struct wn_mat to = wn_mat_cols(wn_mat_rows(s->whole, 0, wanted), cols.first, cols.n),
                            part = {from, WN_F32, wanted, cols.n, cols.n};
        if (cols.n > 0) rc = wn_be_convert(s->o.be, &to, &part);
        from += (size_t)wanted * cols.n;
    }
    return rc;
}

wn_status wn_stage_collect(struct wn_stage *s, uint32_t wanted, int64_t deadline_us, float *logits)
{
    const bool alone = s->plan.tensors == 1;
    const size_t mine = (size_t)wanted * s->vocab.n * sizeof(float), row = s->plan.model.text.vocab * sizeof(float);
    void *scores = s->scores.ptr, *all = s->tensor == 0 ? s->all_scores.ptr : NULL;
    size_t bytes_of[WN_TENSOR_MAX];
    int64_t since_us;
    wn_status rc = WN_OK;

    if (s->device && !alone) rc = wn_stage_gather_scores(s, wanted);
    if (rc == WN_OK) rc = wn_stage_sync(s, deadline_us); /* a download has no deadline */
    if (rc != WN_OK) return rc;
    if (s->device || alone) {
        if (s->tensor != 0) return WN_OK;
        return s->o.be->ops->download(s->o.be, logits, alone ? scores : s->whole.ptr, wanted * row);
    }
    if ((rc = to_host(s, s->host_part, &scores, mine)) != WN_OK) return rc;
    if (s->staged) all = s->tensor == 0 ? s->host : NULL;
    score_bytes(s, wanted, bytes_of);
    since_us = wn_now_us();
    rc = wn_coll_gather(s->o.link, &s->comm, 0, WN_TRAFFIC_LOGITS, scores, all, bytes_of, deadline_us);
    s->waits.link_us += (uint64_t)(wn_now_us() - since_us);
    if (rc == WN_OK && s->tensor == 0) lay_scores(s, all, wanted, logits);
    return rc;
}

wn_status wn_stage_spread(struct wn_stage *s, void *features, const void *data, size_t bytes, int64_t deadline_us)
{
    const int64_t since_us = wn_now_us();
    void *host = features;
    wn_status rc;

    if (s->device) return wn_dev_broadcast(s->o.link, 0, WN_TRAFFIC_EMBEDDING, features, bytes);
    if (s->staged && s->tensor == 0) {
        host = (void *)(uintptr_t)data;
    } else if (s->staged) {
        if (!(host = realloc(s->spread, bytes))) return WN_ENOMEM;
        s->spread = host;
    }
    rc = wn_coll_broadcast(s->o.link, &s->comm, 0, WN_TRAFFIC_EMBEDDING, host, bytes, deadline_us);
    s->waits.link_us += (uint64_t)(wn_now_us() - since_us);
    if (s->staged && s->tensor != 0) {
        if (rc == WN_OK) rc = s->o.be->ops->upload(s->o.be, features, host, bytes);
        if (rc == WN_OK) rc = s->o.be->ops->sync(s->o.be, deadline_us);
    }
    return rc;
}

struct wn_stage_waits wn_stage_waits(const struct wn_stage *s)
{
    struct wn_stage_waits w = s->waits;

    if (s->device) w.step_us += wn_dev_waited_us(s->o.link);
    return w;
}
