/* tests/unit/test_weights.c - safetensors files, right and wrong, in a folder of their own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "shard/weights.h"
#include "tests/scratch.h"

static char dir[64];
static size_t data_first; /* of the bytes that are written as data */

static const char *in_dir(const char *file)
{
    static char path[512];

    snprintf(path, sizeof(path), "%s/%s", dir, file);
    return path;
}

static int setup(void **state)
{
    (void)state;
    return scratch_make(dir, sizeof(dir), "test-weights") ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return scratch_remove(dir) ? 0 : -1;
}

/* A safetensors file: `claimed` is the header length that it states; the data is 0, 1, 2, ... */
static void write_tensors_claiming(const char *file, const char *header, uint64_t claimed,
                                   size_t data_bytes)
{
    static uint8_t bytes[(8 << 20) + 8192];
    size_t n = strlen(header);

    assert_true(8 + n + data_bytes <= sizeof(bytes));
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(claimed >> (8 * i));
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + n + i] = (uint8_t)(data_first + i);
    assert_true(scratch_write(dir, file, bytes, 8 + n + data_bytes));
}

/* The header is padded with spaces to a multiple of 8, as writers do. */
static void write_tensors(const char *file, const char *header, size_t data_bytes)
{
    char padded[4096];

    snprintf(padded, sizeof(padded), "%s%*s", header, (int)((8 - strlen(header) % 8) % 8), "");
    write_tensors_claiming(file, padded, strlen(padded), data_bytes);
}

static void expect_open(wn_status code, const char *says)
{
    struct wn_weights *w = NULL;
    struct wn_err err = {0};
    wn_status rc = wn_weights_open(&w, dir, &err);

    if (rc != code || !strstr(err.text, says))
        fail_msg("%s: '%s'; expected '%s'", wn_status_name(rc), err.text, says);
    assert_null(w);
}

static void test_single_file(void **state)
{
    struct wn_weights *w = NULL;
    struct wn_tensor t;
    struct wn_err err = {0};

    (void)state;
    /* not in the order of the data, with metadata, a scalar, an empty tensor and a type that is not ours */
    write_tensors(
        "model.safetensors",
        "{\"__metadata__\": {\"format\": \"pt\"},"
        "\"b\": {\"dtype\": \"BF16\", \"shape\": [2, 3], \"data_offsets\": [16, 28]},"
        "\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 16]},"
        "\"empty\": {\"dtype\": \"F32\", \"shape\": [0, 3], \"data_offsets\": [28, 28]},"
        "\"scalar\": {\"dtype\": \"F16\", \"shape\": [], \"data_offsets\": [28, 30]},"
        "\"ids\": {\"dtype\": \"U8\", \"shape\": [2], \"data_offsets\": [30, 32]},"
        "\"deep\": {\"dtype\": \"F32\", \"shape\": [1, 1, 1, 1, 2], \"data_offsets\": [32, 40]}}",
        40);
    assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
    assert_int_equal(wn_weights_find(w, "b", &t, &err), WN_OK);
    assert_int_equal(t.dtype, WN_BF16);
    assert_int_equal(t.dims_n, 2);
    assert_int_equal(t.dims[0], 2);
    assert_int_equal(t.dims[1], 3);
    assert_int_equal(t.bytes, 12);
    assert_int_equal(((const uint8_t *)t.data)[0], 16);
    assert_int_equal(((const uint8_t *)t.data)[11], 27);
    assert_int_equal(wn_weights_find(w, "a", &t, &err), WN_OK);
    assert_int_equal(t.dtype, WN_F32);
    assert_int_equal(t.dims_n, 1);
    assert_int_equal(t.dims[0], 4);
    assert_int_equal(wn_weights_find(w, "empty", &t, &err), WN_OK);
    assert_int_equal(t.bytes, 0);
    assert_int_equal(wn_weights_find(w, "scalar", &t, &err), WN_OK);
    assert_int_equal(t.dims_n, 0);
    assert_int_equal(wn_weights_find(w, "ids", &t, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "tensor 'ids' has type U8; supported: F32, F16, BF16"));
    assert_int_equal(wn_weights_find(w, "deep", &t, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "5 dimensions"));
    assert_int_equal(wn_weights_find(w, "c", &t, &err), WN_ENOENT);
    assert_non_null(strstr(err.text, "tensor 'c' is not in"));
    wn_weights_close(w);
}

