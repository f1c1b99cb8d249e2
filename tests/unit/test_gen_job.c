/* tests/unit/test_gen_job.c - daemon/engine_job: an order and its features become rows. What is refused; which rotary
 * positions rows have; that a replay goes on with the rows of the attempt before; the limits, to the last row. */
#include "tests/unit/gen_job_bed.h"

#define EOS      2
#define ORDINARY 300 /* a token that ends nothing */

static void refuse_order(const struct asked *a, wn_status code, const char *words)
{
    struct wn_front_msg *order = gen_message(WN__ENVELOPE__BODY_GENERATE, &a->g);
    struct wn_gen_job *job = NULL;
    struct wn_err err = {0};

    assert_int_equal(wn_gen_job_create(&job, order, &limits, &err), code);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    assert_null(job);
    wn_front_msg_free(order);
}

static void refuses_orders(void **state)
{
    struct asked a;
    uint32_t id;
    char longest[2000];

    (void)state;
    gen_ask(&a, 3);
    refuse_order(&a, WN_ELIMIT, "3 images; at most 2");
    gen_ask(&a, 0);
    a.s.stop_token_ids = &id;
    a.s.n_stop_token_ids = 1;
    id = model.text.vocab;
    refuse_order(&a, WN_EINVAL, "stop token 1024");
    id = model.text.vocab - 1;
    wn_gen_job_destroy(gen_job_of(&a));
    gen_ask(&a, 0);
    a.g.emitted = &id;
    a.g.n_emitted = 1;
    id = model.text.vocab;
    refuse_order(&a, WN_EPROTO, "emitted token 1024");
    id = model.text.vocab - 1;
    wn_gen_job_destroy(gen_job_of(&a));
    gen_ask(&a, 0);
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = 0;
    a.g.prompt = longest;
    refuse_order(&a, WN_ELIMIT, "longer than");
}

/* Sampling is optional: the server's defaults, greedy. */
static void without_sampling(void **state)
{
    struct wn_gen_job *job;
    struct asked a;

    (void)state;
    gen_ask(&a, 0);
    a.g.sampling = NULL;
    a.g.pruning = NULL;
    job = gen_laid_out(&a);
    assert_int_equal(job->max_new, limits.max_new);
    assert_false(job->uncached);
    wn_gen_job_destroy(job);
}

/* What ends an answer: the model's tokens unless they are ignored, and the job's own, always. */
static void ends(void **state)
{
    struct asked a;
    uint32_t own[2] = {50, 51};

    (void)state;
    gen_ask(&a, 0);
    assert_true(wn_gen_is_end(&a.g, &model, EOS));
    assert_false(wn_gen_is_end(&a.g, &model, 50));
    a.s.stop_token_ids = own;
    a.s.n_stop_token_ids = 2;
    a.s.ignore_eos = true;
    assert_false(wn_gen_is_end(&a.g, &model, EOS));
    assert_true(wn_gen_is_end(&a.g, &model, 50));
    assert_true(wn_gen_is_end(&a.g, &model, 51));
    a.g.sampling = NULL;
    assert_true(wn_gen_is_end(&a.g, &model, EOS));
}

/* A lost attempt may have given the last token, and only its Done was not heard: the replay is over at once. */
static void replay_of_a_whole_answer(void **state)
{
    uint32_t emitted[3] = {ORDINARY, EOS, ORDINARY};
    struct wn_gen_job *job;
    struct asked a;

    (void)state;
    gen_ask(&a, 0);
    a.g.emitted = emitted;
    a.g.n_emitted = 1;
    job = gen_job_of(&a);
    assert_false(job->stopped);
    wn_gen_job_destroy(job);
    a.g.n_emitted = 2;
    job = gen_job_of(&a);
    assert_true(job->stopped);
    wn_gen_job_destroy(job);
    a.s.ignore_eos = true;
    a.g.n_emitted = 3;
    job = gen_job_of(&a);
    assert_false(job->stopped);
    wn_gen_job_destroy(job);
}

