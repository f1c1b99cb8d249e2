/* tests/unit/test_model.c - config.json of real and of impossible checkpoints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "shard/model.h"

static void test_llava_13b(void **state)
{
    struct wn_model m;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-13b.json", &err), WN_OK);
    assert_string_equal(m.architecture, "LlavaForConditionalGeneration");
    assert_int_equal(m.dtype, WN_F16);
    assert_int_equal(m.text.hidden, 5120);
    assert_int_equal(m.text.mlp, 13824);
    assert_int_equal(m.text.layers, 40);
    assert_int_equal(m.text.heads, 40);
    assert_int_equal(m.text.kv_heads, 40);
    assert_int_equal(m.text.head_dim, 128);
    assert_int_equal(m.text.vocab, 32064);
    assert_int_equal(m.text.positions_max, 4096);
    assert_true(m.text.eps == 1e-5f);
    assert_true(m.text.rope_theta == 10000.0f);
    assert_false(m.text.tied);
    assert_int_equal(m.vision.hidden, 1024);
    assert_int_equal(m.vision.mlp, 4096);
    assert_int_equal(m.vision.heads, 16);
    assert_int_equal(m.vision.head_dim, 64);
    assert_int_equal(m.vision.patches, 576);
    assert_int_equal(m.vision.layers, 24);
    assert_int_equal(m.vision.layers_run, 23);
    assert_int_equal(m.vision.act, WN_ACT_QUICK_GELU);
    assert_true(m.vision.eps == 1e-5f);
    assert_false(m.vision.keep_cls);
    assert_int_equal(m.projector_act, WN_ACT_GELU);
    assert_int_equal(m.image_token, 32000);
    assert_int_equal(m.bos, 1);
    assert_int_equal(m.pad, 32001);
    assert_int_equal(m.eos_n, 1);
    assert_int_equal(m.eos[0], 2);
    assert_int_equal(m.slices, 8);
}

/* The 7B file leaves the decoder's sizes out: they are the defaults of the class. */
static void test_llava_7b_defaults(void **state)
{
    struct wn_model m;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-7b.json", &err), WN_OK);
    assert_int_equal(m.text.hidden, 4096);
    assert_int_equal(m.text.mlp, 11008);
    assert_int_equal(m.text.layers, 32);
    assert_int_equal(m.text.heads, 32);
    assert_int_equal(m.text.kv_heads, 32);
    assert_int_equal(m.text.vocab, 32064);
}

/* No sub-configs at all: what LlavaConfig() is. */
static void test_empty_is_the_class_default(void **state)
{
    static const char config[] = "{\"model_type\": \"llava\", \"vision_config\": null, "
                                 "\"image_token_index\": 31999}";
    struct wn_model m;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_model_parse(&m, config, strlen(config), NULL, 0, &err), WN_OK);
    assert_int_equal(m.dtype, WN_F32);
    assert_int_equal(m.vision.image_side, 336);
    assert_int_equal(m.vision.hidden, 1024);
    assert_int_equal(m.text.positions_max, 2048);
    assert_true(m.text.eps == 1e-6f);
    assert_int_equal(m.pad, WN_TOKEN_NONE);
}

#define SMALL_TEXT                                                                                 \
    "\"hidden_size\": 48, \"intermediate_size\": 96, \"num_hidden_layers\": 3, "                   \
    "\"num_attention_heads\": 6, "                                                                 \
    "\"num_key_value_heads\": 2, \"vocab_size\": 100"
#define SMALL_VISION                                                                               \
    "\"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 4, "                   \
    "\"num_attention_heads\": 2, "                                                                 \
    "\"image_size\": 28, \"patch_size\": 14"

static wn_status parse_small(struct wn_model *m, const char *top, const char *text,
                             const char *vision, const char *generation, struct wn_err *err)
{
    char config[4096];

    snprintf(config, sizeof(config),
             "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"image_token_index\": 99, "
             "\"text_config\": {" SMALL_TEXT "%s}, \"vision_config\": {" SMALL_VISION "%s}%s}",
             text, vision, top);
    return wn_model_parse(m, config, strlen(config), generation,
                          generation ? strlen(generation) : 0, err);
}

static void test_small(void **state)
{
    struct wn_model m;
    struct wn_err err = {0};
    static const char generation[] =
        "{\"eos_token_id\": [7, 8, 9], \"pad_token_id\": 3, \"bos_token_id\": null}";

    (void)state;
    assert_int_equal(
        parse_small(
            &m,
            ", \"dtype\": \"bfloat16\", \"vision_feature_layer\": 2, "
            "\"vision_feature_select_strategy\": \"full\", \"projector_hidden_act\": \"silu\"",
            ", \"head_dim\": 10, \"tie_word_embeddings\": true, \"rope_theta\": 5e5, "
            "\"bos_token_id\": 5, \"rope_scaling\": null",
            ", \"hidden_act\": \"gelu\"", generation, &err),
        WN_OK);
    assert_int_equal(m.dtype, WN_BF16);
    assert_int_equal(m.vision.layers_run, 2);
    assert_true(m.vision.keep_cls);
    assert_int_equal(m.vision.patches, 4);
    assert_int_equal(m.vision.act, WN_ACT_GELU);
    assert_int_equal(m.projector_act, WN_ACT_SILU);
    assert_int_equal(m.text.head_dim, 10);
    assert_true(m.text.tied);
    assert_true(m.text.rope_theta == 5e5f);
    assert_int_equal(m.bos, 5); /* null in the generation file: the text configuration has it */
    assert_int_equal(m.pad, 3);
    assert_int_equal(m.eos_n, 3);
    assert_int_equal(m.eos[2], 9);
    assert_int_equal(m.slices, 2); /* two kv heads */
}

