/* shard/plan.c - see plan.h: the layout itself. Bytes on links are in plan_bytes.c, printing in plan_print.c. */
#include "shard/plan.h"

#include <stdlib.h>
#include <string.h>

/* "1, 2, 4": the sizes up to WN_TENSOR_MAX that the model can be cut by. */
static void list_sizes(char *out, size_t room, const struct wn_text_config *t)
{
    size_t n = 0;

    out[0] = '\0';
    for (uint32_t s = 1; s <= WN_TENSOR_MAX && n + 8 < room; s++)
        if (t->kv_heads % s == 0 && t->mlp % s == 0 && t->hidden % s == 0)
            n += (size_t)snprintf(out + n, room - n, "%s%u", s > 1 ? ", " : "", s);
}

static wn_status check_tensors(const struct wn_text_config *t, uint32_t tensors, struct wn_err *err)
{
    char sizes[160];

    list_sizes(sizes, sizeof(sizes), t);
    if (tensors == 0 || tensors > WN_TENSOR_MAX)
        return wn_fail(err, WN_EINVAL,
                       "tensor parallel size %u is outside 1 to %d; sizes that work: %s", tensors,
                       WN_TENSOR_MAX, sizes);
    if (t->kv_heads % tensors != 0)
        return wn_fail(
            err, WN_EINVAL,
            "tensor parallel size %u does not divide %u heads and %u kv heads; sizes that work: %s",
            tensors, t->heads, t->kv_heads, sizes);
    if (t->mlp % tensors != 0 || t->hidden % tensors != 0)
        return wn_fail(err, WN_EINVAL,
                       "tensor parallel size %u does not divide the %s %u; sizes that work: %s",
                       tensors, t->mlp % tensors ? "MLP width" : "hidden width",
                       t->mlp % tensors ? t->mlp : t->hidden, sizes);
    return WN_OK;
}

/* Reads a decimal number below 2^31 and moves *s behind it; false if there is none. */
static bool take_number(const char **s, uint32_t *out)
{
    uint64_t n = 0;
    const char *p = *s;

    while (*p >= '0' && *p <= '9' && n < UINT32_MAX / 2) n = n * 10 + (uint64_t)(*p++ - '0');
    if (p == *s || n >= UINT32_MAX / 2) return false;
    *s = p;
    *out = (uint32_t)n;
    return true;
}

/* "0-9,10-39": one range a stage, which follow each other and cover all layers. */
static wn_status parse_layers(struct wn_plan *p, const char *spec, struct wn_err *err)
{
    const char *s = spec;
    uint32_t next = 0, layers = p->model.text.layers;

    for (uint32_t i = 0;; i++) {
        uint32_t first, last;
        const char *part = s;
        if (!take_number(&s, &first)) goto malformed;
        last = first;
        if (*s == '-') {
            s++;
            if (!take_number(&s, &last)) goto malformed;
        }
        if (*s != ',' && *s != '\0') goto malformed;
        if (last < first)
            return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': %u-%u runs backwards", spec,
                           first, last);
        if (last >= layers)
            return wn_fail(err, WN_EINVAL,
                           "pipeline layers '%.100s': layer %u, but the model has %u", spec, last,
                           layers);
        if (first < next)
            return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': layer %u is in two stages",
                           spec, first);
        if (first > next)
            return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': layer %u is in no stage",
                           spec, next);
        if (i >= p->stages)
            return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': more ranges than %u stages",
                           spec, p->stages);
        p->layers[i] = (struct wn_range){first, last - first + 1};
        next = last + 1;
        if (*s == '\0') {
            if (i + 1 != p->stages)
                return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': %u ranges for %u stages",
                               spec, i + 1, p->stages);
            break;
        }
        s++;
        continue;
    malformed:
        return wn_fail(err, WN_EINVAL,
                       "pipeline layers '%.100s': '%.20s' is not a range such as 0-9", spec, part);
    }
    if (next != layers)
        return wn_fail(err, WN_EINVAL, "pipeline layers '%.100s': layer %u is in no stage", spec,
                       next);
    return WN_OK;
}

/* Part i of n things dealt out evenly; the first parts take one more. */
static struct wn_range deal(uint32_t n, uint32_t parts, uint32_t i)
{
    uint32_t base = n / parts, more = n % parts;

