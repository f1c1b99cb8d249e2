/* tests/cudasim/prune_case_device.c - pruning tests whose features and keys are in a device's memory, the simulated
 * one's or a real one's: products and sums are made there. */
#include "tests/unit/prune_case.h"

#include "shard/row_worker.h"

static struct wn_backend *be;
static struct wn_row_worker *worker;

static void open_device(void)
{
    struct wn_err err = {0};

    if (be) return;
    if (wn_backend_open(&be, "cuda", 0, &err) != WN_OK || wn_row_worker_open(&worker, be, &err) != WN_OK)
        fail_msg("%s", err.text);
    assert_non_null(worker);
}

/* A copy there; freed by the next one for the same use. */
static void *there(int use, const void *here, size_t bytes)
{
    static struct wn_buf bufs[4];

    if (!here) return NULL;
    if (bufs[use].bytes < bytes) {
        if (bufs[use].ptr) be->ops->buf_free(be, &bufs[use]);
        assert_int_equal(be->ops->buf_alloc(be, bytes, &bufs[use]), WN_OK);
    }
    assert_int_equal(be->ops->upload(be, bufs[use].ptr, here, bytes), WN_OK);
    return bufs[use].ptr;
}

wn_status case_run(struct prune_case *c, const struct wn_prune_method *m, struct wn_err *err)
{
    const size_t width = c->in.shape.width, row = width * wn_dtype_bytes(c->in.dtype), rows = c->in.shape.rows;
    struct wn_prune_in in = c->in;
    struct wn_row_sums sums;
    struct wn_mat made;
    wn_status rc;

    open_device();
    in.worker = worker;
    in.features = there(0, in.features, rows * row);
    in.taps.keys = there(1, in.taps.keys, (rows + 1) * width * sizeof(float));
    in.taps.cls_query = there(2, in.taps.cls_query, width * sizeof(float));
    in.taps.cls_row = there(3, in.taps.cls_row, row);
    if ((rc = wn_prune_run(m, &in, &c->out, err)) != WN_OK) return rc;
    sums = wn_prune_sums(&in, &c->out);
    sums.out.dtype = WN_F32;
    assert_int_equal(worker->sums(worker, &sums, &made, err), WN_OK);
    assert_int_equal(be->ops->download(be, c->values, made.ptr, made.rows * wn_mat_row_bytes(&made)), WN_OK);
    return WN_OK;
}
