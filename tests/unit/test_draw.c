/* The sampling rank's share of a step: a job's tokens depend on its own text and options only, not on its company,
 * chunks, slot or who had the slot before; what its history is; likelihoods; a device that picks; steps that fail.
 * The stage is played here: the logits of a wanted row are a function of the row's token and place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/draw.h"
#include "shard/sample.h"

#define VOCAB   90u
#define SEQS    4u
#define TOKENS  40u /* of a sequence at most */
#define PROMPT  5u
#define ANSWER  12u
#define IMAGE   2u /* prompt rows 1 and 2 are features, of the ids 70 and 71 */
#define ROWS    64u

/* ---- the stage ---- */

static struct {
    bool can_pick;
    wn_status rc;      /* of the next step */
    float odd;         /* takes the place of the last logit, if not 0 */
    const float *flat; /* [VOCAB] instead of the function */
    unsigned runs, fetched;
    struct wn_pick picks[SEQS];
    float logits[SEQS][VOCAB];
} stage;

static void make_logits(float *out, uint32_t token, uint32_t place)
{
    for (uint32_t i = 0; i < VOCAB; i++) {
        uint32_t h = (i + 1) * 2654435761u ^ (token + 7) * 40503u ^ (place + 3) * 2246822519u;
        h ^= h >> 15;
        h *= 2246822519u;
        h ^= h >> 13;
        out[i] = stage.flat ? stage.flat[i] : (float)(h % 64) / 8.0f - 4.0f; /* of 64 values: there are equals */
    }
    if (stage.odd != 0.0f) out[VOCAB - 1] = stage.odd;
}

static wn_status run(const struct wn_step *step, struct wn_err *err)
{
    stage.runs++;
    if (stage.rc != WN_OK) return wn_fail(err, stage.rc, "the stage has failed");
    for (uint32_t w = 0; w < step->wanted_n; w++) {
        uint32_t s = 0, row = step->wanted[w];
        while (step->seqs[s].first_row + step->seqs[s].rows <= row) s++;
        make_logits(stage.logits[w], step->token[row], step->seqs[s].pos + row - step->seqs[s].first_row);
    }
    return WN_OK;
}

bool wn_stage_can_pick(const struct wn_stage *s)
{
    (void)s;
    return stage.can_pick;
}

wn_status wn_stage_run(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us, float *logits,
                       struct wn_err *err)
{
    const wn_status rc = run(step, err);

    (void)s;
    assert_int_equal(deadline_us, 4711);
    assert_false(stage.can_pick);
    if (rc == WN_OK) memcpy(logits, stage.logits, step->wanted_n * sizeof(stage.logits[0]));
    return rc;
}

/* Picks what is wanted of even rows, and leaves the odd ones to the sampler, as a device does that has too much. */
wn_status wn_stage_pick(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us,
                        const struct wn_pick *each, uint32_t *tokens, struct wn_err *err)
{
    const wn_status rc = run(step, err);
    struct wn_sampler *sampler = NULL;

    (void)s;
    assert_int_equal(deadline_us, 4711);
    if (rc != WN_OK) return rc;
    assert_int_equal(wn_sampler_create(&sampler, VOCAB, NULL), WN_OK);
    for (uint32_t w = 0; w < step->wanted_n; w++) {
        const struct wn_sample_opts o = {.temperature = each[w].temperature,
                                         .top_k = each[w].top_k,
                                         .top_p = each[w].top_p,
                                         .repetition_penalty = 1.0f,
                                         .seed = each[w].seed};
        struct wn_sampled got;
        stage.picks[w] = each[w];
        tokens[w] = WN_PICK_NONE;
        if (!each[w].wanted || w % 2) continue;
        assert_int_equal(wn_sampler_pick(sampler, &o, stage.logits[w], NULL, 0, each[w].position, false, &got, err), 0);
        tokens[w] = got.token;
    }
    wn_sampler_destroy(sampler);
    return WN_OK;
}

wn_status wn_stage_logits(struct wn_stage *s, uint32_t i, float *logits, struct wn_err *err)
{
    (void)s;
    (void)err;
    stage.fetched++;
    memcpy(logits, stage.logits[i], sizeof(stage.logits[i]));
    return WN_OK;
}

/* ---- jobs ---- */

struct job {
    struct wn_sample_opts o;
    uint32_t logprobs; /* as struct wn_step_open */
    uint32_t text[TOKENS], length, done; /* rows that have run */
    float logprob[TOKENS];
    struct wn_step_top top[TOKENS][WN_STEP_TOP_MAX];
};

