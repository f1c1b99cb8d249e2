/* shard/preprocess.c - see preprocess.h. */
#include "shard/preprocess.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

/* ---- preprocessor_config.json ---- */

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list",  [JSON_STRING] = "a string",
        [JSON_INTEGER] = "a number", [JSON_REAL] = "a number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",      [JSON_NULL] = "null",
    };
    return names[json_typeof(v)];
}

static wn_status get_bool(const json_t *v, const char *key, bool *out, struct wn_err *err)
{
    if (!json_is_boolean(v))
        return wn_fail(err, WN_EFORMAT, "%s is %s, not true or false", key, type_name(v));
    *out = json_is_true(v);
    return WN_OK;
}

static wn_status get_side(const json_t *v, const char *key, uint32_t *out, struct wn_err *err)
{
    json_int_t n = json_integer_value(v);

    if (!json_is_integer(v))
        return wn_fail(err, WN_EFORMAT, "%s is %s, not a whole number", key, type_name(v));
    if (n < 1 || n > WN_PREPROCESS_SIDE_MAX)
        return wn_fail(err, WN_ELIMIT, "%s is %lld, not 1 to %u", key, (long long)n,
                       WN_PREPROCESS_SIDE_MAX);
    *out = (uint32_t)n;
    return WN_OK;
}

static wn_status get_number(const json_t *v, const char *key, double low, double high, double *out,
                            struct wn_err *err)
{
    double n = json_number_value(v);

    if (!json_is_number(v))
        return wn_fail(err, WN_EFORMAT, "%s is %s, not a number", key, type_name(v));
    if (!(n >= low && n <= high))
        return wn_fail(err, WN_ELIMIT, "%s is %g, not %g to %g", key, n, low, high);
    *out = n;
    return WN_OK;
}

/* One number for all channels, or one for each. */
static wn_status get_channels(const json_t *v, const char *key, double low, double high,
                              float out[3], struct wn_err *err)
{
    double n = 0;
    wn_status rc = WN_OK;

    if (json_is_array(v) && json_array_size(v) != 3)
        return wn_fail(err, WN_EFORMAT, "%s has %zu values, not 3", key, json_array_size(v));
    for (size_t c = 0; c < 3 && rc == WN_OK; c++) {
        rc = get_number(json_is_array(v) ? json_array_get(v, c) : v, key, low, high, &n, err);
        if (rc == WN_OK) out[c] = (float)n;
    }
    return rc;
}

/* {"height": h, "width": w}, {"shortest_edge": s} where edge is not NULL, or a bare number: s or a
 * square. */
static wn_status get_size(const json_t *v, const char *key, uint32_t *height, uint32_t *width,
                          uint32_t *edge, struct wn_err *err)
{
    char name[64];
    const char *k;
    json_t *side;
    wn_status rc = WN_OK;

    *height = *width = 0;
    if (edge) *edge = 0;
    if (json_is_integer(v)) {
        rc = get_side(v, key, edge ? edge : height, err);
        if (!edge) *width = *height;
        return rc;
    }
    if (!json_is_object(v))
        return wn_fail(err, WN_EUNSUPP, "%s: %s is not supported", key, type_name(v));
    json_object_foreach((json_t *)v, k, side)
    {
        uint32_t *to = strcmp(k, "height") == 0                  ? height
                       : strcmp(k, "width") == 0                 ? width
                       : edge && strcmp(k, "shortest_edge") == 0 ? edge
                                                                 : NULL;
        if (!to) return wn_fail(err, WN_EUNSUPP, "%s: '%.64s' is not supported", key, k);
        snprintf(name, sizeof(name), "%s.%s", key, k);
        rc = get_side(side, name, to, err);
        if (rc != WN_OK) return rc;
    }
    if (edge && *edge && (*height || *width))
        return wn_fail(err, WN_EUNSUPP, "%s: shortest_edge together with height or width", key);
    if (!(edge && *edge) && (!*height || !*width))
        return wn_fail(err, WN_EFORMAT, "%s needs %sheight and width", key,
                       edge ? "shortest_edge, or " : "");
    return WN_OK;
}

