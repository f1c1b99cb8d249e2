/* daemon/prune_cmd.c - `winnow prune --image F --method M --keep K -o overlay.png MODEL`: what a method would keep of a
 * picture, drawn and counted. Runs the encoder in this process: no service is needed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/prune_draw.h"
#include "daemon/pruning_ask.h"
#include "daemon/roles.h"
#include "daemon/worker.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"

#define METHODS_MAX 32u

struct prune_cmd {
    struct wn_config cfg;
    struct wn_model model;
    struct wn_encoder *encoder;
    struct wn_image_limits limits;
    wn_dtype dtype;
    char *file;
    size_t file_bytes;
    uint8_t *rgb; /* what the tower sees: [height, width, 3] */
    uint32_t width, height;
    struct wn_encode_item items[METHODS_MAX];
    struct wn_prune_view views[METHODS_MAX];
    uint32_t n;
};

static wn_status open_encoder(struct prune_cmd *p, struct wn_err *err)
{
    struct wn_encoder_opts eo = {.cfg = &p->cfg, .model = &p->model};
    wn_status rc;

    eo.limits = p->limits;
    eo.dtype = p->dtype = wn_worker_dtype(&p->cfg, &p->model);
    if ((rc = wn_encoder_open(&p->encoder, &eo, err)) != WN_OK) return rc;
    return wn_encoder_warm_up(p->encoder, err); /* or the first method would look slow */
}

/* The picture as the checkpoint's preprocessor crops it. */
static wn_status load_picture(struct prune_cmd *p, struct wn_err *err)
{
    struct wn_preprocess pp;
    struct wn_image image = {0};
    wn_status rc;

    p->limits = (struct wn_image_limits)WN_IMAGE_LIMITS_DEFAULT;
    p->limits.bytes_max = p->cfg.image_bytes_max;
    p->limits.pixels_max = p->cfg.image_pixels_max;
    if ((rc = wn_file_read(&p->file, &p->file_bytes, p->cfg.image, p->limits.bytes_max, err)) != WN_OK) return rc;
    if ((rc = wn_image_decode(&image, p->file, p->file_bytes, &p->limits, err)) != WN_OK)
        return wn_err_prefix(err, "%s", p->cfg.image);
    if ((rc = wn_encoder_preprocess(&pp, p->cfg.model, &p->model, err)) != WN_OK) goto out;
    if (!(p->rgb = malloc((size_t)pp.width * pp.height * 3))) {
        rc = wn_fail(err, WN_ENOMEM, "picture of %u x %u", pp.width, pp.height);
        goto out;
    }
    p->width = pp.width;
    p->height = pp.height;
    rc = wn_preprocess_rgb(&pp, &image, p->rgb, err);
out:
    wn_image_fini(&image);
    return rc;
}

/* What a request with these options would get. */
static Wn__Pruning request(const struct prune_cmd *p, const char *method)
{
    Wn__Pruning asked = WN__PRUNING__INIT, full;

    asked.method = (char *)(uintptr_t)method;
    if (!p->cfg.all) /* not for methods that have it: for this one */
        asked.setting = (char *)(uintptr_t)p->cfg.image_pruning_setting;
    wn_pruning_complete(&full, &asked, &p->cfg);
    return full;
}

/* What costs little is looked at before weights load. */
static wn_status check(struct prune_cmd *p, struct wn_err *err)
{
    const Wn__Pruning full = request(p, p->cfg.image_pruning_method);
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    char id[WN_MODEL_ID_LEN];
    wn_status rc = wn_worker_model(&p->cfg, &p->model, id, err);

    if (rc != WN_OK) return rc;
    wn_worker_threads(&p->cfg, 1);
    return p->cfg.all ? WN_OK : wn_pruning_ask(&full, &method, &ask, err);
}

static void add_method(struct prune_cmd *p, const char *name)
{
    struct wn_encode_item *item = &p->items[p->n];
    const Wn__Pruning full = request(p, name);

    item->file = p->file;
    item->file_bytes = p->file_bytes;
    item->want_scores = true;
    item->rc = wn_pruning_ask(&full, &item->method, &item->ask, &item->err);
    if (item->rc == WN_OK) wn_encoder_run(p->encoder, item, 1);
    else item->method = wn_prune_find(name, NULL);
    p->views[p->n++] = (struct wn_prune_view){
        .item = item,
        .picture = {.rgb = p->rgb, .width = p->width, .height = p->height},
        .shape = wn_encoder_shape(&p->model),
        .row_bytes = (size_t)p->model.vision.hidden * wn_dtype_bytes(p->dtype),
        .kept_row_bytes = (size_t)item->width * wn_dtype_bytes(p->dtype), /* a projected row is wider */
    };
}

/* --all goes on when a method cannot serve this model, for the sheet says so; a single one is an error. */
static wn_status run_methods(struct prune_cmd *p, struct wn_err *err)
{
    for (size_t i = 0; p->cfg.all && wn_prune_methods[i] && p->n < METHODS_MAX; i++)
        add_method(p, wn_prune_methods[i]->name);
    if (p->cfg.all) return WN_OK;
    add_method(p, p->cfg.image_pruning_method);
    *err = p->items[0].err;
    return p->items[0].rc;
}

