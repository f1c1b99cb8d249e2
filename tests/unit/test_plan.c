/* tests/unit/test_plan.c - the parts of all ranks are the model; the predicted bytes are what the links count. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include <pthread.h>

#include "shard/plan.h"
#include "transport/coll.h"
#include "transport/link.h"

static struct wn_model shape(uint32_t hidden, uint32_t mlp, uint32_t layers, uint32_t heads,
                             uint32_t kv_heads, uint32_t vocab)
{
    struct wn_model m = {.architecture = "LlavaForConditionalGeneration", .slices = 1};

    m.text.hidden = hidden;
    m.text.mlp = mlp;
    m.text.layers = layers;
    m.text.heads = heads;
    m.text.kv_heads = kv_heads;
    m.text.head_dim = 4;
    m.text.vocab = vocab;
    m.text.positions_max = 256;
    m.vision.hidden = 10;
    while (m.slices < 8 && kv_heads % (2 * m.slices) == 0 && mlp % (2 * m.slices) == 0 &&
           hidden % (2 * m.slices) == 0)
        m.slices *= 2;
    return m;
}

/* One tensor of the checkpoint and how often each of its elements is held. */
struct tensor {
    char name[WN_NAME_MAX];
    uint32_t rows, cols, *held;
};

struct checkpoint {
    struct tensor *tensors;
    size_t n;
};

static void add_tensor(struct checkpoint *c, const char *name, uint32_t rows, uint32_t cols)
{
    struct tensor *t;

    c->tensors = realloc(c->tensors, (c->n + 1) * sizeof(*t));
    assert_non_null(c->tensors);
    t = &c->tensors[c->n++];
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->rows = rows;
    t->cols = cols;
    t->held = calloc((size_t)rows * cols, sizeof(*t->held));
    assert_non_null(t->held);
}

/* What Transformers saves for the decoder and the projector, shapes as in the class definitions. */
static struct checkpoint checkpoint_of(const struct wn_model *m)
{
    const struct wn_text_config *t = &m->text;
    struct checkpoint c = {0};
    uint32_t q = t->heads * t->head_dim, kv = t->kv_heads * t->head_dim;

    add_tensor(&c, "multi_modal_projector.linear_1.weight", t->hidden, m->vision.hidden);
    add_tensor(&c, "multi_modal_projector.linear_1.bias", t->hidden, 1);
    add_tensor(&c, "multi_modal_projector.linear_2.weight", t->hidden, t->hidden);
    add_tensor(&c, "multi_modal_projector.linear_2.bias", t->hidden, 1);
    add_tensor(&c, "language_model.model.embed_tokens.weight", t->vocab, t->hidden);
    add_tensor(&c, "language_model.model.norm.weight", t->hidden, 1);
    if (!t->tied) add_tensor(&c, "language_model.lm_head.weight", t->vocab, t->hidden);
    for (uint32_t i = 0; i < t->layers; i++) {
        const struct {
            const char *name;
            uint32_t rows, cols;
        } parts[] = {
            {"input_layernorm", t->hidden, 1},    {"post_attention_layernorm", t->hidden, 1},
            {"self_attn.q_proj", q, t->hidden},   {"self_attn.k_proj", kv, t->hidden},
            {"self_attn.v_proj", kv, t->hidden},  {"self_attn.o_proj", t->hidden, q},
            {"mlp.gate_proj", t->mlp, t->hidden}, {"mlp.up_proj", t->mlp, t->hidden},
            {"mlp.down_proj", t->hidden, t->mlp},
        };
        for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++) {
            char name[WN_NAME_MAX];
            snprintf(name, sizeof(name), "language_model.model.layers.%u.%s.weight", i,
                     parts[k].name);
            add_tensor(&c, name, parts[k].rows, parts[k].cols);
        }
    }
    return c;
}

static void free_checkpoint(struct checkpoint *c)
{
    for (size_t i = 0; i < c->n; i++) free(c->tensors[i].held);
    free(c->tensors);
}