    return (struct wn_range){i * base + (i < more ? i : more), base + (i < more)};
}

wn_status wn_plan_make(struct wn_plan *out, const struct wn_model *model, uint32_t stages,
                       uint32_t tensors, const char *layers_spec, wn_dtype dtype,
                       struct wn_err *err)
{
    struct wn_plan p = {
        .model = *model, .dtype = dtype, .linear = dtype, .stages = stages, .tensors = tensors};
    uint32_t layers = model->text.layers;
    wn_status rc;

    if (dtype != WN_F32 && dtype != WN_BF16)
        return wn_fail(err, WN_EUNSUPP,
                       "computing in %s is not supported; supported: float32, bfloat16",
                       wn_dtype_name(dtype));
    if (stages == 0 || stages > WN_STAGES_MAX)
        return wn_fail(err, WN_EINVAL, "pipeline parallel size %u is outside 1 to %d", stages,
                       WN_STAGES_MAX);
    if (stages > layers)
        return wn_fail(err, WN_EINVAL,
                       "pipeline parallel size %u is more than the %u layers of the model", stages,
                       layers);
    if ((rc = check_tensors(&model->text, tensors, err)) != WN_OK) return rc;
    p.slices = model->slices % tensors == 0 ? model->slices : tensors;
    for (uint32_t s = 0; s < stages; s++) p.layers[s] = deal(layers, stages, s);
    if (layers_spec && (rc = parse_layers(&p, layers_spec, err)) != WN_OK) return rc;
    *out = p;
    return WN_OK;
}

static struct wn_range even_part(uint32_t n, const struct wn_plan *p, uint32_t tensor)
{
    return (struct wn_range){tensor * (n / p->tensors), n / p->tensors};
}

struct wn_range wn_plan_heads(const struct wn_plan *p, uint32_t tensor)
{
    return even_part(p->model.text.heads, p, tensor);
}

struct wn_range wn_plan_kv_heads(const struct wn_plan *p, uint32_t tensor)
{
    return even_part(p->model.text.kv_heads, p, tensor);
}

struct wn_range wn_plan_mlp(const struct wn_plan *p, uint32_t tensor)
{
    return even_part(p->model.text.mlp, p, tensor);
}

struct wn_range wn_plan_vocab(const struct wn_plan *p, uint32_t tensor)
{
    return deal(p->model.text.vocab, p->tensors, tensor);
}

/* Where the calls of wn_plan_slices go; sticky: after a failure nothing more is called. */
struct emit {
    wn_slice_fn *each;
    void *ctx;
    struct wn_err *err;
    wn_status rc;
};

static void emit(struct emit *e, struct wn_range rows, struct wn_range cols, const char *name)
{
    struct wn_slice s = {.rows = rows, .cols = cols};

    if (e->rc != WN_OK) return;
    snprintf(s.name, sizeof(s.name), "%s", name); /* our own names: all fit */
    e->rc = e->each(e->ctx, &s, e->err);
}

static void emit_layer(struct emit *e, uint32_t layer, const char *part, struct wn_range rows,
                       struct wn_range cols, uint32_t int8_slices)
{
    struct wn_slice s = {.rows = rows, .cols = cols, .int8_slices = int8_slices};

    if (e->rc != WN_OK) return;
    snprintf(s.name, sizeof(s.name), "language_model.model.layers.%u.%s.weight", layer, part);
    e->rc = e->each(e->ctx, &s, e->err);
}

static struct wn_range scaled(struct wn_range r, uint32_t by)
{
    return (struct wn_range){r.first * by, r.n * by};
}

#define PROJECTOR  "multi_modal_projector."
#define EMBEDDING  "language_model.model.embed_tokens.weight"
#define FINAL_NORM "language_model.model.norm.weight"
#define HEAD       "language_model.lm_head.weight"