/* Pages of files that this process has in memory. */
static long pages_mapped(void)
{
    long all = 0, resident = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld %ld", &all, &resident, &shared), 3);
    fclose(f);
    return shared;
}

/* What was loaded leaves the process's memory, and is there when it is asked for. */
static void test_release(void **state)
{
    const long pages = (8 << 20) / sysconf(_SC_PAGESIZE);
    struct wn_weights *w = NULL;
    struct wn_tensor t;
    struct wn_err err = {0};
    unsigned sum[2] = {0};
    long before, read;
    (void)state;

    write_tensors("model.safetensors",
                  "{\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"
                  "\"b\":{\"dtype\":\"BF16\",\"shape\":[2048,2048],\"data_offsets\":[6,8388614]}}",
                  8388614);
    assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
    assert_int_equal(wn_weights_find(w, "b", &t, &err), WN_OK);
    wn_weights_release(&t); /* what came with the header */
    before = pages_mapped();
    for (int i = 0; i < 2; i++) {
        for (uint64_t at = 0; at < t.bytes; at++) sum[i] += ((const uint8_t *)t.data)[at];
        read = pages_mapped();
        wn_weights_release(&t);
        assert_true(read - before > pages * 9 / 10);
        assert_true(pages_mapped() - before < pages / 10);
    }
    assert_true(sum[0] > 0 && sum[0] == sum[1]);
    wn_weights_close(w);
}

static void test_unaligned(void **state)
{
    static const char header[] =
        "{\"x\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}  ";
    struct wn_weights *w = NULL;
    struct wn_tensor t;
    struct wn_err err = {0};
    size_t n = strlen(header);

    (void)state;
    write_tensors_claiming("model.safetensors", header, n, 4);
    assert_int_not_equal((8 + n) % 4, 0); /* or the case is not the one it says */
    assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
    assert_int_equal(wn_weights_find(w, "x", &t, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "not aligned"));
    wn_weights_close(w);
}

#define X(offsets) "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": " offsets "}}"

static void test_malformed_headers(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        wn_status code;
        const char *says;
    } cases[] = {
        {X("[0, 12]"), 12, WN_EFORMAT, "data_offsets hold 12 bytes, its shape needs 8"},
        {X("[4, 12]"), 8, WN_EFORMAT, "are outside the 8 bytes"},
        {X("[8, 0]"), 8, WN_EFORMAT, "are outside"},
        {X("[9223372036854775800, 9223372036854775807]"), 8, WN_EFORMAT, "are outside"},
        {X("[-8, 0]"), 8, WN_EFORMAT, "not two offsets"},
        {X("[0.0, 8]"), 8, WN_EFORMAT, "not two offsets"},
        {X("[0, 8, 16]"), 8, WN_EFORMAT, "not two offsets"},
        {X("[0, 99999999999999999999]"), 8, WN_EFORMAT, "too big integer"},
        {X("[8, 16]"), 16, WN_EFORMAT, "8 bytes before tensor 'x' belong to no tensor"},
        {X("[0, 8]"), 9, WN_EFORMAT, "1 bytes at the end belong to no tensor"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
         "\"y\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [4, 12]}}",
         12, WN_EFORMAT, "tensor 'y' overlaps tensor 'x'"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
         "\"y\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
         8, WN_EFORMAT, "overlaps"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
         "\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 16]}}",
         16, WN_EFORMAT, "duplicate"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, "
         "0]}}",
         0, WN_EFORMAT, "more than 2^64 bits"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 0]}}", 0, WN_EFORMAT,
         "shape[0]"},
        {"{\"x\": {\"dtype\": \"F32\", \"shape\": 2, \"data_offsets\": [0, 8]}}", 8, WN_EFORMAT,
         "shape: not a list"},
        {"{\"x\": {\"dtype\": \"F33\", \"shape\": [2], \"data_offsets\": [0, 8]}}", 8, WN_EFORMAT,
         "'F33' is unknown"},
        {"{\"x\": {\"dtype\": \"F4\", \"shape\": [3], \"data_offsets\": [0, 2]}}", 2, WN_EFORMAT,
         "whole number"},
        {"{\"x\": {\"shape\": [2], \"data_offsets\": [0, 8]}}", 8, WN_EFORMAT, "dtype: missing"},
        {"{\"x\": [1]}", 0, WN_EFORMAT, "not an object"},
        {"[]", 0, WN_EFORMAT, "not a JSON object"},
        {"{\"x\"", 0, WN_EFORMAT, "header: line 1"},
        {"{}", 1, WN_EFORMAT, "1 bytes at the end"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_tensors("model.safetensors", cases[i].header, cases[i].data);
        expect_open(cases[i].code, cases[i].says);
    }
}

