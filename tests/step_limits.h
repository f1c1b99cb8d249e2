/* tests/step_limits.h - the limits under which test_step writes the corpus of step records and fuzz_step reads it. */
#ifndef WN_TESTS_STEP_LIMITS_H
#define WN_TESTS_STEP_LIMITS_H

#include "proto/step.h"

static const struct wn_step_limits step_limits = {.rows_max = 32,
                                                  .seqs_max = 4,
                                                  .pages_max = 64,
                                                  .table_max = 64,
                                                  .features_max = 3,
                                                  .page_tokens = 4,
                                                  .vocab = 100,
                                                  .positions_max = 1000};

#endif