static void test_newer_fields(void **state)
{
    struct wn_model m;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(
        parse_small(
            &m,
            ", \"image_token_id\": 99, \"torch_dtype\": \"float16\", \"vision_feature_layer\": -1",
            ", \"rope_parameters\": {\"rope_theta\": 2e4, \"rope_type\": \"default\"}", "", NULL,
            &err),
        WN_OK);
    assert_true(m.text.rope_theta == 2e4f);
    assert_int_equal(m.dtype, WN_F16);
    assert_int_equal(m.vision.layers_run, 4);
    assert_int_equal(m.text.head_dim, 8);
}

static void test_refused(void **state)
{
    static const struct {
        const char *top, *text, *vision, *generation;
        wn_status code;
        const char *says;
    } cases[] = {
        {"", ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2.0}", "", NULL, WN_EUNSUPP,
         "rope_scaling type 'yarn' is not supported"},
        {"", ", \"rope_parameters\": {\"rope_type\": \"llama3\"}", "", NULL, WN_EUNSUPP,
         "'llama3'"},
        {"", ", \"rope_scaling\": 2.0", "", NULL, WN_EFORMAT, "rope_scaling: not an object"},
        {"", ", \"attention_bias\": true", "", NULL, WN_EUNSUPP, "attention_bias true"},
        {"", ", \"mlp_bias\": true", "", NULL, WN_EUNSUPP, "mlp_bias true"},
        {"", ", \"hidden_act\": \"gelu\"", "", NULL, WN_EUNSUPP, "hidden_act 'gelu'"},
        {"", ", \"model_type\": \"mistral\"", "", NULL, WN_EUNSUPP,
         "text_config.model_type 'mistral'"},
        {"", ", \"head_dim\": 7", "", NULL, WN_EUNSUPP, "head_dim: 7 is odd"},
        {"", ", \"head_dim\": 0", "", NULL, WN_ELIMIT, "head_dim: 0 is outside"},
        {"", ", \"head_dim\": 4.5", "", NULL, WN_EFORMAT, "head_dim: not an integer"},
        {"", ", \"max_position_embeddings\": -1", "", NULL, WN_ELIMIT,
         "max_position_embeddings: -1"},
        {"", ", \"max_position_embeddings\": 4294967297", "", NULL, WN_ELIMIT,
         "max_position_embeddings: 4294967297"},
        {"", ", \"rms_norm_eps\": 0", "", NULL, WN_ELIMIT, "rms_norm_eps"},
        {"", ", \"rms_norm_eps\": \"x\"", "", NULL, WN_EFORMAT, "rms_norm_eps: not a number"},
        {"", ", \"partial_rotary_factor\": 0.5", "", NULL, WN_EUNSUPP, "partial_rotary_factor"},
        {"", ", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}", "", NULL, WN_EUNSUPP,
         "rope_parameters.partial_rotary_factor"},
        {", \"vision_feature_select_strategy\": \"cls\"", ", \"torch_dtype\": 0", "", NULL,
         WN_EUNSUPP, "'cls'"}, /* two wrong: the first is told, with its own code */
        {"", ", \"quantization_config\": {\"quant_method\": \"awq\"}", "", NULL, WN_EUNSUPP,
         "'awq'"},
        {"", ", \"eos_token_id\": 100", "", NULL, WN_ELIMIT, "eos_token_id: 100"},
        {"", ", \"tie_word_embeddings\": 1", "", NULL, WN_EFORMAT, "not true or false"},
        {"", ", \"mlp_bias\": false, \"mlp_bias\": false", "", NULL, WN_EFORMAT, "duplicate"},
        {"", "", ", \"model_type\": \"siglip_vision_model\"", NULL, WN_EUNSUPP,
         "'siglip_vision_model'"},
        {"", "", ", \"hidden_act\": \"gelu_pytorch_tanh\"", NULL, WN_EUNSUPP,
         "'gelu_pytorch_tanh'"},
        {"", "", ", \"num_channels\": 1", NULL, WN_EUNSUPP, "num_channels"},
        {", \"quantization_config\": {}", "", "", NULL, WN_EUNSUPP, "quantization_config"},
        {", \"vision_feature_layer\": [-2, -5]", "", "", NULL, WN_EUNSUPP, "a list of layers"},
        {", \"vision_feature_layer\": -6", "", "", NULL, WN_ELIMIT, "vision_feature_layer: -6"},
        {", \"vision_feature_layer\": 5", "", "", NULL, WN_ELIMIT, "vision_feature_layer: 5"},
        {", \"vision_feature_select_strategy\": \"cls\"", "", "", NULL, WN_EUNSUPP, "'cls'"},
        {", \"multimodal_projector_bias\": false", "", "", NULL, WN_EUNSUPP,
         "multimodal_projector_bias false"},
        {", \"projector_hidden_act\": \"relu\"", "", "", NULL, WN_EUNSUPP,
         "projector_hidden_act 'relu'"},
        {", \"dtype\": \"float8_e4m3fn\"", "", "", NULL, WN_EUNSUPP, "'float8_e4m3fn'"},
        {", \"model_type\": \"llava_next\"", "", "", NULL, WN_EUNSUPP, "'llava_next'"},
        {", \"image_token_id\": 98", "", "", NULL, WN_EFORMAT, "differ"},
        {"", "", "", "{\"eos_token_id\": [1, 2, 3, 4, 5]}", WN_ELIMIT,
         "generation_config.json: eos_token_id: 5 ids"},
        {"", "", "", "{\"eos_token_id\": [1, -2]}", WN_EFORMAT, "eos_token_id[1]"},
        {"", "", "", "{\"bos_token_id\": \"<s>\"}", WN_EFORMAT,
         "generation_config.json: bos_token_id"},
        {"", "", "", "[]", WN_EFORMAT, "generation_config.json: not a JSON object"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_model m;
        struct wn_err err = {0};
        wn_status rc = parse_small(&m, cases[i].top, cases[i].text, cases[i].vision,
                                   cases[i].generation, &err);
        if (rc != cases[i].code || !strstr(err.text, cases[i].says))
            fail_msg("case %zu: %s: '%s'; expected '%s'", i, wn_status_name(rc), err.text,
                     cases[i].says);
    }
}