static wn_status hold(void *ctx, const struct wn_slice *s, struct wn_err *err)
{
    struct checkpoint *c = ctx;

    for (size_t i = 0; i < c->n; i++) {
        struct tensor *t = &c->tensors[i];
        if (strcmp(t->name, s->name) != 0) continue;
        if (s->rows.first + s->rows.n > t->rows || s->cols.first + s->cols.n > t->cols)
            return wn_fail(err, WN_EINVAL, "%s: part outside the tensor", s->name);
        for (uint32_t r = s->rows.first; r < s->rows.first + s->rows.n; r++)
            for (uint32_t k = s->cols.first; k < s->cols.first + s->cols.n; k++)
                t->held[(size_t)r * t->cols + k]++;
        return WN_OK;
    }
    return wn_fail(err, WN_ENOENT, "%s: not in the checkpoint", s->name);
}

static int is_copied(const char *name)
{
    return strstr(name, "norm.weight") != NULL ||
           strcmp(name, "multi_modal_projector.linear_2.bias") == 0;
}

static int is_float32(const char *name)
{
    return strstr(name, "norm.weight") != NULL || strstr(name, ".bias") != NULL;
}

static void check_cover(const struct wn_model *m, uint32_t stages, uint32_t tensors)
{
    struct wn_plan p;
    struct wn_err err = {0};
    struct checkpoint c = checkpoint_of(m);
    uint64_t expected = 0, bytes = 0, kv = 0;

    assert_int_equal(wn_plan_make(&p, m, stages, tensors, NULL, WN_BF16, &err), WN_OK);
    for (uint32_t r = 0; r < stages * tensors; r++) {
        if (wn_plan_slices(&p, r, hold, &c, &err) != WN_OK) fail_msg("rank %u: %s", r, err.text);
        bytes += wn_plan_weight_bytes(&p, r);
        kv += wn_plan_kv_bytes_per_token(&p, r);
    }
    for (size_t i = 0; i < c.n; i++) {
        const struct tensor *t = &c.tensors[i];
        int twice =
            m->text.tied && strstr(t->name, "embed_tokens") != NULL; /* it is the head too */
        uint32_t times = is_copied(t->name) ? tensors : twice && stages > 1 ? 2 : 1;
        for (size_t k = 0; k < (size_t)t->rows * t->cols; k++)
            if (t->held[k] != times)
                fail_msg("%u x %u: %s: element %zu is held %u times", stages, tensors, t->name, k,
                         t->held[k]);
        expected +=
            (uint64_t)t->rows * t->cols * (twice ? 2 : times) * (is_float32(t->name) ? 4 : 2);
    }
    assert_int_equal(bytes, expected);
    assert_int_equal(kv, (uint64_t)m->text.layers * 2 * m->text.kv_heads * m->text.head_dim * 2);
    free_checkpoint(&c);
}

static void test_every_element_has_its_ranks(void **state)
{
    const struct wn_model models[] = {shape(16, 24, 5, 4, 4, 37), shape(32, 48, 3, 8, 4, 64),
                                      shape(24, 36, 7, 6, 6, 101), shape(12, 18, 6, 12, 6, 13)};
    int plans = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        struct wn_model m = models[i];
        for (int tied = 0; tied < 2; tied++) {
            m.text.tied = tied;
            for (uint32_t tensors = 1; tensors <= m.text.kv_heads; tensors++) {
                if (m.text.kv_heads % tensors || m.text.hidden % tensors || m.text.mlp % tensors)
                    continue;
                for (uint32_t stages = 1; stages <= m.text.layers; stages++, plans++)
                    check_cover(&m, stages, tensors);
            }
        }
    }
    assert_true(plans > 100);
}

