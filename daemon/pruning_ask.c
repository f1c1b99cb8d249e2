/* daemon/pruning_ask.c - see pruning_ask.h. */
#include "daemon/pruning_ask.h"

#include <string.h>

static char *text(const char *s)
{
    return (char *)(uintptr_t)s; /* protobuf-c has no const; nobody writes to it */
}

static bool given(const char *s)
{
    return s && s[0];
}

/* --image-pruning-rate 0 is "nothing removed" if somebody said so, and no budget if nobody did. */
static bool rate_given(const struct wn_config *cfg)
{
    return cfg->source[wn_config_find("image-pruning-rate") - wn_options] != WN_FROM_DEFAULT;
}

void wn_pruning_complete(Wn__Pruning *out, const Wn__Pruning *asked, const struct wn_config *cfg)
{
    static const Wn__Pruning nothing = WN__PRUNING__INIT;
    const Wn__Pruning *a = asked ? asked : &nothing;
    const bool budget = a->keep > 0 || a->rate > 0;
    const bool original = cfg->image_pruning_position == WN_CONFIG_POSITION_ORIGINAL;
    const struct wn_prune_method *m;

    *out = nothing;
    out->method = text(given(a->method) ? a->method : cfg->image_pruning_method);
    out->keep = budget ? a->keep : cfg->image_keep_tokens;
    out->rate = budget ? a->rate : cfg->image_pruning_rate;
    if (!budget && !out->keep && !(out->rate > 0) && rate_given(cfg)) out->keep = WN_FEATURE_ROWS_MAX;
    out->cap = a->cap ? a->cap : cfg->image_pruning_cap;
    out->position = a->position ? a->position
                    : original  ? WN__POSITION_POLICY__POSITION_ORIGINAL
                                : WN__POSITION_POLICY__POSITION_COMPACT;
    out->projected = a->projected || cfg->image_pruning_projected;
    out->seed = a->seed ? a->seed : cfg->image_pruning_seed;
    out->options = text(given(a->options) ? a->options : cfg->image_pruning_options);
    m = wn_prune_find(out->method, NULL);
    out->setting = text(given(a->setting) ? a->setting : m && m->paper ? cfg->image_pruning_setting : "");
}

wn_status wn_pruning_ask(const Wn__Pruning *p, const struct wn_prune_method **method, struct wn_prune_ask *ask,
                         struct wn_err *err)
{
    const struct wn_prune_method *m = wn_prune_find(p->method, err);
    struct wn_prune_ask a = {
        .budget = {.keep = p->keep, .rate = p->rate, .cap = p->cap, .seed = p->seed}};
    wn_status rc;

    if (!m) return WN_ENOENT;
    if ((rc = wn_prune_setting_parse(&a.setting, p->setting, err)) != WN_OK) return rc;
    if ((rc = wn_prune_options_parse(&a.options, p->options, err)) != WN_OK) return rc;
    wn_prune_ask_complete(m, &a);
    a.projected = !(m->spaces & WN_PRUNE_TOWER); /* where the method itself works */
    if ((rc = wn_prune_check_ask(m, &a, err)) != WN_OK) return rc;
    a.projected = p->projected;
    *method = m;
    *ask = a;
    return WN_OK;
}

/* The method chooses how many rows it keeps. */
static bool own_count(const struct wn_prune_method *m, const struct wn_prune_ask *ask)
{
    return m->adaptive && !ask->budget.keep && !(ask->budget.rate > 0);
}

wn_status wn_pruning_limit(const struct wn_prune_method *m, struct wn_prune_ask *ask, uint32_t rows,
                           uint32_t tokens_max, struct wn_err *err)
{
    struct wn_prune_budget *b = &ask->budget;

    if (tokens_max == 0 || tokens_max >= wn_prune_rows_max(m, ask, rows)) return WN_OK;
    if (m->all)
        return wn_fail(err, WN_ELIMIT,
                       "pruning method '%s' keeps %u visual tokens of an image; this server takes at most %u", m->name,
                       rows, tokens_max);
    if (own_count(m, ask))
        b->cap = tokens_max;
    else
        b->keep = tokens_max;
    return WN_OK;
}

void wn_pruning_in_force(Wn__Pruning *p, const struct wn_prune_method *m, const struct wn_prune_ask *ask,
                         uint32_t rows, bool projected)
{
    p->keep = m->all || own_count(m, ask) ? 0 : wn_prune_count(&ask->budget, rows);
    p->rate = ask->budget.rate;
    p->cap = ask->budget.cap;
    p->seed = ask->budget.seed;
    p->projected = projected;
}

void wn_pruning_hash(const Wn__Pruning *p, uint32_t rows, bool projected, uint8_t out[WN_SHA256_BYTES])
{
    const struct wn_prune_method *m;
    struct wn_prune_ask ask;
    Wn__Pruning is = *p;
    struct wn_sha256 s;
    struct wn_err err;

    wn_sha256_init(&s);
    if (wn_pruning_ask(p, &m, &ask, &err) == WN_OK) { /* else the worker has refused it */
        wn_pruning_in_force(&is, m, &ask, rows, projected);
        wn_sha256_update(&s, m->name, strlen(m->name) + 1);
        if (!m->all) { /* where all rows stay nothing else counts */
            const uint64_t numbers[] = {is.keep, is.cap, is.position, is.seed, (uint64_t)ask.setting};
            wn_sha256_update(&s, numbers, sizeof(numbers));
            if (is.options) wn_sha256_update(&s, is.options, strlen(is.options));
        }
    }
    wn_sha256_update(&s, &projected, sizeof(projected));
    wn_sha256_final(&s, out);
}

void wn_pruning_copy_numbers(Wn__Pruning *into, const Wn__Pruning *from)
{
    if (!from) return;
    into->keep = from->keep;
    into->rate = from->rate;
    into->cap = from->cap;
    into->seed = from->seed;
    into->position = from->position;
    into->projected = from->projected;
}
