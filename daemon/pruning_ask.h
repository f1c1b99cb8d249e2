/* daemon/pruning_ask.h - what a client says about pruning, completed by the server's defaults, as the methods take it,
 * and what was made of it in the end. Pure functions between proto/winnow.proto and pruning/prune.h.
 *
 * Owns: nothing; strings of a completed Pruning belong to the request, the configuration or the method table.
 * Threads: any. */
#ifndef WN_DAEMON_PRUNING_ASK_H
#define WN_DAEMON_PRUNING_ASK_H

#include "base/sha256.h"
#include "daemon/config.h"
#include "proto/codec.h"
#include "pruning/prune.h"

/* Field by field: what `asked` (NULL: nothing) does not say, the --image-* options say. A server's budget and cap go
 * with any method, its setting only with methods that have one. Position comes out as compact or original. */
void wn_pruning_complete(Wn__Pruning *out, const Wn__Pruning *asked, const struct wn_config *cfg);

/* As the methods take it, with the budget of a request that names none. Fails, by name, for what no picture could
 * change: method, setting, options, ranges (WN_ENOENT, WN_EINVAL, WN_EUNSUPP). */
WN_NODISCARD wn_status wn_pruning_ask(const Wn__Pruning *p, const struct wn_prune_method **method,
                                      struct wn_prune_ask *ask, struct wn_err *err);

/* Keeps a request within --image-tokens-max of an image of `rows` (0: no limit): the budget shrinks, a method that
 * chooses its own count is capped. WN_ELIMIT: the method keeps everything, and that is too much. */
WN_NODISCARD wn_status wn_pruning_limit(const struct wn_prune_method *method, struct wn_prune_ask *ask, uint32_t rows,
                                        uint32_t tokens_max, struct wn_err *err);

/* The numbers in force for an image of `rows`, over those in p: keep is the count that the budget came to, 0 if the
 * method chose its own or keeps everything. */
void wn_pruning_in_force(Wn__Pruning *p, const struct wn_prune_method *method, const struct wn_prune_ask *ask,
                         uint32_t rows, bool projected);

/* A name of what is in force for an image of `rows`: the same for requests that mean the same, another for every other
 * method, budget, position policy, setting, seed and option, also where both keep the same rows. */
void wn_pruning_hash(const Wn__Pruning *p, uint32_t rows, bool projected, uint8_t out[WN_SHA256_BYTES]);

/* Copies what wn_pruning_in_force sets; `from` NULL is fine. */
void wn_pruning_copy_numbers(Wn__Pruning *into, const Wn__Pruning *from);

#endif
