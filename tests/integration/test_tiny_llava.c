/* test_tiny_llava [QUESTIONS] - models/tiny-llava from picture and question to tokens, in bfloat16: the greedy tokens
 * that Transformers gives (scripts/golden/tiny_llava.py) to 25 questions, or as many as the argument says, spread over
 * all of them; and the same bits of every logit from every plan, also with int8 weights.
 * Two arithmetics that round in different places must differ now and then where two tokens are nearly equally likely:
 * one answer in a hundred may be another, and one of fewer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sodium.h>

#include "shard/decoder.h"
#include "shard/image.h"
#include "shard/kvpool.h"
#include "shard/preprocess.h"
#include "shard/prompt.h"
#include "shard/sample.h"
#include "shard/vision.h"
#include "tests/file_read.h"
#include "tests/one_seq.h"
#include "transport/link.h"

#define MODEL       "models/tiny-llava"
#define ANSWERS     "tests/golden/tiny-llava/answers.txt"
#define ROWS_MAX    1024 /* of a prompt with its answer */
#define PAGE_TOKENS 16
#define NEW_MAX     256
#define RANKS_MAX   4
#define COMMAND     "run python3 scripts/golden/tiny_llava.py"

static struct wn_model model;
static struct wn_weights *weights;
static struct wn_backend *be;
static struct wn_vision *tower;
static struct wn_tokenizer *tokenizer;
static struct wn_preprocess preprocess;
static uint32_t questions_max = 25;

struct question {
    char id[64], image[128], text[512];
    uint32_t prompt[ROWS_MAX], prompt_n; /* one image token for the picture */
    uint32_t answer[NEW_MAX], answer_n;
};

