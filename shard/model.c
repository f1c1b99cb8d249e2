/* shard/model.c - see model.h. Reads the JSON with a sticky-error reader: the first wrong field stops everything. */
#include "shard/model.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "shard/jsonfile.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)
#define SLICES_MAX       8u

#define WIDTH_MAX  (1u << 16) /* hidden sizes */
#define MLP_MAX    (1u << 20)
#define LAYERS_MAX 1024u
#define HEADS_MAX  1024u
#define VOCAB_MAX  (1u << 24)
#define PIXELS_MAX 8192u /* side of the tower's input */
#define TOKENS_MAX (1u << 16)

/* One object of the file. A missing object reads as an empty one; null reads as missing. */
struct reader {
    const json_t *obj;
    const char *where; /* "config.json: text_config." */
    wn_status *rc;     /* the first failure, shared by all readers; later reads do nothing */
    struct wn_err *err;
};

#define FAIL(r, code, ...) (*(r)->rc = wn_fail((r)->err, (code), __VA_ARGS__))

static const json_t *field(const struct reader *r, const char *name)
{
    const json_t *v = json_object_get(r->obj, name);

    return json_is_null(v) ? NULL : v;
}

static int64_t read_int(struct reader *r, const char *name, int64_t def, int64_t min, int64_t max)
{
    const json_t *v = field(r, name);
    int64_t n = def;

    if (*r->rc != WN_OK) return min;
    if (v && !json_is_integer(v)) {
        FAIL(r, WN_EFORMAT, "%s%s: not an integer", r->where, name);
        return min;
    }
    if (v) n = json_integer_value(v);
    if (n < min || n > max) {
        FAIL(r, WN_ELIMIT, "%s%s: %lld is outside %lld to %lld", r->where, name, (long long)n,
             (long long)min, (long long)max);
        return min;
    }
    return n;
}

static uint32_t read_u32(struct reader *r, const char *name, uint32_t def, uint32_t max)
{
    return (uint32_t)read_int(r, name, def, 1, max);
}

static float read_float(struct reader *r, const char *name, double def, double min, double max)
{
    const json_t *v = field(r, name);
    double d = def;

    if (*r->rc != WN_OK) return (float)min;
    if (v && !json_is_number(v)) {
        FAIL(r, WN_EFORMAT, "%s%s: not a number", r->where, name);
        return (float)min;
    }
    if (v) d = json_number_value(v);
    if (!(d >= min && d <= max)) {
        FAIL(r, WN_ELIMIT, "%s%s: %g is outside %g to %g", r->where, name, d, min, max);
        return (float)min;
    }
    return (float)d;
}

static bool read_bool(struct reader *r, const char *name, bool def)
{
    const json_t *v = field(r, name);

    if (*r->rc != WN_OK || !v) return def;
    if (!json_is_boolean(v)) FAIL(r, WN_EFORMAT, "%s%s: not true or false", r->where, name);
    return json_is_true(v);
}

/* The string, or def; never NULL. Borrowed from the JSON. */
static const char *read_str(struct reader *r, const char *name, const char *def)
{
    const json_t *v = field(r, name);

    if (*r->rc != WN_OK || !v) return def;
    if (json_is_string(v)) return json_string_value(v);
    FAIL(r, WN_EFORMAT, "%s%s: not a string", r->where, name);
    return def;
}

/* The string must be `only`: anything else is something that we do not compute. */
static void read_only(struct reader *r, const char *name, const char *only)
{
    const char *s = read_str(r, name, only);

    if (*r->rc == WN_OK && strcmp(s, only) != 0)
        FAIL(r, WN_EUNSUPP, "%s%s '%.60s' is not supported; supported: %s", r->where, name, s,
             only);
}

static void refuse_bool(struct reader *r, const char *name, bool only)
{
    if (read_bool(r, name, only) != only && *r->rc == WN_OK)
        FAIL(r, WN_EUNSUPP, "%s%s %s is not supported", r->where, name, only ? "false" : "true");
}

