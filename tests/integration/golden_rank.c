/* tests/integration/golden_rank.c - see golden_rank.h. */
#include "tests/integration/golden_rank.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/sample.h"

bool failed(struct rank *r, const char *fmt, ...)
{
    va_list args;
    int n = snprintf(r->failure, sizeof(r->failure), "%s %s P=%u T=%u rank %u: ", r->g->dir,
                     wn_dtype_name(r->plan.dtype), r->plan.stages, r->plan.tensors, r->me);

    va_start(args, fmt);
    vsnprintf(r->failure + n, sizeof(r->failure) - (size_t)n, fmt, args);
    va_end(args);
    return false;
}

static void fill_piece(const struct golden *g, struct filled *f, const struct piece *p)
{
    const struct golden_prompt *prompt = &g->prompt[p->prompt];
    uint32_t row = 0, images = 0, patches = g->model.vision.patches, first = f->step.rows;

    f->seqs[f->step.seqs_n++] = (struct wn_seq){.first_row = first, .rows = p->n, .pos = p->from, .pages = p->pages};
    for (; row < p->from + p->n; row++) {
        uint32_t id = row < prompt->rows ? prompt->tokens[row] : prompt->greedy[row - prompt->rows];
        bool image = row < prompt->rows && id == g->model.image_token;
        if (row >= p->from) {
            f->slot[f->step.rows] = image ? prompt->image_first + images / patches : WN_SLOT_NONE;
            f->token[f->step.rows] = image ? images % patches : id;
            f->step.rows++;
        }
        if (image) images++;
    }
}

void fill(const struct golden *g, struct filled *f, const struct piece *p, uint32_t n, bool all)
{
    f->step = (struct wn_step){.token = f->token, .slot = f->slot, .seqs = f->seqs, .wanted = f->wanted};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = f->step.rows;
        fill_piece(g, f, &p[i]);
        for (uint32_t r = first; r < f->step.rows; r++)
            if (all || r + 1 == f->step.rows) f->wanted[f->step.wanted_n++] = r;
    }
}

static bool run_step(struct rank *r, struct wn_stage *stage, const struct wn_step *step, float *logits)
{
    struct wn_err err = {0};

    if (wn_stage_run(stage, step, wn_deadline_in_us(PATIENCE_US), logits, &err) == WN_OK) return true;
    return failed(r, "%s", err.text);
}

bool run(struct rank *r, struct wn_stage *stage, const struct piece *p, uint32_t n, bool all, float *logits)
{
    struct filled f;

    fill(r->g, &f, p, n, all);
    return run_step(r, stage, &f.step, logits);
}

static bool same_rows(struct rank *r, const char *what, uint32_t prompt, uint32_t row, const float *got, uint32_t n)
{
    size_t vocab = r->g->model.text.vocab;
    uint32_t rows = r->g->prompt[prompt].rows, m = row >= rows ? 0 : n < rows - row ? n : rows - row;

    if (memcmp(got, r->whole[prompt] + row * vocab, m * vocab * sizeof(float)) == 0) return true;
    return failed(r, "prompt %u, rows %u to %u: %s: other bits than the whole prompt", prompt, row, row + m - 1,
                  what);
}

/* Each prompt in one step: near Transformers, and the bits of one rank alone. */
static bool check_whole(struct rank *r)
{
    size_t vocab = r->g->model.text.vocab;

    for (uint32_t i = 0; i < r->g->prompts; i++) {
        const struct golden_prompt *p = &r->g->prompt[i];
        uint32_t pages[PAGES], n = wn_kvpool_need(p->rows, PAGE_TOKENS);
        struct piece all = {i, 0, p->rows, pages};
        if (wn_kvpool_take(r->pool, pages, n) != WN_OK) return failed(r, "out of pages");
        if (r->root && !(r->whole[i] = malloc(p->rows * vocab * sizeof(float)))) return failed(r, "out of memory");
        if (!run(r, r->stage, &all, 1, true, r->whole[i])) return false;
        if (r->root && !run(r, r->alone, &all, 1, true, r->got)) return false;
        if (r->root && !same_rows(r, "one rank alone", i, 0, r->got, p->rows)) return false;
        if (r->root) {
            double e = golden_error(r->whole[i], p->logits, p->rows, vocab);
            double limit = r->plan.dtype == WN_F32 ? TOLERANCE : NEAR;
            if (e > r->error) r->error = e;
            if (!(e <= limit)) return failed(r, "prompt %u: relative error %g, limit %g", i, e, limit);
        }
        wn_kvpool_give(r->pool, pages, n);
    }
    return true;
}

