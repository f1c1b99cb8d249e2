/* daemon/config_table.c - the option table. Order is the order of --help. */
#include "daemon/config.h"

#define FIELD(m)                          offsetof(struct wn_config, m), sizeof(((struct wn_config *)0)->m)
#define U32(n, s, m, def, lo, hi, h)      {n, s, WN_OPT_U32, FIELD(m), def, lo, hi, NULL, GROUP, "N", h, false}
#define U64(n, s, m, def, lo, hi, h)      {n, s, WN_OPT_U64, FIELD(m), def, lo, hi, NULL, GROUP, "N", h, false}
#define TIME(n, m, unit, def, lo, hi, h)  {n, NULL, WN_OPT_U32, FIELD(m), def, lo, hi, NULL, GROUP, unit, h, false}
#define FLOAT(n, s, m, def, lo, hi, h)    {n, s, WN_OPT_FLOAT, FIELD(m), def, lo, hi, NULL, GROUP, "X", h, false}
#define TEXT(n, s, m, what, def, h)       {n, s, WN_OPT_TEXT, FIELD(m), def, 0, 0, NULL, GROUP, what, h, false}
#define CHOICE(n, s, m, def, ch, h)       {n, s, WN_OPT_CHOICE, FIELD(m), def, 0, 0, ch, GROUP, "WORD", h, false}
#define FLAG(n, s, m, h)                  {n, s, WN_OPT_BOOL, FIELD(m), "false", 0, 0, NULL, GROUP, NULL, h, false}
#define EARLY(n, s, m, h)                 {n, s, WN_OPT_BOOL, FIELD(m), "false", 0, 0, NULL, GROUP, NULL, h, true}