static const struct job kinds[] = {
    {.o = {.temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}},
    {.o = {.temperature = 0.8f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = 11}},
    {.o = {.temperature = 0.9f, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1.3f, .seed = 12}},
    {.o = {.temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}, .logprobs = 1 + 3},
    {.o = {.temperature = 1.5f, .top_p = 0.7f, .repetition_penalty = 1.0f, .seed = 13}, .logprobs = 1},
    {.o = {.temperature = 1.0f, .top_k = 3, .top_p = 1.0f, .repetition_penalty = 2.0f, .seed = 1},
     .logprobs = 1 + WN_STEP_TOP_MAX},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static const struct wn_step_limits limits = {.rows_max = ROWS, .seqs_max = SEQS, .vocab = VOCAB, .pages_max = 8,
                                             .table_max = 8, .page_tokens = 8, .features_max = 1};

static struct job job_of(size_t kind)
{
    struct job j = kinds[kind];

    for (uint32_t i = 0; i < PROMPT; i++) j.text[i] = (uint32_t)(kind * 13 + i * 5) % VOCAB;
    j.text[1] = 70;
    j.text[2] = 71;
    j.length = PROMPT;
    return j;
}

struct bed {
    struct wn_draw *d;
    struct wn_step_record rec;
    uint32_t token[ROWS], wanted[SEQS];
    struct wn_seq seqs[SEQS];
    struct wn_step step;
    struct wn_step_token drawn[SEQS];
    wn_draw_top top[SEQS];
    struct job *of[SEQS]; /* the job of each sequence of the record */
};

static void bed_open(struct bed *b)
{
    memset(b, 0, sizeof(*b));
    assert_int_equal(wn_step_record_init(&b->rec, &limits, NULL), WN_OK);
    assert_int_equal(wn_draw_open(&b->d, (struct wn_stage *)&stage, &limits, TOKENS, NULL), WN_OK);
}

static void bed_close(struct bed *b)
{
    wn_draw_close(b->d);
    wn_step_record_fini(&b->rec);
}

/* The next `rows` rows of j in the slot; if they are its last, a token is wanted. */
static void add(struct bed *b, struct job *j, uint32_t slot, uint32_t rows)
{
    struct wn_step_record *r = &b->rec;

    if (j->done == 0)
        r->opens[r->opens_n++] = (struct wn_step_open){.slot = slot,
                                                       .temperature = j->o.temperature,
                                                       .top_k = j->o.top_k,
                                                       .top_p = j->o.top_p,
                                                       .repetition_penalty = j->o.repetition_penalty,
                                                       .logprobs = j->logprobs,
                                                       .seed = j->o.seed};
    b->of[r->seqs_n] = j;
    r->seqs[r->seqs_n++] = (struct wn_step_seq){
        .slot = slot, .first_row = r->rows_n, .rows = rows, .pos = j->done, .sample = j->done + rows == j->length};
    for (uint32_t i = j->done; i < j->done + rows; i++)
        r->rows[r->rows_n++] = (struct wn_step_row){
            .id = j->text[i], .features = i == 1 || i == IMAGE ? 0 : WN_STEP_NO_FEATURES, .position = i};
    j->done += rows;
}

static wn_status run_step(struct bed *b, struct wn_err *err)
{
    struct wn_step_record *r = &b->rec;
    uint32_t wanted_n = 0;

    for (uint32_t i = 0; i < r->rows_n; i++) b->token[i] = r->rows[i].id;
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        b->seqs[i] = (struct wn_seq){.first_row = r->seqs[i].first_row, .rows = r->seqs[i].rows, .pos = r->seqs[i].pos};
        if (r->seqs[i].sample) b->wanted[wanted_n++] = r->seqs[i].first_row + r->seqs[i].rows - 1;
    }
    b->step = (struct wn_step){.rows = r->rows_n,
                               .token = b->token,
                               .seqs_n = r->seqs_n,
                               .seqs = b->seqs,
                               .wanted_n = wanted_n,
                               .wanted = b->wanted};
    return wn_draw_step(b->d, r, &b->step, 4711, b->drawn, b->top, err);
}

