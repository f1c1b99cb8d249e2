/* tests/bench/random_weights.c - see random_weights.h. */
#include "tests/bench/random_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"

/* Values that are written again and again: drawing billions takes longer than measuring. A prime: rows differ. */
#define BLOCK 65521u

static uint32_t noise_state = 1;

float random_noise(void)
{
    noise_state = noise_state * 1664525u + 1013904223u;
    return (float)(noise_state >> 8) * 0x1p-24f - 0.5f;
}

#define TOWER "vision_tower.vision_model."

struct file {
    FILE *out;
    char header[1 << 18];
    size_t header_n;
    uint64_t at;          /* bytes of data so far */
    bool writing;         /* second pass: data; first: header */
    wn_bf16 *noise, *one; /* [BLOCK] */
};

/* A matrix [d0, d1], or a vector [d0]. A norm's weights are ones. */
static void add(struct file *f, const char *name, uint32_t d0, uint32_t d1)
{
    const uint64_t n = (uint64_t)d0 * (d1 ? d1 : 1);
    const size_t len = strlen(name), room = sizeof(f->header) - f->header_n;
    const bool norm = d1 == 0 && len > 7 && strcmp(name + len - 7, ".weight") == 0;
    char dims[32];

    if (f->writing) {
        for (uint64_t i = 0; i < n; i += BLOCK)
            (void)!fwrite(norm ? f->one : f->noise, sizeof(wn_bf16), n - i < BLOCK ? n - i : BLOCK, f->out);
        return;
    }
    snprintf(dims, sizeof(dims), d1 ? "%u,%u" : "%u", d0, d1);
    f->header_n += (size_t)snprintf(f->header + f->header_n, room,
                                    "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],"
                                    "\"data_offsets\":[%llu,%llu]}",
                                    f->header_n ? ',' : '{', name, dims, (unsigned long long)f->at,
                                    (unsigned long long)(f->at + 2 * n));
    WN_ASSERT(f->header_n + 16 < sizeof(f->header));
    f->at += 2 * n;
}

static void add_layer(struct file *f, const struct wn_vision_config *c, uint32_t i)
{
    const struct {
        const char *name;
        uint32_t d0, d1;
    } parts[] = {
        {"layer_norm1.weight", c->hidden, 0},
        {"layer_norm1.bias", c->hidden, 0},
        {"layer_norm2.weight", c->hidden, 0},
        {"layer_norm2.bias", c->hidden, 0},
        {"self_attn.q_proj.weight", c->hidden, c->hidden},
        {"self_attn.q_proj.bias", c->hidden, 0},
        {"self_attn.k_proj.weight", c->hidden, c->hidden},
        {"self_attn.k_proj.bias", c->hidden, 0},
        {"self_attn.v_proj.weight", c->hidden, c->hidden},
        {"self_attn.v_proj.bias", c->hidden, 0},
        {"self_attn.out_proj.weight", c->hidden, c->hidden},
        {"self_attn.out_proj.bias", c->hidden, 0},
        {"mlp.fc1.weight", c->mlp, c->hidden},
        {"mlp.fc1.bias", c->mlp, 0},
        {"mlp.fc2.weight", c->hidden, c->mlp},
        {"mlp.fc2.bias", c->hidden, 0},
    };
    char name[128];

    for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++) {
        snprintf(name, sizeof(name), TOWER "encoder.layers.%u.%s", i, parts[k].name);
        add(f, name, parts[k].d0, parts[k].d1);
    }
}

static wn_status add_slice(void *file, const struct wn_slice *s, struct wn_err *err)
{
    (void)err;
    add(file, s->name, s->rows.n, s->cols.n > 1 ? s->cols.n : 0);
    return WN_OK;
}

static bool add_all(struct file *f, const struct wn_vision_config *c, const struct wn_plan *plan)
{
    add(f, TOWER "embeddings.class_embedding", c->hidden, 0);
    add(f, TOWER "embeddings.patch_embedding.weight", c->hidden, 3 * c->patch_side * c->patch_side);
    add(f, TOWER "embeddings.position_embedding.weight", c->patches + 1, c->hidden);
    add(f, TOWER "pre_layrnorm.weight", c->hidden, 0);
    add(f, TOWER "pre_layrnorm.bias", c->hidden, 0);
    for (uint32_t i = 0; i < c->layers; i++) add_layer(f, c, i); /* keys may be tapped in the one after the last run */
    return !plan || wn_plan_slices(plan, 0, add_slice, f, NULL) == WN_OK;
}

bool random_weights_write(const char *dir, const struct wn_vision_config *tower, const struct wn_plan *plan)
{
    struct file *f = calloc(1, sizeof(*f));
    char path[256];
    uint64_t header_bytes;
    bool good = f && (f->noise = calloc(2 * BLOCK, sizeof(*f->noise)));

    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    good = good && (f->out = fopen(path, "wb"));
    if (good) {
        f->one = f->noise + BLOCK;
        for (uint32_t i = 0; i < BLOCK; i++) {
            f->noise[i] = wn_f32_to_bf16(0.08f * random_noise());
            f->one[i] = wn_f32_to_bf16(1.0f);
        }
        good = add_all(f, tower, plan);
        f->header[f->header_n++] = '}';
        while (f->header_n % 8) f->header[f->header_n++] = ' ';
        header_bytes = f->header_n;
        good = good && fwrite(&header_bytes, sizeof(header_bytes), 1, f->out) == 1 &&
               fwrite(f->header, 1, f->header_n, f->out) == f->header_n;
        f->writing = true;
        good = good && add_all(f, tower, plan) && !ferror(f->out);
    }
    if (f && f->out) good = fclose(f->out) == 0 && good;
    if (f) free(f->noise);
    free(f);
    return good;
}