static void test_malformed_files(void **state)
{
    (void)state;
    expect_open(WN_ENOENT, "neither model.safetensors nor model.safetensors.index.json");
    assert_true(scratch_text(dir, "model.safetensors", "1234567"));
    expect_open(WN_EFORMAT, "too few");
    write_tensors_claiming("model.safetensors", "{}", 3, 0);
    expect_open(WN_EFORMAT, "header of 3 bytes in a file of 10");
    write_tensors_claiming("model.safetensors", "{}", UINT64_MAX, 0);
    expect_open(WN_EFORMAT, "header of 18446744073709551615 bytes");
    write_tensors_claiming("model.safetensors", X("[0, 8]"), 8,
                           8); /* cut in the middle of the JSON */
    expect_open(WN_EFORMAT, "model.safetensors: header");
    write_tensors_claiming("model.safetensors", "{}", 0, 0);
    expect_open(WN_EFORMAT, "header");
    assert_int_equal(unlink(in_dir("model.safetensors")), 0);
    assert_int_equal(mkdir(in_dir("model.safetensors"), 0700), 0);
    expect_open(WN_EFORMAT, "not a regular file");
    assert_int_equal(rmdir(in_dir("model.safetensors")), 0);
}

/* The limit is on what the header claims, so that nothing is parsed; the file is sparse. */
static void test_huge_header(void **state)
{
    (void)state;
    write_tensors_claiming("model.safetensors", "{}", 100000001, 0);
    assert_int_equal(truncate(in_dir("model.safetensors"), 100000100), 0);
    expect_open(WN_ELIMIT, "the limit is 100000000");
}

#define ONE(name) "{\"" name "\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}"

static void write_index(const char *text)
{
    assert_true(scratch_text(dir, "model.safetensors.index.json", text));
}

static void test_shards(void **state)
{
    struct wn_weights *w = NULL;
    struct wn_tensor t;
    struct wn_err err = {0};

    (void)state;
    unlink(in_dir("model.safetensors"));
    write_index(
        "{\"metadata\": {}, \"weight_map\": {\"x\": \"a.safetensors\", \"y\": \"b.safetensors\"}}");
    write_tensors("a.safetensors", ONE("x"), 8);
    expect_open(WN_ENOENT, "b.safetensors");
    write_tensors("b.safetensors", ONE("z"), 8);
    expect_open(WN_EFORMAT, "tensor 'y' is not in b.safetensors");
    write_tensors("b.safetensors", ONE("y"), 8);
    assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
    assert_int_equal(wn_weights_find(w, "x", &t, &err), WN_OK);
    assert_int_equal(t.dims[0], 2);
    assert_int_equal(wn_weights_find(w, "y", &t, &err), WN_OK);
    assert_int_equal(t.dims[0], 2);
    wn_weights_close(w);
    w = NULL;

    /* a tensor in two files: the index decides */
    write_tensors("b.safetensors",
                  "{\"y\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]},"
                  "\"x\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [8, 12]}}",
                  12);
    assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
    assert_int_equal(wn_weights_find(w, "x", &t, &err), WN_OK);
    assert_int_equal(t.dims[0], 2);
    wn_weights_close(w);

    write_tensors_claiming("b.safetensors", "{}", 1000, 0);
    expect_open(WN_EFORMAT, "b.safetensors: header of 1000 bytes");
}