/* Runs what was added, and gives each job its token. */
static void go(struct bed *b)
{
    struct wn_err err = {0};
    uint32_t top = 0, token = 0;

    if (run_step(b, &err) != WN_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < b->rec.seqs_n; i++) {
        struct job *j = b->of[i];
        if (!b->rec.seqs[i].sample) continue;
        assert_int_equal(b->drawn[token].seq, i);
        if (j->logprobs > 1) memcpy(j->top[j->length], b->top[top++], (j->logprobs - 1) * sizeof(j->top[0][0]));
        j->logprob[j->length] = b->drawn[token].logprob;
        j->text[j->length++] = b->drawn[token++].id;
    }
    wn_step_record_clear(&b->rec);
}

/* A job that nothing runs beside, its prompt in one chunk. */
static struct job alone(size_t kind)
{
    struct job j = job_of(kind);
    struct bed b;

    bed_open(&b);
    while (j.length < PROMPT + ANSWER) {
        add(&b, &j, 0, j.length - j.done);
        go(&b);
    }
    bed_close(&b);
    return j;
}

static void assert_same(const struct job *got, const struct job *want)
{
    assert_int_equal(got->length, want->length);
    assert_memory_equal(got->text, want->text, sizeof(got->text));
    assert_memory_equal(got->logprob, want->logprob, sizeof(got->logprob));
    assert_memory_equal(got->top, want->top, sizeof(got->top));
}

/* ---- the same token in any company ---- */

/* Four slots, six kinds of jobs: they come and go, in chunks of any size, in any order, with steps in which some do not
 * take part, and slots that had other jobs before. */
static void any_company(void)
{
    struct job want[KINDS];
    struct bed b;

    for (size_t k = 0; k < KINDS; k++) want[k] = alone(k);
    srand(3);
    bed_open(&b);
    for (int round = 0; round < 20; round++) {
        struct job jobs[SEQS];
        size_t kind[SEQS];
        unsigned over = 0;
        for (uint32_t s = 0; s < SEQS; s++) jobs[s] = job_of(kind[s] = (size_t)rand() % KINDS);
        while (over != (1u << SEQS) - 1) {
            const uint32_t first = (uint32_t)rand() % SEQS;
            for (uint32_t k = 0; k < SEQS; k++) {
                const uint32_t s = (first + k) % SEQS, left = jobs[s].length - jobs[s].done;
                if (over >> s & 1 || rand() % 4 == 0) continue;
                add(&b, &jobs[s], s, 1 + (uint32_t)rand() % left);
            }
            if (b.rec.rows_n > 0) go(&b);
            for (uint32_t s = 0; s < SEQS; s++) over |= (unsigned)(jobs[s].length == PROMPT + ANSWER) << s;
        }
        for (uint32_t s = 0; s < SEQS; s++) assert_same(&jobs[s], &want[kind[s]]);
    }
    bed_close(&b);
}

static void test_a_token_is_the_same_in_any_company(void **state)
{
    struct job a = alone(1), b = job_of(1);
    struct bed bed;
    uint32_t same = 0;
    (void)state;

    any_company();
    b.o.seed = 99; /* and another seed is another text */
    bed_open(&bed);
    while (b.length < PROMPT + ANSWER) {
        add(&bed, &b, 0, b.length - b.done);
        go(&bed);
    }
    bed_close(&bed);
    for (uint32_t i = PROMPT; i < PROMPT + ANSWER; i++) same += a.text[i] == b.text[i];
    assert_true(same < ANSWER);
}

/* Preempted: its rows are computed again, prompt and answer so far as one prompt, in another slot. */
static void test_a_replay_goes_on_with_the_same_text(void **state)
{
    struct bed b;
    (void)state;

    bed_open(&b);
    for (size_t k = 0; k < KINDS; k++) {
        const struct job want = alone(k);
        for (uint32_t emitted = 0; emitted < ANSWER; emitted += 3) {
            struct job j = job_of(k);
            memcpy(j.text + PROMPT, want.text + PROMPT, emitted * sizeof(j.text[0]));
            j.length = PROMPT + emitted;
            while (j.length < PROMPT + ANSWER) {
                add(&b, &j, (uint32_t)k % SEQS, j.length - j.done);
                go(&b);
            }
            assert_memory_equal(j.text, want.text, sizeof(j.text));
        }
    }
    bed_close(&b);
}

/* ---- what is drawn ---- */

/* One token from the given logits after the prompt. */
static struct job draw_flat(const float *logits, struct job j)
{
    struct bed b;

    stage.flat = logits;
    bed_open(&b);
    add(&b, &j, 2, j.length);
    go(&b);
    bed_close(&b);
    stage.flat = NULL;
    return j;
}

