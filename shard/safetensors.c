/* shard/safetensors.c - the header of a safetensors file; see weights.h.
 *
 * {"__metadata__": {...}, "name": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [begin, end]}, ...} */
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "shard/jsonfile.h"
#include "shard/weights.h"

#define HEADER_BYTES_MAX ((size_t)100 * 1000 * 1000) /* the format's own limit */
#define TENSORS_MAX      ((size_t)1 << 20)
#define NAME_MAX_BYTES   512u
#define DIMS_MAX         32u

/* Where one tensor lies, to be sorted. */
struct span {
    uint64_t begin, end;
    const char *name; /* borrowed from the JSON */
};

/* Bits of an element; 0 if the type is unknown. *readable is set for the types of wn_dtype. */
static unsigned type_bits(const char *type, wn_dtype *dtype, bool *readable)
{
    static const struct {
        const char *name;
        unsigned bits;
        int dtype;
    } known[] = {
        {"F32", 32, WN_F32}, {"BF16", 16, WN_BF16}, {"F16", 16, WN_F16}, {"F64", 64, -1},
        {"I64", 64, -1},     {"U64", 64, -1},       {"I32", 32, -1},     {"U32", 32, -1},
        {"I16", 16, -1},     {"U16", 16, -1},       {"I8", 8, -1},       {"U8", 8, -1},
        {"BOOL", 8, -1},     {"C64", 64, -1},       {"F8_E4M3", 8, -1},  {"F8_E5M2", 8, -1},
        {"F8_E8M0", 8, -1},  {"F6_E2M3", 6, -1},    {"F6_E3M2", 6, -1},  {"F4", 4, -1},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(type, known[i].name) != 0) continue;
        *readable = known[i].dtype >= 0;
        *dtype = *readable ? (wn_dtype)known[i].dtype : WN_F32;
        return known[i].bits;
    }
    return 0;
}

/* A JSON integer that is not negative. */
static bool get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* Fills t's dims and the bytes that they take with elements of `bits`. */
static wn_status parse_shape(const char *name, const json_t *shape, unsigned bits,
                             struct wn_tensor *t, struct wn_err *err)
{
    uint64_t n = bits;
    size_t dims = json_array_size(shape);

    if (!json_is_array(shape))
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': shape: not a list", name);
    if (dims > DIMS_MAX)
        return wn_fail(err, WN_ELIMIT, "tensor '%.200s': %zu dimensions; the limit is %u", name,
                       dims, DIMS_MAX);
    t->dims_n = (uint32_t)dims;
    for (size_t i = 0; i < dims; i++) {
        uint64_t d;
        if (!get_u64(json_array_get(shape, i), &d))
            return wn_fail(err, WN_EFORMAT, "tensor '%.200s': shape[%zu]: not a size", name, i);
        if (__builtin_mul_overflow(n, d, &n))
            return wn_fail(err, WN_EFORMAT, "tensor '%.200s': shape: more than 2^64 bits", name);
        if (i < WN_DIMS_MAX) t->dims[i] = d;
    }
    if (n % 8 != 0)
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': shape: not a whole number of bytes",
                       name);
    t->bytes = n / 8;
    return WN_OK;
}

