/* Attention as small products of tiles.
 *
 * Keys are panels [head_dim][16 keys] and values panels [keys][16 columns], so that scores and weighted sums are
 * products of tiles. Paged attention goes over the keys in blocks of 64 aligned to their position, with a running
 * maximum: which blocks and which sums a row sees depends on its position alone, not on its chunk. Sequences that
 * decode read their panels where they lie in KV memory, block after block and all heads of a block together, so that
 * memory is read in long pieces; sequences that begin with the same pages (a prefix from the cache) read those once for
 * all of them. Many tokens of one sequence share a widened copy. All make the same chains of multiply-adds, so the same
 * bits. */
#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"
#include "shard/cpu/kv.h"

#define BLOCK      WN_CPU_BLOCK
#define ROWS       192u    /* query rows of a task (a row: one token, one head) */
#define FULL_ROWS  24u     /* query rows whose scores over all keys are held at once */
#define TOGETHER   24u     /* query rows of sequences that read the same pages in one task */
#define TASKS      8u      /* of sequences that decode, for each thread */
#define KEYS       256u    /* values swept while a panel of them is in the first-level cache */
#define SMALL_WORK 400000u /* multiply-adds that are not worth waking threads for: 40 microseconds */

/* ---- paged ---- */

struct paged {
    const struct wn_cpu_isa *isa;
    const struct wn_attn_paged *a;
    uint32_t group, tokens_max, seqs_max; /* query heads of a kv head; tokens, or sequences that decode, of a task */
    bool in_place;                        /* may products read KV memory as it lies? */
    size_t wide;                          /* head_dim rounded up to panels */
    size_t q, s, o, k, v, max, sum, task_floats; /* where each part of a thread's scratch starts */
    uint64_t *order;                             /* [seqs_n] sequences that decode, by their first pages */
    struct paged_task *tasks;
    size_t tasks_n;
};

/* Tokens [t0, t1) of sequence `first`; or (t1 == 0) the one token each of `seqs` sequences from order[first] on. */
struct paged_task {
    uint32_t first, seqs, head, heads, t0, t1; /* kv heads [head, head + heads) */
};

/* The panels of one kv head that hold the 16 keys from `key` on. */
static const char *panels_at(const struct paged *p, const struct wn_mat *m, const struct wn_seq *seq, uint32_t kv_head,
                             uint32_t key)
{
    size_t group = wn_cpu_kv_row(&p->a->kv, seq, key) * m->cols;
    return (const char *)m->ptr + (group + (size_t)kv_head * p->a->head_dim * WN_CPU_COLS) * wn_dtype_bytes(m->dtype);
}

/* Widened panels of keys and values [base, base + BLOCK) of one kv head. */
static void widen_block(const struct paged *p, const struct wn_seq *seq, uint32_t kv_head, uint32_t base, uint32_t end,
                        float *f)
{
    const struct wn_kv *kv = &p->a->kv;
    size_t hd = p->a->head_dim, e = wn_dtype_bytes(kv->v.dtype);

    for (uint32_t j = 0; j < BLOCK && base + j < end; j += WN_CPU_COLS) {
        const char *values = panels_at(p, &kv->v, seq, kv_head, base + j);
        p->isa->unpack(f + p->k + j * hd, panels_at(p, &kv->k, seq, kv_head, base + j), kv->k.dtype, hd);
        for (size_t d = 0; d < hd; d += WN_CPU_COLS)
            p->isa->unpack(f + p->v + d * BLOCK + (size_t)j * WN_CPU_COLS, values + d * WN_CPU_COLS * e, kv->v.dtype,
                           WN_CPU_COLS);
    }
}

