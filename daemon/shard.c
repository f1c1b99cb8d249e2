/* daemon/shard.c - the role `winnowd shard`: one rank of a replica, under mpirun or alone.
 *
 * Opens link, checkpoint, plan and stage, then leads (rank 0: front thread and engine) or follows. A lost rank
 * ends the whole group with exit code 3, so that the supervisor starts it again; a clean STOP ends every rank
 * with 0. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/engine.h"
#include "daemon/fit.h"
#include "daemon/launcher.h"
#include "daemon/pulse.h"
#include "daemon/roles.h"
#include "daemon/run_dir.h"
#include "daemon/slurm.h"
#include "daemon/worker.h"
#include "shard/jsonfile.h"
#include "transport/coll.h"
#include "transport/link.h"
#include "winnow_version.h"

#define STEP_TIMEOUT_US    300000000ll /* the longest step: a prefill chunk of a large model on slow cores */
#define STOP_FLUSH_MS      1000
#define COMMON_US          300000 /* for rank 0 to say what is wrong on every rank, and to end the others */
#define TAG_ADDRESS        8   /* of the leader's features endpoint, on its way to the other ranks; see replica.c */
#define FEATURES_UNCLAIMED 64  /* images of the largest kind that wait for their jobs at a leader */
#define DEFAULT_NEW_MAX    512 /* answer length when the job names none */

struct shard {
    struct wn_config cfg;
    struct wn_model model;
    char model_id[WN_MODEL_ID_LEN];
    struct wn_plan plan;
    struct wn_link *link;
    struct wn_backend *be;
    struct wn_weights *weights;
    struct wn_tokenizer *tokenizer;
    struct wn_replica *replica;
    struct wn_front *front;
    struct wn_pulse *pulse; /* of every rank but the leader */
    struct wn_key *key;     /* NULL: plain text */
    struct wn_engine *engine;
    struct wn_step_limits limits;
    struct wn_run_dir run; /* under srun: the place of its shared memory */
    struct wn_netif net; /* towards the other hosts; name "": there are none */
    uint32_t tokens_max;
    bool refused; /* by all ranks alike, with the link in order */
    int rank, size;
    struct identity *ids; /* [size] leader: who the ranks are */
    Wn__RankInfo *infos, **info_list;
};

/* Where a rank runs, and with which checkpoint, as it travels to the leader at the start. */
struct identity {
    char host[64];
    uint32_t pid, reserved;
    uint64_t load_bytes, load_us;
    char model_id[WN_MODEL_ID_LEN];
};

static volatile sig_atomic_t drain_asked;

static void on_signal(int sig)
{
    (void)sig;
    drain_asked = 1;
}

/* SIGTERM reaches every rank, because mpirun passes it on; only the leader acts, the others wait for its STOP. */
static void set_signals(bool leader)
{
    struct sigaction sa = {.sa_handler = leader ? on_signal : SIG_IGN};
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGUSR1, &sa, NULL);
    sa.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &sa, NULL);
}

/* Each launcher of ours gives mpirun a place for the shared memory of ranks; srun takes none along to its nodes. The
 * next rank here removes what this one leaves if it is killed. */
static void open_memory(struct shard *s)
{
    static const char variable[] = "OMPI_MCA_btl_vader_backing_directory";
    char path[WN_RUN_PATH];

    if (getenv(variable)) return;
    wn_run_dir_open_memory(&s->run, "/dev/shm", wn_launcher_memory(1), s->cfg.name[0] ? s->cfg.name : "replica-0",
                           path);
    if (path[0]) setenv(variable, path, 1);
}

static wn_status open_link(struct shard *s, struct wn_err *err)
{
    const uint32_t ranks = s->cfg.pipeline_parallel_size * s->cfg.tensor_parallel_size;
    const struct wn_group group = {0};
    wn_status rc;

    s->size = (int)ranks;
    if (ranks == 1) return WN_OK;
    if ((rc = wn_worker_links(&s->cfg, err)) != WN_OK) return rc;
    open_memory(s);
    if ((rc = wn_link_open(&s->link, "mpi", &group, err)) != WN_OK) return rc;
    s->rank = wn_link_rank(s->link);
    if (wn_link_size(s->link) != (int)ranks)
        return wn_fail(err, WN_EINVAL,
                       "%d processes were started, and %u stages x %u tensor ranks need %u",
                       wn_link_size(s->link), s->cfg.pipeline_parallel_size,
                       s->cfg.tensor_parallel_size, ranks);
    return WN_OK;
}

static wn_status link_failed(const struct shard *s, const char *what, struct wn_err *err)
{
    return wn_fail(err, wn_link_error(s->link)->code, "%s: %s", what, wn_link_error(s->link)->text);
}

