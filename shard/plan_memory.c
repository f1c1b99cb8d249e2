/* shard/plan_memory.c - see plan_memory.h. */
#include "shard/plan_memory.h"

#include "base/bytes.h"

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
    if (!first) row += e * part * (p->tensors > 1 ? p->tensors + 1 : 1);
    bytes = rows * row;
    if (last) bytes += l->wanted_max * (e * (t->hidden + vocab) + (p->dtype != WN_F32 ? 4 * vocab : 0));
    if (last && tensor == 0 && p->tensors > 1) bytes += 4ull * l->wanted_max * t->vocab;
    return bytes;
}

static void measure(struct wn_memory_plan *out, const struct wn_plan *p, const uint32_t *ranks, uint32_t n,
                    const struct wn_memory_limits *l)
{
    const uint64_t copies = l->replicas > 1 ? l->replicas : 1;
    struct wn_memory_plan m = {0};
    uint64_t fixed;

    for (uint32_t i = 0; i < n; i++) {
        m.weight_bytes += copies * wn_plan_weight_bytes(p, ranks[i]);
        m.step_bytes += copies * step_bytes(p, ranks[i], l);
        m.page_bytes += copies * wn_plan_kv_bytes_per_token(p, ranks[i]) * l->page_tokens;
        if (ranks[i] < p->tensors)
            m.feature_bytes += copies * l->slots * (p->model.vision.patches + 1) * p->model.vision.hidden *
                               wn_dtype_bytes(p->dtype);
    }
    fixed = m.weight_bytes + m.step_bytes + m.feature_bytes + l->reserve_bytes;
    if (fixed < l->device_bytes && m.page_bytes > 0) m.pages = (l->device_bytes - fixed) / m.page_bytes;
    *out = m;
}

/* Does every rank of this layout fit a device of its own? */
static bool fits(const struct wn_plan *as, uint32_t stages, uint32_t tensors, const struct wn_memory_limits *l)
{
    struct wn_plan p;
    struct wn_memory_plan need;

    if (wn_plan_make(&p, &as->model, stages, tensors, NULL, as->dtype, NULL) != WN_OK) return false;
    p.linear = as->linear;
    for (uint32_t r = 0; r < stages * tensors; r++) {
        measure(&need, &p, &r, 1, l);
        if (need.pages < l->pages_min) return false;
    }
    return true;
}

/* ", -tp 4 -pp 1 would fit": the fewest devices, tensor ranks before stages; "" if no layout does. */
static void propose(char out[96], const struct wn_plan *p, const struct wn_memory_limits *l)
{
    out[0] = '\0';
    for (uint32_t ranks = 2; ranks <= 64; ranks++)
        for (uint32_t tensors = ranks; tensors >= 1; tensors--) {
            if (ranks % tensors != 0 || !fits(p, ranks / tensors, tensors, l)) continue;
            snprintf(out, 96, "; -tp %u -pp %u would fit, each rank on such a device", tensors, ranks / tensors);
            return;
        }
}

static const char *amount(char out[WN_BYTES_TEXT], uint64_t bytes)
{
    return wn_bytes_text(out, (double)bytes, 1);
}

wn_status wn_plan_memory_shared(struct wn_memory_plan *out, const struct wn_plan *p, const uint32_t *ranks, uint32_t n,
                                const struct wn_memory_limits *l, struct wn_err *err)
{
    const uint64_t copies = l->replicas > 1 ? l->replicas : 1;
    const uint64_t usable = l->device_bytes - (l->reserve_bytes < l->device_bytes ? l->reserve_bytes : l->device_bytes);
    char who[64], layout[96], a[WN_BYTES_TEXT], b[WN_BYTES_TEXT], c[WN_BYTES_TEXT], d[WN_BYTES_TEXT], e[WN_BYTES_TEXT];

    measure(out, p, ranks, n, l);
    if (out->pages >= l->pages_min) return WN_OK;
    propose(layout, p, l);
    if (n == 1)
        snprintf(who, sizeof(who), "rank %u needs", ranks[0]);
    else
        snprintf(who, sizeof(who), "%u ranks that share a device need", n);
    if (copies > 1) snprintf(who, sizeof(who), "%llu ranks on one device need", (unsigned long long)(n * copies));
    return wn_fail(err, WN_ENOMEM, "%s %s, and %u KV pages of %s%s (%s): of %s free %s may be used%s", who,
                   amount(a, out->weight_bytes + out->step_bytes + out->feature_bytes), l->pages_min,
                   amount(b, out->page_bytes / (n * copies)), n * copies > 1 ? " each" : "",
                   amount(c, out->page_bytes * l->pages_min), amount(d, l->device_bytes), amount(e, usable), layout);
}

wn_status wn_plan_memory(struct wn_memory_plan *out, const struct wn_plan *p, uint32_t rank,
                         const struct wn_memory_limits *l, struct wn_err *err)
{
    return wn_plan_memory_shared(out, p, &rank, 1, l, err);
}