/* The same, element by element, from any layout and for any head_dim; keys from `end` on are zeros. */
static void gather_block(const struct paged *p, const struct wn_seq *seq, uint32_t kv_head, uint32_t base,
                         uint32_t end, float *f)
{
    const struct wn_mat *k = &p->a->kv.k, *v = &p->a->kv.v;
    const bool panels = wn_cpu_kv_panels(&p->a->kv);
    const size_t hd = p->a->head_dim, n = wn_cpu_min(BLOCK, end - base);

    memset(f + p->k, 0, BLOCK * hd * sizeof(float));
    for (size_t j = 0; j < n; j++) {
        const size_t row = wn_cpu_kv_row(&p->a->kv, seq, base + (uint32_t)j);
        float *key = f + p->k + j / WN_CPU_COLS * WN_CPU_COLS * hd + j % WN_CPU_COLS;
        for (size_t d = 0; d < hd; d++) {
            const size_t col = kv_head * hd + d;
            const size_t at_k = panels ? wn_cpu_kv_key_at(k, row, col) : row * k->stride + col;
            const size_t at_v = panels ? wn_cpu_kv_value_at(v, row, col) : row * v->stride + col;
            key[d * WN_CPU_COLS] = wn_load(k->ptr, k->dtype, at_k);
            f[p->v + d / WN_CPU_COLS * WN_CPU_COLS * BLOCK + j * WN_CPU_COLS + d % WN_CPU_COLS] =
                wn_load(v->ptr, v->dtype, at_v);
        }
        for (size_t d = hd; d < p->wide; d++)
            f[p->v + d / WN_CPU_COLS * WN_CPU_COLS * BLOCK + j * WN_CPU_COLS + d % WN_CPU_COLS] = 0.0f;
    }
}

/* Adds one block of keys to the task's rows. Row r is token first + r / group and sees keys up to its own position. */
static void add_block(const struct paged *p, uint32_t base, uint32_t first, uint32_t rows, float *f)
{
    size_t hd = p->a->head_dim;
    uint32_t r0 = base > first ? (base - first) * p->group : 0;

    for (uint32_t r = r0; r < rows; r += WN_CPU_ROWS) {
        uint32_t n = wn_cpu_min(WN_CPU_ROWS, rows - r), last = first + (r + n - 1) / p->group, keys[WN_CPU_ROWS];
        float *s = f + p->s + (size_t)r * BLOCK, *o = f + p->o + r * p->wide;

        for (uint32_t j = 0; j < BLOCK && base + j <= last; j += WN_CPU_COLS) {
            const float *k = f + p->k + j * hd;
            p->isa->tile(n, hd, f + p->q + r * hd, hd, k, k, s + j, BLOCK, true);
        }
        for (uint32_t i = 0; i < n; i++) keys[i] = wn_cpu_min(BLOCK, first + (r + i) / p->group - base + 1);
        p->isa->softmax(n, s, keys, base == 0, f + p->max + r, f + p->sum + r, o, p->wide);
        /* Keys that all rows of the tile see, then each row's own rest: no row is touched by keys after it. */
        for (size_t d = 0; d < p->wide; d += WN_CPU_COLS) {
            const float *v = f + p->v + d * BLOCK;
            p->isa->tile(n, keys[0], s, BLOCK, v, v, o + d, p->wide, base == 0);
            for (uint32_t i = 1; i < n; i++) {
                const float *rest = v + (size_t)keys[0] * WN_CPU_COLS;
                if (keys[i] > keys[0])
                    p->isa->tile(1, keys[i] - keys[0], s + (size_t)i * BLOCK + keys[0], BLOCK, rest, rest,
                                 o + i * p->wide + d, p->wide, false);
            }
        }
    }
}

/* Tokens [t0, t1) of a sequence, all query heads of one kv head. */
static void chunk_task(const struct paged *p, const struct paged_task *t, float *f)
{
    const struct wn_attn_paged *a = p->a;
    const struct wn_seq *seq = &a->seqs[t->first];
    uint32_t rows = (t->t1 - t->t0) * p->group, end = seq->pos + t->t1;
    size_t hd = a->head_dim;

    for (uint32_t r = 0; r < rows; r++) {
        size_t head = t->head * p->group + r % p->group, row = (size_t)seq->first_row + t->t0 + r / p->group;
        p->isa->load(f + p->q + r * hd, wn_mat_at(&a->q, row, head * hd), a->q.dtype, hd);
    }
    p->isa->scale(f + p->q, a->scale, rows * hd);
    for (uint32_t base = 0; base < end; base += BLOCK) {
        if (p->in_place)
            widen_block(p, seq, t->head, base, end, f);
        else
            gather_block(p, seq, t->head, base, end, f);
        add_block(p, base, seq->pos + t->t0, rows, f);
    }
    for (uint32_t r = 0; r < rows; r++) {
        size_t head = t->head * p->group + r % p->group, row = (size_t)seq->first_row + t->t0 + r / p->group;
        p->isa->scale(f + p->o + r * p->wide, 1.0f / f[p->sum + r], hd);
        p->isa->store(wn_mat_at(&a->out, row, head * hd), a->out.dtype, f + p->o + r * p->wide, hd);
    }
}

