/* daemon/fit.c - see fit.h. */
#include "daemon/fit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hostmem.h"
#include "base/log.h"
#include "proto/codec.h"
#include "transport/coll.h"
#include "transport/link.h"

#define KV_PAGES_MAX (1u << 24)

static uint32_t pages_of(uint32_t tokens, uint32_t page_tokens)
{
    return (tokens + page_tokens - 1) / page_tokens;
}

wn_status wn_fit_step(struct wn_step_limits *out, uint32_t *tokens_max, const struct wn_config *c,
                      const struct wn_model *model, struct wn_err *err)
{
    uint32_t tokens = model->text.positions_max;
    uint64_t pages, table;
    struct wn_step_limits l;

    if (c->max_model_len > tokens)
        return wn_fail(err, WN_ELIMIT, "--max-model-len %u: the model has positions for %u tokens", c->max_model_len,
                       tokens);
    if (c->max_model_len) tokens = c->max_model_len;
    pages = c->kv_pages ? c->kv_pages : (uint64_t)c->max_num_seqs * pages_of(tokens, c->block_size);
    l = (struct wn_step_limits){
        .rows_max = c->max_num_batched_tokens,
        .seqs_max = c->max_num_seqs < c->max_num_batched_tokens ? c->max_num_seqs : c->max_num_batched_tokens,
        .pages_max = pages < KV_PAGES_MAX ? (uint32_t)pages : KV_PAGES_MAX,
        .features_max = c->max_num_seqs > WN_IMAGES_MAX ? c->max_num_seqs : WN_IMAGES_MAX,
        .page_tokens = c->block_size,
        .vocab = model->text.vocab,
        .positions_max = model->text.positions_max,
    };
    table = (uint64_t)l.seqs_max * pages_of(tokens, c->block_size);
    if (table > KV_PAGES_MAX)
        return wn_fail(err, WN_ELIMIT,
                       "%u jobs of %u tokens have more than %u KV pages of %u: choose a smaller --max-num-seqs or "
                       "--max-model-len",
                       l.seqs_max, tokens, KV_PAGES_MAX, c->block_size);
    l.table_max = (uint32_t)table;
    *out = l;
    *tokens_max = tokens;
    return WN_OK;
}

struct wn_memory_limits wn_fit_limits(const struct wn_config *cfg, const struct wn_step_limits *step,
                                      uint32_t tokens_max, uint64_t free_bytes)
{
    const uint32_t one = pages_of(tokens_max, step->page_tokens);

    return (struct wn_memory_limits){
        .device_bytes = free_bytes,
        .reserve_bytes = (uint64_t)((double)free_bytes * (1.0 - (double)cfg->memory_utilization)),
        .page_tokens = step->page_tokens,
        .pages_min = cfg->kv_pages || one > step->pages_max ? step->pages_max : one,
        .pages_max = step->pages_max,
        .rows_max = step->rows_max,
        .wanted_max = step->seqs_max,
        .slots = step->features_max,
    };
}

wn_status wn_fit_host(const struct wn_config *cfg, const struct wn_plan *plan, struct wn_err *err)
{
    uint32_t ranks[WN_STAGES_MAX * WN_TENSOR_MAX], n = plan->stages * plan->tensors, tokens_max = 0;
    struct wn_step_limits step = {0};
    struct wn_memory_limits limits;
    struct wn_memory_plan need;
    struct wn_hostmem memory;
    wn_status rc;

    if ((rc = wn_fit_step(&step, &tokens_max, cfg, &plan->model, err)) != WN_OK) return rc;
    if (wn_hostmem(&memory, NULL) != WN_OK) return WN_OK; /* not known: nothing to refuse by */
    for (uint32_t r = 0; r < n; r++) ranks[r] = r;
    limits = wn_fit_limits(cfg, &step, tokens_max, memory.free_bytes);
    limits.replicas = cfg->replicas;
    return wn_plan_memory_shared(&need, plan, ranks, n, &limits, err);
}

/* Where a rank's memory is, as it travels to rank 0. */
struct place {
    char host[64], id[64];
    uint64_t free_bytes;
    uint32_t dtype, linear; /* what the rank is to compute in */
};

/* What rank 0 decided, as it travels to all. */
struct verdict {
    uint32_t status, pages;
    char text[WN_ERR_TEXT_MAX];
};

static bool together(const struct place *a, const struct place *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->id, b->id) == 0;
}