#define MUST(call)                                                                                                   \
    do {                                                                                                             \
        struct wn_err err = {0};                                                                                     \
        if ((call) != WN_OK) fail_msg("%s: %s", #call, err.text);                                                    \
    } while (0)

/* WN_TEST_BACKEND, or the CPU. */
static const char *backend(void)
{
    const char *wish = getenv("WN_TEST_BACKEND");
    return wish ? wish : wn_backends[0]->name;
}

static void read_line(FILE *f, char *out, size_t room)
{
    if (!fgets(out, (int)room, f)) fail_msg(ANSWERS " ends early: " COMMAND);
    out[strcspn(out, "\n")] = '\0';
}

static uint32_t read_ids(FILE *f, uint32_t *out, uint32_t max)
{
    char line[16384], *at = line, *end;
    uint32_t n = 0;

    read_line(f, line, sizeof(line));
    for (;; at = end) {
        unsigned long v = strtoul(at, &end, 10);
        if (end == at) return n;
        assert_true(n < max);
        out[n++] = (uint32_t)v;
    }
}

static bool read_question(FILE *f, struct question *q)
{
    char line[128];

    if (!fgets(line, sizeof(line), f)) return false;
    assert_int_equal(sscanf(line, "question %63s", q->id), 1);
    read_line(f, q->image, sizeof(q->image));
    read_line(f, q->text, sizeof(q->text));
    q->prompt_n = read_ids(f, q->prompt, ROWS_MAX);
    q->answer_n = read_ids(f, q->answer, NEW_MAX);
    return true;
}

static void *read_file(const char *path, size_t *bytes)
{
    void *data = file_read(path, bytes);

    if (!data) fail_msg("%s cannot be read", path);
    return data;
}

/* The first line of the answers names the checkpoint that gave them. */
static FILE *open_answers(void)
{
    static const char *const shards[] = {MODEL "/model-00001-of-00002.safetensors",
                                         MODEL "/model-00002-of-00002.safetensors"};
    crypto_hash_sha256_state h;
    unsigned char digest[crypto_hash_sha256_BYTES];
    char have[2 * crypto_hash_sha256_BYTES + 1], want[128];
    FILE *f = fopen(ANSWERS, "r");

    if (!f) fail_msg(ANSWERS " is missing: " COMMAND);
    crypto_hash_sha256_init(&h);
    for (int i = 0; i < 2; i++) {
        size_t n;
        void *p = read_file(shards[i], &n);
        crypto_hash_sha256_update(&h, p, n);
        free(p);
    }
    crypto_hash_sha256_final(&h, digest);
    sodium_bin2hex(have, sizeof(have), digest, sizeof(digest));
    read_line(f, want, sizeof(want));
    if (strcmp(have, want) != 0) fail_msg("the checkpoint is another than that of " ANSWERS ": " COMMAND);
    return f;
}

/* Encodes the picture; the features stay valid until the next one. */
static void encode(const struct question *q, struct wn_vision_out *out)
{
    const struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
    char path[192];
    size_t bytes, side = model.vision.image_side;
    float *pixels = malloc(3 * side * side * sizeof(float));
    struct wn_image image = {0};
    void *data;

    snprintf(path, sizeof(path), "tests/eval/%s", q->image);
    data = read_file(path, &bytes);
    assert_true(preprocess.width == side && preprocess.height == side);
    MUST(wn_image_decode(&image, data, bytes, &limits, &err));
    MUST(wn_preprocess_run(&preprocess, &image, pixels, &err));
    MUST(wn_vision_encode(tower, pixels, 1, NULL, WN_NEVER, out, &err));
    wn_image_fini(&image);
    free(data);
    free(pixels);
}

/* The rows that the decoder sees: the prompt with the image token expanded, then `extra` tokens. */
struct rows {
    uint32_t n, token[ROWS_MAX], slot[ROWS_MAX];
};

static void lay_out(struct rows *r, const struct question *q)
{
    r->n = 0;
    for (uint32_t i = 0; i < q->prompt_n; i++) {
        uint32_t copies = q->prompt[i] == model.image_token ? model.vision.patches : 1;
        assert_true(r->n + copies <= ROWS_MAX);
        for (uint32_t c = 0; c < copies; c++, r->n++) {
            r->token[r->n] = copies > 1 ? c : q->prompt[i];
            r->slot[r->n] = copies > 1 ? 0 : WN_SLOT_NONE;
        }
    }
}

static wn_status stage_open(struct wn_stage **out, const struct wn_plan *plan, uint32_t rank, struct wn_link *link,
                            struct wn_backend *backend, struct wn_err *err)
{
    const struct wn_stage_opts o = {.be = backend, .link = link, .plan = plan, .weights = weights, .rank = rank,
                                    ONE_SEQ(ROWS_MAX, PAGE_TOKENS)};

    return wn_stage_open(out, &o, err);
}

/* Rows [from, from + n) in one step; the last one's logits are wanted. */
static wn_status run_rows(struct wn_stage *s, const struct rows *r, uint32_t from, uint32_t n, float *logits,
                          struct wn_err *err)
{
    uint32_t pages[ROWS_MAX / PAGE_TOKENS], wanted = n - 1;
    struct wn_seq seq = {.rows = n, .pos = from, .pages = pages};
    struct wn_step step = {.rows = n,
                           .token = r->token + from,
                           .slot = r->slot + from,
                           .seqs_n = 1,
                           .seqs = &seq,
                           .wanted_n = 1,
                           .wanted = &wanted};

    for (uint32_t i = 0; i < ROWS_MAX / PAGE_TOKENS; i++) pages[i] = i;
    return wn_stage_run(s, &step, wn_deadline_in_us(120000000), logits, err);
}

static struct wn_features features_of(const struct wn_vision_out *v)
{
    return (struct wn_features){.rows = v->rows, .width = v->width, .dtype = v->dtype};
}

/* Answers greedily: as many tokens as Transformers gave, or to the end token. logits (NULL is fine) gets each row. */
static uint32_t answer(struct wn_stage *s, const struct question *q, struct rows *r, uint32_t *out, float *logits)
{
    const struct wn_sample_opts greedy = WN_SAMPLE_GREEDY;
    uint32_t vocab = model.text.vocab, n = 0, from = 0;
    float *row = malloc(vocab * sizeof(float));
    struct wn_sampler *sampler = NULL;
    struct wn_sampled got = {0};

    MUST(wn_sampler_create(&sampler, vocab, &err));
    lay_out(r, q);
    while (n < q->answer_n) {
        MUST(run_rows(s, r, from, r->n - from, row, &err));
        MUST(wn_sampler_pick(sampler, &greedy, row, NULL, 0, r->n, false, &got, &err));
        if (logits) memcpy(logits + (size_t)n * vocab, row, vocab * sizeof(float));
        out[n++] = got.token;
        if (got.token == model.eos[0]) break;
        assert_true(r->n < ROWS_MAX);
        from = r->n;
        r->token[r->n] = got.token;
        r->slot[r->n++] = WN_SLOT_NONE;
    }
    wn_sampler_destroy(sampler);
    free(row);
    return n;
}

static void check_prompt(const struct question *q)
{
    struct wn_prompt p = {
        .question = q->text, .question_bytes = strlen(q->text), .images = 1, .image_token = model.image_token};
    struct wn_tokens ids = {0};

    MUST(wn_prompt_encode(&p, tokenizer, ROWS_MAX, &ids, &err));
    assert_int_equal(ids.n, q->prompt_n);
    assert_memory_equal(ids.ids, q->prompt, ids.n * sizeof(*ids.ids));
    wn_tokens_fini(&ids);
}

/* Does Winnow's answer to the question equal that of Transformers? */
static bool same_answer(struct wn_stage *s, const struct question *q)
{
    static struct rows r;
    struct wn_vision_out v;
    struct wn_features shape;
    uint32_t got[NEW_MAX], n;

    check_prompt(q);
    encode(q, &v);
    shape = features_of(&v);
    MUST(wn_stage_features_put(s, 0, v.features, &shape, &err));
    n = answer(s, q, &r, got, NULL);
    if (n == q->answer_n && memcmp(got, q->answer, n * sizeof(*got)) == 0) return true;
    print_message("    another answer: %s (%s)\n", q->id, q->text);
    return false;
}

static void test_answers_are_those_of_transformers(void **state)
{
    static struct question q;
    struct wn_plan plan;
    struct wn_stage *s = NULL;
    uint32_t all = 0, asked = 0, same = 0, step;
    FILE *f = open_answers();
    (void)state;

    while (read_question(f, &q)) all++;
    fclose(f);
    step = all > questions_max ? all / questions_max : 1;
    f = open_answers();
    MUST(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err));
    MUST(stage_open(&s, &plan, 0, NULL, be, &err));
    for (uint32_t i = 0; read_question(f, &q); i++) {
        if (i % step != 0) continue;
        asked++;
        same += same_answer(s, &q);
    }
    fclose(f);
    print_message("    %u of %u answers are the same tokens\n", same, asked);
    assert_true(asked > 0);
    assert_true(asked - same <= (asked > 100 ? asked / 100 : 1));
    wn_stage_close(s);
}