/* Where the panels of a block's keys begin in KV memory, in elements, for kv head 0. */
struct places {
    size_t at[BLOCK / WN_CPU_COLS];
    uint32_t n; /* keys; 0: there is no such block */
};

static struct places find_block(const struct paged *p, const struct wn_seq *seq, uint32_t base)
{
    struct places b = {.n = base <= seq->pos ? wn_cpu_min(BLOCK, seq->pos - base + 1) : 0};

    for (uint32_t i = 0; i * WN_CPU_COLS < b.n; i++)
        b.at[i] = wn_cpu_kv_row(&p->a->kv, seq, base + i * WN_CPU_COLS) * p->a->kv.k.cols;
    return b;
}

static const char *panel_of(const struct wn_mat *m, const struct places *b, uint32_t i, size_t head)
{
    return (const char *)m->ptr + (b->at[i] + head) * wn_dtype_bytes(m->dtype);
}

/* One block for rows [r0, r0 + rows) of each kv head of the task, `all` rows in a head. next: what is read after it. */
static void add_block_in_place(const struct paged *p, const struct paged_task *t, const struct places *b,
                               const struct places *next, uint32_t r0, uint32_t rows, uint32_t all, bool first,
                               float *f)
{
    const struct wn_kv *kv = &p->a->kv;
    const size_t hd = p->a->head_dim, panel = hd * WN_CPU_COLS;
    struct wn_cpu_block keys = {.type = kv->k.dtype, .n = b->n}, values = {.type = kv->v.dtype, .n = b->n};
    uint32_t seen[TOGETHER];

    for (uint32_t r = 0; r < rows; r++) seen[r] = b->n;
    for (uint32_t h = 0; h < t->heads; h++) {
        const size_t at = (size_t)h * all + r0, head = (t->head + h) * panel;
        const bool last = h + 1 == t->heads;
        for (uint32_t i = 0; i * WN_CPU_COLS < b->n; i++) {
            keys.panel[i] = panel_of(&kv->k, b, i, head);
            keys.ahead[i] = values.panel[i] = panel_of(&kv->v, b, i, head);
            values.ahead[i] = !last                         ? keys.panel[i] + panel * wn_dtype_bytes(kv->k.dtype)
                              : i * WN_CPU_COLS < next->n ? panel_of(&kv->k, next, i, t->head * panel)
                                                            : values.panel[i];
        }
        p->isa->scores(rows, hd, f + p->q + at * hd, &keys, f + p->s);
        p->isa->softmax(rows, f + p->s, seen, first, f + p->max + at, f + p->sum + at, f + p->o + at * hd, hd);
        p->isa->weigh(rows, hd, f + p->s, &values, f + p->o + at * hd, first);
    }
}

/* Keys at the start, whole blocks, that all sequences of the task read from the same pages. */
static uint32_t keys_in_common(const struct paged *p, const struct paged_task *t)
{
    const struct wn_seq *one = &p->a->seqs[(uint32_t)p->order[t->first]];
    uint32_t keys = one->pos + 1;

    for (uint32_t i = 1; i < t->seqs; i++) {
        const struct wn_seq *seq = &p->a->seqs[(uint32_t)p->order[t->first + i]];
        const uint32_t both = wn_cpu_min(keys, seq->pos + 1);
        uint32_t page = 0;
        while (page * p->a->kv.page_tokens < both && seq->pages[page] == one->pages[page]) page++;
        keys = wn_cpu_min(both, page * p->a->kv.page_tokens);
    }
    return keys / BLOCK * BLOCK;
}

