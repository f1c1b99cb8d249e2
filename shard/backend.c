#include "shard/backend.h"

#include <stdio.h>

const struct wn_backend_ops *const wn_backends[] = {
    &wn_backend_cpu,
    &wn_backend_cpu_reference,
    NULL,
};

static void check_ops(const struct wn_backend_ops *ops)
{
    WN_ASSERT(ops->name && ops->open && ops->close && ops->buf_alloc && ops->buf_free && ops->upload &&
              ops->download);
    WN_ASSERT(ops->weight_create && ops->weight_destroy && ops->matmul && ops->norm && ops->rope && ops->kv_write);
    WN_ASSERT(ops->attn_paged && ops->attn_full && ops->add && ops->silu_mul && ops->gather_rows && ops->convert);
    WN_ASSERT(ops->sync);
}

wn_status wn_backend_open(struct wn_backend **out, const char *name, int device, struct wn_err *err)
{
    char known[128] = "";
    size_t used = 0;

    for (size_t i = 0; wn_backends[i]; i++) {
        const struct wn_backend_ops *ops = wn_backends[i];
        if (strcmp(ops->name, name) == 0) {
            check_ops(ops);
            return ops->open(out, device, err);
        }
        if (used < sizeof(known))
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", ops->name);
    }
    return wn_fail(err, WN_ENOENT, "backend '%s' does not exist; there are: %s", name, known);
}

void wn_backend_close(struct wn_backend *be)
{
    if (be) be->ops->close(be);
}