static void replay_past_a_stop_text(void **state)
{
    size_t bytes;
    uint32_t emitted[1] = {ORDINARY};
    char *stop[1];
    struct wn_gen_job *job;
    struct asked a;
    char word[64];

    (void)state;
    snprintf(word, sizeof(word), "%.*s", (int)sizeof(word) - 1, wn_tokenizer_bytes(tokenizer, ORDINARY, &bytes));
    word[bytes] = 0;
    stop[0] = word[0] == ' ' ? word + 1 : word; /* an answer's first blank is not shown */
    gen_ask(&a, 0);
    a.g.emitted = emitted;
    a.g.n_emitted = 1;
    a.s.stop = stop;
    a.s.n_stop = 1;
    job = gen_job_of(&a);
    assert_true(job->stopped);
    wn_gen_job_destroy(job);
}

/* A penalty counts the prompt's tokens as they pass, so every row has to. */
static void what_may_come_from_the_cache(void **state)
{
    const struct {
        float penalty;
        bool off, uncached;
    } cases[] = {{0, false, false}, {1, false, false}, {1.2f, false, true}, {0.5f, false, true}, {0, true, true}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_gen_job *job;
        struct asked a;
        gen_ask(&a, 0);
        a.s.repetition_penalty = cases[i].penalty;
        limits.no_prefix_caching = cases[i].off;
        job = gen_job_of(&a);
        assert_int_equal(job->uncached, cases[i].uncached);
        wn_gen_job_destroy(job);
    }
    limits.no_prefix_caching = false;
}

static void refuse_features(const struct sent *s, const char *words)
{
    struct wn_front_msg *msg = gen_features_of(s);
    struct wn_gen_job *job;
    struct wn_err err = {0};
    struct asked a;

    gen_ask(&a, 2);
    job = gen_job_of(&a);
    gen_give(job, 0);
    assert_int_equal(wn_gen_job_features(job, msg, &limits, &err), WN_EPROTO);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    assert_false(wn_gen_job_has(job, 1));
    wn_front_msg_free(msg);
    gen_give(job, 1); /* nothing of it has stuck */
    assert_int_equal(job->image_rows, 2 * KEPT);
    wn_gen_job_destroy(job);
}

/* What a header claims must be what its payload is, and what the model can take. */
static void refuses_features(void **state)
{
    struct sent s;

    (void)state;
    gen_describe(&s, 2);
    refuse_features(&s, "image 2 of 2");
    gen_describe(&s, 0);
    refuse_features(&s, "came twice");
    gen_describe(&s, 1);
    s.f.dtype = WN_F16;
    refuse_features(&s, "of type");
    gen_describe(&s, 1);
    s.f.width--;
    refuse_features(&s, "width");
    gen_describe(&s, 1);
    s.f.rows = 0;
    s.f.n_index = s.f.flags.len = 0;
    s.payload_bytes = 0;
    refuse_features(&s, "0 rows");
    gen_describe(&s, 1);
    s.f.rows_before++;
    refuse_features(&s, "577 rows before");
    gen_describe(&s, 1);
    s.index[2] = model.vision.patches;
    refuse_features(&s, "patch 576");
    gen_describe(&s, 1);
    s.payload_bytes--;
    refuse_features(&s, "bytes");
    gen_describe(&s, 1);
    s.f.dtype = WN_F32; /* the payload is of two bytes a value */
    refuse_features(&s, "bytes");
    gen_describe(&s, 1);
    s.damaged = true;
    refuse_features(&s, "damaged");
}

/* One row more than the tower's patches is the most that a method makes. */
static void takes_the_most_rows(void **state)
{
    static uint32_t index[1000];
    struct wn_front_msg *msg;
    struct wn_gen_job *job;
    struct wn_err err = {0};
    struct asked a;
    struct sent s;

    (void)state;
    gen_ask(&a, 1);
    job = gen_job_of(&a);
    gen_describe(&s, 0);
    s.f.index = index;
    s.f.flags.len = 0;
    s.f.rows = 578;
    s.f.n_index = 578;
    s.payload_bytes = (size_t)578 * model.vision.hidden * 2;
    msg = gen_features_of(&s);
    assert_int_equal(wn_gen_job_features(job, msg, &limits, &err), WN_EPROTO);
    wn_front_msg_free(msg);
    s.f.rows = 577;
    s.f.n_index = 577;
    s.payload_bytes = (size_t)577 * model.vision.hidden * 2;
    assert_int_equal(wn_gen_job_features(job, gen_features_of(&s), &limits, &err), WN_OK);
    wn_gen_job_destroy(job);
}

