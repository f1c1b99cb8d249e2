/* The attention cases of the backend suite. */
#include "tests/conform/backend_suite_parts.h"

#include <math.h>
#include <stdio.h>

/* Writes every sequence's tokens to scattered pages, then attends for the step's rows. out is dense [rows, heads *
 * hd]. */
void run_attn(struct wn_backend *b, const struct case_attn *c, float *out)
{
    uint32_t rows = 0, history = 0, pages = 0, next = 0, used = 0, tables[1024];
    struct wn_seq step[6], past[6];
    struct dev q, k, v, o, pool_k, pool_v, old_k, old_v;
    uint32_t kv_cols = c->kv_heads * c->head_dim, pt = c->page_tokens;

    for (uint32_t s = 0; s < c->seqs_n; s++) {
        rows += c->seqs[s].rows;
        history += c->seqs[s].pos;
        pages += (c->seqs[s].pos + c->seqs[s].rows + pt - 1) / pt;
    }
    pages += 3;
    while (pages % 7 == 0) pages++;
    const uint32_t gap = pt == 16 || pt == 64 ? 0 : c->aligned ? 8 : 3;
    WN_ASSERT(pages <= COUNT(tables));
    q = dev_out(b, c->q, rows, c->heads * c->head_dim, c->aligned ? 8 : 5);
    k = dev_out(b, c->kv, rows, kv_cols, c->aligned ? 8 : 1);
    v = dev_out(b, c->kv, rows, kv_cols, c->aligned ? 8 : 0);
    old_k = dev_out(b, c->kv, history, kv_cols, c->aligned ? 8 : 0);
    old_v = dev_out(b, c->kv, history, kv_cols, c->aligned ? 8 : 2);
    o = dev_out(b, c->out, rows, c->heads * c->head_dim, c->aligned ? 8 : 4);
    /* Unwritten tokens are NaN. Rows of 16 and 64 without a gap, which a backend may lay out as it likes. */
    pool_k = dev_out(b, c->kv, pages * pt, kv_cols, gap);
    pool_v = dev_out(b, c->kv, pages * pt, kv_cols, gap);
    for (uint32_t s = 0, row = 0, old = 0; s < c->seqs_n; s++) {
        uint32_t pos = c->seqs[s].pos, n = c->seqs[s].rows, need = (pos + n + pt - 1) / pt;
        struct {
            struct dev *step, *old;
            char which;
        } put_in[] = {{&q, NULL, 'q'}, {&k, &old_k, 'k'}, {&v, &old_v, 'v'}};
        for (size_t i = 0; i < COUNT(put_in); i++) {
            struct case_mat m = case_attn_rows(c, s, put_in[i].which);
            struct dev t = dev_rows(b, &m, pos, n);
            struct wn_mat to = wn_mat_rows(put_in[i].step->m, row, n);
            assert_int_equal(wn_be_convert(b, &to, &t.m), WN_OK);
            dev_free(b, &t);
            if (!put_in[i].old || pos == 0) continue;
            t = dev_rows(b, &m, 0, pos);
            to = wn_mat_rows(put_in[i].old->m, old, pos);
            assert_int_equal(wn_be_convert(b, &to, &t.m), WN_OK);
            dev_free(b, &t);
        }
        step[s] = (struct wn_seq){.first_row = row, .rows = n, .pos = pos, .pages = tables + used};
        past[s] = (struct wn_seq){.first_row = old, .rows = pos, .pos = 0, .pages = tables + used};
        for (uint32_t i = 0; i < need; i++) tables[used++] = next = (next + 7) % pages;
        row += n;
        old += pos;
    }
    struct wn_kv kv = {.k = pool_k.m, .v = pool_v.m, .page_tokens = pt};
    struct wn_kv_write wr = {.k = old_k.m, .v = old_v.m, .kv = kv, .seqs = past, .seqs_n = c->seqs_n};
    assert_int_equal(wn_be_kv_write(b, &wr), WN_OK);
    wr = (struct wn_kv_write){.k = k.m, .v = v.m, .kv = kv, .seqs = step, .seqs_n = c->seqs_n};
    assert_int_equal(wn_be_kv_write(b, &wr), WN_OK);
    struct wn_attn_paged a = {.out = o.m,
                              .q = q.m,
                              .kv = kv,
                              .seqs = step,
                              .seqs_n = c->seqs_n,
                              .heads = c->heads,
                              .kv_heads = c->kv_heads,
                              .head_dim = c->head_dim,
                              .scale = (float)(1.0 / sqrt((double)c->head_dim))};
    assert_int_equal(wn_be_attn_paged(b, &a), WN_OK);
    dev_read(b, &o, out);
    struct dev *all[] = {&q, &k, &v, &o, &pool_k, &pool_v, &old_k, &old_v};
    for (size_t i = 0; i < COUNT(all); i++) dev_free(b, all[i]);
}

