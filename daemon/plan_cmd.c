/* daemon/plan_cmd.c - `winnow plan MODEL -tp T -pp P`: who holds what, and what a prompt puts on each link. */
#include <stdio.h>
#include <stdlib.h>

#include "daemon/fit.h"
#include "daemon/pruning_ask.h"
#include "daemon/roles.h"
#include "daemon/worker.h"
#include "pruning/prune.h"
#include "shard/weights.h"

/* With --memory: is there a rank that does not fit? */
static bool all_fit(const struct wn_plan *plan, const struct wn_memory_limits *memory, struct wn_err *err)
{
    struct wn_memory_plan need;

    for (uint32_t r = 0; memory->device_bytes && r < plan->stages * plan->tensors; r++)
        if (wn_plan_memory(&need, plan, r, memory, err) != WN_OK) return false;
    return true;
}

/* Visual tokens of a picture, at most: what the method leaves, or what is kept where no method is named. */
static wn_status picture_rows(const struct wn_config *cfg, const struct wn_model *model, uint32_t *out,
                              struct wn_err *err)
{
    const struct wn_prune_budget budget = {.keep = cfg->image_keep_tokens, .rate = cfg->image_pruning_rate};
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    Wn__Pruning pruning;
    wn_status rc;

    wn_pruning_complete(&pruning, NULL, cfg);
    if ((rc = wn_pruning_ask(&pruning, &method, &ask, err)) != WN_OK) return rc;
    *out = method->all ? wn_prune_count(&budget, model->vision.patches)
                       : wn_prune_rows_max(method, &ask, model->vision.patches);
    return WN_OK;
}

int wn_cmd_plan(int argc, char **argv)
{
    struct wn_config cfg;
    struct wn_model model;
    struct wn_plan plan;
    struct wn_plan_load load;
    struct wn_step_limits step = {0};
    struct wn_memory_limits memory;
    struct wn_err err = {0};
    uint32_t tokens_max = 0, rows = 0;
    char id[WN_MODEL_ID_LEN], *json;
    int code = wn_config_start(&cfg, argc, argv,
                               "winnow plan MODEL [OPTION]...\n"
                               "Prints which rank holds what, the memory that it takes, and what a prompt puts on\n"
                               "each link. MODEL is a checkpoint folder, or only its config.json.",
                               WN_OPTIONS_MODEL | WN_OPTIONS_PRUNING | WN_OPTIONS_PLAN | WN_OPTIONS_OUTPUT);

    if (code >= 0) return code;
    if (!wn_role_has_model(&cfg)) return 2;
    if (wn_worker_model(&cfg, &model, id, &err) != WN_OK || wn_worker_plan(&cfg, &model, &plan, &err) != WN_OK ||
        (wn_weights_exist(cfg.model) && wn_worker_tensors(&cfg, &plan, &err) != WN_OK) ||
        wn_fit_step(&step, &tokens_max, &cfg, &model, &err) != WN_OK ||
        picture_rows(&cfg, &model, &rows, &err) != WN_OK) {
        fprintf(stderr, "winnow: %s\n", err.text);
        return 1;
    }
    memory = wn_fit_limits(&cfg, &step, tokens_max, cfg.memory);
    load = (struct wn_plan_load){
        .text_tokens = cfg.prompt_tokens,
        .image_rows = cfg.images * rows,
        .new_tokens = 1,
        .gpus = cfg.link == WN_CONFIG_LINK_NCCL,
        .chunk_tokens = cfg.max_num_batched_tokens,
    };
    if (!cfg.json) {
        wn_plan_print(&plan, &load, stdout);
        wn_plan_print_memory(&plan, &memory, stdout);
    } else if ((json = wn_plan_json(&plan, &load, &memory))) {
        puts(json);
        free(json);
    } else {
        fprintf(stderr, "winnow: out of memory\n");
        return 1;
    }
    if (all_fit(&plan, &memory, &err)) return 0;
    fflush(stdout);
    fprintf(stderr, "winnow: %s\n", err.text);
    return 1;
}