static void refuse_quantization(struct reader *r)
{
    const json_t *q = field(r, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));

    if (*r->rc == WN_OK && q)
        FAIL(r, WN_EUNSUPP, "%squantization_config '%.60s' is not supported", r->where,
             method ? method : "?");
}

static struct reader sub_reader(struct reader *r, const char *name, const char *where)
{
    const json_t *v = field(r, name);

    if (*r->rc == WN_OK && v && !json_is_object(v))
        FAIL(r, WN_EFORMAT, "%s%s: not an object", r->where, name);
    return (struct reader){.obj = v, .where = where, .rc = r->rc, .err = r->err};
}

static wn_act read_act(struct reader *r, const char *name, const char *def)
{
    static const struct {
        const char *name;
        wn_act act;
    } known[] = {{"gelu", WN_ACT_GELU}, {"quick_gelu", WN_ACT_QUICK_GELU}, {"silu", WN_ACT_SILU}};
    const char *s = read_str(r, name, def);

    if (*r->rc != WN_OK) return WN_ACT_NONE;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(s, known[i].name) == 0) return known[i].act;
    FAIL(r, WN_EUNSUPP, "%s%s '%.60s' is not supported; supported: gelu, quick_gelu, silu",
         r->where, name, s);
    return WN_ACT_NONE;
}

static void refuse_partial_rope(struct reader *r)
{
    if (read_float(r, "partial_rotary_factor", 1.0, 0.0, 1.0) < 1.0f && *r->rc == WN_OK)
        FAIL(r, WN_EUNSUPP, "%spartial_rotary_factor is not supported", r->where);
}

/* rope_scaling (null, or the type that scales nothing) and the newer rope_parameters, which holds theta too. */
static void read_rope(struct reader *r, struct wn_text_config *t)
{
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    double theta = 10000.0;

    for (int i = 0; i < 2; i++) {
        struct reader s = sub_reader(r, names[i],
                                     i ? "config.json: text_config.rope_parameters."
                                       : "config.json: text_config.rope_scaling.");
        const char *type;
        if (*s.rc == WN_OK && s.obj) {
            type = read_str(&s, "rope_type", read_str(&s, "type", i ? "default" : "?"));
            if (*s.rc == WN_OK && strcmp(type, "default") != 0)
                FAIL(&s, WN_EUNSUPP, "config.json: text_config: %s type '%.60s' is not supported",
                     names[i], type);
            refuse_partial_rope(&s);
            if (i) theta = read_float(&s, "rope_theta", theta, 1.0, 1e12);
        }
    }
    t->rope_theta = read_float(r, "rope_theta", theta, 1.0, 1e12);
    refuse_partial_rope(r);
}

/* Defaults are those of LlamaConfig. */
static void read_text(struct reader *r, struct wn_text_config *t)
{
    refuse_quantization(r);
    read_only(r, "model_type", "llama");
    read_only(r, "hidden_act", "silu");
    refuse_bool(r, "attention_bias", false);
    refuse_bool(r, "mlp_bias", false);
    t->hidden = read_u32(r, "hidden_size", 4096, WIDTH_MAX);
    t->mlp = read_u32(r, "intermediate_size", 11008, MLP_MAX);
    t->layers = read_u32(r, "num_hidden_layers", 32, LAYERS_MAX);
    t->heads = read_u32(r, "num_attention_heads", 32, HEADS_MAX);
    t->kv_heads = read_u32(r, "num_key_value_heads", t->heads, HEADS_MAX);
    t->vocab = read_u32(r, "vocab_size", 32000, VOCAB_MAX);
    t->positions_max = read_u32(r, "max_position_embeddings", 2048, VOCAB_MAX);
    t->eps = read_float(r, "rms_norm_eps", 1e-6, 1e-30, 1.0);
    t->tied = read_bool(r, "tie_word_embeddings", false);
    read_rope(r, t);
    if (*r->rc != WN_OK) return;
    if (t->heads % t->kv_heads != 0) {
        FAIL(r, WN_EFORMAT, "%snum_key_value_heads: %u does not divide %u heads", r->where,
             t->kv_heads, t->heads);
        return;
    }
    if (!field(r, "head_dim") && t->hidden % t->heads != 0) {
        FAIL(r, WN_EFORMAT, "%snum_attention_heads: %u does not divide hidden_size %u", r->where,
             t->heads, t->hidden);
        return;
    }
    t->head_dim =
        read_u32(r, "head_dim", t->hidden / t->heads ? t->hidden / t->heads : 1, WIDTH_MAX);
    if (*r->rc == WN_OK && t->head_dim % 2 != 0)
        FAIL(r, WN_EUNSUPP, "%shead_dim: %u is odd, and rotary embedding needs pairs", r->where,
             t->head_dim);
    if (*r->rc == WN_OK && (uint64_t)t->heads * t->head_dim > MLP_MAX)
        FAIL(r, WN_ELIMIT, "%shead_dim: %u heads of %u are wider than %u", r->where, t->heads,
             t->head_dim, MLP_MAX);
}