static uint32_t largest(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Where the device picks tokens: the step once more, greedily and by a draw, gives what r->got says. */
static bool check_pick(struct rank *r, const struct piece *part, uint64_t position)
{
    const struct wn_sample_opts how[] = {
        WN_SAMPLE_GREEDY, {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = position}};
    const uint32_t vocab = r->g->model.text.vocab;
    struct wn_sampler *sampler = NULL;
    struct wn_sampled want = {0};
    struct wn_err err = {0};
    struct filled f;
    bool good = true;

    fill(r->g, &f, part, 1, false);
    if (r->root && wn_sampler_create(&sampler, vocab, &err) != WN_OK) return failed(r, "%s", err.text);
    for (int i = 0; good && i < 2; i++) {
        const struct wn_pick each = {.temperature = how[i].temperature, .top_p = 1.0f, .wanted = 1,
                                     .seed = how[i].seed, .position = position};
        uint32_t got = WN_PICK_NONE;
        if (!r->root) {
            good = run_step(r, r->stage, &f.step, NULL);
            continue;
        }
        if (wn_stage_pick(r->stage, &f.step, wn_deadline_in_us(PATIENCE_US), &each, &got, &err) != WN_OK ||
            wn_sampler_pick(sampler, &how[i], r->got, NULL, 0, position, false, &want, &err) != WN_OK)
            good = failed(r, "%s", err.text);
        else if (got != want.token)
            good = failed(r, "position %llu: picked %u, not %u", (unsigned long long)position, got, want.token);
    }
    wn_sampler_destroy(sampler);
    return good;
}

/* A prompt in chunks, then its greedy continuation one by one. */
static bool check_chunks(struct rank *r, uint32_t prompt, uint32_t chunk)
{
    const struct golden_prompt *p = &r->g->prompt[prompt];
    uint32_t vocab = r->g->model.text.vocab, pages[PAGES], rows = p->rows + r->g->new_tokens - 1;
    uint32_t n = wn_kvpool_need(rows, PAGE_TOKENS);

    if (wn_kvpool_take(r->pool, pages, n) != WN_OK) return failed(r, "out of pages");
    for (uint32_t at = 0, len; at < rows; at += len) {
        len = at < p->rows ? (chunk < p->rows - at ? chunk : p->rows - at) : 1;
        struct piece part = {prompt, at, len, pages};
        if (!run(r, r->stage, &part, 1, true, r->got)) return false;
        if (r->root && !same_rows(r, "chunks", prompt, at, r->got, len)) return false;
        if (r->nccl && at >= p->rows && !check_pick(r, &part, at)) return false;
        if (r->root && r->plan.dtype == WN_F32 && at + len >= p->rows) {
            uint32_t i = at + len - p->rows, id = largest(r->got + (size_t)(len - 1) * vocab, vocab);
            if (id != p->greedy[i])
                return failed(r, "prompt %u: new token %u is %u, expected %u", prompt, i, id, p->greedy[i]);
        }
    }
    wn_kvpool_give(r->pool, pages, n);
    return true;
}

/* A prompt's last row after a copy of the page that the rows before it are in: the same bits, and the page that was
 * copied may be written to meanwhile. */
static bool check_copied(struct rank *r, uint32_t prompt)
{
    const uint32_t rows = r->g->prompt[prompt].rows, n = wn_kvpool_need(rows, PAGE_TOKENS), last = rows - 1;
    uint32_t pages[PAGES], copied[PAGES], other[PAGES];
    const struct piece before = {prompt, 0, last, pages}, after = {prompt, last, 1, copied},
                       again = {prompt, 0, last % PAGE_TOKENS + 1, other};
    struct wn_err err = {0};

    if (last % PAGE_TOKENS == 0) return true; /* nothing to copy */
    if (wn_kvpool_take(r->pool, pages, n + 1) != WN_OK) return failed(r, "out of pages");
    memcpy(copied, pages, n * sizeof(*pages));
    copied[n - 1] = pages[n];
    other[0] = pages[n - 1];
    if (!run(r, r->stage, &before, 1, true, r->got)) return false;
    if (wn_stage_copy_page(r->stage, pages[n - 1], copied[n - 1], &err) != WN_OK) return failed(r, "%s", err.text);
    if (!run(r, r->stage, &again, 1, true, r->got) || !run(r, r->stage, &after, 1, true, r->got)) return false;
    if (r->root && !same_rows(r, "a copied page", prompt, last, r->got, 1)) return false;
    wn_kvpool_give(r->pool, pages, n + 1);
    return true;
}

/* Three sequences in the same steps: the end of one beside the start of another. */
static bool check_mixed(struct rank *r)
{
    const struct golden *g = r->g;
    uint32_t pages[3][PAGES], a = g->prompt[0].rows, b = g->prompt[1].rows, c = g->prompt[2].rows;
    size_t vocab = g->model.text.vocab;
    const struct piece steps[3][3] = {{{0, 0, 9, pages[0]}, {2, 0, 20, pages[2]}},
                                      {{2, 20, c - 21, pages[2]}, {1, 0, b, pages[1]}, {0, 9, a - 10, pages[0]}},
                                      {{0, a - 1, 1, pages[0]}, {2, c - 1, 1, pages[2]}}};
    const uint32_t pieces[3] = {2, 3, 2};

    for (uint32_t i = 0; i < 3; i++)
        if (wn_kvpool_take(r->pool, pages[i], wn_kvpool_need(g->prompt[i].rows, PAGE_TOKENS)) != WN_OK)
            return failed(r, "out of pages");
    for (uint32_t i = 0; i < 3; i++) {
        const float *got = r->got;
        if (!run(r, r->stage, steps[i], pieces[i], true, r->got)) return false;
        for (uint32_t j = 0; r->root && j < pieces[i]; j++) {
            const struct piece *p = &steps[i][j];
            if (!same_rows(r, "mixed steps", p->prompt, p->from, got, p->n)) return false;
            got += p->n * vocab;
        }
    }
    for (uint32_t i = 0; i < 3; i++)
        wn_kvpool_give(r->pool, pages[i], wn_kvpool_need(g->prompt[i].rows, PAGE_TOKENS));
    return true;
}

/* Features into a slot of every rank that wants them. */
static bool share(struct rank *r, uint32_t slot, const float *from, const struct wn_features *shape)
{
    void *data = golden_as(from, (size_t)shape->rows * shape->width, shape->dtype);
    struct wn_err err = {0};
    wn_status rc = wn_stage_features_share(r->stage, slot, r->me == 0 ? data : NULL, shape,
                                           wn_deadline_in_us(PATIENCE_US), &err);

    if (rc == WN_OK && r->root) rc = wn_stage_features_put(r->alone, slot, data, shape, &err);
    free(data);
    return rc == WN_OK ? true : failed(r, "%s", err.text);
}

bool share_images(struct rank *r, uint32_t first, uint32_t n, bool projected)
{
    const struct wn_model *m = &r->g->model;
    const struct wn_features shape = {m->vision.patches, projected ? m->text.hidden : m->vision.hidden, r->plan.dtype,
                                      projected};
    const float *from = projected ? r->g->projected : r->g->features;
    bool good = true;

    for (uint32_t i = first; good && i < first + n; i++)
        good = share(r, i, from + (size_t)i * shape.rows * shape.width, &shape);
    return good;
}

/* Rows that come projected, beside some that do not: near Transformers, and the bits of one rank alone. */
static bool check_projected(struct rank *r)
{
    const struct golden_prompt *p = &r->g->prompt[2];
    uint32_t pages[PAGES], n = wn_kvpool_need(p->rows, PAGE_TOKENS), vocab = r->g->model.text.vocab;
    size_t bytes = (size_t)p->rows * vocab * sizeof(float);
    struct piece all = {2, 0, p->rows, pages};
    float *want = malloc(bytes);
    bool good = want != NULL && share_images(r, p->image_first, 1, true);

    if (good && wn_kvpool_take(r->pool, pages, n) != WN_OK) good = failed(r, "out of pages");
    good = good && run(r, r->stage, &all, 1, true, r->got);
    if (good && r->root) {
        double e = golden_error(r->got, p->logits, p->rows, vocab),
               limit = r->plan.dtype == WN_F32 ? TOLERANCE : NEAR;
        good = run(r, r->alone, &all, 1, true, want);
        if (good && memcmp(want, r->got, bytes) != 0)
            good = failed(r, "projected features: other bits than one rank alone");
        if (good && !(e <= limit)) good = failed(r, "projected features: relative error %g, limit %g", e, limit);
    }
    if (good) wn_kvpool_give(r->pool, pages, n);
    free(want);
    return good && share_images(r, p->image_first, 1, false);
}

/* The kept rows of two images into slots 0 and 1. */
static bool share_kept(struct rank *r)
{
    struct wn_features shape = {GOLDEN_KEPT_0, r->g->model.vision.hidden, r->plan.dtype, false};
    const float *from = r->g->original.features;

    if (!share(r, 0, from, &shape)) return false;
    shape.rows = GOLDEN_KEPT_1;
    return share(r, 1, from + (size_t)GOLDEN_KEPT_0 * shape.width, &shape);
}

/* Rows [from, from + n) of the prompt whose image rows keep their positions, and of its greedy tokens. */
static bool run_original(struct rank *r, struct wn_stage *stage, uint32_t from, uint32_t n, const uint32_t *pages)
{
    const struct golden_original *o = &r->g->original;
    const uint32_t last = GOLDEN_ORIGINAL_ROWS - 1;
    uint32_t token[ROWS_MAX], slot[ROWS_MAX], position[ROWS_MAX], wanted[ROWS_MAX];
    const struct wn_seq seq = {.rows = n, .pos = from, .pages = pages};
    const struct wn_step step = {n, token, slot, position, 1, &seq, n, wanted};

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = from + i;
        const struct golden_row *row = &o->rows[at < last ? at : last];
        slot[i] = at <= last && row->image != UINT32_MAX ? row->image : WN_SLOT_NONE;
        token[i] = at > last ? o->greedy[at - last - 1] : slot[i] == WN_SLOT_NONE ? row->token : row->row;
        position[i] = row->position + (at > last ? at - last : 0);
        wanted[i] = i;
    }
    return run_step(r, stage, &step, r->got);
}

