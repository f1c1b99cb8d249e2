/* shard/projector.c - see projector.h. */
#include "shard/projector.h"

#include <stdlib.h>

#include "shard/loader.h"

#define PREFIX "multi_modal_projector."

struct wn_projector {
    struct wn_backend *be;
    struct wn_loader *loader;
    struct wn_buf bufs[3];
    struct wn_mat in, mid, out; /* [rows_max, ...] */
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
        rc = wn_loader_load(p->loader, weights, &parts[i], err);
    return rc;
}

wn_status wn_projector_open(struct wn_projector **out, struct wn_backend *be, const struct wn_model *model,
                            const struct wn_weights *weights, wn_dtype dtype, uint32_t rows_max, struct wn_err *err)
{
    const uint32_t cols[3] = {model->vision.hidden, model->text.hidden, model->text.hidden};
    struct wn_projector *p = calloc(1, sizeof(*p));
    struct wn_mat *mats[3];
    wn_status rc;

    if (!p) return wn_fail(err, WN_ENOMEM, "projector");
    p->be = be;
    p->slices = model->slices;
    p->act = model->projector_act;
    mats[0] = &p->in;
    mats[1] = &p->mid;
    mats[2] = &p->out;
    if ((rc = wn_loader_open(&p->loader, be, dtype, err)) != WN_OK) goto out;
    if ((rc = load(p, weights, model, err)) != WN_OK) goto out;
    for (int i = 0; i < 3; i++) {
        rc = be->ops->buf_alloc(be, (size_t)rows_max * cols[i] * wn_dtype_bytes(dtype), &p->bufs[i]);
        if (rc != WN_OK) {
            rc = wn_fail(err, rc, "projector of %u rows", rows_max);
            goto out;
        }
        *mats[i] = (struct wn_mat){
            .ptr = p->bufs[i].ptr, .dtype = dtype, .rows = rows_max, .cols = cols[i], .stride = cols[i]};
    }
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
    for (int i = 0; i < 3; i++)
        if (p->bufs[i].ptr) p->be->ops->buf_free(p->be, &p->bufs[i]);
    wn_loader_close(p->loader);
    free(p);
}

wn_status wn_projector_run(struct wn_projector *p, const void *in, uint32_t rows, void *out, struct wn_err *err)
{
    const struct wn_backend_ops *ops = p->be->ops;
    const struct wn_matmul first = {.out = wn_mat_rows(p->mid, 0, rows),
                                    .x = wn_mat_rows(p->in, 0, rows),
                                    .w = wn_loader_matrix(p->loader, PREFIX "linear_1.weight"),
                                    .bias = wn_loader_vector(p->loader, PREFIX "linear_1.bias"),
                                    .slices = 1,
                                    .act = p->act};
    const struct wn_matmul second = {.out = wn_mat_rows(p->out, 0, rows),
                                     .x = first.out,
                                     .w = wn_loader_matrix(p->loader, PREFIX "linear_2.weight"),
                                     .bias = wn_loader_vector(p->loader, PREFIX "linear_2.bias"),
                                     .slices = p->slices};
    wn_status rc;

    if (rows > p->in.rows) return wn_fail(err, WN_ELIMIT, "projector: %u rows, at most %u", rows, p->in.rows);
    rc = ops->upload(p->be, p->in.ptr, in, rows * wn_mat_row_bytes(&p->in));
    if (rc == WN_OK) rc = wn_be_matmul(p->be, &first);
    if (rc == WN_OK) rc = wn_be_matmul(p->be, &second);
    if (rc == WN_OK) rc = ops->download(p->be, out, p->out.ptr, rows * wn_mat_row_bytes(&p->out));
    return rc == WN_OK ? rc : wn_fail(err, rc, "projector: %s", wn_status_name(rc));
}