static void expect_refused(uint32_t stages, uint32_t tensors, const char *layers, const char *says)
{
    struct wn_model m = shape(32, 48, 4, 8, 4, 64);
    struct wn_plan p;
    struct wn_err err = {0};

    assert_int_equal(wn_plan_make(&p, &m, stages, tensors, layers, WN_BF16, &err), WN_EINVAL);
    if (!strstr(err.text, says)) fail_msg("'%s'; expected '%s'", err.text, says);
}

static void test_refused(void **state)
{
    struct wn_model m = shape(30, 48, 4, 8, 4, 64);
    struct wn_plan p;
    struct wn_err err = {0};

    (void)state;
    expect_refused(
        1, 3, NULL,
        "tensor parallel size 3 does not divide 8 heads and 4 kv heads; sizes that work: 1, 2, 4");
    expect_refused(1, 8, NULL, "tensor parallel size 8 does not divide 8 heads and 4 kv heads");
    expect_refused(1, 0, NULL, "tensor parallel size 0 is outside 1 to 64");
    expect_refused(1, 65, NULL, "tensor parallel size 65 is outside");
    expect_refused(0, 1, NULL, "pipeline parallel size 0");
    expect_refused(5, 1, NULL, "pipeline parallel size 5 is more than the 4 layers");
    expect_refused(65, 1, NULL, "pipeline parallel size 65 is outside");
    expect_refused(2, 1, "0-3", "1 ranges for 2 stages");
    expect_refused(2, 1, "0-0,1-2", "layer 3 is in no stage");
    expect_refused(2, 1, "0,2-3", "layer 1 is in no stage");
    expect_refused(2, 1, "1-1,2-3", "layer 0 is in no stage");
    expect_refused(2, 1, "0-2,2-3", "layer 2 is in two stages");
    expect_refused(2, 1, "0-1,2-4", "layer 4, but the model has 4");
    expect_refused(2, 1, "0-1,3-2", "3-2 runs backwards");
    expect_refused(2, 1, "0-1,2,3", "more ranges than 2 stages");
    expect_refused(2, 1, "0-1,", "'' is not a range");
    expect_refused(2, 1, "", "'' is not a range");
    expect_refused(2, 1, "0-1;2-3", "'0-1;2-3' is not a range");
    expect_refused(2, 1, " 0-1,2-3", "is not a range");
    expect_refused(2, 1, "0-99999999999999999999,1", "is not a range");
    assert_int_equal(wn_plan_make(&p, &m, 1, 4, NULL, WN_BF16, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "does not divide the hidden width 30; sizes that work: 1, 2"));
    assert_int_equal(wn_plan_make(&p, &m, 1, 1, NULL, WN_F16, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "float16"));
}

static void test_layers(void **state)
{
    struct wn_model m = shape(32, 48, 7, 8, 8, 64);
    struct wn_plan p;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(m.slices, 8);
    assert_int_equal(wn_plan_make(&p, &m, 3, 4, NULL, WN_F32, &err), WN_OK);
    assert_int_equal(p.layers[0].n, 3);
    assert_int_equal(p.layers[1].first, 3);
    assert_int_equal(p.layers[1].n, 2);
    assert_int_equal(p.layers[2].first, 5);
    assert_int_equal(p.slices, 8);
    assert_int_equal(wn_plan_rank(&p, 2, 1), 9);
    assert_int_equal(wn_plan_make(&p, &m, 3, 1, "0,1-5,6-6", WN_F32, &err), WN_OK);
    assert_int_equal(p.layers[0].n, 1);
    assert_int_equal(p.layers[1].n, 5);
    assert_int_equal(p.layers[2].first, 6);
    m = shape(24, 36, 7, 6, 6, 65);
    assert_int_equal(wn_plan_make(&p, &m, 1, 3, NULL, WN_F32, &err), WN_OK);
    assert_int_equal(m.slices, 2);
    assert_int_equal(p.slices, 3); /* 2 parts cannot be dealt to 3 ranks */
    assert_int_equal(wn_plan_vocab(&p, 0).n, 22);
    assert_int_equal(wn_plan_vocab(&p, 2).first, 44);
    assert_int_equal(wn_plan_vocab(&p, 2).n, 21);
    assert_int_equal(wn_plan_slices(&p, 3, hold, NULL, &err), WN_EINVAL);
}

