/* shard/row_worker.c - see row_worker.h. */
#include "shard/row_worker.h"

#include <stdlib.h>

struct worker {
    struct wn_row_worker base; /* first: workers are known by it */
    struct wn_backend *be;
    struct wn_buf dots, sums;
};

static wn_status grow(struct worker *w, struct wn_buf *buf, size_t bytes)
{
    struct wn_buf grown = {0};
    wn_status rc;

    if (buf->bytes >= bytes) return WN_OK;
    if ((rc = w->be->ops->buf_alloc(w->be, bytes, &grown)) != WN_OK) return rc;
    if (buf->ptr) w->be->ops->buf_free(w->be, buf);
    *buf = grown;
    return WN_OK;
}

static wn_status dots(struct wn_row_worker *base, const struct wn_row_dots *d, struct wn_err *err)
{
    struct worker *w = (struct worker *)base;
    const size_t bytes = (size_t)d->a.n * (d->pairs == WN_ROWS_SELF ? 1 : d->b.n) * sizeof(float);
    struct wn_row_dots there = *d;
    wn_status rc = grow(w, &w->dots, bytes);

    there.out = w->dots.ptr;
    if (rc == WN_OK) rc = w->be->ops->row_dots(w->be, &there);
    if (rc == WN_OK) rc = w->be->ops->download(w->be, d->out, there.out, bytes);
    return rc == WN_OK ? rc : wn_fail(err, rc, "products of %u rows: %s", d->a.n, wn_status_name(rc));
}

static wn_status sums(struct wn_row_worker *base, const struct wn_row_sums *s, struct wn_mat *out, struct wn_err *err)
{
    struct worker *w = (struct worker *)base;
    struct wn_row_sums there = *s;
    wn_status rc = grow(w, &w->sums, s->out.rows * wn_mat_row_bytes(&s->out));

    there.out.ptr = w->sums.ptr;
    there.out.stride = s->out.cols;
    if (rc == WN_OK) rc = w->be->ops->row_sums(w->be, &there);
    if (rc != WN_OK) return wn_fail(err, rc, "%u sums of rows: %s", s->out.rows, wn_status_name(rc));
    *out = there.out;
    return WN_OK;
}

wn_status wn_row_worker_open(struct wn_row_worker **out, struct wn_backend *be, struct wn_err *err)
{
    struct worker *w;

    *out = NULL;
    if (!be->ops->row_dots) return WN_OK;
    if (!(w = calloc(1, sizeof(*w)))) return wn_fail(err, WN_ENOMEM, "row worker");
    w->base = (struct wn_row_worker){.dots = dots, .sums = sums};
    w->be = be;
    *out = &w->base;
    return WN_OK;
}

void wn_row_worker_close(struct wn_row_worker *base)
{
    struct worker *w = (struct worker *)base;

    if (!w) return;
    if (w->dots.ptr) w->be->ops->buf_free(w->be, &w->dots);
    if (w->sums.ptr) w->be->ops->buf_free(w->be, &w->sums);
    free(w);
}
