/* daemon/config.h - every option of winnowd in one table, and the struct that it fills.
 *
 * Order: default < YAML file (--config) < environment (WINNOW_*) < flag. A key or flag that is not in the table is an
 * error: the file's with its line, the flag's with the nearest name.
 * Owns:    nothing: a configuration is plain data and may be copied; free what wn_config_flags returns.
 * Threads: any; parse before threads start (it reads the environment).
 * Fails:   WN_EINVAL (unknown or malformed option), WN_ELIMIT (out of range), WN_EIO (the file), WN_EFORMAT (its
 *          YAML). */
#ifndef WN_DAEMON_CONFIG_H
#define WN_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

#define WN_CONFIG_OPTIONS_MAX 96
#define WN_CONFIG_FILE_MAX    ((size_t)256 << 10)
#define WN_PATH_LEN           1024
#define WN_TEXT_LEN           256
#define WN_NAME_LEN           64

enum wn_config_dtype { WN_CONFIG_DTYPE_AUTO, WN_CONFIG_DTYPE_FLOAT32, WN_CONFIG_DTYPE_BFLOAT16 };
enum wn_config_quantization { WN_CONFIG_QUANTIZATION_NONE, WN_CONFIG_QUANTIZATION_INT8 };

enum wn_config_launcher { WN_CONFIG_LAUNCHER_AUTO, WN_CONFIG_LAUNCHER_LOCAL, WN_CONFIG_LAUNCHER_SLURM };
enum wn_config_link { WN_CONFIG_LINK_AUTO, WN_CONFIG_LINK_LOCAL, WN_CONFIG_LINK_MPI, WN_CONFIG_LINK_NCCL };
enum wn_config_allreduce { WN_CONFIG_ALLREDUCE_ORDERED, WN_CONFIG_ALLREDUCE_FAST };
enum wn_config_position { WN_CONFIG_POSITION_COMPACT, WN_CONFIG_POSITION_ORIGINAL };

typedef enum wn_config_source { WN_FROM_DEFAULT, WN_FROM_FILE, WN_FROM_ENV, WN_FROM_FLAG } wn_config_source;

struct wn_config {
    /* model and layout */
    char model[WN_PATH_LEN]; /* also the first positional argument */
    char name[WN_NAME_LEN];  /* of this process, "replica-0"; "": role and host choose */
    uint32_t tensor_parallel_size, pipeline_parallel_size;
    char pipeline_layers[WN_TEXT_LEN]; /* "0-9,10-39"; "": even */
    uint32_t replicas, vision_workers;
    uint32_t dtype;        /* enum wn_config_dtype */
    uint32_t quantization; /* enum wn_config_quantization */
    char backend[WN_NAME_LEN], vision_backend[WN_NAME_LEN]; /* vision_backend "": as backend */
    uint32_t threads; /* per process; 0: the machine's share */
    uint32_t max_model_len, max_num_seqs, max_num_batched_tokens; /* max_model_len 0: the model's */
    uint32_t kv_pages, block_size;                                /* kv_pages 0: enough for max_num_seqs */
    bool no_enable_prefix_caching;
    float memory_utilization; /* share of the free memory that weights and KV pages may take */
    /* images and pruning */
    char image_pruning_method[WN_NAME_LEN];
    uint32_t image_keep_tokens;
    float image_pruning_rate;
    uint32_t image_pruning_cap;
    uint32_t image_pruning_position; /* enum wn_config_position */
    bool image_pruning_projected;
    char image_pruning_setting[WN_NAME_LEN], image_pruning_options[WN_TEXT_LEN];
    uint64_t image_pruning_seed;
    uint32_t image_tokens_max; /* a request may not keep more; 0: no limit */
    uint64_t image_bytes_max, image_pixels_max;
    uint32_t vision_queue; /* images that a vision worker takes at a time */
    uint64_t vision_cache_bytes;
    /* server */
    char host[WN_TEXT_LEN];
    uint32_t port;
    uint32_t max_queue;
    uint32_t max_jobs_per_client; /* 0: as max_queue_share says */
    float max_queue_share, max_job_rate; /* of one client */
    uint64_t max_request_bytes;
    uint32_t max_attempts;
    uint32_t max_results, result_ttl_s; /* finished jobs that are kept for attach */
    uint32_t no_worker_timeout_ms;      /* a job that finds no worker fails after this; 0: waits for ever */
    uint32_t expect_replicas, expect_vision_workers; /* ready when so many are there */
    char journal[WN_PATH_LEN];          /* folder; "": jobs live in memory only */
    uint32_t lease_ms, heartbeat_ms;
    uint32_t shutdown_timeout_s, reconnect_grace_ms, encode_timeout_ms, stall_timeout_ms;
    /* keys */
    char keys[WN_PATH_LEN]; /* folder of `winnow keygen`; "": plain text */
    bool insecure;          /* addresses that other machines reach may be used without keys */
    /* roles (set by `winnow serve` for the processes that it starts) */
    char run_dir[WN_PATH_LEN];              /* sockets and pid files; "": made under $XDG_RUNTIME_DIR or /tmp */
    char scheduler_endpoint[WN_TEXT_LEN];   /* where workers reach the scheduler; "": ipc://RUN_DIR/scheduler.sock */
    char features_endpoint[WN_TEXT_LEN];    /* where a leader receives features; "": ipc://RUN_DIR/NAME.sock */
    uint32_t link, allreduce;               /* enum wn_config_link, enum wn_config_allreduce */
    /* cluster */
    uint32_t launcher;                      /* enum wn_config_launcher */
    char layout[WN_PATH_LEN];               /* "auto", or a file: see layout.h */
    char interface[WN_NAME_LEN];            /* between hosts; "": the one towards the scheduler */
    char srun_mpi[WN_NAME_LEN], srun_args[WN_PATH_LEN];
    char step_program[WN_PATH_LEN];         /* winnowd, where steps see it; "": this program */
    /* tools */
    uint32_t prompt_tokens, images; /* winnow plan */
    uint64_t memory;                /* of a device, free; 0: not known */
    char image[WN_PATH_LEN], output[WN_PATH_LEN]; /* winnow prune */
    uint64_t bytes_max; /* winnow bench link */
    bool all;
    bool json;
    /* general */
    uint32_t log_level; /* wn_log_level */
    char config[WN_PATH_LEN];
    bool help, version, print_config, check_config;