static void expect(const char *config, wn_status code, const char *says)
{
    struct wn_model m;
    struct wn_err err = {0};

    assert_int_equal(wn_model_parse(&m, config, strlen(config), NULL, 0, &err), code);
    if (!strstr(err.text, says)) fail_msg("'%s'; expected '%s'", err.text, says);
}

static void test_shapes_that_do_not_fit(void **state)
{
    (void)state;
    expect("{\"architectures\": [\"Qwen2VLForConditionalGeneration\"]}", WN_EUNSUPP,
           "architecture 'Qwen2VLForConditionalGeneration' is not supported; "
           "supported: LlavaForConditionalGeneration");
    expect("{}", WN_EFORMAT, "architectures: missing");
    expect("{\"architectures\": 3}", WN_EFORMAT, "architectures: missing");
    expect("", WN_EFORMAT, "config.json");
    expect("{\"model_type\": \"llava\"", WN_EFORMAT, "line 1");
    expect("{\"model_type\": \"llava\", \"text_config\": []}", WN_EFORMAT,
           "text_config: not an object");
    expect("{\"model_type\": \"llava\", \"text_config\": {\"num_key_value_heads\": 3}}", WN_EFORMAT,
           "num_key_value_heads: 3 does not divide 32 heads");
    expect("{\"model_type\": \"llava\", \"text_config\": {\"hidden_size\": 4100}}", WN_EFORMAT,
           "does not divide hidden_size 4100");
    expect("{\"model_type\": \"llava\", \"text_config\": {\"head_dim\": 65536}}", WN_ELIMIT,
           "wider than");
    expect("{\"model_type\": \"llava\", \"vision_config\": {\"patch_size\": 15}}", WN_EFORMAT,
           "patch_size: 15 does not divide image_size 224");
    expect("{\"model_type\": \"llava\", \"vision_config\": {\"num_attention_heads\": 7}}",
           WN_EFORMAT, "7 does not divide hidden_size 768");
    expect(
        "{\"model_type\": \"llava\", \"vision_config\": {\"image_size\": 8192, \"patch_size\": 2}}",
        WN_ELIMIT, "16777216 patches");
    expect("{\"model_type\": \"llava\"}", WN_ELIMIT, "image_token_index: 32000 is outside");
}

static void test_files(void **state)
{
    struct wn_model m;
    struct wn_err err = {0};
    static char big[(1 << 20) + 1];

    (void)state;
    assert_int_equal(wn_model_open(&m, "tests/golden/no-such-model", &err), WN_ENOENT);
    assert_non_null(strstr(err.text, "tests/golden/no-such-model/config.json"));
    memset(big, ' ', sizeof(big));
    assert_int_equal(wn_model_parse(&m, big, sizeof(big), NULL, 0, &err), WN_ELIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llava_13b),
        cmocka_unit_test(test_llava_7b_defaults),
        cmocka_unit_test(test_empty_is_the_class_default),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_newer_fields),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_shapes_that_do_not_fit),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