wn_status wn_plan_slices(const struct wn_plan *p, uint32_t rank, wn_slice_fn *each, void *ctx,
                         struct wn_err *err)
{
    const struct wn_text_config *t = &p->model.text;
    uint32_t stage = rank / p->tensors, tensor = rank % p->tensors;
    struct emit e = {.each = each, .ctx = ctx, .err = err, .rc = WN_OK};
    const struct wn_range one = {0, 1}, hidden = {0, t->hidden}, vocab = wn_plan_vocab(p, tensor);
    const struct wn_range hidden_part = even_part(t->hidden, p, tensor),
                          mlp = wn_plan_mlp(p, tensor);
    const struct wn_range q = scaled(wn_plan_heads(p, tensor), t->head_dim);
    const struct wn_range kv = scaled(wn_plan_kv_heads(p, tensor), t->head_dim);
    const uint32_t whole = p->linear == WN_I8, parts = whole * (p->slices / p->tensors);
    bool last = stage + 1 == p->stages;

    if (stage >= p->stages)
        return wn_fail(err, WN_EINVAL, "rank %u, but the plan has %u", rank,
                       p->stages * p->tensors);
    if (stage == 0) {
        emit(&e, hidden_part, (struct wn_range){0, p->model.vision.hidden},
             PROJECTOR "linear_1.weight");
        emit(&e, hidden_part, one, PROJECTOR "linear_1.bias");
        emit(&e, hidden, hidden_part, PROJECTOR "linear_2.weight");
        emit(&e, hidden, one, PROJECTOR "linear_2.bias");
        emit(&e, vocab, hidden, EMBEDDING);
    }
    for (uint32_t i = p->layers[stage].first; i < p->layers[stage].first + p->layers[stage].n;
         i++) {
        emit_layer(&e, i, "input_layernorm", hidden, one, 0);
        emit_layer(&e, i, "self_attn.q_proj", q, hidden, whole);
        emit_layer(&e, i, "self_attn.k_proj", kv, hidden, whole);
        emit_layer(&e, i, "self_attn.v_proj", kv, hidden, whole);
        emit_layer(&e, i, "self_attn.o_proj", hidden, q, parts);
        emit_layer(&e, i, "post_attention_layernorm", hidden, one, 0);
        emit_layer(&e, i, "mlp.gate_proj", mlp, hidden, whole);
        emit_layer(&e, i, "mlp.up_proj", mlp, hidden, whole);
        emit_layer(&e, i, "mlp.down_proj", hidden, mlp, parts);
    }
    if (last) {
        emit(&e, hidden, one, FINAL_NORM);
        if (!t->tied)
            emit(&e, vocab, hidden, HEAD);
        else if (stage != 0) /* else it was named above */
            emit(&e, vocab, hidden, EMBEDDING);
    }
    return e.rc;
}

static bool is_vector(const struct wn_slice *s)
{
    size_t n = strlen(s->name);

    return (n > 5 && strcmp(s->name + n - 5, ".bias") == 0) ||
           strstr(s->name, "norm.weight") != NULL;
}

struct weigh {
    const struct wn_plan *p;
    uint64_t bytes;
};

static wn_status weigh_slice(void *ctx, const struct wn_slice *s, struct wn_err *err)
{
    struct weigh *w = ctx;
    size_t element = is_vector(s) ? sizeof(float) : wn_dtype_bytes(w->p->dtype);

    (void)err;
    if (s->int8_slices) element = sizeof(int8_t);
    w->bytes += (uint64_t)s->rows.n * (s->cols.n * element + s->int8_slices * sizeof(float));
    return WN_OK;
}

uint64_t wn_plan_weight_bytes(const struct wn_plan *p, uint32_t rank)
{
    const struct wn_text_config *t = &p->model.text;
    struct weigh w = {.p = p};

    if (wn_plan_slices(p, rank, weigh_slice, &w, NULL) != WN_OK) return 0;
    if (t->tied && p->stages == 1) /* held as a table to look up and as a matrix to multiply with */
        w.bytes += (uint64_t)wn_plan_vocab(p, rank).n * t->hidden * wn_dtype_bytes(p->dtype);
    return w.bytes;
}

uint64_t wn_plan_kv_bytes_per_token(const struct wn_plan *p, uint32_t rank)
{
    uint64_t width = (uint64_t)wn_plan_kv_heads(p, 0).n * p->model.text.head_dim;

    return 2 * width * wn_dtype_bytes(p->dtype) * p->layers[rank / p->tensors].n;
}
