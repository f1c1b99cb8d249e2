/* shard/plan_print.c - the plan as a table for people and as JSON; see plan.h. Both print what wn_plan_* say. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "shard/plan_memory.h"

/* Everything that can cross a link of the replica. */
static const wn_traffic kinds[] = {WN_TRAFFIC_EMBEDDING, WN_TRAFFIC_ACTIVATION,
                                   WN_TRAFFIC_ALLREDUCE, WN_TRAFFIC_LOGITS};
#define KINDS_N (sizeof(kinds) / sizeof(kinds[0]))

struct totals {
    uint64_t weights, kv; /* all ranks */
    uint64_t once;        /* every tensor of the decoder and projector once */
    uint64_t links[KINDS_N];
};

static const char *human(char out[WN_BYTES_TEXT], uint64_t bytes)
{
    return wn_bytes_text(out, (double)bytes, 2);
}

static uint32_t ranks_of(const struct wn_plan *p)
{
    return p->stages * p->tensors;
}

static struct totals totals_of(const struct wn_plan *p)
{
    struct totals t = {0};
    struct wn_plan whole = *p;

    whole.stages = whole.tensors = 1;
    whole.layers[0] = (struct wn_range){0, p->model.text.layers};
    t.once = wn_plan_weight_bytes(&whole, 0);
    if (p->model.text.tied)
        t.once -= (uint64_t)p->model.text.vocab * p->model.text.hidden * wn_dtype_bytes(p->dtype);
    for (uint32_t r = 0; r < ranks_of(p); r++) {
        t.weights += wn_plan_weight_bytes(p, r);
        t.kv += wn_plan_kv_bytes_per_token(p, r);
    }
    return t;
}

/* "0-19" */
static const char *span(char out[24], struct wn_range r)
{
    if (r.n == 0)
        snprintf(out, 24, "-");
    else if (r.n == 1)
        snprintf(out, 24, "%u", r.first);
    else
        snprintf(out, 24, "%u-%u", r.first, r.first + r.n - 1);
    return out;
}

static void print_model(const struct wn_plan *p, FILE *out)
{
    const struct wn_text_config *t = &p->model.text;

    fprintf(out, "%s: %u layers, width %u, %u heads (%u kv) of %u, MLP %u, vocabulary %u\n",
            p->model.architecture, t->layers, t->hidden, t->heads, t->kv_heads, t->head_dim, t->mlp,
            t->vocab);
    fprintf(out,
            "%u stage%s x %u tensor rank%s = %u rank%s, computing in %s%s; the vision tower is on "
            "the vision workers\n",
            p->stages, p->stages == 1 ? "" : "s", p->tensors, p->tensors == 1 ? "" : "s",
            ranks_of(p), ranks_of(p) == 1 ? "" : "s", wn_dtype_name(p->dtype),
            p->linear == WN_I8 ? " with the layers' matrices in int8" : "");
    if (p->slices == p->model.slices)
        fprintf(out,
                "sums are made in %u parts: every tensor parallel size that divides %u gives the "
                "same bits\n\n",
                p->slices, p->slices);
    else
        fprintf(out, "sums are made in %u parts, one a rank: other sizes round differently\n\n",
                p->slices);
}