/* Rows come as the tower made them or through the projector, with CLS or without: each has its width and its count. */
static void takes_what_the_model_takes(void **state)
{
    struct wn_model other = model;
    struct wn_gen_limits of_other = limits;

    (void)state;
    other.text.hidden = 2 * model.vision.hidden;
    of_other.model = &other;
    for (int i = 0; i < 8; i++) {
        const bool projected = i & 1, wide = i & 2, cls = i & 4;
        struct wn_front_msg *msg;
        struct wn_gen_job *job;
        struct wn_err err = {0};
        struct asked a;
        struct sent s;
        gen_ask(&a, 1);
        job = gen_job_of(&a);
        other.vision.keep_cls = cls;
        gen_describe(&s, 0);
        s.f.rows_before += cls;
        s.f.space = projected ? WN__FEATURE_SPACE__SPACE_PROJECTED : WN__FEATURE_SPACE__SPACE_TOWER;
        s.f.width = wide ? other.text.hidden : other.vision.hidden;
        s.f.dtype = WN_F32;
        s.payload_bytes = (size_t)KEPT * s.f.width * 4;
        msg = gen_features_of(&s);
        if (projected == wide) {
            assert_int_equal(wn_gen_job_features(job, msg, &of_other, &err), WN_OK);
            assert_int_equal(job->images[0].projected, projected);
            assert_int_equal(job->images[0].width, s.f.width);
            assert_int_equal(job->images[0].dtype, WN_F32);
        } else {
            assert_int_equal(wn_gen_job_features(job, msg, &of_other, &err), WN_EPROTO);
            wn_front_msg_free(msg);
        }
        wn_gen_job_destroy(job);
    }
}

/* Under `compact` a row's position is its number. */
static void compact_positions(void **state)
{
    struct wn_gen_job *job;
    struct asked a;

    (void)state;
    gen_ask(&a, 2);
    job = gen_laid_out(&a);
    assert_int_equal(job->prompt_rows_n, job->tokens.n - 2 + 2 * KEPT);
    for (int i = 0; i < 3; i++) wn_gen_job_push(job, ORDINARY);
    assert_int_equal(job->rows_n, job->prompt_rows_n + 3);
    for (uint32_t i = 0; i < job->rows_n; i++) assert_int_equal(job->rows[i].position, i);
    wn_gen_job_destroy(job);
}

/* Under `original` image rows are where their patches were, and text is where it would be with nothing pruned. */
static void original_positions(void **state)
{
    const uint32_t place[KEPT] = {7, 100, 300, 575};
    uint32_t first[2], images = 0, at = 0;
    struct wn_gen_job *job;
    struct asked a;

    (void)state;
    gen_ask(&a, 2);
    a.p.position = WN__POSITION_POLICY__POSITION_ORIGINAL;
    job = gen_laid_out(&a);
    wn_gen_job_push(job, ORDINARY);
    for (uint32_t i = 0; i < job->tokens.n; i++) {
        const uint32_t unpruned = i - images + images * model.vision.patches;
        if (job->tokens.ids[i] != model.image_token) {
            assert_int_equal(job->rows[at].features, WN_STEP_NO_FEATURES);
            assert_int_equal(job->rows[at].id, job->tokens.ids[i]);
            assert_int_equal(job->rows[at++].position, unpruned);
            continue;
        }
        first[images] = unpruned;
        for (uint32_t r = 0; r < KEPT; r++, at++) {
            assert_int_equal(job->rows[at].features, images);
            assert_int_equal(job->rows[at].id, r);
            assert_int_equal(job->rows[at].position, first[images] + place[r]);
        }
        assert_int_equal(job->images[images].last_row, at);
        images++;
    }
    assert_int_equal(images, 2);
    assert_int_equal(job->rows[at].id, ORDINARY); /* the answer goes on there */
    assert_int_equal(job->rows[at].position, job->tokens.n - 2 + 2 * model.vision.patches);
    wn_gen_job_destroy(job);
}

/* The rows of an attempt that was lost, and those of the one that goes on after its tokens. */
static void replay_has_the_same_rows(void **state)
{
    static const Wn__PositionPolicy policy[] = {WN__POSITION_POLICY__POSITION_COMPACT,
                                                WN__POSITION_POLICY__POSITION_ORIGINAL};
    uint32_t emitted[3] = {ORDINARY, ORDINARY + 1, ORDINARY + 2};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct wn_gen_job *lost, *replay;
        struct asked a;
        gen_ask(&a, 1);
        a.p.position = policy[i];
        lost = gen_laid_out(&a);
        for (int k = 0; k < 3; k++) wn_gen_job_push(lost, emitted[k]);
        a.g.emitted = emitted;
        a.g.n_emitted = 3;
        replay = gen_laid_out(&a);
        assert_int_equal(replay->rows_n, lost->rows_n);
        assert_int_equal(replay->prompt_rows_n, lost->prompt_rows_n);
        assert_int_equal(replay->new_n, lost->new_n);
        assert_memory_equal(replay->rows, lost->rows, lost->rows_n * sizeof(*lost->rows));
        wn_gen_job_destroy(lost);
        wn_gen_job_destroy(replay);
    }
}