static void print_text(const struct wn_prune_view *v)
{
    const struct wn_encode_item *it = v->item;
    const struct wn_prune_figures f = wn_prune_figures(v);

    if (it->rc != WN_OK) {
        printf("%s: %s\n", it->method->name, it->err.text);
        return;
    }
    printf("%s: %u of %u visual tokens kept (%.1f %%), %u merged, %u extra; ", it->method->name, f.kept, f.of,
           f.of ? 100.0 * f.kept / f.of : 0, f.merged, f.extra);
    printf("vision link %llu -> %llu bytes; encode %.1f ms%s, prune %.2f ms\n", (unsigned long long)f.bytes_before,
           (unsigned long long)f.bytes_after, (double)it->encode_us / 1e3, it->cached ? " (cached)" : "",
           (double)it->prune_us / 1e3);
}

/* One object a line. */
static void print_json(const struct wn_prune_view *v)
{
    const struct wn_encode_item *it = v->item;
    const struct wn_prune_figures f = wn_prune_figures(v);

    if (it->rc != WN_OK) {
        printf("{\"method\": \"%s\", \"error\": \"%s\"}\n", it->method->name, wn_status_name(it->rc));
        return;
    }
    printf("{\"method\": \"%s\", \"kept\": %u, \"of\": %u, \"merged\": %u, \"extra\": %u, ", it->method->name, f.kept,
           f.of, f.merged, f.extra);
    printf("\"link_bytes_before\": %llu, \"link_bytes\": %llu, \"encode_us\": %llu, \"prune_us\": %llu, \"index\": [",
           (unsigned long long)f.bytes_before, (unsigned long long)f.bytes_after, (unsigned long long)it->encode_us,
           (unsigned long long)it->prune_us);
    for (uint32_t i = 0; i < it->rows_n; i++) {
        if (i) fputs(", ", stdout);
        if (it->index[i] == WN_PRUNE_NO_INDEX) fputs("null", stdout);
        else printf("%u", it->index[i]);
    }
    puts("]}");
}

static wn_status draw(const struct prune_cmd *p, struct wn_err *err)
{
    const char *slash = strrchr(p->cfg.image, '/');
    struct wn_canvas c = {0};
    char title[300], budget[64] = "each method's own count, or 64";
    wn_status rc;

    if (p->cfg.image_keep_tokens)
        snprintf(budget, sizeof(budget), "keep %u", p->cfg.image_keep_tokens);
    else if (p->cfg.image_pruning_rate > 0)
        snprintf(budget, sizeof(budget), "rate %g", (double)p->cfg.image_pruning_rate);
    snprintf(title, sizeof(title), "%.120s   %.100s   %s", p->cfg.model, slash ? slash + 1 : p->cfg.image, budget);
    rc = p->cfg.all ? wn_prune_draw_all(&c, p->views, p->n, title, err) : wn_prune_draw_one(&c, &p->views[0], err);
    if (rc == WN_OK) rc = wn_canvas_write_png(&c, p->cfg.output, err);
    wn_canvas_fini(&c);
    return rc;
}

int wn_cmd_prune(int argc, char **argv)
{
    struct prune_cmd *p = calloc(1, sizeof(*p));
    struct wn_err err = {0};
    wn_status rc;
    int code;

    if (!p) {
        fprintf(stderr, "winnow: out of memory\n");
        return 1;
    }
    code = wn_config_start(&p->cfg, argc, argv,
                           "winnow prune --image FILE --method M [--keep K | --rate R] [-o OUT.png] MODEL\n"
                           "       winnow prune --image FILE --all [--keep K | --rate R] [-o OUT.png] MODEL\n"
                           "Draws which visual tokens of a picture are kept, and counts them. No service is needed.",
                           WN_OPTIONS_MODEL | WN_OPTIONS_PRUNING | WN_OPTIONS_PRUNE | WN_OPTIONS_OUTPUT);
    if (code >= 0) goto out;
    code = 2;
    if (!wn_role_has_model(&p->cfg)) goto out;
    if (!p->cfg.image[0]) {
        fprintf(stderr, "winnow: no --image FILE; --help says how to name one\n");
        goto out;
    }
    code = 1;
    if ((rc = check(p, &err)) != WN_OK || (rc = load_picture(p, &err)) != WN_OK ||
        (rc = open_encoder(p, &err)) != WN_OK || (rc = run_methods(p, &err)) != WN_OK ||
        (p->cfg.output[0] && (rc = draw(p, &err)) != WN_OK)) {
        fprintf(stderr, "winnow: %s\n", err.text);
        goto out;
    }
    for (uint32_t i = 0; i < p->n; i++) (p->cfg.json ? print_json : print_text)(&p->views[i]);
    code = 0;
out:
    for (uint32_t i = 0; i < p->n; i++) wn_encode_item_fini(&p->items[i]);
    wn_encoder_close(p->encoder);
    free(p->rgb);
    free(p->file);
    free(p);
    return code;
}