static void test_index(void **state)
{
    static const struct {
        const char *index, *says;
    } cases[] = {
        {"{\"weight_map\": {\"x\": \"../a.safetensors\"}}",
         "'../a.safetensors' is not a plain file name"},
        {"{\"weight_map\": {\"x\": \"/etc/passwd\"}}", "not a plain file name"},
        {"{\"weight_map\": {\"x\": \"..\"}}", "not a plain file name"},
        {"{\"weight_map\": {\"x\": \"\"}}", "not a plain file name"},
        {"{\"weight_map\": {\"x\": 3}}", "not a plain file name"},
        {"{\"weight_map\": []}", "weight_map: missing"},
        {"{}", "weight_map: missing"},
        {"{", "line 1"},
    };

    (void)state;
    unlink(in_dir("model.safetensors"));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_index(cases[i].index);
        expect_open(WN_EFORMAT, cases[i].says);
    }
}

static void test_both_name_layouts(void **state)
{
    static const char *const pairs[][2] = {
        {"language_model.model.layers.0.mlp.up_proj.weight",
         "model.language_model.layers.0.mlp.up_proj.weight"},
        {"language_model.lm_head.weight", "lm_head.weight"},
        {"multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"},
        {"vision_tower.vision_model.pre_layrnorm.weight",
         "model.vision_tower.vision_model.pre_layrnorm.weight"},
    };
    struct wn_weights *w = NULL;
    struct wn_tensor t;
    struct wn_err err = {0};

    (void)state;
    for (int layout = 0; layout < 2; layout++) {
        char header[2048] = "{";
        size_t n = 1;
        for (size_t i = 0; i < 4; i++)
            n += (size_t)snprintf(
                header + n, sizeof(header) - n,
                "%s\"%s\": {\"dtype\": \"BF16\", \"shape\": [4], \"data_offsets\": [%zu, %zu]}",
                i ? ", " : "", pairs[i][layout], 8 * i, 8 * i + 8);
        snprintf(header + n, sizeof(header) - n, "}");
        write_tensors("model.safetensors", header, 32);
        assert_int_equal(wn_weights_open(&w, dir, &err), WN_OK);
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(wn_weights_find(w, pairs[i][0], &t, &err), WN_OK);
            assert_int_equal(((const uint8_t *)t.data)[0], 8 * i);
        }
        assert_int_equal(wn_weights_find(w, "language_model.model.norm.weight", &t, &err),
                         WN_ENOENT);
        wn_weights_close(w);
    }
}

static void digest(const char *header, size_t data_bytes, uint8_t out[WN_SHA256_BYTES])
{
    struct wn_weights *w = NULL;
    struct wn_sha256 s;

    write_tensors("model.safetensors", header, data_bytes);
    assert_int_equal(wn_weights_open(&w, dir, NULL), WN_OK);
    wn_sha256_init(&s);
    wn_weights_digest(w, &s);
    wn_sha256_final(&s, out);
    wn_weights_close(w);
}

/* A tensor of other values, another name, shape or type: not the same weights. */
static void test_digest(void **state)
{
    static const char *const others[] = {
        "{\"b\": {\"dtype\": \"F32\", \"shape\": [2, 30], \"data_offsets\": [0, 240]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [30, 2], \"data_offsets\": [0, 240]}}",
        "{\"a\": {\"dtype\": \"I32\", \"shape\": [2, 30], \"data_offsets\": [0, 240]}}",
        ("{\"z\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
         "\"a\": {\"dtype\": \"F32\", \"shape\": [2, 30], \"data_offsets\": [8, 248]}}"),
    };
    const char *one = "{\"a\": {\"dtype\": \"F32\", \"shape\": [2, 30], \"data_offsets\": [0, 240]}}";
    uint8_t first[WN_SHA256_BYTES], other[WN_SHA256_BYTES];

    (void)state;
    digest(one, 240, first);
    digest(one, 240, other);
    assert_memory_equal(first, other, sizeof(first));
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        digest(others[i], i == 3 ? 248 : 240, other);
        assert_memory_not_equal(first, other, sizeof(first));
    }
    data_first = 1; /* other values */
    digest(one, 240, other);
    data_first = 0;
    assert_memory_not_equal(first, other, sizeof(first));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_single_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unaligned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_release, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malformed_headers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malformed_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_huge_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(test_index, setup, teardown),
        cmocka_unit_test_setup_teardown(test_both_name_layouts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_digest, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