static wn_status get_filter(const json_t *v, wn_filter *out, struct wn_err *err)
{
    json_int_t n = json_integer_value(v);

    if (!json_is_integer(v))
        return wn_fail(err, WN_EFORMAT, "resample is %s, not a number", type_name(v));
    if (n != WN_FILTER_LANCZOS && n != WN_FILTER_BILINEAR && n != WN_FILTER_BICUBIC)
        return wn_fail(err, WN_EUNSUPP,
                       "resample %lld is not supported (1 lanczos, 2 bilinear, 3 bicubic)",
                       (long long)n);
    *out = (wn_filter)n;
    return WN_OK;
}

/* Options that are fine as long as they ask for what is done anyway. */
static wn_status check_other(const json_t *v, const char *key, struct wn_err *err)
{
    static const char *const off[] = {"do_pad", "use_square_size", "default_to_square"};
    static const char *const on[] = {"do_convert_rgb"};
    static const char *const any[] = {"_valid_processor_keys", "processor_class"};
    static const struct {
        const char *key, *value;
    } same[] = {
        {"image_processor_type", "CLIPImageProcessor"},
        {"image_processor_type",
         "CLIPImageProcessorFast"}, /* the same steps; its resize rounds otherwise */
        {"feature_extractor_type", "CLIPFeatureExtractor"},
        {"data_format", "channels_first"},
    };

    if (json_is_null(v)) return WN_OK; /* unset */
    for (size_t i = 0; i < sizeof(any) / sizeof(any[0]); i++)
        if (strcmp(key, any[i]) == 0) return WN_OK;
    for (size_t i = 0; i < sizeof(off) / sizeof(off[0]); i++)
        if (strcmp(key, off[i]) == 0 && json_is_false(v)) return WN_OK;
    for (size_t i = 0; i < sizeof(on) / sizeof(on[0]); i++)
        if (strcmp(key, on[i]) == 0 && json_is_true(v)) return WN_OK;
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
        if (strcmp(key, same[i].key) == 0 && json_is_string(v) &&
            strcmp(json_string_value(v), same[i].value) == 0)
            return WN_OK;
    if (json_is_string(v))
        return wn_fail(err, WN_EUNSUPP, "%.64s '%.64s' is not supported", key,
                       json_string_value(v));
    return wn_fail(err, WN_EUNSUPP, "%.64s (%s) is not supported", key, type_name(v));
}

static wn_status get_option(struct wn_preprocess *pp, const char *key, const json_t *v,
                            struct wn_err *err)
{
    const struct {
        const char *key;
        bool *to;
    } flags[] = {
        {"do_resize", &pp->do_resize},
        {"do_center_crop", &pp->do_center_crop},
        {"do_rescale", &pp->do_rescale},
        {"do_normalize", &pp->do_normalize},
    };

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        if (strcmp(key, flags[i].key) == 0) return get_bool(v, key, flags[i].to, err);
    if (strcmp(key, "size") == 0)
        return get_size(v, key, &pp->size_height, &pp->size_width, &pp->shortest_edge, err);
    if (strcmp(key, "crop_size") == 0)
        return get_size(v, key, &pp->crop_height, &pp->crop_width, NULL, err);
    if (strcmp(key, "resample") == 0) return get_filter(v, &pp->resample, err);
    if (strcmp(key, "rescale_factor") == 0)
        return get_number(v, key, 1e-9, 1e9, &pp->rescale_factor, err);
    if (strcmp(key, "image_mean") == 0) return get_channels(v, key, -1e9, 1e9, pp->mean, err);
    if (strcmp(key, "image_std") == 0) return get_channels(v, key, 1e-9, 1e9, pp->std, err);
    return check_other(v, key, err);
}