/* Which hidden state the features are, and so how many layers make them. */
static void read_feature_layer(struct reader *top, struct wn_vision_config *v)
{
    const json_t *layer = field(top, "vision_feature_layer");
    int64_t n;
    const char *select;

    if (*top->rc != WN_OK) return;
    if (json_is_array(layer)) {
        FAIL(top, WN_EUNSUPP, "%svision_feature_layer: a list of layers is not supported",
             top->where);
        return;
    }
    n = read_int(top, "vision_feature_layer", -2, -(int64_t)v->layers - 1, v->layers);
    v->layers_run = (uint32_t)(n < 0 ? n + v->layers + 1 : n);
    select = read_str(top, "vision_feature_select_strategy", "default");
    v->keep_cls = strcmp(select, "full") == 0;
    if (*top->rc == WN_OK && !v->keep_cls && strcmp(select, "default") != 0)
        FAIL(top, WN_EUNSUPP,
             "%svision_feature_select_strategy '%.60s' is not supported; supported: default, full",
             top->where, select);
}

/* Defaults are those of CLIPVisionConfig; without any vision_config, those that LlavaConfig gives to it. */
static void read_vision(struct reader *r, struct wn_vision_config *v)
{
    bool absent = r->obj == NULL;
    uint32_t side;

    refuse_quantization(r);
    read_only(r, "model_type", "clip_vision_model");
    v->hidden = read_u32(r, "hidden_size", absent ? 1024 : 768, WIDTH_MAX);
    v->mlp = read_u32(r, "intermediate_size", absent ? 4096 : 3072, MLP_MAX);
    v->layers = read_u32(r, "num_hidden_layers", absent ? 24 : 12, LAYERS_MAX);
    v->heads = read_u32(r, "num_attention_heads", absent ? 16 : 12, HEADS_MAX);
    v->image_side = read_u32(r, "image_size", absent ? 336 : 224, PIXELS_MAX);
    v->patch_side = read_u32(r, "patch_size", absent ? 14 : 32, PIXELS_MAX);
    v->eps = read_float(r, "layer_norm_eps", 1e-5, 1e-30, 1.0);
    v->act = read_act(r, "hidden_act", "quick_gelu");
    if (read_u32(r, "num_channels", 3, 16) != 3 && *r->rc == WN_OK)
        FAIL(r, WN_EUNSUPP, "%snum_channels other than 3 is not supported", r->where);
    if (*r->rc != WN_OK) return;
    if (v->hidden % v->heads != 0) {
        FAIL(r, WN_EFORMAT, "%snum_attention_heads: %u does not divide hidden_size %u", r->where,
             v->heads, v->hidden);
        return;
    }
    v->head_dim = v->hidden / v->heads;
    if (v->image_side % v->patch_side != 0) {
        FAIL(r, WN_EFORMAT, "%spatch_size: %u does not divide image_size %u", r->where,
             v->patch_side, v->image_side);
        return;
    }
    side = v->image_side / v->patch_side;
    v->patches = side * side; /* at most PIXELS_MAX^2 */
    if (v->patches >= TOKENS_MAX)
        FAIL(r, WN_ELIMIT, "%spatch_size: %u patches in an image; the limit is %u", r->where,
             v->patches, TOKENS_MAX - 1);
}