/* --- the same bits from every plan --- */

struct rank {
    const struct wn_plan *plan;
    uint32_t me, prompt_rows, answer_n;
    struct wn_link *link;
    const struct rows *rows; /* prompt and answer */
    const struct wn_vision_out *v;
    float *logits; /* [answer_n, vocab], the last stage's first rank */
    wn_status rc;
    struct wn_err err;
};

static wn_status rank_run(struct rank *r, struct wn_stage *s)
{
    struct wn_features shape = features_of(r->v);
    wn_status rc = wn_stage_features_share(s, 0, r->me == 0 ? r->v->features : NULL, &shape,
                                           wn_deadline_in_us(120000000), &r->err);

    for (uint32_t i = 0; rc == WN_OK && i < r->answer_n; i++) {
        uint32_t from = i ? r->prompt_rows + i - 1 : 0, n = i ? 1 : r->prompt_rows;
        rc = run_rows(s, r->rows, from, n, wn_stage_is_last(s) ? r->logits + (size_t)i * model.text.vocab : NULL,
                      &r->err);
    }
    return rc;
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct wn_backend *mine = NULL;
    struct wn_stage *s = NULL;

    r->rc = wn_backend_open(&mine, backend(), 0, &r->err);
    if (r->rc == WN_OK) r->rc = stage_open(&s, r->plan, r->me, r->link, mine, &r->err);
    if (r->rc == WN_OK) r->rc = rank_run(r, s);
    if (r->rc != WN_OK) wn_link_cancel(r->link);
    if (r->rc == WN_OK) wn_stage_close(s);
    wn_link_close(r->link);
    if (r->rc != WN_OK) wn_stage_close(s);
    wn_backend_close(mine);
    return NULL;
}