/* Lays the job out with room for `tokens_max` rows and `positions_max` positions, and destroys it; *max_new (NULL is
 * fine): the answer's length after that. */
static wn_status lay_out_within(const struct asked *a, uint32_t tokens_max, uint32_t positions_max, uint32_t *max_new)
{
    struct wn_gen_job *job = gen_job_of(a);
    struct wn_model small = model;
    struct wn_gen_limits tight = limits;
    struct wn_err err = {0};
    wn_status rc;

    small.text.positions_max = positions_max;
    tight.model = &small;
    tight.tokens_max = tokens_max;
    for (uint32_t i = 0; i < a->g.images; i++) gen_give(job, i);
    rc = wn_gen_job_layout(job, &tight, &err);
    if (rc == WN_OK && job->new_n < job->max_new) /* there is room for all of them */
        while (job->new_n < job->max_new) wn_gen_job_push(job, ORDINARY);
    if (max_new) *max_new = job->max_new;
    wn_gen_job_destroy(job);
    return rc;
}

/* Prompt and answer together have as many rows as the model allows, and their positions stay below its limit. */
static void lengths(void **state)
{
    uint32_t emitted[64], prompt, unpruned, n;
    struct wn_gen_job *job;
    struct asked a;

    (void)state;
    gen_ask(&a, 1);
    a.s.max_tokens = 30;
    job = gen_laid_out(&a);
    prompt = job->prompt_rows_n;
    unpruned = prompt - KEPT + model.vision.patches;
    wn_gen_job_destroy(job);

    assert_int_equal(lay_out_within(&a, prompt, 4096, NULL), WN_ELIMIT);
    assert_int_equal(lay_out_within(&a, prompt + 1, 4096, &n), WN_OK);
    assert_int_equal(n, 1);
    assert_int_equal(lay_out_within(&a, prompt + 29, 4096, &n), WN_OK);
    assert_int_equal(n, 29);
    assert_int_equal(lay_out_within(&a, prompt + 31, 4096, &n), WN_OK);
    assert_int_equal(n, 30);
    assert_int_equal(lay_out_within(&a, 4096, prompt, NULL), WN_ELIMIT);
    assert_int_equal(lay_out_within(&a, 4096, prompt + 5, &n), WN_OK);
    assert_int_equal(n, 5);
    a.p.position = WN__POSITION_POLICY__POSITION_ORIGINAL;
    assert_int_equal(lay_out_within(&a, 4096, unpruned, NULL), WN_ELIMIT);
    assert_int_equal(lay_out_within(&a, 4096, unpruned + 1, &n), WN_OK);
    assert_int_equal(n, 1);

    for (int i = 0; i < 64; i++) emitted[i] = ORDINARY;
    a.g.emitted = emitted;
    a.g.n_emitted = 10; /* of an attempt at a replica that allowed more */
    assert_int_equal(lay_out_within(&a, prompt + 10, 4096, NULL), WN_OK);
    assert_int_equal(lay_out_within(&a, prompt + 9, 4096, NULL), WN_ELIMIT);
    a.g.n_emitted = 64; /* more than the order asks for, all of them rows */
    assert_int_equal(lay_out_within(&a, 4096, 4096, NULL), WN_OK);
    a.s.max_tokens = 0; /* the server's default */
    a.g.n_emitted = 0;
    assert_int_equal(lay_out_within(&a, 4096, 4096, &n), WN_OK);
    assert_int_equal(n, limits.max_new);
}