static void read_architecture(struct reader *r, struct wn_model *m)
{
    static const char supported[] = "LlavaForConditionalGeneration";
    const json_t *list = field(r, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));

    if (!list && strcmp(read_str(r, "model_type", ""), "llava") == 0) name = supported;
    if (*r->rc != WN_OK) return;
    if (!name) {
        FAIL(r, WN_EFORMAT, "%sarchitectures: missing, or not a list of names", r->where);
        return;
    }
    if (strcmp(name, supported) != 0) {
        FAIL(r, WN_EUNSUPP, "%sarchitecture '%.63s' is not supported; supported: %s", r->where,
             name, supported);
        return;
    }
    read_only(r, "model_type", "llava");
    memcpy(m->architecture, supported, sizeof(supported));
}

static void read_dtype(struct reader *top, struct reader *text, struct wn_model *m)
{
    const char *s = read_str(top, "dtype", read_str(top, "torch_dtype", NULL));

    if (!s) s = read_str(text, "dtype", read_str(text, "torch_dtype", "float32"));
    if (*top->rc != WN_OK) return;
    if (strcmp(s, "float32") == 0)
        m->dtype = WN_F32;
    else if (strcmp(s, "bfloat16") == 0)
        m->dtype = WN_BF16;
    else if (strcmp(s, "float16") == 0)
        m->dtype = WN_F16;
    else
        FAIL(top, WN_EUNSUPP,
             "%sdtype '%.60s' is not supported; supported: float32, bfloat16, float16", top->where,
             s);
}

/* A token id that the first of `places` with the field decides; -1 reads as null. */
static uint32_t read_token(struct reader *places, int n, const char *name, uint32_t def,
                           uint32_t vocab)
{
    for (int i = 0; i < n; i++) {
        int64_t id;
        if (!field(&places[i], name)) continue;
        id = read_int(&places[i], name, 0, -1, (int64_t)vocab - 1);
        return id < 0 ? WN_TOKEN_NONE : (uint32_t)id;
    }
    return def;
}

/* eos_token_id is a number or a list of them. */
static void read_eos(struct reader *places, int n, struct wn_model *m)
{
    struct reader *r = NULL;
    const json_t *v = NULL;
    size_t count;
    uint32_t id;

    for (int i = 0; i < n && !v; i++) {
        r = &places[i];
        v = field(r, "eos_token_id");
    }
    if (!json_is_array(v)) {
        id = read_token(places, n, "eos_token_id", 2, m->text.vocab);
        if (id != WN_TOKEN_NONE) m->eos[m->eos_n++] = id;
        return;
    }
    count = json_array_size(v);
    if (*r->rc == WN_OK && count > WN_EOS_MAX)
        FAIL(r, WN_ELIMIT, "%seos_token_id: %zu ids; the limit is %d", r->where, count, WN_EOS_MAX);
    for (size_t i = 0; *r->rc == WN_OK && i < count; i++) {
        const json_t *e = json_array_get(v, i);
        if (!json_is_integer(e) || json_integer_value(e) < 0 ||
            json_integer_value(e) >= m->text.vocab)
            FAIL(r, WN_EFORMAT, "%seos_token_id[%zu]: not a token of the vocabulary of %u",
                 r->where, i, m->text.vocab);
        else
            m->eos[m->eos_n++] = (uint32_t)json_integer_value(e);
    }
}

static void read_tokens(struct reader *top, struct reader *text, const json_t *generation,
                        struct wn_model *m)
{
    struct reader places[3] = {
        {.obj = generation, .where = "generation_config.json: ", .rc = top->rc, .err = top->err},
        *top,
        *text};
    int64_t last = (int64_t)m->text.vocab - 1;
    bool newer = field(top, "image_token_id") != NULL,
         older = field(top, "image_token_index") != NULL;