size_t attn_values(const struct case_attn *c)
{
    size_t rows = 0;
    for (uint32_t s = 0; s < c->seqs_n; s++) rows += c->seqs[s].rows;
    return rows * c->heads * c->head_dim;
}

void attn_paged_close(void **state)
{
    static const struct case_attn cases[] = {
        {1, 1, 16, 16, WN_F32, WN_F32, WN_F32, {{0, 1, 1}}, 1, false},
        {4, 2, 32, 16, WN_F32, WN_F32, WN_F32, {{0, 70, 1}}, 1, false},
        {4, 4, 64, 8, WN_BF16, WN_BF16, WN_BF16, {{63, 1, 1}, {0, 65, 2}, {130, 3, 3}}, 3, false},
        {6, 1, 40, 5, WN_F32, WN_BF16, WN_F32,
         {{10, 1, 1}, {0, 1, 2}, {200, 1, 3}, {64, 64, 4}, {31, 30, 5}}, 5, false},
        {8, 2, 128, 32, WN_BF16, WN_BF16, WN_F32, {{300, 1, 1}, {0, 129, 2}}, 2, false},
        {3, 3, 10, 1, WN_F32, WN_F32, WN_BF16, {{0, 13, 1}, {5, 0, 2}}, 2, false},
        {4, 2, 24, 16, WN_BF16, WN_BF16, WN_F32, {{75, 1, 1}, {0, 20, 2}}, 2, false},
        {4, 4, 64, 16, WN_BF16, WN_BF16, WN_BF16,
         {{191, 1, 1}, {192, 1, 2}, {0, 1, 3}, {15, 1, 4}, {64, 5, 5}}, 5, false},
        {8, 2, 128, 64, WN_F32, WN_F32, WN_F32, {{300, 1, 1}, {127, 1, 2}, {17, 2, 3}}, 3, false},
        {4, 4, 64, 8, WN_BF16, WN_BF16, WN_BF16, {{63, 1, 1}, {0, 65, 2}, {130, 3, 3}}, 3, true},
        {8, 2, 128, 32, WN_BF16, WN_BF16, WN_F32, {{300, 1, 1}, {0, 129, 2}, {250, 20, 3}}, 3, true},
        {3, 1, 88, 5, WN_BF16, WN_BF16, WN_F32, {{10, 1, 1}, {0, 1, 2}, {700, 1, 3}, {64, 64, 4}, {5, 0, 5}}, 5, true},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t n = attn_values(&cases[i]);
        float *got = floats(n), *want = floats(n);
        double *want64 = calloc(n, sizeof(double));
        char what[64];

        snprintf(what, sizeof(what), "paged attention, case %zu", i);
        run_attn(be, &cases[i], got);
        if (ref)
            run_attn(ref, &cases[i], want);
        else
            double_attn(&cases[i], want64);
        check_close(what, got, ref ? want : NULL, ref ? NULL : want64, n, cases[i].out);
        free(got);
        free(want);
        free(want64);
    }
}

/* However a prompt is chunked, whatever the pages, alone or with others: the same bits. */
static void same_bits(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, wn_dtype type, size_t stride, bool aligned)
{
    static const uint32_t chunks[2][8] = {{1, 7, 32, 63, 64, 65, 100, 149}, {1, 64, 250, 255, 256, 257, 300, 399}};
    static const uint32_t pages[] = {1, 5, 16, 64};
    const uint32_t *first = chunks[aligned], LEN = aligned ? 400 : 150;
    const struct case_attn whole = {heads, kv_heads, head_dim, 16, type, type, WN_F32, {{0, LEN, 1}}, 1, aligned};
    const size_t width = (size_t)heads * head_dim;
    float *want = floats(LEN * width), *got = floats((LEN + 40) * width);

    run_attn(be, &whole, want);
    for (size_t i = 0; i < COUNT(chunks[0]); i += stride) {
        struct case_attn c = whole;
        c.page_tokens = pages[(i + heads) % COUNT(pages)];
        c.seqs[0].rows = first[i];
        run_attn(be, &c, got);
        check_bits("attention, first chunk", got, want, first[i] * width);
        c.seqs[0].pos = first[i];
        c.seqs[0].rows = LEN - first[i];
        run_attn(be, &c, got);
        check_bits("attention, second chunk", got, want + first[i] * width, (LEN - first[i]) * width);
        c.seqs[0].rows = 1;
        c.seqs[1] = (struct case_seq){20, 33, 2};
        c.seqs[2] = c.seqs[0];
        c.seqs[0] = (struct case_seq){90, 1, 3};
        c.seqs_n = 3;
        run_attn(be, &c, got);
        check_bits("attention among others", got + 34 * width, want + first[i] * width, width);
    }
    free(want);
    free(got);
}