/* One token of each of some sequences: blocks that they share with the rows of all, then each its own. */
static void decode_task(const struct paged *p, const struct paged_task *t, float *f)
{
    const struct wn_attn_paged *a = p->a;
    const uint32_t g = p->group, all = t->seqs * g, common = keys_in_common(p, t);
    const size_t hd = a->head_dim;

    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t r = 0; r < all; r++) {
            const struct wn_seq *seq = &a->seqs[(uint32_t)p->order[t->first + r / g]];
            p->isa->load(f + p->q + (h * all + r) * hd,
                         wn_mat_at(&a->q, seq->first_row, ((t->head + h) * g + r % g) * hd), a->q.dtype, hd);
        }
    p->isa->scale(f + p->q, a->scale, t->heads * all * hd);
    for (uint32_t i = 0; i < t->seqs; i++) {
        const struct wn_seq *seq = &a->seqs[(uint32_t)p->order[t->first + i]];
        const uint32_t from = i == 0 ? 0 : common;
        struct places b = find_block(p, seq, from), next;
        for (uint32_t base = from; b.n > 0; base += BLOCK, b = next) {
            const bool ours = base >= common; /* else the first sequence's pages, for all */
            next = find_block(p, seq, base + BLOCK);
            add_block_in_place(p, t, &b, &next, ours ? i * g : 0, ours ? g : all, all, base == 0, f);
        }
    }
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t r = 0; r < all; r++) {
            const struct wn_seq *seq = &a->seqs[(uint32_t)p->order[t->first + r / g]];
            float *o = f + p->o + (h * all + r) * hd;
            p->isa->scale(o, 1.0f / f[p->sum + h * all + r], hd);
            p->isa->store(wn_mat_at(&a->out, seq->first_row, ((t->head + h) * g + r % g) * hd), a->out.dtype, o, hd);
        }
}

/* Shell's: qsort takes memory for more than a few, and a step takes none. */
static void sort(uint64_t *v, uint32_t n)
{
    for (uint32_t gap = n / 2; gap > 0; gap /= 2)
        for (uint32_t i = gap; i < n; i++) {
            const uint64_t x = v[i];
            uint32_t j = i;
            for (; j >= gap && v[j - gap] > x; j -= gap) v[j] = v[j - gap];
            v[j] = x;
        }
}

static bool decodes(const struct paged *p, const struct wn_seq *seq)
{
    return p->in_place && seq->rows == 1;
}

/* How many from order[i] on begin with the same page, as many as a task takes. */
static uint32_t neighbours(const struct paged *p, uint32_t i, uint32_t order_n)
{
    uint32_t n = 1;

    while (i + n < order_n && n < p->seqs_max && p->order[i + n] >> 32 == p->order[i] >> 32) n++;
    return n;
}

/* Chunks first, late tokens, which see most keys, before others; then sequences that decode, neighbours in the order of
 * their first pages together. `threads` want a few tasks each. */
static void make_tasks(struct paged *p, uint32_t threads)
{
    const struct wn_attn_paged *a = p->a;
    uint32_t order_n = 0, groups = 0, heads;

    for (uint32_t s = a->seqs_n; s-- > 0;) {
        const struct wn_seq *seq = &a->seqs[s];
        if (decodes(p, seq)) {
            p->order[order_n++] = (uint64_t)seq->pages[0] << 32 | s;
            continue;
        }
        for (uint32_t t0 = (seq->rows + p->tokens_max - 1) / p->tokens_max * p->tokens_max; t0 > 0;) {
            t0 -= p->tokens_max;
            for (uint32_t h = 0; h < a->kv_heads; h++)
                p->tasks[p->tasks_n++] = (struct paged_task){
                    .first = s, .head = h, .heads = 1, .t0 = t0, .t1 = wn_cpu_min(t0 + p->tokens_max, seq->rows)};
        }
    }
    sort(p->order, order_n);
    for (uint32_t i = 0; i < order_n; i += neighbours(p, i, order_n)) groups++;
    /* all heads of a group in one task, unless there are too few groups: who is done first waits for the other */
    heads = groups >= TASKS * threads || threads == 1 ? a->kv_heads : a->kv_heads * groups / (TASKS * threads);
    if (heads == 0) heads = 1;
    for (uint32_t i = 0, n; i < order_n; i += n) {
        n = neighbours(p, i, order_n);
        for (uint32_t h = 0; h < a->kv_heads; h += heads)
            p->tasks[p->tasks_n++] =
                (struct paged_task){.first = i, .seqs = n, .head = h, .heads = wn_cpu_min(heads, a->kv_heads - h)};
    }
}

