/* tests/bench/random_tower.h - a vision tower of random weights in a file of its own, for benchmarks. */
#ifndef WN_TESTS_RANDOM_TOWER_H
#define WN_TESTS_RANDOM_TOWER_H

#include <stdbool.h>

#include "shard/model.h"

/* Writes DIR/model.safetensors: all layers of c, bfloat16. False: it could not be written. */
bool random_tower_write(const char *dir, const struct wn_vision_config *c);

float random_noise(void); /* -0.5 .. 0.5, one sequence a process */

#endif