void attn_paged_bits(void **state)
{
    /* query heads of a kv head: 1, 2, 4, 5, 6, 7 and 13; widths that are panels and one that is not */
    static const uint32_t shapes[][3] = {{1, 1, 80}, {4, 2, 32}, {4, 1, 128}, {5, 1, 16},
                                         {6, 1, 24}, {7, 1, 64}, {13, 1, 32}};
    (void)state;
    same_bits(6, 2, 48, WN_F32, 1, false);
    same_bits(6, 2, 48, WN_BF16, 1, false);
    same_bits(2, 1, 32, WN_BF16, 1, true);
    for (size_t i = 0; i < COUNT(shapes); i++)
        same_bits(shapes[i][0], shapes[i][1], shapes[i][2], i % 2 ? WN_F32 : WN_BF16, 3, false);
}

/* Decoding sequences whose first pages are the same, and others among them, in any order: the bits that each gets
 * alone. */
static void shared_bits(uint32_t heads, uint32_t kv_heads, uint32_t hd, wn_dtype type, uint32_t pt)
{
    enum { SEQS = 9, KEYS = 1280 };
    static const uint32_t pos[SEQS] = {299, 190, 63, 311, 255, 128, 299, 64, 0};
    static const uint32_t common[SEQS] = {9, 4, 2, 9, 4, 0, 9, 1, 0}; /* times 32 keys */
    const uint32_t pages = KEYS / pt, need = 320 / pt;
    const struct case_attn all = {heads, kv_heads, hd, pt, type, type, WN_F32, {{0, KEYS, 1}}, 1, true};
    const struct case_mat kc = case_attn_rows(&all, 0, 'k'), vc = case_attn_rows(&all, 0, 'v'),
                          qc = case_attn_rows(&all, 0, 'q');
    struct dev k = dev_rows(be, &kc, 0, KEYS), v = dev_rows(be, &vc, 0, KEYS), q = dev_rows(be, &qc, 0, SEQS);
    struct dev pool_k = dev_out(be, type, KEYS, kv_heads * hd, 0), pool_v = dev_out(be, type, KEYS, kv_heads * hd, 0);
    struct dev o = dev_out(be, WN_F32, SEQS, heads * hd, 8), one = dev_out(be, WN_F32, SEQS, heads * hd, 8);
    uint32_t whole[KEYS], table[SEQS][KEYS], own = 0;
    struct wn_seq seqs[SEQS];
    const size_t width = (size_t)heads * hd;
    float *got = floats(SEQS * width), *want = floats(SEQS * width);

    for (uint32_t i = 0; i < pages; i++) whole[i] = i;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < need; i++)
            table[s][i] = i < common[s] * 32 / pt ? i : pages - 1 - own++ % (pages / 2);
        seqs[s] = (struct wn_seq){.first_row = s, .rows = 1, .pos = pos[s], .pages = table[s]};
    }
    const struct wn_seq fill = {.rows = KEYS, .pages = whole};
    struct wn_kv kv = {.k = pool_k.m, .v = pool_v.m, .page_tokens = pt};
    const struct wn_kv_write w = {.k = k.m, .v = v.m, .kv = kv, .seqs = &fill, .seqs_n = 1};
    assert_int_equal(wn_be_kv_write(be, &w), WN_OK);
    struct wn_attn_paged a = {.out = o.m, .q = q.m, .kv = kv, .seqs = seqs, .seqs_n = SEQS, .heads = heads,
                              .kv_heads = kv_heads, .head_dim = hd, .scale = 0.3f};
    assert_int_equal(wn_be_attn_paged(be, &a), WN_OK);
    dev_read(be, &o, got);
    a.out = one.m;
    a.seqs_n = 1;
    for (uint32_t s = 0; s < SEQS; s++) {
        a.seqs = &seqs[s];
        assert_int_equal(wn_be_attn_paged(be, &a), WN_OK);
    }
    dev_read(be, &one, want);
    check_bits("attention of shared pages", got, want, SEQS * width);
    struct dev *devs[] = {&k, &v, &q, &pool_k, &pool_v, &o, &one};
    for (size_t i = 0; i < COUNT(devs); i++) dev_free(be, devs[i]);
    free(got);
    free(want);
}

