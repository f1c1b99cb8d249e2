/* Products and sums of rows (pruning/rows.h): lists and terms go up as one table, and a launch follows. */
#include <string.h>

#include "pruning/rows.h"
#include "shard/cpu/check.h"
#include "shard/cuda/cuda.h"

static struct wn_cuda_mat view(const struct wn_mat *m)
{
    return (struct wn_cuda_mat){m->ptr, (uint32_t)m->dtype, m->rows, m->cols, m->stride};
}

/* The table of `words`, and a queue that is ready for a launch that reads it. */
static wn_status send(struct wn_cuda *c, const uint32_t *words, size_t n, uint32_t purpose, const uint32_t **device)
{
    const struct wn_cuda_key key = {.from = words, .purpose = purpose, .words = (uint32_t)n};
    wn_status rc = n ? wn_cuda_table(c, key, words, device) : WN_OK;

    WN_ASSERT(!c->queue.open); /* no decode step asks for these */
    return rc;
}

static uint32_t listed(const struct wn_row_list *l)
{
    return l->at ? l->n : 0;
}

static struct wn_cuda_row_list list_of(const struct wn_row_list *l, const uint32_t *at)
{
    WN_ASSERT(l->at || l->n <= l->m.rows);
    return (struct wn_cuda_row_list){.m = view(&l->m), .at = l->at ? at : NULL, .n = l->n};
}

wn_status wn_cuda_row_dots(struct wn_backend *be, const struct wn_row_dots *a)
{
    struct wn_cuda *c = (struct wn_cuda *)be;
    const bool pairs = a->pairs != WN_ROWS_SELF, same = a->b.at == a->a.at && a->b.n <= a->a.n;
    const uint32_t a_n = listed(&a->a), b_n = pairs && !same ? listed(&a->b) : 0;
    struct wn_cuda_row_dots d = {.out = a->out, .pairs = (uint32_t)a->pairs};
    const uint32_t *lists = NULL;
    uint32_t *words = NULL;
    wn_status rc;

    wn_check_mat(&a->a.m);
    if (pairs) wn_check_mat(&a->b.m);
    WN_ASSERT(!pairs || (a->a.m.cols == a->b.m.cols));
    if (a->a.n == 0 || (pairs && a->b.n == 0)) return WN_OK;
    if ((rc = wn_cuda_words(c, (size_t)a_n + b_n + 1, &words)) != WN_OK) return rc;
    if (a_n) memcpy(words, a->a.at, a_n * sizeof(*words));
    if (b_n) memcpy(words + a_n, a->b.at, b_n * sizeof(*words));
    if ((rc = send(c, words, (size_t)a_n + b_n, WN_CUDA_TABLE_LISTS, &lists)) != WN_OK) return rc;
    d.a = list_of(&a->a, lists);
    d.b = pairs ? list_of(&a->b, same ? lists : lists + a_n) : d.a;
    return wn_cuda_check((cudaError_t)wn_cuda_run_row_dots(&d, wn_cuda_now(c)), "row dots", NULL);
}

wn_status wn_cuda_row_sums(struct wn_backend *be, const struct wn_row_sums *a)
{
    _Static_assert(sizeof(struct wn_row_term) == 2 * sizeof(uint32_t), "a term is two words");
    struct wn_cuda *c = (struct wn_cuda *)be;
    const size_t rows = a->out.rows, terms_n = a->first[rows];
    struct wn_cuda_row_sums s = {.out = view(&a->out), .in = view(&a->in), .last = a->last};
    const uint32_t *table = NULL;
    uint32_t *words = NULL;
    wn_status rc;

    wn_check_mat(&a->out);
    wn_check_mat(&a->in);
    WN_ASSERT(a->out.cols == a->in.cols);
    if (rows == 0 || a->out.cols == 0) return WN_OK;
    if ((rc = wn_cuda_words(c, 2 * rows + 1 + 2 * terms_n, &words)) != WN_OK) return rc;
    memcpy(words, a->first, (rows + 1) * sizeof(*words));
    memcpy(words + rows + 1, a->div, rows * sizeof(*words));
    memcpy(words + 2 * rows + 1, a->terms, terms_n * sizeof(*a->terms));
    if ((rc = send(c, words, 2 * rows + 1 + 2 * terms_n, WN_CUDA_TABLE_TERMS, &table)) != WN_OK) return rc;
    s.first = table;
    s.div = (const float *)(const void *)(table + rows + 1);
    s.terms = table + 2 * rows + 1;
    return wn_cuda_check((cudaError_t)wn_cuda_run_row_sums(&s, wn_cuda_now(c)), "row sums", NULL);
}