/* Numbers worked out by hand: 13B in 2 x 2, 32 text tokens and 576 rows in chunks of 512, 10 tokens out. */
static void test_13b_by_hand(void **state)
{
    const struct wn_plan_load load = {
        .text_tokens = 32, .image_rows = 576, .new_tokens = 10, .chunk_tokens = 512};
    const uint64_t rows = 512 + 96 + 9; /* all steps together */
    struct wn_model m;
    struct wn_plan p;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-13b.json", &err), WN_OK);
    assert_int_equal(wn_plan_make(&p, &m, 2, 2, NULL, WN_BF16, &err), WN_OK);
    /* per layer: q, k, v, o of 5120 x 2560, three of 6912 x 5120, two norms in float32 */
    assert_int_equal(wn_plan_weight_bytes(&p, 3), 20ull * (4 * 5120 * 2560 + 3 * 6912 * 5120) * 2 +
                                                      41 * 5120 * 4 + 16032ull * 5120 * 2);
    assert_int_equal(wn_plan_weight_bytes(&p, 0),
                     20ull * (4 * 5120 * 2560 + 3 * 6912 * 5120) * 2 + 40 * 5120 * 4 +
                         16032ull * 5120 * 2 + (2560 * 1024 + 5120 * 2560) * 2 + (2560 + 5120) * 4);
    p.linear = WN_I8; /* a float32 scale for each row and part: 4 of 8 parts are this rank's where columns are cut */
    assert_int_equal(wn_plan_weight_bytes(&p, 3), 20ull * (4 * 5120 * 2560 + 3 * 6912 * 5120) +
                                                      20ull * (3 * 2560 + 2 * 6912 + 2 * 5120 * 4) * 4 +
                                                      41 * 5120 * 4 + 16032ull * 5120 * 2);
    p.linear = WN_BF16;
    assert_int_equal(wn_plan_kv_bytes_per_token(&p, 0), 20 * 2 * 20 * 128 * 2);
    assert_int_equal(wn_plan_link_bytes(&p, &load, WN_PLAN_VISION, 0, WN_TRAFFIC_EMBEDDING),
                     576 * 1024 * 2);
    assert_int_equal(wn_plan_link_bytes(&p, &load, WN_PLAN_VISION, 1, WN_TRAFFIC_EMBEDDING), 0);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 0, 1, WN_TRAFFIC_EMBEDDING), 576 * 1024 * 2);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 1, 0, WN_TRAFFIC_EMBEDDING), 0);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 0, 2, WN_TRAFFIC_ACTIVATION), rows * 2560 * 2);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 0, 3, WN_TRAFFIC_ACTIVATION), 0);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 2, 0, WN_TRAFFIC_ACTIVATION), 0);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 2, 3, WN_TRAFFIC_ACTIVATION), rows * 2560 * 2);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 3, 2, WN_TRAFFIC_LOGITS), 10 * 16032 * 4);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 2, 3, WN_TRAFFIC_LOGITS), 0);
    /* two ranks: whole or in halves, each sends the other as much as the message is long */
    assert_int_equal(wn_plan_link_bytes(&p, &load, 0, 1, WN_TRAFFIC_ALLREDUCE),
                     41 * rows * 5120 * 4);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 3, 2, WN_TRAFFIC_ALLREDUCE),
                     40 * rows * 5120 * 4);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 0, 1, WN_TRAFFIC_CONTROL), 0);
    assert_int_equal(wn_plan_link_bytes(&p, &load, 2, 4, WN_TRAFFIC_ACTIVATION), 0); /* there is no rank 4 */
}

/* One rank of a replica that sends what the decoder sends, without computing anything. */
struct rank_run {
    const struct wn_plan *p;
    const struct wn_plan_load *load;
    struct wn_local_hub *hub;
    struct wn_link *link;
    uint32_t rank;
    wn_status rc;
};