    m->image_token =
        (uint32_t)read_int(top, newer ? "image_token_id" : "image_token_index", 32000, 0, last);
    if (newer && older && read_int(top, "image_token_index", 0, 0, last) != m->image_token &&
        *top->rc == WN_OK)
        FAIL(top, WN_EFORMAT, "%simage_token_index and image_token_id differ", top->where);
    if (*top->rc != WN_OK) return;
    m->bos = read_token(places, 3, "bos_token_id", 1, m->text.vocab);
    read_eos(places, 3, m);
    m->pad = read_token(places, 3, "pad_token_id", WN_TOKEN_NONE, m->text.vocab);
}

static uint32_t slices_of(const struct wn_text_config *t)
{
    uint32_t s = SLICES_MAX;

    while (t->kv_heads % s != 0 || t->mlp % s != 0 || t->hidden % s != 0) s /= 2;
    return s;
}

static wn_status read_model(struct wn_model *m, const json_t *config, const json_t *generation,
                            struct wn_err *err)
{
    wn_status rc = WN_OK;
    struct reader top = {.obj = config, .where = "config.json: ", .rc = &rc, .err = err}, text,
                  vision;

    read_architecture(&top, m);
    refuse_quantization(&top);
    text = sub_reader(&top, "text_config", "config.json: text_config.");
    read_text(&text, &m->text);
    vision = sub_reader(&top, "vision_config", "config.json: vision_config.");
    read_vision(&vision, &m->vision);
    read_feature_layer(&top, &m->vision);
    m->projector_act = read_act(&top, "projector_hidden_act", "gelu");
    refuse_bool(&top, "multimodal_projector_bias", true);
    read_dtype(&top, &text, m);
    if (rc != WN_OK) return rc;
    read_tokens(&top, &text, generation, m);
    m->slices = slices_of(&m->text);
    return rc;
}

wn_status wn_model_parse(struct wn_model *out, const char *config, size_t config_len,
                         const char *generation, size_t generation_len, struct wn_err *err)
{
    json_t *c = NULL, *g = NULL;
    struct wn_model m = {0};
    wn_status rc = WN_OK;

    if (config_len > CONFIG_BYTES_MAX || generation_len > CONFIG_BYTES_MAX) {
        rc = wn_fail(err, WN_ELIMIT, "%s: more than %zu bytes",
                     config_len > CONFIG_BYTES_MAX ? "config.json" : "generation_config.json",
                     CONFIG_BYTES_MAX);
        goto out;
    }
    if ((rc = wn_json_parse(&c, "config.json", config, config_len, err)) != WN_OK) goto out;
    if (generation && (rc = wn_json_parse(&g, "generation_config.json", generation, generation_len,
                                          err)) != WN_OK)
        goto out;
    if ((rc = read_model(&m, c, g, err)) != WN_OK) goto out;
    *out = m;
out:
    json_decref(c);
    json_decref(g);
    return rc;
}

wn_status wn_model_open(struct wn_model *out, const char *path, struct wn_err *err)
{
    char config_path[WN_PATH_MAX], generation_path[WN_PATH_MAX], *config = NULL, *generation = NULL;
    size_t config_len = 0, generation_len = 0;
    struct stat st;
    bool is_file = stat(path, &st) == 0 && S_ISREG(st.st_mode);
    wn_status rc = wn_path_join(config_path, path, "config.json", err);

    if (rc == WN_OK) rc = wn_path_join(generation_path, path, "generation_config.json", err);
    if (rc != WN_OK) goto out;
    rc = wn_file_read(&config, &config_len, is_file ? path : config_path, CONFIG_BYTES_MAX, err);
    if (rc != WN_OK) goto out;
    if (!is_file) {
        rc = wn_file_read(&generation, &generation_len, generation_path, CONFIG_BYTES_MAX, err);
        if (rc != WN_OK && rc != WN_ENOENT) goto out;
    }
    rc = wn_model_parse(out, config, config_len, generation, generation_len, err);
out:
    free(config);
    free(generation);
    return rc;
}