/* Positions that jump, fall and repeat: near Transformers, in one step, in chunks and on one rank alone. */
static bool check_original(struct rank *r)
{
    const struct golden_original *o = &r->g->original;
    const uint32_t rows = GOLDEN_ORIGINAL_ROWS, all = rows + r->g->new_tokens - 1, vocab = r->g->model.text.vocab;
    const size_t row_bytes = vocab * sizeof(float);
    uint32_t pages[PAGES], n = wn_kvpool_need(all, PAGE_TOKENS);
    float *whole = malloc(rows * row_bytes);
    bool good = whole && share_kept(r);

    if (good && wn_kvpool_take(r->pool, pages, n) != WN_OK) good = failed(r, "out of pages");
    good = good && run_original(r, r->stage, 0, rows, pages);
    if (good && r->root) {
        double e = golden_error(r->got, o->logits, rows, vocab), limit = r->plan.dtype == WN_F32 ? TOLERANCE : NEAR;
        memcpy(whole, r->got, rows * row_bytes);
        if (!(e <= limit)) good = failed(r, "original positions: relative error %g, limit %g", e, limit);
        good = good && run_original(r, r->alone, 0, rows, pages);
        if (good && memcmp(whole, r->got, rows * row_bytes) != 0)
            good = failed(r, "original positions: other bits than one rank alone");
    }
    for (uint32_t at = 0, len; good && at < all; at += len) {
        len = at + 4 <= rows ? 4 : 1;
        good = run_original(r, r->stage, at, len, pages);
        if (!good || !r->root) continue;
        if (at + len <= rows && memcmp(r->got, whole + (size_t)at * vocab, len * row_bytes) != 0)
            good = failed(r, "original positions: rows from %u: other bits in chunks", at);
        if (good && at + len >= rows && r->plan.dtype == WN_F32 &&
            largest(r->got + (size_t)(len - 1) * vocab, vocab) != o->greedy[at + len - rows])
            good = failed(r, "original positions: new token %u is another", at + len - rows);
    }
    if (good) wn_kvpool_give(r->pool, pages, n);
    free(whole);
    return good && share_images(r, 0, r->g->images, false);
}