/* What follows from the options: the size of every result, and the table of its values. */
static wn_status derive(struct wn_preprocess *pp, struct wn_err *err)
{
    if (pp->do_center_crop) {
        pp->height = pp->crop_height;
        pp->width = pp->crop_width;
    } else if (pp->do_resize && !pp->shortest_edge) {
        pp->height = pp->size_height;
        pp->width = pp->size_width;
    } else {
        return wn_fail(err, WN_EUNSUPP,
                       "without do_center_crop, pictures of different shapes are not supported");
    }
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) {
            /* the processor multiplies in double and normalises in float: so do we, to the last bit */
            float x = pp->do_rescale ? (float)(v * pp->rescale_factor) : (float)v;
            pp->value[c][v] = pp->do_normalize ? (x - pp->mean[c]) / pp->std[c] : x;
        }
    return WN_OK;
}

static wn_status parse_object(struct wn_preprocess *pp, json_t *root, struct wn_err *err)
{
    const char *key;
    json_t *v;
    wn_status rc;

    if (!json_is_object(root))
        return wn_fail(err, WN_EFORMAT, "%s, not an object", type_name(root));
    json_object_foreach(root, key, v)
    {
        rc = get_option(pp, key, v, err);
        if (rc != WN_OK) return rc;
    }
    return derive(pp, err);
}

wn_status wn_preprocess_parse(struct wn_preprocess *out, const char *json, size_t bytes,
                              struct wn_err *err)
{
    /* the defaults of CLIPImageProcessor, for options that the file leaves out */
    struct wn_preprocess pp = {
        .do_resize = true,
        .do_center_crop = true,
        .do_rescale = true,
        .do_normalize = true,
        .shortest_edge = 224,
        .resample = WN_FILTER_BICUBIC,
        .crop_height = 224,
        .crop_width = 224,
        .rescale_factor = 1.0 / 255,
        .mean = {0.48145466f, 0.4578275f, 0.40821073f},
        .std = {0.26862954f, 0.26130258f, 0.27577711f},
    };
    json_error_t at;
    json_t *root = NULL;
    wn_status rc;

    if (bytes > WN_PREPROCESS_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "%zu bytes, more than %zu", bytes, WN_PREPROCESS_BYTES_MAX);
    root = json_loadb(bytes ? json : "", bytes, JSON_REJECT_DUPLICATES, &at);
    if (!root) return wn_fail(err, WN_EFORMAT, "line %d: %s", at.line, at.text);
    rc = parse_object(&pp, root, err);
    json_decref(root);
    if (rc == WN_OK) *out = pp;
    return rc;
}

wn_status wn_preprocess_load(struct wn_preprocess *out, const char *path, struct wn_err *err)
{
    FILE *f = fopen(path, "rbe");
    char *text = NULL;
    size_t n;
    wn_status rc;

    if (!f)
        return wn_fail(err, errno == ENOENT ? WN_ENOENT : WN_EIO, "open %s: %s", path,
                       strerror(errno));
    text = malloc(WN_PREPROCESS_BYTES_MAX + 1); /* one more than allowed, to notice a longer file */
    if (!text) {
        rc = wn_fail(err, WN_ENOMEM, "%s: %zu bytes", path, WN_PREPROCESS_BYTES_MAX);
        goto out;
    }
    n = fread(text, 1, WN_PREPROCESS_BYTES_MAX + 1, f);
    if (ferror(f)) {
        rc = wn_fail(err, WN_EIO, "read %s: %s", path, strerror(errno));
        goto out;
    }
    rc = wn_preprocess_parse(out, text, n, err);
    if (rc != WN_OK && err) rc = wn_err_prefix(err, "%s", path);
out:
    free(text);
    fclose(f);
    return rc;
}

/* ---- pictures ---- */

/* Where a direction of the result comes from: result[at + i] = resized[from + i] for i < n, zeros
 * elsewhere. */
struct span {
    uint32_t from, at, n;
};