    uint8_t source[WN_CONFIG_OPTIONS_MAX]; /* wn_config_source of each option */
};

typedef enum wn_opt_type { WN_OPT_BOOL, WN_OPT_U32, WN_OPT_U64, WN_OPT_FLOAT, WN_OPT_TEXT, WN_OPT_CHOICE } wn_opt_type;

/* Heads of --help, in its order. Every command takes every option, so that one file and one environment serve them
 * all; its --help shows the groups that concern it. */
enum wn_option_group {
    WN_OPTIONS_MODEL = 1,
    WN_OPTIONS_PRUNING = 2,
    WN_OPTIONS_SERVER = 4,
    WN_OPTIONS_CLUSTER = 8,
    WN_OPTIONS_KEYS = 16,
    WN_OPTIONS_ROLES = 32,
    WN_OPTIONS_PLAN = 64,
    WN_OPTIONS_PRUNE = 128,
    WN_OPTIONS_BENCH_LINK = 256,
    WN_OPTIONS_OUTPUT = 512,
    WN_OPTIONS_GENERAL = 1024, /* shown by all */
};
#define WN_OPTIONS_SERVICE 63u /* all that make a service: MODEL to ROLES */

struct wn_option {
    const char *name;       /* long name and YAML key */
    const char *short_name; /* without its dash; NULL: none */
    wn_opt_type type;
    size_t offset, size;    /* in struct wn_config */
    const char *def;        /* parsed like any other value */
    double min, max;        /* of numbers */
    const char *choices;    /* "auto|float32|bfloat16" */
    enum wn_option_group group;
    const char *value, *help; /* value: what to call it in --help, "FILE"; NULL: it has none */
    bool early;             /* not settable in the file or the environment: --help, --config, ... */
};

extern const struct wn_option wn_options[];
extern const size_t wn_options_n;

void wn_config_defaults(struct wn_config *c);

/* Sets one option from text. `where` stands before the error: "--port", "winnow.yaml:3: port". */
WN_NODISCARD wn_status wn_config_set(struct wn_config *c, const struct wn_option *o, const char *value,
                                     wn_config_source from, const char *where, struct wn_err *err);

/* NULL if there is none. */
const struct wn_option *wn_config_find(const char *name);

/* Reads YAML text; `file` names it in errors. */
WN_NODISCARD wn_status wn_config_read_yaml(struct wn_config *c, const char *file, const void *text, size_t bytes,
                                           struct wn_err *err);

/* Defaults, file, environment, flags, and the checks between options. argv[0] is skipped. After --help or --version
 * nothing else is checked. */
WN_NODISCARD wn_status wn_config_parse(struct wn_config *c, int argc, char **argv, struct wn_err *err);

/* Prompts, pictures and answers do not leave the machine in plain text unless somebody said so: WN_EINVAL names the
 * address that needs keys. Parsing checks it; who changes addresses later checks again. */
WN_NODISCARD wn_status wn_config_check_reach(const struct wn_config *c, struct wn_err *err);

/* The next variable "WINNOW_...=..." of the environment that is no option of anybody, from place *at (first 0) on;
 * NULL: there is none. */
const char *wn_config_unknown_env(size_t *at);

/* For a role's main: parses, sets the log level, and answers --help (as wn_config_help), --version, --print-config and
 * --check-config. -1: go on; else the process's exit code. */
int wn_config_start(struct wn_config *c, int argc, char **argv, const char *usage, unsigned groups);

/* The options that do not have their default, as "--name=value" flags: for a child process. *out is NULL-terminated,
 * one block: free(). extra_n empty places are left before the NULL. */
WN_NODISCARD wn_status wn_config_flags(const struct wn_config *c, char ***out, size_t *out_n, size_t extra_n,
                                       struct wn_err *err);

/* usage: the first lines, "winnow plan MODEL [OPTION]...\nWhat it does."; groups: a mask of enum wn_option_group. */
void wn_config_help(FILE *f, const char *usage, unsigned groups);
void wn_config_print(FILE *f, const struct wn_config *c); /* as YAML that can be read back */
void wn_version_print(FILE *f, const char *program);      /* version, commit, libraries */

#endif