/* A prompt with an image in chunks, and a few tokens: count what this rank sends, link by link. */
static bool check_bytes(struct rank *r)
{
    const wn_traffic kinds[] = {WN_TRAFFIC_EMBEDDING, WN_TRAFFIC_ACTIVATION, WN_TRAFFIC_ALLREDUCE, WN_TRAFFIC_LOGITS};
    const struct golden_prompt *p = &r->g->prompt[0];
    uint32_t ranks = r->plan.stages * r->plan.tensors, pages[PAGES], new_tokens = 4, chunk = 10;
    uint32_t image_rows = p->images * r->g->model.vision.patches, rows = p->rows + new_tokens - 1;
    struct wn_plan_load load = {
        p->rows - image_rows, image_rows, new_tokens, chunk, false, wn_link_has_device(r->link)};
    struct wn_traffic_table before[16] = {0}, after[16] = {0};

    if (ranks == 1) return true;
    if (wn_kvpool_take(r->pool, pages, wn_kvpool_need(rows, PAGE_TOKENS)) != WN_OK) return failed(r, "out of pages");
    for (uint32_t i = 0; i < ranks; i++)
        if (i != r->me) wn_link_traffic(r->link, (int)i, &before[i]);
    if (!share_images(r, p->image_first, p->images, false)) return false;
    for (uint32_t at = 0, len; at < rows; at += len) {
        struct filled f;
        len = at < p->rows ? (chunk < p->rows - at ? chunk : p->rows - at) : 1;
        struct piece part = {0, at, len, pages};
        fill(r->g, &f, &part, 1, false);
        if (at + len < p->rows) f.step.wanted_n = 0; /* only the end of the prompt is sampled from */
        if (!run_step(r, r->stage, &f.step, r->got)) return false;
    }
    for (uint32_t i = 0; i < ranks; i++) {
        if (i == r->me) continue;
        wn_link_traffic(r->link, (int)i, &after[i]);
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
            uint64_t sent = after[i].of[kinds[k]].sent_bytes - before[i].of[kinds[k]].sent_bytes;
            uint64_t want = wn_plan_link_bytes(&r->plan, &load, r->me, i, kinds[k]);
            if (sent != want)
                return failed(r, "%s bytes to rank %u: %llu, the plan says %llu", wn_traffic_name(kinds[k]), i,
                              (unsigned long long)sent, (unsigned long long)want);
        }
    }
    wn_kvpool_give(r->pool, pages, wn_kvpool_need(rows, PAGE_TOKENS));
    return true;
}

