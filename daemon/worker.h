/* daemon/worker.h - what the worker roles (vision, shard) share: which checkpoint, which arithmetic, how many
 * threads. Owns: nothing.
 * Threads: main. */
#ifndef WN_DAEMON_WORKER_H
#define WN_DAEMON_WORKER_H

#include "base/key.h"
#include "daemon/config.h"
#include "daemon/netif.h"
#include "proto/codec.h"
#include "shard/backend.h"
#include "shard/model.h"
#include "shard/plan.h"
#include "shard/weights.h"
#include "transport/endpoint.h"

#define WN_MODEL_ID_LEN 65 /* SHA-256 of config.json (and of some of the weights) in hex, and its NUL */

/* Reads config.json of cfg->model (a folder, or such a file) into *model, and what identifies it into id. */
WN_NODISCARD wn_status wn_worker_model(const struct wn_config *cfg, struct wn_model *model, char id[WN_MODEL_ID_LEN],
                                       struct wn_err *err);

/* The compute type that --dtype asks for: auto is the checkpoint's, with bfloat16 for float16 (same size, and what
 * processors multiply). */
wn_dtype wn_worker_dtype(const struct wn_config *cfg, const struct wn_model *model);

/* The replica's plan as the options say. */
WN_NODISCARD wn_status wn_worker_plan(const struct wn_config *cfg, const struct wn_model *model, struct wn_plan *plan,
                                      struct wn_err *err);

/* Puts the weights into that id, too: workers of two versions of a checkpoint must not mix. */
void wn_worker_identify(char id[WN_MODEL_ID_LEN], const struct wn_weights *weights);

/* Do the checkpoint's files have every tensor that the plan's ranks and the vision workers load, in its shape? Only
 * their headers are read. The error names tensor and file. */
WN_NODISCARD wn_status wn_worker_tensors(const struct wn_config *cfg, const struct wn_plan *plan, struct wn_err *err);

/* Sets the number of compute threads: --threads, else OMP_NUM_THREADS, else what this process may use divided
 * by the processes that share it. Call before the backend opens. */
void wn_worker_threads(const struct wn_config *cfg, uint32_t share);

/* The same for rank `rank` of a replica of `size` ranks, and binds its threads to cores of their own where that is safe
 * (daemon/placement.h). With OMP_NUM_THREADS set, or in a Slurm step, cores are somebody else's affair. */
void wn_worker_place(const struct wn_config *cfg, uint32_t rank, uint32_t size);

/* The interface that other hosts of the service reach this process by: --interface, else the one towards the scheduler.
 * On one machine, with the scheduler at ipc:// or on loopback, out->name is "". */
WN_NODISCARD wn_status wn_worker_netif(const struct wn_config *cfg, struct wn_netif *out, struct wn_err *err);

/* Makes Open MPI and NCCL use it, too, by the variables that they read when they start; what the user has put there
 * stays. Before the link opens. */
void wn_worker_use_netif(const struct wn_config *cfg, const struct wn_netif *net);

/* The device of --backend that this rank takes (daemon/gpu_choice.h); 0 where there is nothing to choose. Ranks of a
 * host that share one by name (cuda:0) get an NCCL_HOSTID each, unless it is set: NCCL then takes them for hosts. */
WN_NODISCARD wn_status wn_worker_device(const struct wn_config *cfg, uint32_t rank, uint32_t size, int *device,
                                        struct wn_err *err);

/* Can the ranks of a replica speak as --link says? */
WN_NODISCARD wn_status wn_worker_links(const struct wn_config *cfg, struct wn_err *err);

/* Asks the kernel to end this process when its parent dies, gives up what it does not need (daemon/harden.h), and names
 * it in the log. */
void wn_worker_start(const char *role, const struct wn_config *cfg, bool read_by_peers);

/* The key that workers show, of --keys; *out stays NULL without. Owned by the caller. */
WN_NODISCARD wn_status wn_worker_key(const struct wn_config *cfg, struct wn_key **out, struct wn_err *err);

/* How a worker proves itself with that key (NULL: plain text), to the scheduler or to a leader: workers share one key
 * pair, and a leader lets in who has it, too. Points into *key. */
struct wn_curve_opts wn_worker_curve(const struct wn_key *key, bool to_scheduler);

/* The number in an environment variable that a launcher sets; `otherwise` where it is not there. */
uint32_t wn_worker_env(const char *name, uint32_t otherwise);

/* Sends a message without a payload; one that cannot go now is dropped. */
void wn_worker_say(struct wn_endpoint *ep, Wn__Envelope__BodyCase kind, const void *body);

#endif
