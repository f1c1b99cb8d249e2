/* daemon/draw.h - the rank of a replica that samples: its share of a step, and one token for each sequence that asked.
 *
 * Owns:    the options and the text so far of every slot; the stage is borrowed until close.
 * Threads: engine thread only.
 * Fails:   WN_ENOMEM at open; steps as wn_stage_run and wn_sampler_pick. */
#ifndef WN_DAEMON_DRAW_H
#define WN_DAEMON_DRAW_H

#include "proto/step.h"
#include "shard/decoder.h"

struct wn_draw;
typedef struct wn_step_top wn_draw_top[WN_STEP_TOP_MAX];

/* tokens_max: of one sequence, as --max-model-len. */
WN_NODISCARD wn_status wn_draw_open(struct wn_draw **out, struct wn_stage *stage, const struct wn_step_limits *limits,
                                    uint32_t tokens_max, struct wn_err *err);
void wn_draw_close(struct wn_draw *d); /* NULL is fine */

/* Takes note of the record and runs its step. drawn [step->wanted_n]: in the order of the record's sequences. top: the
 * likeliest tokens of those whose slot asked for some, one after the other. */
WN_NODISCARD wn_status wn_draw_step(struct wn_draw *d, const struct wn_step_record *rec, const struct wn_step *step,
                                    int64_t deadline_us, struct wn_step_token *drawn, wn_draw_top *top,
                                    struct wn_err *err);

#endif
