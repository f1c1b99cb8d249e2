/* shard/backend.c - see backend.h: the table of backends, and what a backend without a fused operation gets. */
#include "shard/backend.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef WN_HAVE_CUDA
#include "shard/cuda/cuda_backend.h"
#endif

const struct wn_backend_ops *const wn_backends[] = {
    &wn_backend_cpu,
    &wn_backend_cpu_reference,
#ifdef WN_HAVE_CUDA
    &wn_backend_cuda,
#endif
    NULL,
};

static void check_ops(const struct wn_backend_ops *ops)
{
    WN_ASSERT(ops->name && ops->open && ops->close && ops->memory && ops->buf_alloc && ops->buf_free && ops->upload &&
              ops->download);
    WN_ASSERT(ops->weight_create && ops->weight_i8 && ops->weight_destroy && ops->matmul && ops->norm && ops->rope);
    WN_ASSERT(ops->kv_write && ops->attn_paged && ops->attn_full && ops->add && ops->silu_mul && ops->gather_rows);
    WN_ASSERT(ops->convert && ops->sync);
}

/* "cuda:1" is device 1 of "cuda". */
static wn_status split_name(const char *name, size_t *len, int *device, struct wn_err *err)
{
    const char *colon = strchr(name, ':');
    char *end = NULL;
    long n;

    *len = colon ? (size_t)(colon - name) : strlen(name);
    if (!colon) return WN_OK;
    n = strtol(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || n > 4095)
        return wn_fail(err, WN_EINVAL, "backend '%s': after the colon comes a device number", name);
    *device = (int)n;
    return WN_OK;
}

static wn_status find(const struct wn_backend_ops **out, const char *name, int *device, struct wn_err *err)
{
    char known[128] = "";
    size_t used = 0, len = 0;
    wn_status rc = split_name(name, &len, device, err);

    if (rc != WN_OK) return rc;
    for (size_t i = 0; wn_backends[i]; i++) {
        const struct wn_backend_ops *ops = wn_backends[i];
        if (strlen(ops->name) == len && strncmp(ops->name, name, len) == 0) {
            check_ops(ops);
            *out = ops;
            return WN_OK;
        }
        if (used < sizeof(known))
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", ops->name);
    }
    return wn_fail(err, WN_ENOENT, "backend '%s' does not exist in this build; there are: %s", name, known);
}

wn_status wn_backend_open(struct wn_backend **out, const char *name, int device, struct wn_err *err)
{
    const struct wn_backend_ops *ops = NULL;
    wn_status rc = find(&ops, name, &device, err);

    return rc == WN_OK ? ops->open(out, device, err) : rc;
}

wn_status wn_backend_known(const char *name, struct wn_err *err)
{
    const struct wn_backend_ops *ops = NULL;
    int device = 0;

    return find(&ops, name, &device, err);
}

wn_status wn_backend_devices(const char *name, int *n, int *asked, struct wn_err *err)
{
    const struct wn_backend_ops *ops = NULL;
    wn_status rc;

    *n = 0;
    *asked = -1;
    rc = find(&ops, name, asked, err);
    return rc == WN_OK && ops->devices ? ops->devices(n, err) : rc;
}

void wn_backend_close(struct wn_backend *be)
{
    if (be) be->ops->close(be);
}

wn_status wn_be_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n)
{
    wn_status rc = WN_OK;

    if (be->ops->matmuls) return be->ops->matmuls(be, a, n);
    for (uint32_t i = 0; rc == WN_OK && i < n; i++) rc = wn_be_matmul(be, &a[i]);
    return rc;
}

wn_status wn_be_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *n)
{
    wn_status rc;

    if (be->ops->add_norm) return be->ops->add_norm(be, y, n);
    rc = be->ops->add(be, &n->x, &n->x, y);
    return rc == WN_OK ? be->ops->norm(be, n) : rc;
}

wn_status wn_be_rope_kv(struct wn_backend *be, const struct wn_rope *r, const struct wn_kv_write *w)
{
    wn_status rc;

    if (be->ops->rope_kv) return be->ops->rope_kv(be, r, w);
    rc = be->ops->rope(be, r);
    return rc == WN_OK ? be->ops->kv_write(be, w) : rc;
}