#define SOON (wn_now_us() + 10 * 1000000ll)

static wn_status cross_boundary(struct rank_run *r, uint32_t rows)
{
    uint32_t T = r->p->tensors, stage = r->rank / T;
    size_t part = (size_t)rows * (r->p->model.text.hidden / T) * wn_dtype_bytes(r->p->dtype),
           parts[WN_TENSOR_MAX];
    char *all = calloc(T, part);
    int ranks[WN_TENSOR_MAX];
    struct wn_comm comm = {.ranks = ranks, .n = (int)T, .me = (int)(r->rank % T)};
    struct wn_route to = {.peer = (int)(r->rank + T), .tag = 1, .kind = WN_TRAFFIC_ACTIVATION};
    struct wn_route from = {.peer = (int)(r->rank - T), .tag = 1, .kind = WN_TRAFFIC_ACTIVATION};
    wn_status rc = WN_OK;

    for (uint32_t t = 0; t < T; t++) {
        ranks[t] = (int)(stage * T + t);
        parts[t] = part;
    }
    if (stage > 0) rc = wn_link_recv_now(r->link, from, all + part * comm.me, part, SOON);
    if (rc == WN_OK && stage > 0)
        rc = wn_coll_allgather(r->link, &comm, WN_TRAFFIC_ACTIVATION, all + part * comm.me, all,
                               parts, SOON);
    if (rc == WN_OK && stage + 1 < r->p->stages)
        rc = wn_link_send_now(r->link, to, all, part, SOON);
    free(all);
    return rc;
}

static wn_status run_step(struct rank_run *r, const struct wn_comm *comm, uint32_t rows, int wanted)
{
    const struct wn_text_config *t = &r->p->model.text;
    uint32_t stage = r->rank / r->p->tensors;
    size_t count = (size_t)rows * t->hidden, parts[WN_TENSOR_MAX];
    float *sum = calloc(count, sizeof(float)), *logits = calloc(t->vocab, sizeof(float));
    wn_status rc = cross_boundary(r, rows);

    for (uint32_t i = 0; rc == WN_OK && i < 2 * r->p->layers[stage].n + (stage == 0); i++)
        rc = wn_coll_allreduce_f32(r->link, comm, sum, count, SOON);
    for (uint32_t i = 0; i < r->p->tensors; i++)
        parts[i] = wn_plan_vocab(r->p, i).n * sizeof(float);
    if (rc == WN_OK && wanted && stage + 1 == r->p->stages)
        rc = wn_coll_gather(r->link, comm, 0, WN_TRAFFIC_LOGITS, logits,
                            comm->me == 0 ? logits : NULL, parts, SOON);
    free(sum);
    free(logits);
    return rc;
}

static wn_status run_prompt(struct rank_run *r)
{
    const struct wn_plan_load *load = r->load;
    uint32_t T = r->p->tensors, rows = load->text_tokens + load->image_rows;
    size_t bytes =
        (size_t)load->image_rows * r->p->model.vision.hidden * wn_dtype_bytes(r->p->dtype);
    void *features = calloc(1, bytes);
    int ranks[WN_TENSOR_MAX];
    struct wn_comm comm = {.ranks = ranks, .n = (int)T, .me = (int)(r->rank % T)};
    wn_status rc = WN_OK;

    for (uint32_t t = 0; t < T; t++) ranks[t] = (int)(r->rank / T * T + t);
    if (r->rank < T)
        rc = wn_coll_broadcast(r->link, &comm, 0, WN_TRAFFIC_EMBEDDING, features, bytes, SOON);
    free(features);
    while (rc == WN_OK && rows > 0) {
        uint32_t n = rows < load->chunk_tokens ? rows : load->chunk_tokens;
        rows -= n;
        rc = run_step(r, &comm, n, rows == 0);
    }
    for (uint32_t i = 1; rc == WN_OK && i < load->new_tokens; i++) rc = run_step(r, &comm, 1, 1);
    return rc;
}