/* Before any rank loads: all agree that all fit, and on the number of KV pages. */
static wn_status agree_memory(struct shard *s, struct wn_err *err)
{
    const struct wn_fit fit = {.cfg = &s->cfg,
                               .plan = &s->plan,
                               .be = s->be,
                               .link = s->link,
                               .rank = (uint32_t)s->rank,
                               .tokens_max = s->tokens_max,
                               .deadline_us = wn_deadline_in_us(STEP_TIMEOUT_US)};

    return wn_fit_agree(&s->limits, &fit, &s->refused, err);
}

/* GPUs speak to each other through NCCL, or by way of host memory and MPI. */
static wn_status attach_gpus(struct shard *s, int device, struct wn_err *err)
{
    const bool gpu = s->be->ops->device_memory, fast = s->cfg.allreduce == WN_CONFIG_ALLREDUCE_FAST;
    wn_status rc;

    if (!s->link || !gpu || s->cfg.link == WN_CONFIG_LINK_MPI) return WN_OK;
    rc = wn_stage_attach(s->link, s->be, &s->plan, (uint32_t)s->rank, device, fast,
                         wn_deadline_in_us(STEP_TIMEOUT_US), err);
    if (rc != WN_EUNSUPP || s->cfg.link == WN_CONFIG_LINK_NCCL) return rc;
    wn_warn("shard", "%s; messages between GPUs go by way of host memory and MPI", err->text);
    return WN_OK;
}

static wn_status open_replica(struct shard *s, struct wn_err *err)
{
    struct wn_replica_opts ro;
    int device = 0;
    wn_status rc;

    if ((rc = wn_worker_model(&s->cfg, &s->model, s->model_id, err)) != WN_OK) return rc;
    if ((rc = wn_worker_plan(&s->cfg, &s->model, &s->plan, err)) != WN_OK) return rc;
    if ((rc = wn_weights_open(&s->weights, s->cfg.model, err)) != WN_OK) return rc;
    wn_worker_identify(s->model_id, s->weights);
    if ((rc = wn_worker_device(&s->cfg, (uint32_t)s->rank, (uint32_t)s->size, &device, err)) != WN_OK) return rc;
    if ((rc = wn_backend_open(&s->be, s->cfg.backend, device, err)) != WN_OK) return rc;
    if ((rc = attach_gpus(s, device, err)) != WN_OK) return rc; /* before memory is counted: NCCL takes some */
    if ((rc = wn_fit_step(&s->limits, &s->tokens_max, &s->cfg, &s->model, err)) != WN_OK) return rc;
    if ((rc = agree_memory(s, err)) != WN_OK) return rc;
    ro = (struct wn_replica_opts){
        .be = s->be,
        .link = s->link,
        .plan = &s->plan,
        .weights = s->weights,
        .limits = s->limits,
        .tokens_max = s->tokens_max,
        .step_timeout_us = STEP_TIMEOUT_US,
    };
    rc = wn_replica_open(&s->replica, &ro, err);
    wn_weights_close(s->weights); /* loaded: the mapping is not needed any more */
    s->weights = NULL;
    return rc;
}

/* A leader that is started again has another address, so that workers do not count its predecessor's credit. */
static void features_address(const struct shard *s, char out[WN_ADDRESS_MAX])
{
    if (s->cfg.features_endpoint[0])
        snprintf(out, WN_ADDRESS_MAX, "%s", s->cfg.features_endpoint);
    else if (s->net.name[0])
        snprintf(out, WN_ADDRESS_MAX, "tcp://%s:0", s->net.address);
    else
        snprintf(out, WN_ADDRESS_MAX, "ipc://%s/%s-%d.sock", s->cfg.run_dir,
                 s->cfg.name[0] ? s->cfg.name : "replica", (int)getpid());
}

/* Nodes may have copies of their own, and files may be replaced while ranks load. */
static wn_status same_model(const struct shard *s, struct wn_err *err)
{
    for (int i = 1; i < s->size; i++)
        if (memcmp(s->ids[i].model_id, s->model_id, WN_MODEL_ID_LEN) != 0)
            return wn_fail(err, WN_EINVAL, "%s: rank %d on %s has other files there than rank 0 on %s", s->cfg.model, i,
                           s->ids[i].host, s->ids[0].host);
    return WN_OK;
}