static uint32_t token_of(const float *logits, struct wn_sample_opts o)
{
    struct job j = job_of(0);

    j.o = o;
    return draw_flat(logits, j).text[PROMPT];
}

static void test_edges_of_the_options(void **state)
{
    float logits[VOCAB] = {0};
    struct wn_sample_opts o = {.temperature = 0.0f, .top_k = 1, .top_p = 0.5f, .repetition_penalty = 1.0f};
    uint32_t all = 0, k_many = 0;
    (void)state;

    logits[33] = logits[44] = 6.0f; /* two equals: the lower id is the larger */
    for (o.seed = 0; o.seed < 5; o.seed++) assert_int_equal(token_of(logits, o), 33);
    o.temperature = 2.0f;
    for (o.seed = 0; o.seed < 20; o.seed++) assert_int_equal(token_of(logits, o), 33); /* top_k 1 */
    o.top_k = 0;
    o.top_p = 1e-6f;
    for (o.seed = 0; o.seed < 20; o.seed++) assert_int_equal(token_of(logits, o), 33);
    o.top_p = 1.0f;
    for (o.seed = 0; o.seed < 20; o.seed++) {
        o.top_k = 0;
        all = token_of(logits, o);
        o.top_k = VOCAB; /* as many as there are, and more: no filter */
        assert_int_equal(token_of(logits, o), all);
        o.top_k = UINT32_MAX;
        assert_int_equal(token_of(logits, o), all);
        k_many += all != 33 && all != 44;
    }
    assert_true(k_many > 3); /* at temperature 2 the others have more than half of it */
}

/* Text counts, in whatever chunk it came; rows of a picture are no text, and nor is what the slot had before. */
static void test_a_penalty_is_for_text(void **state)
{
    float logits[VOCAB];
    struct job j = job_of(0), other = job_of(0);
    struct bed b;
    (void)state;

    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = -9.0f;
    j.o.repetition_penalty = 2.0f;
    j.text[0] = 50;
    j.text[3] = 51;
    j.text[4] = 52;
    logits[50] = logits[51] = logits[52] = 5.0f;
    logits[70] = 3.0f; /* also the row of the picture that is prompt row 1 */
    logits[80] = 2.9f;
    assert_int_equal(draw_flat(logits, j).text[PROMPT], 70); /* 2.5 are left of the others */
    logits[70] = -9.0f;
    assert_int_equal(draw_flat(logits, j).text[PROMPT], 80);

    stage.flat = logits;
    bed_open(&b);
    other.text[0] = 80; /* the job before, in the same slot */
    add(&b, &other, 1, PROMPT);
    go(&b);
    add(&b, &j, 1, 1);
    go(&b);
    add(&b, &j, 1, 3);
    go(&b);
    add(&b, &j, 1, 1);
    go(&b);
    assert_int_equal(j.text[PROMPT], 80);
    add(&b, &j, 1, 1); /* which counts now, itself */
    go(&b);
    assert_int_equal(j.text[PROMPT + 1], 50);
    bed_close(&b);
    stage.flat = NULL;
}

/* Of the logits as they came, whatever the options made of them; likeliest first. */
static void test_likelihoods_are_of_the_raw_logits(void **state)
{
    float logits[VOCAB] = {0};
    double sum = VOCAB - 3 + exp(3.0) + exp(2.0) + exp(1.0);
    struct job j = job_of(0);
    (void)state;

    logits[20] = 3.0f;
    logits[30] = 2.0f;
    logits[40] = 1.0f;
    j.text[0] = 20;
    j.o = (struct wn_sample_opts){.temperature = 0.3f, .top_k = 1, .top_p = 0.9f, .repetition_penalty = 2.0f};
    j.logprobs = 1 + 3;
    j = draw_flat(logits, j);
    assert_int_equal(j.text[PROMPT], 30);
    assert_true(fabs((double)j.logprob[PROMPT] - (2.0 - log(sum))) < 1e-5);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(j.top[PROMPT][i].id, 20 + 10 * i);
        assert_true(fabs((double)j.top[PROMPT][i].logprob - (3.0 - i - log(sum))) < 1e-5);
    }
    j = job_of(0);
    j = draw_flat(logits, j);
    assert_true(j.logprob[PROMPT] == 0.0f); /* not asked for */
}

/* ---- steps ---- */

