#include "shard/plan_memory.h"

/* Scratch of a stage, as decoder.c allocates it. */
static uint64_t step_bytes(const struct wn_plan *p, uint32_t rank, const struct wn_memory_limits *l)
{
    const struct wn_text_config *t = &p->model.text;
    uint32_t stage = rank / p->tensors, tensor = rank % p->tensors, part = t->hidden / p->tensors;
    bool first = stage == 0, last = stage + 1 == p->stages;
    uint64_t e = wn_dtype_bytes(p->dtype), rows = l->rows_max, vocab = wn_plan_vocab(p, tensor).n;
    uint64_t heads = wn_plan_heads(p, tensor).n, kv_heads = wn_plan_kv_heads(p, tensor).n;
    uint64_t row = e * (2ull * t->hidden + (2 * heads + 2 * kv_heads) * t->head_dim + 2ull * wn_plan_mlp(p, tensor).n);
    uint64_t bytes;

    if (first || p->tensors > 1) row += 4ull * t->hidden;
    if (first) row += e * (p->model.vision.hidden + part) + 4ull * t->hidden;
    if (!last) row += e * part;
    if (!first) row += e * part * p->tensors;
    bytes = rows * row;
    if (last) bytes += l->wanted_max * (e * (t->hidden + vocab) + (p->dtype != WN_F32 ? 4 * vocab : 0));
    if (last && tensor == 0 && p->tensors > 1) bytes += 4ull * l->wanted_max * t->vocab;
    return bytes;
}

static void measure(struct wn_memory_plan *out, const struct wn_plan *p, uint32_t rank,
                    const struct wn_memory_limits *l)
{
    uint64_t fixed;

    *out = (struct wn_memory_plan){.weight_bytes = wn_plan_weight_bytes(p, rank),
                                   .step_bytes = step_bytes(p, rank, l),
                                   .page_bytes = wn_plan_kv_bytes_per_token(p, rank) * l->page_tokens};
    if (rank < p->tensors)
        out->feature_bytes =
            (uint64_t)l->slots * p->model.vision.patches * p->model.vision.hidden * wn_dtype_bytes(p->dtype);
    fixed = out->weight_bytes + out->step_bytes + out->feature_bytes + l->reserve_bytes;
    if (fixed < l->device_bytes && out->page_bytes > 0) out->pages = (l->device_bytes - fixed) / out->page_bytes;
}

/* Does every rank of this layout fit? */
static bool fits(const struct wn_model *m, uint32_t stages, uint32_t tensors, wn_dtype dtype,
                 const struct wn_memory_limits *l)
{
    struct wn_plan p;
    struct wn_memory_plan need;

    if (wn_plan_make(&p, m, stages, tensors, NULL, dtype, NULL) != WN_OK) return false;
    for (uint32_t r = 0; r < stages * tensors; r++) {
        measure(&need, &p, r, l);
        if (need.pages < l->pages_min) return false;
    }
    return true;
}

wn_status wn_plan_memory(struct wn_memory_plan *out, const struct wn_plan *p, uint32_t rank,
                         const struct wn_memory_limits *l, struct wn_err *err)
{
    double fixed, page, left; /* for the text: GB, MB, GB */

    measure(out, p, rank, l);
    if (out->pages >= l->pages_min) return WN_OK;
    fixed = (double)(out->weight_bytes + out->step_bytes + out->feature_bytes) * 1e-9;
    page = (double)out->page_bytes * 1e-6;
    left = (double)l->device_bytes * 1e-9;
    for (uint32_t ranks = 2; ranks <= 64; ranks++) { /* the fewest devices, tensor ranks before stages */
        for (uint32_t tensors = ranks; tensors >= 1; tensors--) {
            if (ranks % tensors != 0 || !fits(&p->model, ranks / tensors, tensors, p->dtype, l)) continue;
            return wn_fail(err, WN_ENOMEM,
                           "rank %u needs %.1f GB and %u KV pages of %.1f MB, its device has %.1f GB free; "
                           "-tp %u -pp %u would fit",
                           rank, fixed, l->pages_min, page, left, tensors, ranks / tensors);
        }
    }
    return wn_fail(err, WN_ENOMEM, "rank %u needs %.1f GB and %u KV pages of %.1f MB, its device has %.1f GB free",
                   rank, fixed, l->pages_min, page, left);
}