bool open_all(struct rank *r)
{
    struct wn_err err = {0};
    struct wn_plan one;
    struct wn_stage_opts o;

    if (wn_backend_open(&r->be, r->backend, (int)r->device, &err) || wn_weights_open(&r->w, r->g->dir, &err) ||
        wn_kvpool_create(&r->pool, PAGES, &err))
        return failed(r, "%s", err.text);
    if (r->nccl && wn_stage_attach(r->link, r->be, &r->plan, r->me, (int)r->device, false,
                                   wn_deadline_in_us(PATIENCE_US), &err))
        return failed(r, "%s", err.text);
    o = (struct wn_stage_opts){.be = r->be,
                               .link = r->link,
                               .plan = &r->plan,
                               .weights = r->w,
                               .rank = r->me,
                               .pages = PAGES,
                               .page_tokens = PAGE_TOKENS,
                               .rows_max = ROWS_MAX,
                               .seqs_max = GOLDEN_PROMPTS_MAX,
                               .wanted_max = ROWS_MAX,
                               .slots = r->g->images};
    if (wn_stage_open(&r->stage, &o, &err)) return failed(r, "%s", err.text);
    r->root = wn_stage_is_last(r->stage);
    if (!r->root) return true;
    o.link = NULL;
    o.plan = &one;
    o.rank = 0;
    if (wn_plan_make(&one, &r->g->model, 1, 1, NULL, r->plan.dtype, &err) || wn_stage_open(&r->alone, &o, &err))
        return failed(r, "%s", err.text);
    r->got = malloc((size_t)ROWS_MAX * r->g->model.text.vocab * sizeof(float));
    return r->got ? true : failed(r, "out of memory");
}

void close_all(struct rank *r)
{
    wn_stage_close(r->stage);
    wn_stage_close(r->alone);
    if (r->nccl && r->link) wn_nccl_detach(r->link);
    wn_kvpool_destroy(r->pool);
    wn_weights_close(r->w);
    wn_backend_close(r->be);
    for (uint32_t i = 0; i < GOLDEN_PROMPTS_MAX; i++) free(r->whole[i]);
    free(r->got);
}

bool check_rank(struct rank *r)
{
    if (!open_all(r) || !share_images(r, 0, r->g->images, false)) return false;
    if (r->quick) return check_whole(r) && check_bytes(r) && check_chunks(r, 0, 7) && check_copied(r, 0);
    if (!check_whole(r) || !check_mixed(r) || !check_projected(r) || !check_original(r) ||
        !check_bytes(r))
        return false;
    for (uint32_t i = 0; i < r->g->prompts; i++)
        if (!check_chunks(r, i, 7) || !check_copied(r, i)) return false;
    return check_chunks(r, 0, 1);
}