static void check_plan(const struct rows *rows, uint32_t prompt_rows, uint32_t answer_n,
                       const struct wn_vision_out *v, const float *want, uint32_t stages, uint32_t tensors,
                       wn_dtype linear)
{
    uint32_t n = stages * tensors;
    size_t bytes = (size_t)answer_n * model.text.vocab * sizeof(float);
    float *got = malloc(bytes);
    struct wn_local_hub *hub = NULL;
    struct rank ranks[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    struct wn_plan plan;

    MUST(wn_plan_make(&plan, &model, stages, tensors, NULL, WN_BF16, &err));
    plan.linear = linear;
    MUST(wn_local_hub_create(&hub, (int)n, &err));
    for (uint32_t i = 0; i < n; i++) {
        struct wn_group group = {.rank = (int)i, .size = (int)n, .hub = hub};
        ranks[i] = (struct rank){.plan = &plan,
                                 .me = i,
                                 .prompt_rows = prompt_rows,
                                 .answer_n = answer_n,
                                 .rows = rows,
                                 .v = v,
                                 .logits = got};
        MUST(wn_link_open(&ranks[i].link, "local", &group, &err));
    }
    for (uint32_t i = 0; i < n; i++) pthread_create(&threads[i], NULL, rank_main, &ranks[i]);
    for (uint32_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < n; i++)
        if (ranks[i].rc != WN_OK) fail_msg("P=%u T=%u rank %u: %s", stages, tensors, i, ranks[i].err.text);
    assert_memory_equal(got, want, bytes);
    wn_local_hub_destroy(hub);
    free(got);
}

static void every_plan(wn_dtype linear)
{
    static struct question q;
    static struct rows r;
    struct wn_plan plan;
    struct wn_stage *s = NULL;
    struct wn_vision_out v;
    struct wn_features shape;
    uint32_t got[NEW_MAX], n, prompt_rows;
    float *logits = malloc((size_t)NEW_MAX * model.text.vocab * sizeof(float));
    FILE *f = open_answers();

    assert_true(read_question(f, &q));
    fclose(f);
    lay_out(&r, &q);
    prompt_rows = r.n;
    encode(&q, &v);
    shape = features_of(&v);
    MUST(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err));
    plan.linear = linear;
    MUST(stage_open(&s, &plan, 0, NULL, be, &err));
    MUST(wn_stage_features_put(s, 0, v.features, &shape, &err));
    n = answer(s, &q, &r, got, logits);
    wn_stage_close(s);
    check_plan(&r, prompt_rows, n, &v, logits, 3, 1, linear);
    check_plan(&r, prompt_rows, n, &v, logits, 2, 2, linear);
    check_plan(&r, prompt_rows, n, &v, logits, 1, 4, linear);
    free(logits);
}

static void test_every_plan_gives_the_same_bits(void **state)
{
    (void)state;
    every_plan(WN_BF16);
}

static void test_every_plan_gives_the_same_bits_in_int8(void **state)
{
    (void)state;
    every_plan(WN_I8);
}

static int open_model(void **state)
{
    (void)state;
    MUST(wn_model_open(&model, MODEL, &err));
    MUST(wn_weights_open(&weights, MODEL, &err));
    MUST(wn_backend_open(&be, backend(), 0, &err));
    MUST(wn_vision_open(&tower, be, &model, weights, WN_BF16, 1, &err));
    MUST(wn_tokenizer_open(&tokenizer, MODEL "/tokenizer.json", &err));
    MUST(wn_preprocess_load(&preprocess, MODEL "/preprocessor_config.json", &err));
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    wn_tokenizer_close(tokenizer);
    wn_vision_close(tower);
    wn_backend_close(be);
    wn_weights_close(weights);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1) questions_max = (uint32_t)strtoul(argv[1], NULL, 10);
    if (questions_max == 0) questions_max = 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_those_of_transformers),
        cmocka_unit_test(test_every_plan_gives_the_same_bits),
        cmocka_unit_test(test_every_plan_gives_the_same_bits_in_int8),
    };
    const struct CMUnitTest one_rank[] = {cmocka_unit_test(test_answers_are_those_of_transformers)};
    if (strcmp(backend(), "cpu") != 0) /* links take host memory */
        return cmocka_run_group_tests_name(backend(), one_rank, open_model, close_model);
    return cmocka_run_group_tests(tests, open_model, close_model);
}