static wn_status parse_tensor(const char *name, const json_t *entry, uint64_t data_bytes,
                              struct wn_tensor *t, struct span *span, struct wn_err *err)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    unsigned bits;
    bool readable;
    wn_status rc;

    if (strnlen(name, NAME_MAX_BYTES + 1) > NAME_MAX_BYTES)
        return wn_fail(err, WN_ELIMIT, "tensor '%.60s...': name longer than %u bytes", name,
                       NAME_MAX_BYTES);
    if (!json_is_object(entry))
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': not an object", name);
    if (!type)
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': dtype: missing, or not a string", name);
    if ((bits = type_bits(type, &t->dtype, &readable)) == 0)
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': dtype '%.40s' is unknown", name, type);
    if ((rc = parse_shape(name, json_object_get(entry, "shape"), bits, t, err)) != WN_OK) return rc;
    if (json_array_size(offsets) != 2 || !get_u64(json_array_get(offsets, 0), &span->begin) ||
        !get_u64(json_array_get(offsets, 1), &span->end))
        return wn_fail(err, WN_EFORMAT, "tensor '%.200s': data_offsets: not two offsets", name);
    if (span->begin > span->end || span->end > data_bytes)
        return wn_fail(
            err, WN_EFORMAT,
            "tensor '%.200s': data_offsets %llu to %llu are outside the %llu bytes of data", name,
            (unsigned long long)span->begin, (unsigned long long)span->end,
            (unsigned long long)data_bytes);
    if (span->end - span->begin != t->bytes)
        return wn_fail(err, WN_EFORMAT,
                       "tensor '%.200s': data_offsets hold %llu bytes, its shape needs %llu", name,
                       (unsigned long long)(span->end - span->begin), (unsigned long long)t->bytes);
    span->name = name;
    return WN_OK;
}

static int span_order(const void *pa, const void *pb)
{
    const struct span *a = pa, *b = pb;

    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end; /* empty tensors first */
}

/* The spans, one after the other, must be the data area: no gap, no overlap, nothing left. */
static wn_status check_cover(struct span *spans, size_t n, uint64_t data_bytes, struct wn_err *err)
{
    uint64_t at = 0;

    if (n) qsort(spans, n, sizeof(*spans), span_order);
    for (size_t i = 0; i < n; i++) {
        if (spans[i].begin < at)
            return wn_fail(err, WN_EFORMAT, "tensor '%.150s' overlaps tensor '%.150s'",
                           spans[i].name, spans[i - 1].name); /* at > 0 only after a first span */
        if (spans[i].begin > at)
            return wn_fail(err, WN_EFORMAT, "%llu bytes before tensor '%.200s' belong to no tensor",
                           (unsigned long long)(spans[i].begin - at), spans[i].name);
        at = spans[i].end;
    }
    if (at != data_bytes)
        return wn_fail(err, WN_EFORMAT, "%llu bytes at the end belong to no tensor",
                       (unsigned long long)(data_bytes - at));
    return WN_OK;
}

wn_status wn_safetensors_parse(const char *json, size_t json_len, uint64_t data_bytes,
                               wn_tensor_fn *each, void *ctx, struct wn_err *err)
{
    json_t *root = NULL, *entry;
    struct span *spans = NULL;
    const char *name;
    size_t n = 0, room;
    wn_status rc = WN_OK;

    if (json_len > HEADER_BYTES_MAX) {
        rc = wn_fail(err, WN_ELIMIT, "header of %zu bytes; the limit is %zu", json_len,
                     HEADER_BYTES_MAX);
        goto out;
    }
    if ((rc = wn_json_parse(&root, "header", json, json_len, err)) != WN_OK) goto out;
    room = json_object_size(root);
    if (room > TENSORS_MAX) {
        rc = wn_fail(err, WN_ELIMIT, "%zu tensors; the limit is %zu", room, TENSORS_MAX);
        goto out;
    }
    if (room && !(spans = malloc(room * sizeof(*spans)))) {
        rc = wn_fail(err, WN_ENOMEM, "table of %zu tensors", room);
        goto out;
    }
    json_object_foreach(root, name, entry)
    {
        struct wn_tensor t = {0};
        if (strcmp(name, "__metadata__") == 0) continue;
        if ((rc = parse_tensor(name, entry, data_bytes, &t, &spans[n], err)) != WN_OK) goto out;
        if (each)
            rc = each(ctx, name, json_string_value(json_object_get(entry, "dtype")), &t,
                      spans[n].begin, err);
        if (rc != WN_OK) goto out;
        n++;
    }
    rc = check_cover(spans, n, data_bytes, err);
out:
    free(spans);
    json_decref(root);
    return rc;
}