static void print_ranks(const struct wn_plan *p, const struct totals *t, FILE *out)
{
    char a[24], b[24], c[24], d[24], e[24], f[24];

    fprintf(out, "%5s %5s %6s %9s %9s %9s %13s %12s %15s %13s\n", "rank", "stage", "tensor",
            "layers", "heads", "kv heads", "vocabulary", "weights", "bytes", "KV B/token");
    for (uint32_t r = 0; r < ranks_of(p); r++) {
        uint32_t stage = r / p->tensors, tensor = r % p->tensors;
        bool vocab = stage == 0 || stage + 1 == p->stages;
        uint64_t bytes = wn_plan_weight_bytes(p, r);
        fprintf(out, "%5u %5u %6u %9s %9s %9s %13s %12s %15" PRIu64 " %13" PRIu64 "\n", r, stage,
                tensor, span(a, p->layers[stage]), span(b, wn_plan_heads(p, tensor)),
                span(c, wn_plan_kv_heads(p, tensor)),
                vocab ? span(d, wn_plan_vocab(p, tensor)) : "-", human(e, bytes), bytes,
                wn_plan_kv_bytes_per_token(p, r));
    }
    fprintf(out, "%-71s %12s %15" PRIu64 " %13" PRIu64 "\n", "  all", human(f, t->weights),
            t->weights, t->kv);
    fprintf(out,
            "      = every tensor once, %" PRIu64 " bytes (%s), and %" PRIu64
            " bytes (%s) of copies\n"
            "        (norms and the projector's last bias on each tensor rank%s)\n",
            t->once, human(a, t->once), t->weights - t->once, human(b, t->weights - t->once),
            p->model.text.tied ? "; the embedding, which is the head too" : "");
    fprintf(out,
            "      KV cache of a sequence of %u tokens: %s (%" PRIu64 " bytes) over all ranks\n",
            p->model.text.positions_max, human(c, t->kv * p->model.text.positions_max),
            t->kv * p->model.text.positions_max);
}

/* Calls each for every pair of ranks that can have a link, the vision worker's first. */
typedef void link_fn(void *ctx, uint32_t src, uint32_t dst, const uint64_t bytes[KINDS_N]);

static void each_link(const struct wn_plan *p, const struct wn_plan_load *load, link_fn *each,
                      void *ctx)
{
    uint32_t n = ranks_of(p), width = p->tensors;

    for (uint32_t i = 0; i <= n; i++) {
        uint32_t src = i == 0 ? WN_PLAN_VISION : i - 1, base = i == 0 ? 0 : src / width * width;
        for (uint32_t dst = base; dst < n && dst < base + 2 * width;
             dst++) { /* this stage and the next */
            uint64_t bytes[KINDS_N], sum = 0;
            for (size_t k = 0; k < KINDS_N; k++)
                sum += bytes[k] = wn_plan_link_bytes(p, load, src, dst, kinds[k]);
            if (sum) each(ctx, src, dst, bytes);
        }
    }
}

static void add_link(void *ctx, uint32_t src, uint32_t dst, const uint64_t bytes[KINDS_N])
{
    uint64_t *sums = ctx;

    (void)src;
    (void)dst;
    for (size_t k = 0; k < KINDS_N; k++) sums[k] += bytes[k];
}

/* What a token after the first puts on all links together: every one the same. */
static void token_bytes(const struct wn_plan *p, uint64_t out[KINDS_N])
{
    const struct wn_plan_load one = {.text_tokens = 1, .new_tokens = 1}, two = {.text_tokens = 1, .new_tokens = 2};
    uint64_t sums[KINDS_N] = {0};

    for (size_t k = 0; k < KINDS_N; k++) out[k] = 0;
    each_link(p, &two, add_link, out);
    each_link(p, &one, add_link, sums);
    for (size_t k = 0; k < KINDS_N; k++) out[k] -= sums[k];
}

struct table {
    FILE *out;
    struct totals *totals;
};

static void print_link(void *ctx, uint32_t src, uint32_t dst, const uint64_t bytes[KINDS_N])
{
    struct table *t = ctx;
    uint64_t sum = 0;
    char from[24] = "vision", h[24];

    if (src != WN_PLAN_VISION) snprintf(from, sizeof(from), "%u", src);
    fprintf(t->out, "%6s -> %-5u", from, dst);
    for (size_t k = 0; k < KINDS_N; k++) {
        fprintf(t->out, " %15" PRIu64, bytes[k]);
        sum += bytes[k];
        t->totals->links[k] += bytes[k];
    }
    fprintf(t->out, " %15" PRIu64 " %12s\n", sum, human(h, sum));
}