const struct wn_option wn_options[] = {
#define GROUP WN_OPTIONS_MODEL
    TEXT("model", NULL, model, "FOLDER", "", "checkpoint folder (also the first argument)"),
    U32("tensor-parallel-size", "tp", tensor_parallel_size, "1", 1, 64, "tensor ranks of each stage"),
    U32("pipeline-parallel-size", "pp", pipeline_parallel_size, "1", 1, 64, "stages of each replica"),
    TEXT("pipeline-layers", NULL, pipeline_layers, "RANGES", "", "layers of each stage, 0-9,10-39; empty: even"),
    U32("replicas", NULL, replicas, "1", 1, 64, "whole copies of the language model"),
    U32("vision-workers", NULL, vision_workers, "1", 0, 256, "processes that encode images"),
    CHOICE("dtype", NULL, dtype, "auto", "auto|float32|bfloat16",
           "type of weights and activations; auto: the checkpoint's"),
    CHOICE("quantization", NULL, quantization, "none", "none|int8",
           "int8: the language layers' matrices, made so as they load; the rest stays as dtype says"),
    TEXT("backend", NULL, backend, "NAME", "cpu",
         "what computes: cpu, cpu-reference (plain loops), cuda or cuda:N (a GPU)"),
    TEXT("vision-backend", NULL, vision_backend, "NAME", "", "the same for vision workers; empty: as --backend"),
    U32("threads", NULL, threads, "0", 0, 1024, "compute threads of one process; 0: a fair share"),
    U32("max-model-len", NULL, max_model_len, "0", 0, 1 << 20, "tokens of prompt and answer; 0: the model's"),
    U32("max-num-seqs", NULL, max_num_seqs, "16", 1, 4096, "jobs in one step of a replica"),
    U32("max-num-batched-tokens", NULL, max_num_batched_tokens, "1024", 1, 65536, "tokens in one step"),
    U32("kv-pages", NULL, kv_pages, "0", 0, 1 << 24, "pages of the KV pool; 0: enough for max-num-seqs, or what fits"),
    FLOAT("memory-utilization", NULL, memory_utilization, "0.9", 0.01, 1,
          "share of a device's free memory (the machine's, on CPUs) that a replica may take"),
    U32("block-size", NULL, block_size, "16", 1, 1024, "tokens of one KV page"),
    FLAG("no-enable-prefix-caching", NULL, no_enable_prefix_caching,
         "compute each prompt by itself, also where prompts begin alike; no answer changes"),
#undef GROUP
#define GROUP WN_OPTIONS_PRUNING
    TEXT("image-pruning-method", "method", image_pruning_method, "NAME", "none",
         "how visual tokens are chosen: none, random, uniform, cls-topk, prumerge, ..."),
    U32("image-keep-tokens", "keep", image_keep_tokens, "0", 0, 65536,
        "visual tokens kept of an image; 0: as --rate says, else the method's own count, else 64"),
    FLOAT("image-pruning-rate", "rate", image_pruning_rate, "0", 0, 1,
          "share of visual tokens removed; at least one is left"),
    U32("image-pruning-cap", "cap", image_pruning_cap, "0", 0, 65536,
        "most tokens that a method with a count of its own may keep; 0: no limit"),
    CHOICE("image-pruning-position", "position", image_pruning_position, "compact", "compact|original",
           "positions of kept tokens: numbered on, or as if nothing were pruned"),
    FLAG("image-pruning-projected", "projected", image_pruning_projected,
         "project visual tokens before they cross the network"),
    TEXT("image-pruning-setting", "setting", image_pruning_setting, "NAME", "",
         "faithful (as the public code; the default) or paper, for methods that have both"),
    U64("image-pruning-seed", "pruning-seed", image_pruning_seed, "0", 0, 1ull << 53,
        "seed of methods that draw"),
    TEXT("image-pruning-options", "pruning-options", image_pruning_options, "NAME=N,...", "",
         "numbers of single methods: neighbours, contextual, important, anchors, object-layer"),
    U32("image-tokens-max", NULL, image_tokens_max, "0", 0, 65536,
        "most visual tokens of an image that a request may keep; 0: no limit"),
    U64("image-bytes-max", NULL, image_bytes_max, "32M", 1, 1 << 30, "largest image file"),
    U64("image-pixels-max", NULL, image_pixels_max, "64M", 1, 1 << 30, "largest decoded image, in pixels"),
    U32("vision-queue", NULL, vision_queue, "4", 1, 1024, "images that a vision worker takes at a time"),
    U64("vision-cache-bytes", NULL, vision_cache_bytes, "256M", 0, 1ull << 40,
        "a vision worker's memory (a GPU's, with cuda) for pictures that come again; 0: none"),
#undef GROUP
#define GROUP WN_OPTIONS_SERVER
    TEXT("host", NULL, host, "ADDRESS", "127.0.0.1", "address that clients reach"),
    U32("port", NULL, port, "5599", 0, 65535, "TCP port; 0: any free one"),
    U32("max-queue", NULL, max_queue, "1024", 1, 1 << 20, "jobs held at a time; more are told to come back later"),
    U32("max-jobs-per-client", NULL, max_jobs_per_client, "0", 0, 1 << 20,
        "jobs of one client held at a time; 0: as max-queue-share says"),
    FLOAT("max-queue-share", NULL, max_queue_share, "0.75", 0.001, 1, "share of max-queue that one client may fill"),
    FLOAT("max-job-rate", NULL, max_job_rate, "0", 0, 1e6, "jobs/s from one client; 0: no limit"),
    U64("max-request-bytes", NULL, max_request_bytes, "256M", 1, 256 << 20, "most bytes of a job's images together"),
    U32("max-attempts", NULL, max_attempts, "3", 1, 100, "tries at one job"),
    U32("max-results", NULL, max_results, "1024", 0, 1 << 20, "finished jobs kept for attach"),
    TIME("result-ttl", result_ttl_s, "S", "600", 0, 86400 * 30, "how long a finished job is kept, in seconds"),
    TEXT("journal", NULL, journal, "FOLDER", "", "folder where jobs survive a restart; empty: in memory only"),
    TIME("no-worker-timeout", no_worker_timeout_ms, "MS", "600000", 0, 86400000,
         "how long a job waits for a worker to connect; 0, or with a journal: for ever"),
    U32("expect-replicas", NULL, expect_replicas, "1", 0, 64, "ready when so many replicas are there"),
    U32("expect-vision-workers", NULL, expect_vision_workers, "1", 0, 256, "ready when so many workers are there"),
    TIME("lease-ms", lease_ms, "MS", "3000", 50, 600000, "silence after which a worker counts as lost"),
    TIME("heartbeat-ms", heartbeat_ms, "MS", "500", 10, 60000, "time between signs of life"),
    TIME("encode-timeout", encode_timeout_ms, "MS", "60000", 0, 86400000,
         "how long a vision worker may get on with nothing before another is asked for its images; 0: for ever"),
    TIME("stall-timeout", stall_timeout_ms, "MS", "60000", 0, 86400000,
         "how long a rank may do nothing in the middle of its work before its replica is started again; 0: for ever"),
    TIME("reconnect-grace", reconnect_grace_ms, "MS", "30000", 0, 86400000,
         "how long a replica goes on with its jobs while the scheduler is away"),
    TIME("shutdown-timeout", shutdown_timeout_s, "S", "30", 0, 86400,
         "how long running jobs may go on after SIGTERM, in seconds"),
#undef GROUP
#define GROUP WN_OPTIONS_CLUSTER
    CHOICE("launcher", NULL, launcher, "auto", "auto|local|slurm",
           "how processes start; auto: slurm in a job of several nodes"),
    TEXT("layout", NULL, layout, "FILE", "auto", "which node runs what: auto, or a file"),
    TEXT("interface", NULL, interface, "NAME", "",
         "network interface between hosts, eth0; empty: the one towards the scheduler"),
    CHOICE("link", NULL, link, "auto", "auto|local|mpi|nccl",
           "between ranks; auto: nccl for GPUs where the library is, else mpi; local: threads, for bench link only"),
    CHOICE("allreduce", NULL, allreduce, "ordered", "ordered|fast",
           "sums between GPUs; ordered: the same bits for every tensor-parallel-size; fast: NCCL's own order"),
    TEXT("srun-mpi", NULL, srun_mpi, "NAME", "pmix",
         "how srun starts ranks, as Open MPI was built for it: pmix or pmi2"),
    TEXT("srun-args", NULL, srun_args, "FLAGS", "", "more flags of every srun, as for a container"),
    TEXT("step-program", NULL, step_program, "PATH", "", "winnowd as job steps see it; empty: this program"),
#undef GROUP
#define GROUP WN_OPTIONS_KEYS
    TEXT("keys", NULL, keys, "FOLDER", "", "folder of `winnow keygen`: only its keys get in; empty: plain text"),
    FLAG("insecure", NULL, insecure, "plain text even where other machines can reach it"),
#undef GROUP
#define GROUP WN_OPTIONS_ROLES
    TEXT("name", NULL, name, "NAME", "", "name of this process, replica-0"),
    TEXT("run-dir", NULL, run_dir, "FOLDER", "", "folder of sockets; empty: one is made"),
    TEXT("scheduler-endpoint", NULL, scheduler_endpoint, "ADDRESS", "", "where workers reach the scheduler"),
    TEXT("features-endpoint", NULL, features_endpoint, "ADDRESS", "", "where a leader receives visual tokens"),
#undef GROUP
#define GROUP WN_OPTIONS_PLAN
    U32("prompt-tokens", NULL, prompt_tokens, "64", 1, 1 << 20, "text tokens of the prompt"),
    U32("images", NULL, images, "1", 0, 16, "images of the prompt"),
    U64("memory", NULL, memory, "0", 0, 1ull << 50, "free memory of each device, 80G; 0: not known"),
#undef GROUP
#define GROUP WN_OPTIONS_PRUNE
    TEXT("image", NULL, image, "FILE", "", "the picture"),
    TEXT("output", "o", output, "FILE", "", "the PNG file to write"),
    FLAG("all", NULL, all, "every method, on one sheet"),
#undef GROUP
#define GROUP WN_OPTIONS_BENCH_LINK
    U64("bytes-max", NULL, bytes_max, "20M", 4, 1 << 30, "the largest message"),
#undef GROUP
#define GROUP WN_OPTIONS_OUTPUT
    FLAG("json", NULL, json, "print JSON"),
#undef GROUP
#define GROUP WN_OPTIONS_GENERAL
    CHOICE("log-level", NULL, log_level, "warn", "error|warn|info|debug|trace", "how much goes to standard error"),
    {"config", "c", WN_OPT_TEXT, FIELD(config), "", 0, 0, NULL, GROUP, "FILE", "YAML; keys are the long names", true},
    EARLY("print-config", NULL, print_config, "print what is in force and from where, and exit"),
    EARLY("check-config", NULL, check_config, "check the options and exit"),
    EARLY("version", NULL, version, "print version, commit and libraries, and exit"),
    EARLY("help", "h", help, "print this and exit"),
#undef GROUP
};

const size_t wn_options_n = sizeof(wn_options) / sizeof(wn_options[0]);
_Static_assert(sizeof(wn_options) / sizeof(wn_options[0]) <= WN_CONFIG_OPTIONS_MAX, "wn_config.source is too short");