static void *rank_main(void *arg)
{
    struct rank_run *r = arg;

    r->rc = run_prompt(r);
    return NULL;
}

static void check_counters(const struct wn_plan *p, const struct wn_plan_load *load)
{
    uint32_t n = p->stages * p->tensors;
    struct rank_run *runs = calloc(n, sizeof(*runs));
    pthread_t *threads = calloc(n, sizeof(*threads));
    struct wn_local_hub *hub = NULL;
    struct wn_err err = {0};

    assert_int_equal(wn_local_hub_create(&hub, (int)n, &err), WN_OK);
    for (uint32_t r = 0; r < n; r++) {
        struct wn_group group = {.rank = (int)r, .size = (int)n, .hub = hub};
        runs[r] = (struct rank_run){.p = p, .load = load, .hub = hub, .rank = r};
        assert_int_equal(wn_link_open(&runs[r].link, "local", &group, &err), WN_OK);
    }
    for (uint32_t r = 0; r < n; r++)
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &runs[r]), 0);
    for (uint32_t r = 0; r < n; r++) {
        pthread_join(threads[r], NULL);
        assert_int_equal(runs[r].rc, WN_OK);
    }
    for (uint32_t src = 0; src < n; src++)
        for (uint32_t dst = 0; dst < n; dst++) {
            struct wn_traffic_table table = {0};
            if (src == dst) continue;
            wn_link_traffic(runs[src].link, (int)dst, &table);
            for (int k = 0; k < WN_TRAFFIC_N; k++) {
                uint64_t plan = wn_plan_link_bytes(p, load, src, dst, (wn_traffic)k);
                if (plan != table.of[k].sent_bytes)
                    fail_msg("%u x %u: %u -> %u %s: planned %llu, counted %llu", p->stages,
                             p->tensors, src, dst, wn_traffic_name((wn_traffic)k),
                             (unsigned long long)plan, (unsigned long long)table.of[k].sent_bytes);
            }
        }
    for (uint32_t r = 0; r < n; r++) wn_link_close(runs[r].link);
    wn_local_hub_destroy(hub);
    free(runs);
    free(threads);
}

/* Steps below and above the size at which an all-reduce halves its message; numbers of ranks that are no power of 2. */
static void test_links_count_what_is_planned(void **state)
{
    const struct wn_plan_load loads[] = {
        {.text_tokens = 5, .image_rows = 9, .new_tokens = 3, .chunk_tokens = 64},
        {.text_tokens = 300, .image_rows = 70, .new_tokens = 1, .chunk_tokens = 365},
        {.text_tokens = 8, .image_rows = 0, .new_tokens = 2, .chunk_tokens = 4},
    };
    const struct wn_model models[] = {shape(48, 24, 3, 4, 4, 37), shape(60, 12, 4, 6, 6, 32)};

    (void)state;
    for (size_t m = 0; m < 2; m++)
        for (uint32_t tensors = 1; tensors <= 6; tensors++)
            for (uint32_t stages = 1; stages <= 3; stages++)
                for (size_t i = 0; i < sizeof(loads) / sizeof(loads[0]); i++) {
                    struct wn_plan p;
                    if (wn_plan_make(&p, &models[m], stages, tensors, NULL, WN_BF16, NULL) != WN_OK)
                        continue;
                    check_counters(&p, &loads[i]);
                }
}

static uint64_t get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    assert_true(json_is_integer(v));
    return (uint64_t)json_integer_value(v);
}