static void print_links(const struct wn_plan *p, const struct wn_plan_load *load, struct totals *t,
                        FILE *out)
{
    struct table table = {.out = out, .totals = t};
    uint64_t sum = 0, token[KINDS_N];
    char h[24];

    fprintf(out,
            "\npayload bytes of one prompt of %u text tokens and %u image rows (%s), in chunks of "
            "%u, and its answer of "
            "%u tokens\n",
            load->text_tokens, load->image_rows, load->projected ? "projected" : "not projected",
            load->chunk_tokens, load->new_tokens);
    fprintf(out, "%-15s", "  link");
    for (size_t k = 0; k < KINDS_N; k++) fprintf(out, " %15s", wn_traffic_name(kinds[k]));
    fprintf(out, " %15s\n", "all");
    each_link(p, load, print_link, &table);
    fprintf(out, "%-15s", "  all");
    for (size_t k = 0; k < KINDS_N; k++) {
        fprintf(out, " %15" PRIu64, t->links[k]);
        sum += t->links[k];
    }
    fprintf(out, " %15" PRIu64 " %12s\n", sum, human(h, sum));
    token_bytes(p, token);
    sum = 0;
    fprintf(out, "%-15s", "  a token more");
    for (size_t k = 0; k < KINDS_N; k++) {
        fprintf(out, " %15" PRIu64, token[k]);
        sum += token[k];
    }
    fprintf(out, " %15" PRIu64 " %12s\n", sum, human(h, sum));
}

void wn_plan_print(const struct wn_plan *p, const struct wn_plan_load *load, FILE *out)
{
    struct totals t = totals_of(p);

    print_model(p, out);
    print_ranks(p, &t, out);
    if (load) print_links(p, load, &t, out);
}

void wn_plan_print_memory(const struct wn_plan *p, const struct wn_memory_limits *l, FILE *out)
{
    char a[24], b[24], c[24], d[24], e[24], f[24];

    fprintf(out,
            "\nmemory for %u KV pages of %u tokens, steps of %u rows and features of %u images\n"
            "%5s %12s %12s %12s %12s %12s %12s",
            l->pages_max, l->page_tokens, l->rows_max, l->slots, "rank", "weights", "workspace", "features", "KV page",
            "KV cache", "all");
    fprintf(out, l->device_bytes ? " %14s\n" : "\n", "pages that fit");
    for (uint32_t r = 0; r < ranks_of(p); r++) {
        struct wn_memory_plan m;
        uint64_t pages = l->pages_max;
        if (wn_plan_memory(&m, p, r, l, NULL) == WN_OK && m.pages < pages) pages = m.pages;
        fprintf(out, "%5u %12s %12s %12s %12s %12s %12s", r, human(a, m.weight_bytes), human(b, m.step_bytes),
                human(c, m.feature_bytes), human(d, m.page_bytes), human(e, pages * m.page_bytes),
                human(f, m.weight_bytes + m.step_bytes + m.feature_bytes + pages * m.page_bytes));
        if (l->device_bytes) fprintf(out, " %14" PRIu64, m.pages);
        fputc('\n', out);
    }
    if (l->device_bytes)
        fprintf(out, "      of each device's %s free, %s stay free\n", human(a, l->device_bytes),
                human(b, l->reserve_bytes));
}

/* A number of ours: all are far below 2^63. */
static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)n);
}

static json_t *range_json(struct wn_range r)
{
    return json_pack("{s:o, s:o}", "first", number(r.first), "n", number(r.n));
}

