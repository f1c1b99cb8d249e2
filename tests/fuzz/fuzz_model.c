/* tests/fuzz/fuzz_model.c - config.json and, behind a zero byte, generation_config.json. What is
 * accepted must make sense, and must be planned without harm. */
#include <stdint.h>
#include <string.h>

#include "shard/model.h"
#include "shard/plan.h"

static void check_model(const struct wn_model *m)
{
    const struct wn_text_config *t = &m->text;
    const struct wn_vision_config *v = &m->vision;

    WN_ASSERT(t->hidden && t->mlp && t->layers && t->heads && t->kv_heads && t->head_dim &&
              t->vocab);
    WN_ASSERT(t->heads % t->kv_heads == 0 && t->head_dim % 2 == 0);
    WN_ASSERT(t->eps > 0 && t->rope_theta >= 1);
    WN_ASSERT(m->image_token < t->vocab && m->eos_n <= WN_EOS_MAX);
    WN_ASSERT(m->bos == WN_TOKEN_NONE || m->bos < t->vocab);
    WN_ASSERT(m->pad == WN_TOKEN_NONE || m->pad < t->vocab);
    for (uint32_t i = 0; i < m->eos_n; i++) WN_ASSERT(m->eos[i] < t->vocab);
    WN_ASSERT(m->slices && t->kv_heads % m->slices == 0 && t->mlp % m->slices == 0 &&
              t->hidden % m->slices == 0);
    WN_ASSERT(v->hidden == v->heads * v->head_dim && v->layers_run <= v->layers && v->eps > 0);
    WN_ASSERT(v->patches && v->image_side % v->patch_side == 0);
    WN_ASSERT(strcmp(m->architecture, "LlavaForConditionalGeneration") == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *split = size ? memchr(data, 0, size) : NULL;
    size_t config_len = split ? (size_t)(split - data) : size;
    size_t generation_len = split ? size - config_len - 1 : 0;
    const char *generation = split ? (const char *)split + 1 : NULL;
    struct wn_model m;
    struct wn_plan p;
    struct wn_err err = {0};
    wn_status rc =
        wn_model_parse(&m, (const char *)data, config_len, generation, generation_len, &err);

    if (rc != WN_OK) {
        WN_ASSERT(err.code == rc && err.text[0] != '\0');
        return 0;
    }
    check_model(&m);
    if (wn_plan_make(&p, &m, 2, 2, NULL, WN_BF16, &err) == WN_OK)
        WN_ASSERT(wn_plan_weight_bytes(&p, 0) > 0 && wn_plan_kv_bytes_per_token(&p, 3) > 0);
    return 0;
}