/* The JSON's parts add up to its totals. */
static void test_json_adds_up(void **state)
{
    const struct wn_plan_load load = {
        .text_tokens = 32, .image_rows = 64, .new_tokens = 64, .chunk_tokens = 512};
    struct wn_model m;
    struct wn_plan p;
    uint64_t weights = 0, kv = 0, sum[2] = {0};
    char *text;
    json_t *root, *v;
    const char *key;
    size_t i;

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-13b.json", NULL), WN_OK);
    assert_int_equal(wn_plan_make(&p, &m, 3, 4, "0-9,10-24,25-39", WN_BF16, NULL), WN_OK);
    assert_non_null(text = wn_plan_json(&p, &load, NULL));
    assert_non_null(root = json_loads(text, 0, NULL));
    json_array_foreach(json_object_get(root, "ranks"), i, v)
    {
        weights += get(v, "weight_bytes");
        kv += get(v, "kv_bytes_per_token");
    }
    assert_int_equal(i, 12);
    assert_int_equal(weights, get(root, "weight_bytes"));
    assert_int_equal(weights, get(root, "model_bytes") + get(root, "copies_bytes"));
    assert_int_equal(get(root, "copies_bytes"),
                     3 * (81 + 1) * 5120 * 4); /* 81 norms and a bias, three more times */
    assert_int_equal(kv, get(root, "kv_bytes_per_token"));
    json_array_foreach(json_object_get(root, "links"), i, v)
    {
        const json_t *n;
        json_object_foreach(json_object_get(v, "payload_bytes"), key, n) sum[0] +=
            (uint64_t)json_integer_value(n);
    }
    json_object_foreach(json_object_get(root, "payload_bytes"), key, v) sum[1] +=
        (uint64_t)json_integer_value(v);
    assert_true(sum[0] > 0);
    assert_int_equal(sum[0], sum[1]);
    json_decref(root);
    free(text);
}

/* A token more: what plain tensor parallelism sends for it is two sums a layer and one for the input, and the scores. A
 * sum as small as one row goes whole to log2(T) partners. */
static void test_token_bytes(void **state)
{
    const struct wn_plan_load load = {.text_tokens = 32, .image_rows = 64, .new_tokens = 64, .chunk_tokens = 512};
    struct wn_model m;

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-7b.json", NULL), WN_OK);
    for (uint32_t t = 1, partners = 0; t <= 4; t *= 2, partners++) {
        struct wn_plan p;
        char *text;
        json_t *root, *token;
        assert_int_equal(wn_plan_make(&p, &m, 1, t, NULL, WN_BF16, NULL), WN_OK);
        assert_non_null(text = wn_plan_json(&p, &load, NULL));
        assert_non_null(root = json_loads(text, 0, NULL));
        assert_non_null(token = json_object_get(root, "token_bytes"));
        assert_int_equal(get(token, "embedding"), 0);
        assert_int_equal(get(token, "activation"), 0);
        assert_int_equal(get(token, "allreduce"), 65 * t * partners * 4096 * sizeof(float));
        assert_int_equal(get(token, "logits"), 32064 / t * (t - 1) * sizeof(float));
        json_decref(root);
        free(text);
    }
}

static void test_table(void **state)
{
    const struct wn_plan_load load = {
        .text_tokens = 32, .image_rows = 576, .new_tokens = 64, .chunk_tokens = 512};
    struct wn_model m;
    struct wn_plan p;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    (void)state;
    assert_non_null(out);
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-13b.json", NULL), WN_OK);
    assert_int_equal(wn_plan_make(&p, &m, 2, 2, NULL, WN_BF16, NULL), WN_OK);
    wn_plan_print(&p, &load, out);
    fclose(out);
    assert_non_null(strstr(text, "2 stages x 2 tensor ranks = 4 ranks"));
    assert_non_null(strstr(text, "\nvision -> 0 "));
    assert_non_null(strstr(text, " 1179648 ")); /* 576 rows of 1024 in bfloat16 */
    if (getenv("WN_SHOW")) fputs(text, stdout);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_element_has_its_ranks),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_13b_by_hand),
        cmocka_unit_test(test_links_count_what_is_planned),
        cmocka_unit_test(test_json_adds_up),
        cmocka_unit_test(test_token_bytes),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