/* The keys of a prompt with a picture, chosen in this way, of this content. */
static void keys_of(const char *method, uint32_t content, struct wn_prefix_key *last, struct wn_gen_head *head)
{
    struct wn_gen_job *job;
    struct wn_err err = {0};
    struct asked a;
    struct sent s;

    gen_ask(&a, 1);
    a.p.method = (char *)(uintptr_t)method;
    job = gen_job_of(&a);
    gen_describe(&s, content);
    s.f.image = 0;
    assert_int_equal(wn_gen_job_features(job, gen_features_of(&s), &limits, &err), WN_OK);
    assert_int_equal(wn_gen_job_layout(job, &limits, &err), WN_OK);
    memset(head, 0, sizeof(*head));
    wn_gen_job_head(job, limits.page_tokens, head);
    /* every row but the very last one is in a full page or in the head */
    assert_true(head->rows < limits.page_tokens);
    assert_int_equal(head->page * limits.page_tokens + head->rows, job->prompt_rows_n - 1);
    assert_int_equal(job->keys_n, head->page);
    assert_true(head->page > 0);
    *last = job->keys[head->page - 1];
    wn_gen_job_destroy(job);
}

/* Pages have keys of what is in them and before them: another picture, or another way to choose the same rows of it, is
 * another key. */
static void keys_of_pages(void **state)
{
    const uint32_t page_tokens = limits.page_tokens;

    (void)state;
    for (limits.page_tokens = 1; limits.page_tokens <= 8; limits.page_tokens++) {
        struct wn_prefix_key key, other;
        struct wn_gen_head head, other_head;
        keys_of("cls-topk", 0, &key, &head);
        keys_of("cls-topk", 0, &other, &other_head);
        assert_memory_equal(&key, &other, sizeof(key));
        assert_memory_equal(&head, &other_head, sizeof(head));
        for (int i = 0; i < 2; i++) {
            keys_of(i ? "random" : "cls-topk", i ? 0 : 1, &other, &other_head);
            assert_memory_not_equal(&key, &other, sizeof(key));
            if (head.rows) assert_memory_not_equal(&head.key, &other_head.key, sizeof(head.key));
        }
    }
    limits.page_tokens = page_tokens;
}

static uint64_t all_links(const struct wn_plan *plan, const struct wn_plan_load *load, enum wn_traffic kind)
{
    uint64_t bytes = 0;

    for (uint32_t src = 0; src < 4; src++)
        for (uint32_t dst = 0; dst < 4; dst++)
            if (src != dst) bytes += wn_plan_link_bytes(plan, load, src, dst, kind);
    return bytes;
}

/* Usage says what the rows cost on the replica's links: those that came from the cache nothing, those that were
 * computed twice twice. */
static void usage_counts_bytes(void **state)
{
    struct wn_plan plan;
    struct wn_gen_job *job;
    struct wn_err err = {0};
    struct asked a;

    (void)state;
    assert_int_equal(wn_plan_make(&plan, &model, 2, 2, NULL, WN_F32, &err), WN_OK);
    for (int again = 0; again < 2; again++) {
        struct wn_plan_load rows = {.new_tokens = 3, .chunk_tokens = 64};
        struct wn_plan_load images = {.new_tokens = 1, .chunk_tokens = 64, .image_rows = 2 * KEPT};
        Wn__Usage u = WN__USAGE__INIT;
        Wn__LinkBytes b = WN__LINK_BYTES__INIT;
        gen_ask(&a, 2);
        job = gen_laid_out(&a);
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_null(u.bytes_on_wire); /* nothing was computed yet */
        for (int i = 0; i < 3; i++) wn_gen_job_push(job, ORDINARY);
        job->images[0].handed = job->images[1].handed = 1;
        job->cached_rows = 16;
        job->computed_rows = job->prompt_rows_n - 16 + 2 + (again ? 20 : 0);
        job->preemptions = again ? 1 : 0;
        rows.text_tokens = job->prompt_rows_n - 16 + (again ? 20 : 0);
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_ptr_equal(u.bytes_on_wire, &b);
        assert_int_equal(u.prompt_tokens, job->prompt_rows_n);
        assert_int_equal(u.completion_tokens, 3);
        assert_int_equal(u.cached_tokens, 16);
        assert_int_equal(u.preemptions, again);
        assert_int_equal(u.image_tokens, 2 * KEPT);
        assert_int_equal(u.image_tokens_before_pruning, 2 * model.vision.patches);
        assert_int_equal(b.embedding, all_links(&plan, &images, WN_TRAFFIC_EMBEDDING));
        assert_int_equal(b.activation, all_links(&plan, &rows, WN_TRAFFIC_ACTIVATION));
        assert_int_equal(b.allreduce, all_links(&plan, &rows, WN_TRAFFIC_ALLREDUCE));
        assert_int_equal(b.logits, all_links(&plan, &rows, WN_TRAFFIC_LOGITS));
        assert_true(b.embedding > 0 && b.activation > 0 && b.allreduce > 0 && b.logits > 0);
        wn_gen_job_destroy(job);
    }
}