/* Every rank tells the leader where it is, for `winnow status`, and that it has the same checkpoint. */
static wn_status exchange_identities(struct shard *s, struct wn_err *err)
{
    const struct wn_load_rate load = wn_replica_load_rate(s->replica);
    struct identity mine = {.pid = (uint32_t)getpid(), .load_bytes = load.bytes, .load_us = load.us};
    int *ranks = calloc((size_t)s->size, sizeof(*ranks));
    size_t *bytes = calloc((size_t)s->size, sizeof(*bytes));
    wn_status rc = WN_OK;

    memcpy(mine.model_id, s->model_id, sizeof(mine.model_id));
    if (gethostname(mine.host, sizeof(mine.host) - 1) != 0) snprintf(mine.host, sizeof(mine.host), "?");
    s->ids = calloc((size_t)s->size, sizeof(*s->ids));
    s->infos = calloc((size_t)s->size, sizeof(*s->infos));
    s->info_list = calloc((size_t)s->size, sizeof(*s->info_list));
    if (!ranks || !bytes || !s->ids || !s->infos || !s->info_list) {
        rc = wn_fail(err, WN_ENOMEM, "%d ranks", s->size);
        goto out;
    }
    for (int i = 0; i < s->size; i++) {
        ranks[i] = i;
        bytes[i] = sizeof(mine);
    }
    s->ids[0] = mine;
    if (s->link) {
        const struct wn_comm all = {.ranks = ranks, .n = s->size, .me = s->rank};
        rc = wn_coll_gather(s->link, &all, 0, WN_TRAFFIC_CONTROL, &mine, s->rank == 0 ? s->ids : NULL, bytes,
                            wn_deadline_in_us(STEP_TIMEOUT_US));
        if (rc != WN_OK) rc = link_failed(s, "places of the ranks", err);
    }
    for (int i = 0; i < s->size; i++) {
        s->ids[i].host[sizeof(mine.host) - 1] = '\0';
        s->infos[i] = (Wn__RankInfo)WN__RANK_INFO__INIT;
        s->infos[i].rank = (uint32_t)i;
        s->infos[i].host = s->ids[i].host;
        s->infos[i].pid = s->ids[i].pid;
        s->infos[i].load_bytes = s->ids[i].load_bytes;
        s->infos[i].load_us = s->ids[i].load_us;
        s->info_list[i] = &s->infos[i];
    }
    if (rc == WN_OK && s->rank == 0) rc = same_model(s, err);
out:
    free(ranks);
    free(bytes);
    return rc;
}

/* The leader says where signs of life go; the others begin to send them. */
static wn_status start_pulses(struct shard *s, struct wn_err *err)
{
    char address[WN_ADDRESS_MAX] = "";
    struct wn_route route = {.tag = TAG_ADDRESS, .kind = WN_TRAFFIC_CONTROL};
    const int64_t deadline_us = wn_deadline_in_us(STEP_TIMEOUT_US);
    const struct wn_pulse_opts po = {.leader = address,
                                     .link = s->link,
                                     .rank = (uint32_t)s->rank,
                                     .beat_ms = s->cfg.heartbeat_ms,
                                     .lease_ms = s->cfg.lease_ms,
                                     .stall_ms = s->cfg.stall_timeout_ms,
                                     .key = s->key,
                                     .insecure = s->cfg.insecure};

    if (s->rank == 0) {
        snprintf(address, sizeof(address), "%s", wn_front_features_address(s->front));
        for (route.peer = 1; route.peer < s->size; route.peer++)
            if (wn_link_send_now(s->link, route, address, sizeof(address), deadline_us) != WN_OK)
                return link_failed(s, "address of the leader", err);
        return WN_OK;
    }
    if (wn_link_recv_now(s->link, route, address, sizeof(address), deadline_us) != WN_OK)
        return link_failed(s, "address of the leader", err);
    address[sizeof(address) - 1] = '\0';
    return wn_pulse_start(&s->pulse, &po, err);
}