wn_status wn_cpu_attn_paged(struct wn_backend *be, const struct wn_attn_paged *a)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    struct paged p = {.isa = cpu->isa, .a = a};
    size_t hd = a->head_dim, rows_max, tasks = 0;
    uint64_t work = 0;
    int threads = wn_cpu_threads();
    char *scratch;
    float *floats;

    wn_check_attn_paged(a);
    p.group = a->heads / a->kv_heads;
    p.tokens_max = p.group < ROWS ? ROWS / p.group : 1;
    p.seqs_max = p.group < TOGETHER ? TOGETHER / p.group : 1;
    p.wide = wn_cpu_round_up(hd);
    p.in_place = wn_cpu_kv_panels(&a->kv) && hd % WN_CPU_COLS == 0 && p.group <= TOGETHER;
    rows_max = (size_t)p.tokens_max * p.group;
    if (rows_max < (size_t)p.seqs_max * a->heads) rows_max = (size_t)p.seqs_max * a->heads;
    p.s = wn_cpu_round_up(rows_max * hd);
    p.o = p.s + rows_max * BLOCK;
    p.k = p.o + rows_max * p.wide;
    p.v = p.k + BLOCK * hd;
    p.max = p.v + BLOCK * p.wide;
    p.sum = p.max + rows_max;
    p.task_floats = wn_cpu_round_up(p.sum + rows_max);
    for (uint32_t s = 0; s < a->seqs_n; s++) {
        const struct wn_seq *q = &a->seqs[s];
        tasks += (size_t)((q->rows + p.tokens_max - 1) / p.tokens_max) * a->kv_heads;
        work += (uint64_t)q->rows * (q->pos + q->rows) * a->q.cols;
    }
    if (work < SMALL_WORK) threads = 1;
    scratch = wn_cpu_scratch(cpu, (size_t)threads * p.task_floats * sizeof(float) + a->seqs_n * sizeof(*p.order) +
                                      tasks * sizeof(*p.tasks));
    if (!scratch) return WN_ENOMEM;
    floats = (float *)(void *)scratch;
    p.order = (uint64_t *)(void *)(floats + (size_t)threads * p.task_floats);
    p.tasks = (struct paged_task *)(p.order + a->seqs_n);
    make_tasks(&p, (uint32_t)threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (size_t t = 0; t < p.tasks_n; t++) {
        float *mine = floats + (size_t)wn_cpu_thread() * p.task_floats;
        if (p.tasks[t].t1)
            chunk_task(&p, &p.tasks[t], mine);
        else
            decode_task(&p, &p.tasks[t], mine);
    }
    return WN_OK;
}

/* ---- full ---- */

struct full {
    const struct wn_cpu_isa *isa;
    const struct wn_attn_full *a;
    size_t wide, keys;                      /* head_dim and tokens rounded up to panels */
    size_t k, v, q, s, o, tmp, task_floats; /* where each part of a thread's scratch starts */
    float *mean;                            /* [images * heads][tokens]: sums of one head, or NULL */
};

/* Rows [r0, r1) of one head of one image, its keys and values already in panels. */
static void full_rows(const struct full *p, uint32_t image, uint32_t head, uint32_t r0, uint32_t r1, float *f)
{
    const struct wn_attn_full *a = p->a;
    size_t hd = a->head_dim, first = (size_t)image * a->tokens, one = (size_t)image * a->heads + head;
    float inverse[FULL_ROWS];

    for (uint32_t r = r0; r < r1; r++)
        p->isa->load(f + p->q + (r - r0) * hd, wn_mat_at(&a->q, first + r, head * hd), a->q.dtype, hd);
    p->isa->scale(f + p->q, a->scale, (r1 - r0) * hd);
    for (size_t j = 0; j < p->keys; j += WN_CPU_COLS) {
        const float *k = f + p->k + j * hd;
        for (uint32_t r = 0; r < r1 - r0; r += WN_CPU_ROWS)
            p->isa->tile(wn_cpu_min(WN_CPU_ROWS, r1 - r0 - r), hd, f + p->q + r * hd, hd, k, k,
                         f + p->s + r * p->keys + j, p->keys, true);
    }
    for (uint32_t r = 0; r < r1 - r0; r++) {
        float *s = f + p->s + r * p->keys;
        inverse[r] = 1.0f / p->isa->exp_sum(s, p->isa->max(s, a->tokens), a->tokens, p->keys);
        if (a->cls_rows && r0 + r == 0) {
            float *cls = a->cls_rows + one * a->tokens;
            memcpy(cls, s, a->tokens * sizeof(float));
            p->isa->scale(cls, inverse[r], a->tokens);
        }
        if (p->mean) p->isa->add_scaled(p->mean + one * a->tokens, s, inverse[r], a->tokens);
    }
    for (uint32_t j = 0; j < a->tokens; j += KEYS)
        for (size_t d = 0; d < p->wide; d += WN_CPU_COLS) {
            const float *v = f + p->v + d * p->keys + (size_t)j * WN_CPU_COLS;
            for (uint32_t r = 0; r < r1 - r0; r += WN_CPU_ROWS)
                p->isa->tile(wn_cpu_min(WN_CPU_ROWS, r1 - r0 - r), wn_cpu_min(KEYS, a->tokens - j),
                             f + p->s + r * p->keys + j, p->keys, v, v, f + p->o + r * p->wide + d, p->wide, j == 0);
        }
    for (uint32_t r = 0; r < r1 - r0; r++) {
        p->isa->scale(f + p->o + r * p->wide, inverse[r], hd);
        p->isa->store(wn_mat_at(&a->out, first + r0 + r, head * hd), a->out.dtype, f + p->o + r * p->wide, hd);
    }
}

