/* shard/projector.c - see projector.h. */
#include "shard/projector.h"

#include <stdlib.h>

#include "shard/loader.h"

#define PREFIX "multi_modal_projector."

struct wn_projector {
    struct wn_backend *be;
    struct wn_loader *loader;
    struct wn_buf buf;
    struct wn_mat mid; /* [rows_max, decoder width] */
    uint32_t slices;
    wn_act act;
};

static wn_status load(struct wn_projector *p, const struct wn_weights *weights, const struct wn_model *m,
                      struct wn_err *err)
{
    const struct wn_load parts[] = {
        {.name = PREFIX "linear_1.weight", .rows_all = m->text.hidden, .cols_all = m->vision.hidden},
        {.name = PREFIX "linear_1.bias", .rows_all = m->text.hidden, .cols_all = 1, .kind = WN_LOAD_VECTOR},
        {.name = PREFIX "linear_2.weight", .rows_all = m->text.hidden, .cols_all = m->text.hidden},
        {.name = PREFIX "linear_2.bias", .rows_all = m->text.hidden, .cols_all = 1, .kind = WN_LOAD_VECTOR},
    };
    wn_status rc = WN_OK;
    for (size_t i = 0; rc == WN_OK && i < sizeof(parts) / sizeof(parts[0]); i++)
        rc = wn_loader_want(p->loader, weights, &parts[i], err);
    return rc == WN_OK ? wn_loader_fetch(p->loader, weights, err) : rc;
}

wn_status wn_projector_open(struct wn_projector **out, struct wn_backend *be, const struct wn_model *model,
                            const struct wn_weights *weights, wn_dtype dtype, uint32_t rows_max, struct wn_err *err)
{
    const uint32_t width = model->text.hidden;
    struct wn_projector *p = calloc(1, sizeof(*p));
    wn_status rc;

    if (!p) return wn_fail(err, WN_ENOMEM, "projector");
    p->be = be;
    p->slices = model->slices;
    p->act = model->projector_act;
    if ((rc = wn_loader_open(&p->loader, be, dtype, err)) != WN_OK) goto out;
    if ((rc = load(p, weights, model, err)) != WN_OK) goto out;
    rc = be->ops->buf_alloc(be, (size_t)rows_max * width * wn_dtype_bytes(dtype), &p->buf);
    if (rc != WN_OK) rc = wn_fail(err, rc, "projector of %u rows", rows_max);
    p->mid = (struct wn_mat){.ptr = p->buf.ptr, .dtype = dtype, .rows = rows_max, .cols = width, .stride = width};
out:
    if (rc != WN_OK) {
        wn_projector_close(p);
        return rc;
    }
    *out = p;
    return WN_OK;
}

void wn_projector_close(struct wn_projector *p)
{
    if (!p) return;
    if (p->buf.ptr) p->be->ops->buf_free(p->be, &p->buf);
    wn_loader_close(p->loader);
    free(p);
}

wn_status wn_projector_run(struct wn_projector *p, struct wn_mat in, struct wn_mat out, struct wn_err *err)
{
    const struct wn_matmul first = {.out = wn_mat_rows(p->mid, 0, in.rows),
                                    .x = in,
                                    .w = wn_loader_matrix(p->loader, PREFIX "linear_1.weight"),
                                    .bias = wn_loader_vector(p->loader, PREFIX "linear_1.bias"),
                                    .slices = 1,
                                    .act = p->act};
    const struct wn_matmul second = {.out = out,
                                     .x = first.out,
                                     .w = wn_loader_matrix(p->loader, PREFIX "linear_2.weight"),
                                     .bias = wn_loader_vector(p->loader, PREFIX "linear_2.bias"),
                                     .slices = p->slices};
    wn_status rc;

    if (in.rows > p->mid.rows) return wn_fail(err, WN_ELIMIT, "projector: %u rows, at most %u", in.rows, p->mid.rows);
    rc = wn_be_matmul(p->be, &first);
    if (rc == WN_OK) rc = wn_be_matmul(p->be, &second);
    return rc == WN_OK ? rc : wn_fail(err, rc, "projector: %s", wn_status_name(rc));
}