static void test_a_step_without_rows_only_opens(void **state)
{
    const struct job want = alone(2);
    struct job j = job_of(2);
    struct bed b;
    (void)state;

    bed_open(&b);
    stage.runs = 0;
    add(&b, &j, 3, PROMPT);
    b.rec.rows_n = b.rec.seqs_n = 0;
    go(&b);
    assert_int_equal(stage.runs, 0);
    j.done = 0;
    add(&b, &j, 3, PROMPT);
    b.rec.opens_n = 0; /* its options are known */
    go(&b);
    assert_int_equal(stage.runs, 1);
    assert_int_equal(j.text[PROMPT], want.text[PROMPT]);
    bed_close(&b);
}

/* More rows than a sequence may have tokens are never written past its history. */
static void test_history_has_its_bound(void **state)
{
    struct job j = job_of(2);
    struct bed b;
    (void)state;

    bed_open(&b);
    for (uint32_t i = 0; i < TOKENS + 20; i++) {
        j.length = PROMPT;
        j.done = i == 0 ? 0 : PROMPT - 1;
        add(&b, &j, 0, j.length - j.done);
        go(&b);
        assert_true(j.text[PROMPT] < VOCAB);
    }
    bed_close(&b);
}

static void test_a_step_that_fails(void **state)
{
    const float odd[] = {NAN, INFINITY, -INFINITY};
    struct job j;
    struct bed b;
    struct wn_err err = {0};
    (void)state;

    for (size_t k = 0; k < 2 * KINDS; k++) { /* of any kind, whoever picks */
        stage.can_pick = k >= KINDS;
        for (size_t i = 0; i < 3; i++) {
            struct job ok = job_of(0);
            if (stage.can_pick && kinds[k % KINDS].o.repetition_penalty == 1.0f && !kinds[k % KINDS].logprobs)
                continue; /* the device looks at its own */
            bed_open(&b);
            j = job_of(k % KINDS);
            stage.odd = odd[i];
            add(&b, &j, 0, PROMPT);
            assert_int_equal(run_step(&b, &err), WN_EINVAL);
            assert_non_null(strstr(err.text, "logit of id 89 is not a finite number"));
            stage.odd = 0.0f;
            wn_step_record_clear(&b.rec);
            add(&b, &ok, 0, PROMPT);
            go(&b);
            bed_close(&b);
        }
    }
    stage.can_pick = false;
    bed_open(&b);
    j = job_of(0);
    add(&b, &j, 0, PROMPT);
    stage.rc = WN_EPEER;
    assert_int_equal(run_step(&b, &err), WN_EPEER);
    assert_string_equal(err.text, "the stage has failed");
    stage.rc = WN_OK;
    bed_close(&b);

    bed_open(&b);
    j = job_of(2);
    j.text[0] = VOCAB; /* no such token, and it would be punished */
    add(&b, &j, 0, PROMPT);
    assert_int_equal(run_step(&b, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "context id 90"));
    bed_close(&b);
}

/* ---- a device that picks ---- */

static void test_a_device_picks_the_same(void **state)
{
    struct job want[KINDS], j;
    struct bed b;
    (void)state;

    for (size_t k = 0; k < KINDS; k++) want[k] = alone(k);
    stage.can_pick = true;
    any_company();
    for (size_t k = 0; k < KINDS; k++) {
        const bool its = kinds[k].o.repetition_penalty == 1.0f && !kinds[k].logprobs;
        stage.fetched = 0;
        j = alone(k);
        assert_same(&j, &want[k]);
        assert_int_equal(stage.fetched, its ? 0 : ANSWER); /* the row crosses only where it must */
    }
    bed_open(&b);
    j = job_of(4);
    j.logprobs = 0;
    add(&b, &j, 1, PROMPT);
    go(&b);
    assert_true(stage.picks[0].seed == 13 && stage.picks[0].position == PROMPT && stage.picks[0].wanted);
    assert_true(stage.picks[0].temperature == 1.5f && stage.picks[0].top_p == 0.7f && stage.picks[0].top_k == 0);
    bed_close(&b);
    stage.can_pick = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_token_is_the_same_in_any_company),
        cmocka_unit_test(test_a_replay_goes_on_with_the_same_text),
        cmocka_unit_test(test_edges_of_the_options),
        cmocka_unit_test(test_a_penalty_is_for_text),
        cmocka_unit_test(test_likelihoods_are_of_the_raw_logits),
        cmocka_unit_test(test_a_step_without_rows_only_opens),
        cmocka_unit_test(test_history_has_its_bound),
        cmocka_unit_test(test_a_step_that_fails),
        cmocka_unit_test(test_a_device_picks_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