static json_t *rank_json(const struct wn_plan *p, uint32_t r)
{
    uint32_t stage = r / p->tensors, tensor = r % p->tensors;
    json_t *o = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "rank", number(r), "stage", number(stage),
        "tensor", number(tensor), "layers", range_json(p->layers[stage]), "heads",
        range_json(wn_plan_heads(p, tensor)), "kv_heads", range_json(wn_plan_kv_heads(p, tensor)),
        "mlp", range_json(wn_plan_mlp(p, tensor)), "weight_bytes",
        number(wn_plan_weight_bytes(p, r)), "kv_bytes_per_token",
        number(wn_plan_kv_bytes_per_token(p, r)));

    if (stage == 0 || stage + 1 == p->stages)
        json_object_set_new(o, "vocabulary", range_json(wn_plan_vocab(p, tensor)));
    return o;
}

static json_t *bytes_json(const uint64_t bytes[KINDS_N])
{
    json_t *o = json_object();

    for (size_t k = 0; k < KINDS_N; k++)
        json_object_set_new(o, wn_traffic_name(kinds[k]), number(bytes[k]));
    return o;
}

struct links_json {
    json_t *list;
    struct totals *totals;
};

static void link_json(void *ctx, uint32_t src, uint32_t dst, const uint64_t bytes[KINDS_N])
{
    struct links_json *l = ctx;
    json_t *from = src == WN_PLAN_VISION ? json_string("vision") : number(src);

    for (size_t k = 0; k < KINDS_N; k++) l->totals->links[k] += bytes[k];
    json_array_append_new(l->list, json_pack("{s:o, s:o, s:o}", "from", from, "to", number(dst),
                                             "payload_bytes", bytes_json(bytes)));
}

static void add_load(json_t *root, const struct wn_plan *p, const struct wn_plan_load *load,
                     struct totals *t)
{
    struct links_json links = {.list = json_array(), .totals = t};
    uint64_t token[KINDS_N];

    token_bytes(p, token);
    each_link(p, load, link_json, &links);
    json_object_set_new(root, "load",
                        json_pack("{s:o, s:o, s:o, s:o, s:b}", "text_tokens",
                                  number(load->text_tokens), "image_rows", number(load->image_rows),
                                  "new_tokens", number(load->new_tokens), "chunk_tokens",
                                  number(load->chunk_tokens), "projected", load->projected));
    json_object_set_new(root, "links", links.list);
    json_object_set_new(root, "payload_bytes", bytes_json(t->links));
    json_object_set_new(root, "token_bytes", bytes_json(token));
}

static json_t *memory_json(const struct wn_plan *p, uint32_t rank, const struct wn_memory_limits *l)
{
    struct wn_memory_plan m;
    json_t *o;

    (void)!wn_plan_memory(&m, p, rank, l, NULL); /* what does not fit is the caller's to say */
    o = json_pack("{s:o, s:o, s:o, s:o}", "step_bytes", number(m.step_bytes), "feature_bytes", number(m.feature_bytes),
                  "page_bytes", number(m.page_bytes), "pages_wanted", number(l->pages_max));
    if (l->device_bytes) json_object_set_new(o, "pages_that_fit", number(m.pages));
    return o;
}

char *wn_plan_json(const struct wn_plan *p, const struct wn_plan_load *load, const struct wn_memory_limits *memory)
{
    struct totals t = totals_of(p);
    json_t *ranks = json_array();
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "architecture",
                  p->model.architecture, "dtype", wn_dtype_name(p->dtype), "linear", wn_dtype_name(p->linear), "stages",
                  number(p->stages), "tensors", number(p->tensors), "slices", number(p->slices),
                  "weight_bytes", number(t.weights), "model_bytes", number(t.once), "copies_bytes",
                  number(t.weights - t.once), "kv_bytes_per_token", number(t.kv));
    char *text = NULL;

    for (uint32_t r = 0; r < ranks_of(p); r++) {
        json_t *rank = rank_json(p, r);
        if (memory) json_object_set_new(rank, "memory", memory_json(p, r, memory));
        json_array_append_new(ranks, rank);
    }
    json_object_set_new(root, "ranks", ranks);
    if (load) add_load(root, p, load, &t);
    if (root) text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    return text;
}