/* Times are those of the slowest image; the cache is said to have had them only if it had all. */
static void usage_of_images(void **state)
{
    struct wn_plan plan;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_plan_make(&plan, &model, 1, 1, NULL, WN_F32, &err), WN_OK);
    for (uint32_t hits = 0; hits <= 2; hits++) {
        Wn__Usage u = WN__USAGE__INIT;
        Wn__LinkBytes b = WN__LINK_BYTES__INIT;
        struct wn_gen_job *job;
        struct asked a;
        gen_ask(&a, 2);
        job = gen_job_of(&a);
        for (uint32_t i = 0; i < 2; i++) {
            struct sent s;
            gen_describe(&s, i);
            s.f.cache_hit = i < hits;
            s.f.preprocess_us = 10 + i;
            s.f.encode_us = 20 - i;
            s.f.prune_us = 30 + i;
            s.f.sent_us = (uint64_t)wn_now_us() - 5000;
            assert_int_equal(wn_gen_job_features(job, gen_features_of(&s), &limits, &err), WN_OK);
        }
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_int_equal(u.vision_cache_hit, hits == 2);
        assert_int_equal(u.preprocess_us, 11);
        assert_int_equal(u.encode_us, 20);
        assert_int_equal(u.prune_us, 31);
        assert_in_range(u.transfer_us, 5000, 5000000);
        assert_int_equal(u.queue_us + u.prefill_us + u.decode_us, 0); /* it has not begun */
        job->started_us = job->features_us + 1000 - 100000;
        job->features_us -= 100000;
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_int_equal(u.prefill_us + u.decode_us, 0); /* no token yet */
        job->first_token_us = job->started_us + 2000;
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_int_equal(u.queue_us, 1000);
        assert_int_equal(u.prefill_us, 2000);
        assert_in_range(u.decode_us, 0, (uint64_t)wn_now_us() - (uint64_t)job->first_token_us);
        wn_gen_job_destroy(job);
    }
}

/* A worker's clock may be ahead of the leader's, and a question may have no picture. */
static void usage_without_a_transfer(void **state)
{
    struct wn_plan plan;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_plan_make(&plan, &model, 1, 1, NULL, WN_F32, &err), WN_OK);
    for (uint32_t images = 0; images < 2; images++) {
        Wn__Usage u = WN__USAGE__INIT;
        Wn__LinkBytes b = WN__LINK_BYTES__INIT;
        struct wn_gen_job *job;
        struct asked a;
        struct sent s;
        gen_ask(&a, images);
        job = gen_job_of(&a);
        gen_describe(&s, 0);
        s.f.sent_us = (uint64_t)wn_now_us() + 3600000000u;
        s.f.cache_hit = true;
        if (images) assert_int_equal(wn_gen_job_features(job, gen_features_of(&s), &limits, &err), WN_OK);
        job->started_us = wn_now_us() + 1000; /* after that */
        wn_gen_job_usage(job, &plan, 64, &u, &b);
        assert_int_equal(u.transfer_us, 0);
        assert_int_equal(u.vision_cache_hit, images);
        assert_in_range(u.queue_us, 1000, 5000000);
        wn_gen_job_destroy(job);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_orders),
        cmocka_unit_test(without_sampling),
        cmocka_unit_test(ends),
        cmocka_unit_test(replay_of_a_whole_answer),
        cmocka_unit_test(replay_past_a_stop_text),
        cmocka_unit_test(what_may_come_from_the_cache),
        cmocka_unit_test(refuses_features),
        cmocka_unit_test(takes_the_most_rows),
        cmocka_unit_test(takes_what_the_model_takes),
        cmocka_unit_test(compact_positions),
        cmocka_unit_test(original_positions),
        cmocka_unit_test(replay_has_the_same_rows),
        cmocka_unit_test(lengths),
        cmocka_unit_test(keys_of_pages),
        cmocka_unit_test(usage_counts_bytes),
        cmocka_unit_test(usage_of_images),
        cmocka_unit_test(usage_without_a_transfer),
    };

    return cmocka_run_group_tests(tests, gen_open, gen_close);
}
