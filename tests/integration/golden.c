/* tests/integration/golden.c - see golden.h. */
#include "tests/integration/golden.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The whole file, which must have exactly `bytes`. */
static wn_status read_exact(void **out, const char *dir, const char *name, size_t bytes,
                            struct wn_err *err)
{
    char path[256];
    FILE *f;
    void *p = malloc(bytes + 1);
    size_t n = 0;

    snprintf(path, sizeof(path), "%s/golden/%s", dir, name);
    f = fopen(path, "rb");
    if (f && p) n = fread(p, 1, bytes + 1, f);
    if (f) fclose(f);
    if (!f || !p || n != bytes) {
        free(p);
        return wn_fail(err, WN_EIO, "%s: %zu bytes expected, %s", path, bytes,
                       f ? "another size" : strerror(errno));
    }
    *out = p;
    return WN_OK;
}

static wn_status read_text(struct golden *g, struct wn_err *err)
{
    char path[256], key[64];
    unsigned value, prompt;
    FILE *f;

    snprintf(path, sizeof(path), "%s/golden/golden.txt", g->dir);
    f = fopen(path, "r");
    if (!f) return wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
    while (fscanf(f, "%63s %u", key, &value) == 2) {
        if (strcmp(key, "images") == 0) g->images = value;
        if (strcmp(key, "prompts") == 0) g->prompts = value;
        if (strcmp(key, "new_tokens") == 0) g->new_tokens = value;
        if (sscanf(key, "prompt_%u_", &prompt) == 1 && prompt < GOLDEN_PROMPTS_MAX) {
            if (strstr(key, "rows")) g->prompt[prompt].rows = value;
            if (strstr(key, "images")) g->prompt[prompt].images = value;
        }
    }
    fclose(f);
    if (g->images == 0 || g->prompts == 0 || g->prompts > GOLDEN_PROMPTS_MAX || g->new_tokens == 0)
        return wn_fail(err, WN_EFORMAT, "%s: a size is missing", path);
    return WN_OK;
}

static wn_status read_prompt(struct golden *g, uint32_t i, struct wn_err *err)
{
    struct golden_prompt *p = &g->prompt[i];
    char name[64];
    wn_status rc;

    snprintf(name, sizeof(name), "tokens_%u.bin", i);
    if ((rc = read_exact((void **)&p->tokens, g->dir, name, p->rows * sizeof(uint32_t), err)) !=
        WN_OK)
        return rc;
    snprintf(name, sizeof(name), "logits_%u.bin", i);
    rc = read_exact((void **)&p->logits, g->dir, name,
                    (size_t)p->rows * g->model.text.vocab * sizeof(float), err);
    if (rc != WN_OK) return rc;
    snprintf(name, sizeof(name), "greedy_%u.bin", i);
    return read_exact((void **)&p->greedy, g->dir, name, g->new_tokens * sizeof(uint32_t), err);
}

static wn_status read_original(struct golden *g, struct wn_err *err)
{
    struct golden_original *o = &g->original;
    const struct {
        void **to;
        const char *name;
        size_t bytes;
    } files[] = {
        {(void **)&o->rows, "original_rows.bin", GOLDEN_ORIGINAL_ROWS * sizeof(*o->rows)},
        {(void **)&o->features, "original_features.bin",
         (GOLDEN_KEPT_0 + GOLDEN_KEPT_1) * g->model.vision.hidden * sizeof(float)},
        {(void **)&o->logits, "original_logits.bin", GOLDEN_ORIGINAL_ROWS * g->model.text.vocab * sizeof(float)},
        {(void **)&o->greedy, "original_greedy.bin", g->new_tokens * sizeof(uint32_t)},
    };
    wn_status rc = WN_OK;

    for (size_t i = 0; rc == WN_OK && i < sizeof(files) / sizeof(files[0]); i++)
        rc = read_exact(files[i].to, g->dir, files[i].name, files[i].bytes, err);
    return rc;
}

wn_status golden_open(struct golden *g, const char *name, struct wn_err *err)
{
    const struct wn_vision_config *v = &g->model.vision;
    size_t tokens, rows, floats = sizeof(float);
    uint32_t first = 0;
    wn_status rc;

    memset(g, 0, sizeof(*g));
    snprintf(g->dir, sizeof(g->dir), "tests/golden/%s", name);
    if ((rc = wn_model_open(&g->model, g->dir, err)) != WN_OK) return rc;
    if ((rc = read_text(g, err)) != WN_OK) return rc;
    rows = (size_t)g->images * v->patches;
    tokens = (size_t)g->images * (v->patches + 1);
    const struct {
        float **to;
        const char *name;
        size_t n;
    } files[] = {
        {&g->pixels, "pixels.bin", (size_t)g->images * 3 * v->image_side * v->image_side},
        {&g->features, "features.bin", rows * v->hidden},
        {&g->projected, "projected.bin", rows * g->model.text.hidden},
        {&g->cls_attention, "cls_attention.bin", tokens * v->heads},
        {&g->mean_attention, "mean_attention.bin", tokens},
        {&g->keys, "keys.bin", tokens * v->hidden},
        {&g->query, "query.bin", (size_t)g->images * v->hidden},
    };
    for (size_t i = 0; rc == WN_OK && i < sizeof(files) / sizeof(files[0]); i++)
        rc = read_exact((void **)files[i].to, g->dir, files[i].name, files[i].n * floats, err);
    for (uint32_t i = 0; rc == WN_OK && i < g->prompts; i++) {
        rc = read_prompt(g, i, err);
        g->prompt[i].image_first = first;
        first += g->prompt[i].images;
    }
    if (rc == WN_OK) rc = read_original(g, err);
    if (rc != WN_OK) golden_close(g);
    return rc;
}

void golden_close(struct golden *g)
{
    float *all[] = {g->pixels,         g->features, g->projected, g->cls_attention,
                    g->mean_attention, g->keys,     g->query};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) free(all[i]);
    for (uint32_t i = 0; i < GOLDEN_PROMPTS_MAX; i++) {
        free(g->prompt[i].tokens);
        free(g->prompt[i].logits);
        free(g->prompt[i].greedy);
    }
    free(g->original.rows);
    free(g->original.features);
    free(g->original.logits);
    free(g->original.greedy);
    memset(g, 0, sizeof(*g));
}

bool golden_backend_usable(const char *name)
{
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    bool usable = wn_backend_open(&be, name, 0, &err) == WN_OK;

    if (!usable) printf("skipped: %s\n", err.text);
    wn_backend_close(be);
    return usable;
}

static double row_error(const float *got, const float *want, size_t n)
{
    double largest = 0.0, worst = 0.0;

    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        if (isnan(d)) return 1e9;
        if (d > worst) worst = d;
        if (fabs((double)want[i]) > largest) largest = fabs((double)want[i]);
    }
    return largest > 0.0 ? worst / largest : worst;
}

double golden_error(const float *got, const float *want, size_t rows, size_t n)
{
    double worst = 0.0;

    for (size_t r = 0; r < rows; r++) {
        double e = row_error(got + r * n, want + r * n, n);
        if (e > worst) worst = e;
    }
    return worst;
}

void *golden_as(const float *from, size_t n, wn_dtype dtype)
{
    void *out = malloc(n * wn_dtype_bytes(dtype) + 1);

    for (size_t i = 0; out && i < n; i++) {
        if (dtype == WN_F32)
            ((float *)out)[i] = from[i];
        else
            ((wn_bf16 *)out)[i] = wn_f32_to_bf16(from[i]);
    }
    return out;
}