void attn_paged_shared(void **state)
{
    (void)state;
    shared_bits(4, 2, 32, WN_BF16, 16);
    shared_bits(4, 2, 32, WN_F32, 32);
    shared_bits(8, 1, 64, WN_BF16, 16);
    shared_bits(13, 1, 32, WN_F32, 16);
    shared_bits(6, 6, 48, WN_BF16, 32);
    shared_bits(26, 1, 16, WN_BF16, 16); /* more query heads of a kv head than are taken together */
}

void run_full(struct wn_backend *b, const struct case_full *c, uint32_t first, uint32_t images, float *out,
              float *cls, float *mean)
{
    struct case_mat qc = case_full_rows(c, 'q'), kc = case_full_rows(c, 'k'), vc = case_full_rows(c, 'v');
    uint32_t row = first * c->tokens, rows = images * c->tokens;
    struct dev q = dev_rows(b, &qc, row, rows), k = dev_rows(b, &kc, row, rows), v = dev_rows(b, &vc, row, rows);
    struct dev o = dev_out(b, c->type, rows, qc.cols, 1), dc, dm;
    struct wn_attn_full a = {.out = o.m,
                             .q = q.m,
                             .k = k.m,
                             .v = v.m,
                             .images = images,
                             .tokens = c->tokens,
                             .heads = c->heads,
                             .head_dim = c->head_dim,
                             .scale = (float)(1.0 / sqrt((double)c->head_dim))};

    dc = dev_out(b, WN_F32, images * c->heads, c->tokens, 0);
    dm = dev_out(b, WN_F32, images, c->tokens, 0);
    a.cls_rows = dc.m.ptr;
    a.mean_cols = dm.m.ptr;
    assert_int_equal(b->ops->attn_full(b, &a), WN_OK);
    dev_read(b, &o, out);
    dev_read(b, &dc, cls);
    dev_read(b, &dm, mean);
    a.cls_rows = a.mean_cols = NULL; /* the taps change nothing */
    assert_int_equal(b->ops->attn_full(b, &a), WN_OK);
    float *again = floats((size_t)rows * qc.cols);
    dev_read(b, &o, again);
    check_bits("attention without taps", again, out, (size_t)rows * qc.cols);
    free(again);
    struct dev *all[] = {&q, &k, &v, &o, &dc, &dm};
    for (size_t i = 0; i < COUNT(all); i++) dev_free(b, all[i]);
}

void attn_full_close(void **state)
{
    static const struct case_full cases[] = {
        {1, 1, 1, 8, WN_F32, false},    {2, 17, 3, 16, WN_F32, false},  {1, 65, 2, 88, WN_BF16, false},
        {3, 50, 4, 64, WN_BF16, false}, {1, 197, 2, 64, WN_F32, false}, {2, 70, 2, 64, WN_BF16, true},
        {1, 300, 1, 88, WN_BF16, true},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct case_full *c = &cases[i];
        size_t n = (size_t)c->images * c->tokens * c->heads * c->head_dim, nm = (size_t)c->images * c->tokens,
               nc = nm * c->heads, total = n + nc + nm;
        float *got = floats(total), *want = floats(total);
        double *want64 = calloc(total, sizeof(double));
        struct {
            const char *what;
            size_t at, n;
            wn_dtype type;
        } parts[] = {
            {"full attention", 0, n, c->type}, {"cls_rows", n, nc, WN_F32}, {"mean_cols", n + nc, nm, WN_F32}};

        assert_non_null(want64);
        run_full(be, c, 0, c->images, got, got + n, got + n + nc);
        if (ref)
            run_full(ref, c, 0, c->images, want, want + n, want + n + nc);
        else
            double_full(c, want64, want64 + n, want64 + n + nc);
        for (size_t p = 0; p < COUNT(parts); p++)
            check_close(parts[p].what, got + parts[p].at, ref ? want + parts[p].at : NULL,
                        ref ? NULL : want64 + parts[p].at, parts[p].n, parts[p].type);
        if (c->images > 1) { /* the last image alone */
            size_t one = n / c->images, at = n - one;
            float *last = want;
            run_full(be, c, c->images - 1, 1, last, last + one, last + one + nc);
            check_bits("an image alone", last, got + at, one);
        }
        free(got);
        free(want);
        free(want64);
    }
}
