/* daemon/worker.c - see worker.h. */
#include "daemon/worker.h"

#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/sha256.h"
#include "daemon/placement.h"
#include "shard/jsonfile.h"

wn_status wn_worker_model(const struct wn_config *cfg, struct wn_model *model,
                          char id[WN_MODEL_ID_LEN], struct wn_err *err)
{
    uint8_t hash[WN_SHA256_BYTES];
    char path[WN_PATH_MAX], *text = NULL;
    struct stat st;
    size_t n = 0;
    wn_status rc;

    if (!cfg->model[0]) return wn_fail(err, WN_EINVAL, "no model named: give a checkpoint folder");
    if (stat(cfg->model, &st) != 0)
        return wn_fail(err, WN_ENOENT, "%s: no such checkpoint folder", cfg->model);
    if (S_ISDIR(st.st_mode)) {
        if ((rc = wn_model_open(model, cfg->model, err)) != WN_OK) return rc;
        if ((rc = wn_path_join(path, cfg->model, "config.json", err)) != WN_OK) return rc;
    } else {
        snprintf(path, sizeof(path), "%s", cfg->model);
    }
    if ((rc = wn_file_read(&text, &n, path, (size_t)1 << 20, err)) != WN_OK) return rc;
    if (!S_ISDIR(st.st_mode) && (rc = wn_model_parse(model, text, n, NULL, 0, err)) != WN_OK)
        wn_err_prefix(err, "%s", path);
    wn_sha256(hash, text, n);
    sodium_bin2hex(id, WN_MODEL_ID_LEN, hash, sizeof(hash));
    free(text);
    return rc;
}

wn_dtype wn_worker_dtype(const struct wn_config *cfg, const struct wn_model *model)
{
    switch ((enum wn_config_dtype)cfg->dtype) {
    case WN_CONFIG_DTYPE_FLOAT32:
        return WN_F32;
    case WN_CONFIG_DTYPE_BFLOAT16:
        return WN_BF16;
    case WN_CONFIG_DTYPE_AUTO:
        break;
    }
    return model->dtype == WN_F32 ? WN_F32 : WN_BF16;
}

wn_status wn_worker_plan(const struct wn_config *cfg, const struct wn_model *model,
                         struct wn_plan *plan, struct wn_err *err)
{
    return wn_plan_make(plan, model, cfg->pipeline_parallel_size, cfg->tensor_parallel_size,
                        cfg->pipeline_layers[0] ? cfg->pipeline_layers : NULL,
                        wn_worker_dtype(cfg, model), err);
}

wn_status wn_worker_netif(const struct wn_config *cfg, struct wn_netif *out, struct wn_err *err)
{
    const char *at = cfg->scheduler_endpoint;
    char host[WN_TEXT_LEN] = "";

    *out = (struct wn_netif){0};
    if (strncmp(at, "tcp://", 6) != 0 || strncmp(at, "tcp://127.", 10) == 0) return WN_OK;
    memcpy(host, at + 6, strcspn(at + 6, ":"));
    return wn_netif_choose(out, cfg->interface, host, err);
}

void wn_worker_threads(const struct wn_config *cfg, uint32_t share)
{
    cpu_set_t set;
    int n = 1;

    if (cfg->threads) {
        n = (int)cfg->threads;
    } else if (getenv("OMP_NUM_THREADS")) {
        return;
    } else if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        n = CPU_COUNT(&set) / (int)(share ? share : 1);
    }
    omp_set_num_threads(n > 0 ? n : 1);
}

static uint32_t env_u32(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? (uint32_t)strtoul(text, NULL, 10) : otherwise;
}

void wn_worker_place(const struct wn_config *cfg, uint32_t rank, uint32_t size)
{
    const uint32_t here = env_u32("OMPI_COMM_WORLD_LOCAL_SIZE", size);
    const char *number = strrchr(cfg->name, '-'); /* "replica-1" */
    const uint32_t replica = number ? (uint32_t)strtoul(number + 1, NULL, 10) : 0;
    const struct wn_placement p = {
        .ranks = cfg->replicas * here,
        .rank = replica * here + env_u32("OMPI_COMM_WORLD_LOCAL_RANK", rank),
        .others = cfg->vision_workers,
    };

    if (getenv("OMP_NUM_THREADS") || getenv("SLURM_STEP_ID") || !wn_placement_apply(&p, cfg->threads))
        wn_worker_threads(cfg, size);
}

void wn_worker_start(const char *role, const char *name)
{
    wn_log_role("%s", name[0] ? name : role);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no orphans: what this process has is replayed elsewhere */
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}
