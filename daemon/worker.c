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
#include "daemon/gpu_choice.h"
#include "daemon/harden.h"
#include "daemon/placement.h"
#include "daemon/slurm.h"
#include "shard/jsonfile.h"
#include "shard/loader.h"
#include "shard/vision.h"

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
    wn_status rc = wn_plan_make(plan, model, cfg->pipeline_parallel_size, cfg->tensor_parallel_size,
                                cfg->pipeline_layers[0] ? cfg->pipeline_layers : NULL,
                                wn_worker_dtype(cfg, model), err);

    if (rc == WN_OK && cfg->quantization == WN_CONFIG_QUANTIZATION_INT8) plan->linear = WN_I8;
    return rc;
}

void wn_worker_identify(char id[WN_MODEL_ID_LEN], const struct wn_weights *weights)
{
    uint8_t hash[WN_SHA256_BYTES];
    struct wn_sha256 s;

    wn_sha256_init(&s);
    wn_sha256_update(&s, id, WN_MODEL_ID_LEN);
    wn_weights_digest(weights, &s);
    wn_sha256_final(&s, hash);
    sodium_bin2hex(id, WN_MODEL_ID_LEN, hash, sizeof(hash));
}

wn_status wn_worker_tensors(const struct wn_config *cfg, const struct wn_plan *plan, struct wn_err *err)
{
    struct wn_weights *weights = NULL;
    wn_status rc = wn_weights_open(&weights, cfg->model, err);

    if (rc == WN_OK) rc = wn_loader_check(weights, plan, err);
    if (rc == WN_OK) rc = wn_vision_check(&plan->model, weights, err);
    wn_weights_close(weights);
    return rc;
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

void wn_worker_use_netif(const struct wn_config *cfg, const struct wn_netif *net)
{
    const char *name = net->name[0] ? net->name : cfg->interface;
    char exactly[WN_NAME_LEN + 1];

    if (net->name[0]) {
        setenv("OMPI_MCA_btl_tcp_if_include", name, 0);
        setenv("OMPI_MCA_oob_tcp_if_include", name, 0);
    }
    snprintf(exactly, sizeof(exactly), "=%s", name); /* without "=", eth1 would be eth10 as well */
    if (name[0]) setenv("NCCL_SOCKET_IFNAME", exactly, 0);
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

uint32_t wn_worker_env(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? (uint32_t)strtoul(text, NULL, 10) : otherwise;
}

/* "replica-1" */
static uint32_t replica_number(const struct wn_config *cfg)
{
    const char *number = strrchr(cfg->name, '-');
    return number ? (uint32_t)strtoul(number + 1, NULL, 10) : 0;
}

/* Ranks of this replica on this host, and which of them this is: as mpirun says, or srun. */
static uint32_t ranks_here(uint32_t size)
{
    return wn_worker_env("OMPI_COMM_WORLD_LOCAL_SIZE", getenv("SLURM_STEP_ID") ? wn_slurm_local_tasks() : size);
}

static uint32_t rank_here(uint32_t rank)
{
    const uint32_t place = getenv("SLURM_STEP_ID") ? wn_worker_env("SLURM_LOCALID", 0) : rank;

    return wn_worker_env("OMPI_COMM_WORLD_LOCAL_RANK", place);
}

void wn_worker_place(const struct wn_config *cfg, uint32_t rank, uint32_t size)
{
    const uint32_t here = ranks_here(size);
    const struct wn_placement p = {
        .ranks = cfg->replicas * here,
        .rank = replica_number(cfg) * here + rank_here(rank),
        .others = cfg->vision_workers,
    };

    if (getenv("OMP_NUM_THREADS") || getenv("SLURM_STEP_ID") || !wn_placement_apply(&p, cfg->threads))
        wn_worker_threads(cfg, size);
}

/* NCCL refuses two ranks of one host on one GPU: let each be a host of its own. */
static void share_gpu(uint32_t rank)
{
    char host[64] = "", id[96];

    (void)!gethostname(host, sizeof(host) - 1);
    snprintf(id, sizeof(id), "%s-rank%u", host, rank);
    setenv("NCCL_HOSTID", id, 0);
}

wn_status wn_worker_device(const struct wn_config *cfg, uint32_t rank, uint32_t size, int *device, struct wn_err *err)
{
    struct wn_gpu_place p = {.replica = replica_number(cfg),
                             .ranks = ranks_here(size),
                             .rank = rank_here(rank),
                             .visible_env = getenv("CUDA_VISIBLE_DEVICES")};
    char mig[WN_GPU_NAME_MAX];
    wn_status rc;

    *device = 0;
    p.asked = strchr(cfg->backend, ':') ? 0 : WN_GPU_UNASKED; /* which one is read below */
    if (strncmp(cfg->backend, "cuda", 4) == 0) {
        if ((rc = wn_gpu_choose_mig(&p, mig, err)) != WN_OK) return rc;
        if (mig[0]) setenv("CUDA_VISIBLE_DEVICES", mig, 1); /* CUDA reads it when it is first called: now */
        p.visible_env = getenv("CUDA_VISIBLE_DEVICES");
    }
    rc = wn_backend_devices(cfg->backend, &p.visible, &p.asked, err);
    if (rc == WN_EUNSUPP && p.visible_env) return wn_err_prefix(err, "CUDA_VISIBLE_DEVICES=%.80s", p.visible_env);
    if (rc != WN_OK || p.visible == 0) return rc;
    if ((rc = wn_gpu_choose(&p, device, err)) != WN_OK) return rc;
    /* NCCL tells GPUs by their PCI address, which instances of one have in common. */
    if (p.ranks > 1 && (p.asked >= 0 || (p.visible_env && strncmp(p.visible_env, "MIG-", 4) == 0))) share_gpu(rank);
    wn_info("worker", "GPU %d of %d visible (CUDA_VISIBLE_DEVICES: %s); rank %u of %u on this host, replica %u",
            *device, p.visible, p.visible_env ? p.visible_env : "not set", p.rank, p.ranks, p.replica);
    return WN_OK;
}

wn_status wn_worker_links(const struct wn_config *cfg, struct wn_err *err)
{
    if (cfg->link == WN_CONFIG_LINK_LOCAL)
        return wn_fail(err, WN_EINVAL, "--link local joins threads; the ranks of a replica are processes: use mpi");
    if (cfg->link == WN_CONFIG_LINK_NCCL && strncmp(cfg->backend, "cuda", 4) != 0)
        return wn_fail(err, WN_EINVAL, "--link nccl joins GPUs, and --backend %s has none", cfg->backend);
    return WN_OK;
}

void wn_worker_start(const char *role, const struct wn_config *cfg, bool read_by_peers)
{
    wn_log_role("%s", cfg->name[0] ? cfg->name : role);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no orphans: what this process has is replayed elsewhere */
    prctl(PR_SET_TIMERSLACK, 1000ul, 0, 0, 0); /* nanoseconds: waits for rows sleep no longer than they say */
    wn_harden(cfg->keys[0] != '\0', read_by_peers);
}

wn_status wn_worker_key(const struct wn_config *cfg, struct wn_key **out, struct wn_err *err)
{
    return cfg->keys[0] ? wn_key_open_role(out, cfg->keys, WN_KEY_WORKER, err) : WN_OK;
}

struct wn_curve_opts wn_worker_curve(const struct wn_key *key, bool to_scheduler)
{
    if (!key) return (struct wn_curve_opts){0};
    return (struct wn_curve_opts){.public_key = key->public_key,
                                  .secret_key = key->secret_key,
                                  .server_key = to_scheduler ? key->server_key : key->public_key};
}

void wn_worker_say(struct wn_endpoint *ep, Wn__Envelope__BodyCase kind, const void *body)
{
    struct wn_msg msg;
    uint8_t *data = NULL;
    size_t bytes = 0;

    wn_msg_init(&msg);
    if (wn_codec_pack_body(&data, &bytes, kind, body, NULL) == WN_OK && wn_msg_add_copy(&msg, data, bytes) == WN_OK)
        (void)!wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL);
    wn_msg_clear(&msg);
    free(data);
}
