/* tests/bench/random_weights.h - random weights of a named shape in a safetensors file, bfloat16, for benchmarks.
 * Threads: one.   Fails: false: the file could not be written. */
#ifndef WN_TESTS_RANDOM_WEIGHTS_H
#define WN_TESTS_RANDOM_WEIGHTS_H

#include <stdbool.h>

#include "shard/plan.h"

/* Writes DIR/model.safetensors: all layers of the vision tower, and what the plan's ranks hold, each tensor once. The
 * plan has one rank; NULL: the tower alone. */
bool random_weights_write(const char *dir, const struct wn_vision_config *tower, const struct wn_plan *plan);

float random_noise(void); /* -0.5 .. 0.5, one sequence a process */

#endif
