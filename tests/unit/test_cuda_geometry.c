/* Which kernel a shape gets on a GPU, and the tables that its launch reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/cuda/geometry.h"

static struct wn_mat mat(wn_dtype t, uint32_t rows, uint32_t cols, uint32_t stride)
{
    return (struct wn_mat){.ptr = (void *)(uintptr_t)4096, .dtype = t, .rows = rows, .cols = cols, .stride = stride};
}

/* t: of w; int8 has bfloat16 beside it. */
static wn_cuda_matmul_kind choose(wn_cuda_kernels kernels, wn_dtype t, uint32_t rows, uint32_t k, uint32_t slices,
                                  uint32_t pad, wn_act act)
{
    const wn_dtype of_x = t == WN_I8 ? WN_BF16 : t;
    struct wn_matmul a = {
        .out = mat(of_x, rows, 96, 96), .x = mat(of_x, rows, k, k + pad), .slices = slices, .act = act};
    return wn_cuda_choose_matmul(kernels, &a, t, 96, k);
}

static void matmuls(void **state)
{
    (void)state;
    assert_int_equal(choose(WN_CUDA_PLAIN, WN_BF16, 8, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    assert_int_equal(choose(WN_CUDA_EXACT, WN_F32, 8, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    for (uint32_t rows = 1; rows < 1000; rows *= 3) /* the bits of a row may not hang on the number of rows */
        for (int i = 0; i < 3; i++)
            assert_int_equal(choose(i == 2 ? WN_CUDA_FAST : WN_CUDA_EXACT, i == 0 ? WN_BF16 : WN_I8, rows, 256, 8, 0,
                                    WN_ACT_NONE),
                             WN_CUDA_MATMUL_MMA);
    assert_int_equal(choose(WN_CUDA_PLAIN, WN_I8, 8, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    assert_int_equal(choose(WN_CUDA_EXACT, WN_BF16, 8, 256, 64, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN); /* parts of 4 */
    assert_int_equal(choose(WN_CUDA_EXACT, WN_BF16, 8, 250, 1, 6, WN_ACT_NONE), WN_CUDA_MATMUL_MMA); /* a short end */
    assert_int_equal(choose(WN_CUDA_EXACT, WN_BF16, 8, 250, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    assert_int_equal(choose(WN_CUDA_EXACT, WN_BF16, 8, 500, 2, 4, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    assert_int_equal(choose(WN_CUDA_EXACT, WN_BF16, 8, 256, 1, 3, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
    assert_int_equal(choose(WN_CUDA_FAST, WN_BF16, 64, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_MMA);
    assert_int_equal(choose(WN_CUDA_FAST, WN_BF16, 65, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_LT);
    assert_int_equal(choose(WN_CUDA_FAST, WN_F32, 65, 256, 1, 0, WN_ACT_NONE), WN_CUDA_MATMUL_PLAIN);
}

static void parts(void **state)
{
    struct wn_matmul a = {.out = mat(WN_BF16, 20, 96, 96), .slices = 4};
    (void)state;
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_PLAIN, &a, 96), 0);
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_MMA, &a, 96), 4 * 1920);
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_LT, &a, 96), 0);
    a.act = WN_ACT_GELU; /* cuBLASLt has another GELU: its sums go through parts */
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_LT, &a, 96), 1920);
    a.slices = 1;
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_MMA, &a, 96), 0);
    a.slices = 4;
    a.out.rows = WN_CUDA_PART_ROWS + 1; /* the rest has the same memory */
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_MMA, &a, 96), 4 * WN_CUDA_PART_ROWS * 96);
    a.out.rows = WN_CUDA_WALK_ROWS; /* one block makes all of an element's parts */
    assert_int_equal(wn_cuda_matmul_parts(WN_CUDA_MATMUL_MMA, &a, 96), 0);
}

/* Few classes, and each close to its rows. */
static void row_classes(void **state)
{
    uint32_t classes = 0, last = 0;
    (void)state;
    assert_int_equal(wn_cuda_row_class(65), 128);
    assert_int_equal(wn_cuda_row_class(616), 640);
    assert_int_equal(wn_cuda_row_class(4616), 4864);
    for (uint32_t rows = 65; rows <= 1u << 16; rows++) {
        const uint32_t c = wn_cuda_row_class(rows);
        assert_true(c >= rows && c >= last && c - rows < (rows > 4096 ? rows / 16 : 128));
        assert_int_equal(wn_cuda_row_class(c), c);
        classes += c != last;
        last = c;
    }
    assert_in_range(classes, 16, 100);
}

/* A prompt, a short and a long decode, a sequence without rows; 2 query heads a kv head. */
static void attention_tables(void **state)
{
    static const uint32_t p0[] = {7, 3, 9, 1, 0}, p1[] = {4, 5}, p2[40] = {11, 12};
    static const struct wn_seq seqs[] = {{.first_row = 0, .rows = 70, .pos = 0, .pages = p0},
                                         {.first_row = 71, .rows = 1, .pos = 20, .pages = p1},
                                         {.first_row = 72, .rows = 1, .pos = 600, .pages = p2},
                                         {.first_row = 73, .rows = 0, .pos = 0, .pages = NULL}};
    struct wn_cuda_attn_plan p = wn_cuda_plan_attn(seqs, 4, 74, 2, 16);
    uint32_t *w = calloc(p.words + 1, sizeof(*w)), targets[74];
    const struct wn_cuda_seq *s;
    const struct wn_cuda_tile *tiles, *split;
    (void)state;

    assert_non_null(w);
    w[p.words] = 4711;
    assert_int_equal(p.tiles_n, 3 + 1); /* 140 query rows in 64s, and the short decode */
    assert_int_equal(p.split_tiles_n, 1);
    assert_int_equal(p.chunks, 3);
    assert_int_equal(p.split_rows, 2);
    wn_cuda_fill_attn(&p, seqs, 4, 74, 2, 16, w);
    assert_int_equal(w[p.words], 4711);
    s = (const struct wn_cuda_seq *)(w + p.seqs);
    tiles = (const struct wn_cuda_tile *)(w + p.tiles);
    split = (const struct wn_cuda_tile *)(w + p.split_tiles);
    assert_int_equal(s[1].first_row, 71);
    assert_int_equal(s[1].pos, 20);
    assert_int_equal(w[p.tables + s[0].table + 4], 0);
    assert_int_equal(w[p.tables + s[1].table + 1], 5);
    assert_int_equal(w[p.tables + s[2].table], 11);
    assert_int_equal(w[p.row_seq + 69], 0);
    assert_int_equal(w[p.row_seq + 70], UINT32_MAX); /* a row between two sequences */
    assert_int_equal(w[p.row_seq + 72], 2);
    assert_int_equal(tiles[2].row0, 128);
    assert_int_equal(tiles[3].seq, 1);
    assert_int_equal(split[0].seq, 2);
    wn_cuda_fill_targets(seqs, 4, 74, 16, targets);
    assert_int_equal(targets[0], 7 * 16);
    assert_int_equal(targets[17], 3 * 16 + 1);
    assert_int_equal(targets[70], UINT32_MAX);
    assert_int_equal(targets[71], 5 * 16 + 4);
    free(w);
}

/* Decode steps of a bucket have the same layout, whatever they hold; what pads them names a sequence without rows. */
static void padded_tables(void **state)
{
    static const uint32_t pages[40] = {5, 6, 7};
    const struct wn_seq three[] = {{.first_row = 0, .rows = 1, .pos = 300, .pages = pages},
                                   {.first_row = 1, .rows = 1, .pos = 3, .pages = pages},
                                   {.first_row = 2, .rows = 1, .pos = 0, .pages = pages}};
    const struct wn_seq one[] = {{.first_row = 0, .rows = 1, .pos = 511, .pages = pages}};
    struct wn_cuda_attn_plan p, other;
    const struct wn_cuda_seq *s;
    const struct wn_cuda_tile *split;
    uint32_t *w;
    (void)state;

    wn_cuda_pad_attn(&p, three, 3, 4, 2, 16);
    wn_cuda_pad_attn(&other, one, 1, 4, 2, 16);
    assert_memory_equal(&p, &other, sizeof(p));
    assert_int_equal(p.split_tiles_n, 4);
    assert_int_equal(p.tiles_n, 0);
    assert_int_equal(p.chunks, 2);
    assert_non_null(w = malloc((p.words + 1) * sizeof(*w)));
    memset(w, 0xff, (p.words + 1) * sizeof(*w));
    wn_cuda_fill_attn(&p, three, 3, 4, 2, 16, w);
    assert_int_equal(w[p.words], UINT32_MAX);
    s = (const struct wn_cuda_seq *)(w + p.seqs);
    split = (const struct wn_cuda_tile *)(w + p.split_tiles);
    assert_int_equal(split[1].seq, 1);
    assert_int_equal(split[3].seq, 4);
    assert_int_equal(s[4].rows, 0);
    assert_int_equal(w[p.row_seq + 2], 2);
    assert_int_equal(w[p.row_seq + 3], UINT32_MAX);
    assert_int_equal(w[p.tables + s[1].table], 5);
    free(w);
    wn_cuda_pad_attn(&other, three, 2, 2, 2, 16); /* another bucket */
    assert_int_not_equal(other.words, p.words);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(matmuls), cmocka_unit_test(parts),
                                              cmocka_unit_test(row_classes), cmocka_unit_test(attention_tables),
                                              cmocka_unit_test(padded_tables)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