/* The processor's crop: floor((resized - crop) / 2) from the start; negative means zeros before. */
static struct span span_of(uint32_t resized, uint32_t crop)
{
    if (resized >= crop) return (struct span){.from = (resized - crop) / 2, .at = 0, .n = crop};
    return (struct span){.from = 0, .at = (crop - resized + 1) / 2, .n = resized};
}

/* The size of the picture after the resize step. */
static wn_status resized_size(const struct wn_preprocess *pp, const struct wn_image *img,
                              uint32_t *height, uint32_t *width, struct wn_err *err)
{
    uint32_t lo = img->width < img->height ? img->width : img->height;
    uint32_t hi = img->width < img->height ? img->height : img->width;
    double longer;

    if (!lo) return wn_fail(err, WN_EINVAL, "image: %ux%u pixels", img->width, img->height);
    *height = pp->do_resize ? pp->size_height : img->height;
    *width = pp->do_resize ? pp->size_width : img->width;
    if (!pp->do_resize || !pp->shortest_edge) return WN_OK;
    /* both factors fit 32 bits, so the product is exact below 2^53 and the quotient rounded once */
    longer = floor((double)pp->shortest_edge * hi / lo);
    if (longer > WN_RESAMPLE_SIDE_MAX)
        return wn_fail(err, WN_ELIMIT, "image: %ux%u is too long and thin to resize", img->width,
                       img->height);
    *width = img->width <= img->height ? pp->shortest_edge : (uint32_t)longer;
    *height = img->width <= img->height ? (uint32_t)longer : pp->shortest_edge;
    return WN_OK;
}

wn_status wn_preprocess_rgb(const struct wn_preprocess *pp, const struct wn_image *img,
                            uint8_t *rgb, struct wn_err *err)
{
    struct wn_resample rs = {.filter = pp->resample};
    const size_t stride = (size_t)pp->width * 3;
    struct span x, y;
    wn_status rc = resized_size(pp, img, &rs.height, &rs.width, err);

    if (rc != WN_OK) return rc;
    x = span_of(rs.width, pp->width);
    y = span_of(rs.height, pp->height);
    rs.window.x = x.from;
    rs.window.width = x.n;
    rs.window.y = y.from;
    rs.window.height = y.n;
    if (x.n < pp->width || y.n < pp->height) memset(rgb, 0, stride * pp->height);
    return wn_resample_run(&rs, img, rgb + y.at * stride + (size_t)x.at * 3, stride, err);
}

wn_status wn_preprocess_run(const struct wn_preprocess *pp, const struct wn_image *img,
                            float *pixels, struct wn_err *err)
{
    const size_t n = (size_t)pp->width * pp->height;
    uint8_t *rgb = malloc(n * 3);
    wn_status rc = WN_OK;

    if (!rgb) return wn_fail(err, WN_ENOMEM, "image: %ux%u pixels", pp->width, pp->height);
    rc = wn_preprocess_rgb(pp, img, rgb, err);
    for (size_t i = 0; rc == WN_OK && i < n; i++)
        for (size_t c = 0; c < 3; c++) pixels[c * n + i] = pp->value[c][rgb[i * 3 + c]];
    free(rgb);
    return rc;
}

struct many {
    const struct wn_preprocess *pp;
    const struct wn_image_limits *limits;
    struct wn_preprocess_item *items;
};

static void one_of_many(void *ctx, size_t i)
{
    const struct many *m = ctx;
    struct wn_preprocess_item *it = &m->items[i];
    struct wn_image img = {0};

    it->rc = wn_image_decode(&img, it->data, it->bytes, m->limits, &it->err);
    if (it->rc == WN_OK) it->rc = wn_preprocess_run(m->pp, &img, it->pixels, &it->err);
    wn_image_fini(&img);
}

void wn_preprocess_many(struct wn_pool *pool, const struct wn_preprocess *pp,
                        const struct wn_image_limits *limits, struct wn_preprocess_item *items,
                        size_t n)
{
    struct many m = {.pp = pp, .limits = limits, .items = items};

    wn_pool_run(pool, one_of_many, &m, n);
}