static wn_status lead(struct shard *s, struct wn_err *err)
{
    char path[WN_PATH_MAX], bind[WN_ADDRESS_MAX], scheduler[WN_ADDRESS_MAX];
    struct wn_front_opts fo = {
        .role = WN__ROLE__ROLE_LEADER,
        .name = s->cfg.name[0] ? s->cfg.name : "replica-0",
        .model_id = s->model_id,
        .build = WN_BUILD,
        .scheduler = scheduler,
        .features_bind = bind,
        .slots = s->limits.seqs_max,
        .stages_n = s->plan.stages,
        .tokens_max = s->tokens_max,
        .grace_ms = s->cfg.reconnect_grace_ms,
        .link = s->link,
        .lease_ms = s->cfg.lease_ms,
        .stall_ms = s->cfg.stall_timeout_ms,
        .payload_max = (size_t)(s->model.vision.patches + 1) * s->model.text.hidden * 4 + 4096};
    struct wn_engine_opts eo;
    wn_status rc;

    if ((rc = wn_path_join(path, s->cfg.model, "tokenizer.json", err)) != WN_OK) return rc;
    if ((rc = wn_tokenizer_open(&s->tokenizer, path, err)) != WN_OK) return rc;
    wn_role_scheduler_address(&s->cfg, scheduler, sizeof(scheduler));
    fo.unclaimed_max = FEATURES_UNCLAIMED * fo.payload_max;
    features_address(s, bind);
    fo.ranks = s->info_list;
    fo.ranks_n = (size_t)s->size;
    fo.key = s->key;
    fo.insecure = s->cfg.insecure;
    if ((rc = wn_front_start(&s->front, &fo, err)) != WN_OK) return rc;
    if ((rc = start_pulses(s, err)) != WN_OK) return rc;
    eo = (struct wn_engine_opts){
        .replica = s->replica,
        .front = s->front,
        .plan = &s->plan,
        .step = s->limits,
        .chunk_min = s->be->ops->rows_min,
        .gen = {.model = &s->model,
                .tokenizer = s->tokenizer,
                .model_id = s->model_id,
                .page_tokens = s->limits.page_tokens,
                .tokens_max = s->tokens_max,
                .max_new = DEFAULT_NEW_MAX,
                .no_prefix_caching = s->cfg.no_enable_prefix_caching,
                .images_max = WN_IMAGES_MAX < s->limits.features_max ? WN_IMAGES_MAX
                                                                     : s->limits.features_max},
        .drain = &drain_asked,
    };
    if ((rc = wn_engine_open(&s->engine, &eo, err)) != WN_OK) return rc;
    wn_info("shard", "leads %u x %u ranks in %s with %s layers, %u KV pages of %u tokens", s->plan.stages,
            s->plan.tensors, wn_dtype_name(s->plan.dtype), wn_dtype_name(s->plan.linear), s->limits.pages_max,
            s->limits.page_tokens);
    return wn_engine_run(s->engine, err);
}

static wn_status follow(struct shard *s, struct wn_err *err)
{
    bool stop = false;
    wn_status rc = start_pulses(s, err);
    while (rc == WN_OK && !stop) rc = wn_replica_follow(s->replica, &stop, err);
    return rc;
}

int wn_role_shard(int argc, char **argv)
{
    struct shard s = {0};
    struct wn_err err = {0};
    int code = wn_config_start(&s.cfg, argc, argv, "winnowd shard MODEL [OPTION]...\nOne rank of a replica.",
                               WN_OPTIONS_SERVICE);
    wn_status rc;

    if (code >= 0) return code;
    if (!wn_role_has_model(&s.cfg) || !wn_role_has_place(&s.cfg)) return 2;
    rc = wn_worker_netif(&s.cfg, &s.net, &err);
    wn_worker_use_netif(&s.cfg, &s.net);
    if (rc == WN_OK) rc = open_link(&s, &err);
    set_signals(s.rank == 0);
    wn_worker_start("shard", &s.cfg, s.size > 1);
    if (s.size > 1) wn_log_role("%s/%d", s.cfg.name[0] ? s.cfg.name : "shard", s.rank);
    if (s.net.name[0])
        wn_info("shard", "interface %s (%s): features; Open MPI's TCP %s, NCCL's sockets %s", s.net.name, s.net.address,
                getenv("OMPI_MCA_btl_tcp_if_include"), getenv("NCCL_SOCKET_IFNAME"));
    if (s.net.name[0])
        wn_worker_threads(&s.cfg, wn_slurm_ranks_here(&s.cfg));
    else
        wn_worker_place(&s.cfg, (uint32_t)s.rank, (uint32_t)s.size);
    if (rc == WN_OK) rc = wn_worker_key(&s.cfg, &s.key, &err);
    if (rc == WN_OK) rc = open_replica(&s, &err);
    if (rc == WN_OK) rc = exchange_identities(&s, &err);
    if (rc == WN_OK) rc = s.rank == 0 ? lead(&s, &err) : follow(&s, &err);
    if (rc != WN_OK) {
        if (s.rank > 0 && !s.replica && !s.refused) usleep(COMMON_US);
        if (s.rank == 0 || !s.refused) wn_error("shard", "%s", err.text);
        wn_front_leave(s.front, &err);
        wn_front_stop(s.front, STOP_FLUSH_MS);
        wn_key_close(s.key);
        if (s.refused) {
            wn_link_close(s.link);
            wn_run_dir_close(&s.run);
            return 1;
        }
        wn_run_dir_close(&s.run);
        if (s.link) wn_link_mpi_abort(WN_EXIT_LOST);
        return s.replica ? WN_EXIT_LOST : 1;
    }
    wn_engine_close(s.engine);
    wn_pulse_stop(s.pulse);
    wn_front_stop(s.front, STOP_FLUSH_MS);
    wn_key_close(s.key);
    wn_tokenizer_close(s.tokenizer);
    wn_replica_close(s.replica); /* its last rows may still be on their way: before the link */
    wn_link_close(s.link);
    wn_run_dir_close(&s.run);
    wn_backend_close(s.be);
    free(s.info_list);
    free(s.infos);
    free(s.ids);
    return 0;
}
