/* tests/chaos/load.h - clients of the chaos driver: a fixed set of questions with and without pictures, long and short,
 * whose answers were learned in peace, asked again and again while faults happen.
 *
 * Owns:    its connection, pictures and jobs, from open to close. Threads: one. */
#ifndef WN_TESTS_CHAOS_LOAD_H
#define WN_TESTS_CHAOS_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#define LOAD_QUESTIONS 24

struct load;

struct load_totals {
    unsigned accepted, answered, replayed, tries, busy; /* replayed: took more than one attempt; tries: all attempts */
    unsigned lost, doubled, wrong; /* ended without an answer; two ends; another text, a gap or a repeat */
};

/* Reads pictures below `folder` (tests/eval/images). NULL: a picture is missing. */
struct load *load_open(const char *endpoint, const char *folder, unsigned in_flight, unsigned seed);
void load_close(struct load *l);

/* Asks every question once, without faults: what comes is right from now on. false: something was refused. */
bool load_learn(struct load *l, int seconds);

/* Takes events for at most `ms`, and keeps the number of open jobs up (more: new ones may be asked). false: the
 * connection is lost for good. */
bool load_turn(struct load *l, int ms, bool more);

unsigned load_pending(const struct load *l);      /* open jobs */
int64_t load_quiet_us(const struct load *l);      /* how long the job that is stuck longest has had no event */
bool load_moved_since(const struct load *l, int64_t us); /* every job that was open then has had an event after it */
void load_totals(const struct load *l, struct load_totals *t);

/* Asks for every accepted job by its id, from a new connection: each has one result, the one that was heard, or was
 * forgotten after that. Returns how many have another. */
unsigned load_ask_again(struct load *l);

void load_print_open(const struct load *l);

#endif
