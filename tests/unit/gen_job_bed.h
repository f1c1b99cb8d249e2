/* tests/unit/gen_job_bed.h - orders and features as they come over the wire to a leader of tiny-llava, for tests of
 * daemon/engine_job. Everything here fails the test when it does not get what it wants. */
#ifndef WN_TESTS_GEN_JOB_BED_H
#define WN_TESTS_GEN_JOB_BED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/engine_job.h"
#include "pruning/prune.h"

#define KEPT 4 /* rows of an image, of 576 */

extern struct wn_model model;
extern struct wn_tokenizer *tokenizer;
extern struct wn_gen_limits limits; /* two images, 8 new tokens; a test that changes them puts them back */

int gen_open(void **state); /* the group's setup and teardown */
int gen_close(void **state);

/* An order as the scheduler gives it: change what matters, then call gen_job_of. */
struct asked {
    Wn__JobRef ref;
    Wn__Sampling s;
    Wn__Pruning p;
    Wn__Generate g;
};

void gen_ask(struct asked *a, uint32_t images);
struct wn_gen_job *gen_job_of(const struct asked *a);
struct wn_gen_job *gen_laid_out(const struct asked *a); /* with its features */

/* What a vision worker says of an image: KEPT rows, of patches 7, 100, 300 and none. */
struct sent {
    Wn__JobRef ref;
    Wn__Features f;
    uint32_t index[KEPT];
    uint8_t flags[KEPT], sha256[32];
    size_t payload_bytes;
    bool damaged;
};

void gen_describe(struct sent *s, uint32_t image);
struct wn_front_msg *gen_features_of(const struct sent *s);
void gen_give(struct wn_gen_job *job, uint32_t image);

struct wn_front_msg *gen_message(Wn__Envelope__BodyCase kind, const void *body); /* packed and unpacked again */

#endif