/* Rank by rank: those that share its device, if it is the first of them. */
static void decide(struct verdict *out, const struct wn_fit *f, const struct wn_step_limits *step,
                   const struct place *places, uint32_t n)
{
    uint32_t ranks[WN_STAGES_MAX * WN_TENSOR_MAX];
    struct wn_err err = {0};

    *out = (struct verdict){.pages = step->pages_max};
    for (uint32_t r = 1; r < n; r++) {
        if (places[r].dtype == places[0].dtype && places[r].linear == places[0].linear) continue;
        out->status = WN_EINVAL;
        snprintf(out->text, sizeof(out->text), "%.64s: rank %u has another --dtype or --quantization than rank 0",
                 places[r].host, r);
        return;
    }
    for (uint32_t r = 0; r < n; r++) {
        struct wn_memory_limits limits;
        struct wn_memory_plan need;
        uint64_t least = places[r].free_bytes;
        uint32_t here = 0;
        bool first = true;
        for (uint32_t i = 0; i < r; i++) first &= !together(&places[i], &places[r]);
        if (!first) continue;
        for (uint32_t i = r; i < n; i++) {
            if (!together(&places[i], &places[r])) continue;
            ranks[here++] = i;
            if (places[i].free_bytes < least) least = places[i].free_bytes;
        }
        limits = wn_fit_limits(f->cfg, step, f->tokens_max, least);
        if (wn_plan_memory_shared(&need, f->plan, ranks, here, &limits, &err) != WN_OK) {
            out->status = WN_ENOMEM;
            snprintf(out->text, sizeof(out->text), "%.64s: %.300s", places[r].host, err.text);
            return;
        }
        if (need.pages < out->pages) out->pages = (uint32_t)need.pages;
    }
}

wn_status wn_fit_agree(struct wn_step_limits *step, const struct wn_fit *f, bool *refused, struct wn_err *err)
{
    const uint32_t n = f->plan->stages * f->plan->tensors;
    struct place mine = {.id = ""}, *places = calloc(n, sizeof(*places));
    size_t *bytes = calloc(n, sizeof(*bytes));
    int *ranks = calloc(n, sizeof(*ranks));
    struct wn_memory memory = {0};
    struct verdict v = {0};
    wn_status rc = WN_OK;

    if (!places || !bytes || !ranks) {
        rc = wn_fail(err, WN_ENOMEM, "%u ranks", n);
        goto out;
    }
    if (f->be->ops->memory(f->be, &memory) != WN_OK) memory.free_bytes = UINT64_MAX / 2; /* not known */
    if (gethostname(mine.host, sizeof(mine.host) - 1) != 0) snprintf(mine.host, sizeof(mine.host), "?");
    snprintf(mine.id, sizeof(mine.id), "%s", memory.id);
    mine.free_bytes = memory.free_bytes;
    mine.dtype = f->plan->dtype;
    mine.linear = f->plan->linear;
    for (uint32_t r = 0; r < n; r++) {
        ranks[r] = (int)r;
        bytes[r] = sizeof(mine);
    }
    if (f->link) {
        const struct wn_comm all = {.ranks = ranks, .n = (int)n, .me = (int)f->rank};
        rc = wn_coll_gather(f->link, &all, 0, WN_TRAFFIC_CONTROL, &mine, f->rank == 0 ? places : NULL, bytes,
                            f->deadline_us);
        if (rc == WN_OK && f->rank == 0) decide(&v, f, step, places, n);
        if (rc == WN_OK) rc = wn_coll_broadcast(f->link, &all, 0, WN_TRAFFIC_CONTROL, &v, sizeof(v), f->deadline_us);
        if (rc != WN_OK) wn_fail(err, rc, "memory of the ranks: %s", wn_link_error(f->link)->text);
    } else {
        decide(&v, f, step, &mine, 1);
    }
    if (rc != WN_OK) goto out;
    v.text[sizeof(v.text) - 1] = '\0';
    if (v.status != WN_OK) {
        *refused = true;
        rc = wn_fail(err, (wn_status)v.status, "%s", v.text);
        goto out;
    }
    if (f->rank == 0 && v.pages < step->pages_max)
        wn_warn("shard", "%u of %u KV pages fit: with many long jobs some will wait or be computed again", v.pages,
                step->pages_max);
    step->pages_max = v.pages;
out:
    free(places);
    free(bytes);
    free(ranks);
    return rc;
}