static void full_task(const struct full *p, uint32_t image, uint32_t head, float *f)
{
    const struct wn_attn_full *a = p->a;
    size_t hd = a->head_dim, first = (size_t)image * a->tokens;

    for (uint32_t j = 0; j < p->keys; j += WN_CPU_COLS) {
        for (uint32_t i = 0; i < WN_CPU_COLS; i++) {
            float *tmp = f + p->tmp + i * hd;
            if (j + i < a->tokens) {
                p->isa->load(tmp, wn_mat_at(&a->k, first + j + i, head * hd), a->k.dtype, hd);
                p->isa->split(f + p->v + (size_t)(j + i) * WN_CPU_COLS, p->keys * WN_CPU_COLS,
                              wn_mat_at(&a->v, first + j + i, head * hd), a->v.dtype, hd);
            } else {
                memset(tmp, 0, hd * sizeof(float));
            }
        }
        p->isa->transpose(f + p->k + j * hd, f + p->tmp, hd, hd);
    }
    if (p->mean) memset(p->mean + ((size_t)image * a->heads + head) * a->tokens, 0, a->tokens * sizeof(float));
    for (uint32_t r = 0; r < a->tokens; r += FULL_ROWS)
        full_rows(p, image, head, r, wn_cpu_min(r + FULL_ROWS, a->tokens), f);
}

wn_status wn_cpu_attn_full(struct wn_backend *be, const struct wn_attn_full *a)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    struct full p = {.isa = cpu->isa, .a = a, .wide = wn_cpu_round_up(a->head_dim), .keys = wn_cpu_round_up(a->tokens)};
    size_t hd = a->head_dim, mean_floats = a->mean_cols ? wn_cpu_round_up((size_t)a->images * a->heads * a->tokens) : 0;
    uint32_t tasks = a->images * a->heads;
    int threads = (uint64_t)tasks * a->tokens * a->tokens * hd < SMALL_WORK ? 1 : wn_cpu_threads();
    float *scratch;

    wn_check_attn_full(a);
    p.v = p.keys * hd;
    p.q = p.v + p.keys * p.wide;
    p.s = p.q + FULL_ROWS * hd;
    p.o = p.s + FULL_ROWS * p.keys;
    p.tmp = p.o + FULL_ROWS * p.wide;
    p.task_floats = wn_cpu_round_up(p.tmp + WN_CPU_COLS * hd);
    scratch = wn_cpu_scratch(cpu, ((size_t)threads * p.task_floats + mean_floats) * sizeof(float));
    if (!scratch) return WN_ENOMEM;
    if (a->mean_cols) p.mean = scratch + (size_t)threads * p.task_floats;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (uint32_t t = 0; t < tasks; t++)
        full_task(&p, t / a->heads, t % a->heads, scratch + (size_t)wn_cpu_thread() * p.task_floats);
    for (uint32_t m = 0; a->mean_cols && m < a->images; m++) {
        float *to = a->mean_cols + (size_t)m * a->tokens, *from = p.mean + (size_t)m * a->heads * a->tokens;
        for (uint32_t h = 1; h < a->heads; h++) cpu->isa->add(from, from + (size_t)h * a->tokens, a->tokens);
        memcpy(to, from, a->tokens * sizeof(float));
        cpu->isa->scale(to, 1.0f / ((float)a->heads * (float)a->tokens), a->tokens);
    }
    return WN_OK;
}
