/* random_model CONFIG.json FOLDER [--layers N] [--tokenizer MODEL] - a checkpoint of random weights in the shape that
 * CONFIG.json names, with N of its language layers, for measuring what does not depend on what weights say: times,
 * bytes, memory. Bfloat16, in Hugging Face layout. Tokenizer, templates and preprocessor are those of MODEL
 * (models/tiny-llava), and so is the number of the image token.
 *
 *     random_model tests/golden/config/llava-1.5-7b.json /tmp/7b-4 --layers 4        2.9 GB, in seconds
 *
 * Exit codes: 0 written, 1 failed, 2 usage. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/bench/random_weights.h"

#define PATH_ROOM 512

static int failed(const char *what, const char *why)
{
    fprintf(stderr, "random_model: %s: %s\n", what, why);
    return 1;
}

/* From one folder to another; a file that is not there is none of that model's. */
static bool copy(const char *from, const char *to, const char *name)
{
    char path[PATH_ROOM], block[1 << 16];
    FILE *in, *out;
    size_t n;
    bool good = true;

    snprintf(path, sizeof(path), "%s/%s", from, name);
    if (!(in = fopen(path, "rb"))) return errno == ENOENT;
    snprintf(path, sizeof(path), "%s/%s", to, name);
    if (!(out = fopen(path, "wb"))) {
        fclose(in);
        return false;
    }
    while (good && (n = fread(block, 1, sizeof(block), in)) > 0) good = fwrite(block, 1, n, out) == n;
    good = good && !ferror(in);
    fclose(in);
    return fclose(out) == 0 && good;
}

static json_t *load(const char *folder, const char *name)
{
    char path[PATH_ROOM];

    snprintf(path, sizeof(path), "%s%s%s", folder, *name ? "/" : "", name);
    return json_load_file(path, 0, NULL);
}

/* The shape's config.json with the layers that are wanted and the tokenizer's numbers. */
static bool write_config(const char *shape, const char *like, const char *to, uint32_t layers)
{
    static const char *const numbers[] = {"image_token_index", "pad_token_id"};
    json_t *config = load(shape, ""), *of_tokenizer = load(like, "config.json");
    json_t *text = json_object_get(config, "text_config");
    char path[PATH_ROOM];
    bool good = json_is_object(config) && json_is_object(of_tokenizer) && json_is_object(text);

    for (size_t i = 0; good && i < sizeof(numbers) / sizeof(numbers[0]); i++)
        json_object_set(config, numbers[i], json_object_get(of_tokenizer, numbers[i]));
    if (good && layers) json_object_set_new(text, "num_hidden_layers", json_integer(layers));
    if (good) json_object_set_new(config, "torch_dtype", json_string("bfloat16"));
    if (good) json_object_set_new(text, "torch_dtype", json_string("bfloat16"));
    snprintf(path, sizeof(path), "%s/config.json", to);
    good = good && json_dump_file(config, path, JSON_INDENT(2)) == 0;
    json_decref(config);
    json_decref(of_tokenizer);
    return good;
}

static int make(const char *shape, const char *to, const char *like, uint32_t layers)
{
    static const char *const files[] = {"chat_template.json",     "generation_config.json",  "preprocessor_config.json",
                                        "processor_config.json",  "special_tokens_map.json", "tokenizer.json",
                                        "tokenizer_config.json"};
    struct wn_model model;
    struct wn_plan plan;
    struct wn_err err = {0};

    if (mkdir(to, 0777) != 0 && errno != EEXIST) return failed(to, strerror(errno));
    if (!write_config(shape, like, to, layers)) return failed(shape, "no config.json of a model, or not to be written");
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        if (!copy(like, to, files[i])) return failed(files[i], "cannot be copied");
    if (wn_model_open(&model, to, &err) != WN_OK) return failed(to, err.text);
    if (wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err) != WN_OK) return failed(to, err.text);
    if (!random_weights_write(to, &model.vision, &plan)) return failed(to, "the weights cannot be written");
    printf("%s: %u layers of width %u, %u of the tower, %.1f GB\n", to, model.text.layers, model.text.hidden,
           model.vision.layers, (double)wn_plan_weight_bytes(&plan, 0) / 1e9);
    return 0;
}

int main(int argc, char **argv)
{
    const char *like = "models/tiny-llava";
    unsigned long layers = 0;
    char *end = NULL;
    int i = 3;

    for (; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--tokenizer") == 0) {
            like = argv[i + 1];
        } else if (strcmp(argv[i], "--layers") == 0) {
            layers = strtoul(argv[i + 1], &end, 10);
            if (*end || layers < 1 || layers > 1000) break;
        } else {
            break;
        }
    }
    if (argc < 3 || i != argc) {
        fprintf(stderr, "Usage: random_model CONFIG.json FOLDER [--layers N] [--tokenizer MODEL]\n");
        return 2;
    }
    return make(argv[1], argv[2], like, (uint32_t)layers);
}
