/* tests/integration/sched_bed.h - a scheduler in a thread, and scripted clients and workers that speak to it over real
 * sockets on loopback. Everything here fails the test when it does not get what it wants. */
#ifndef WN_TESTS_SCHED_BED_H
#define WN_TESTS_SCHED_BED_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/scheduler.h"
#include "proto/codec.h"
#include "transport/endpoint.h"

#define BED_ENDS_MAX 64

/* Client or worker. */
struct end {
    struct wn_endpoint *ep;
    size_t payload_bytes; /* of the last message received */
    uint8_t payload[64];  /* its first bytes */
};

struct bed {
    struct wn_config cfg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int stop_fd;
    char clients[WN_TEXT_LEN], workers[WN_TEXT_LEN];
    const char *workers_at; /* where to wait for workers; NULL: any port */
    bool up;
    wn_status rc;
    struct wn_err err;
    struct wn_net *net;
    struct end ends[BED_ENDS_MAX]; /* what end_open has given out */
    size_t ends_n;
    struct end *client, *leader, *vision; /* for the test to set; bed_start_with does */
};

/* One order to a worker, copied out of its message. */
struct order {
    char id[32], text[256];
    uint32_t attempt, emitted_n, emitted[8], image;
    uint64_t seed;
};

/* Any port, leases that do not end in a test; change b->cfg before bed_start. bed_stop closes the ends that are open,
 * then drains; the bed may be started again, with what the journal has kept. */
void bed_init(struct bed *b);
void bed_start(struct bed *b);
void bed_stop(struct bed *b);

/* A test whose *state is a bed: after bed_init before it, stopped after it, also when it has failed. */
#define BED_TEST(test) cmocka_unit_test_setup_teardown(test, bed_setup, bed_teardown)
int bed_setup(void **state);
int bed_teardown(void **state);

/* The same with a journal of its own, in a new folder below bed_base, which the program sets. */
#define JOURNAL_TEST(test) cmocka_unit_test_setup_teardown(test, bed_setup_journal, bed_teardown)
extern char bed_base[64];
int bed_setup_journal(void **state);
void bed_new_journal(struct bed *b);

/* Started, with a client, "replica-0" and "vision-0" of so many slots; 0: without. */
void bed_start_with(struct bed *b, uint32_t leader_slots, uint32_t vision_slots);

/* Lasts as long as the bed; it is open until end_close or bed_stop. */
struct end *end_open(struct bed *b, bool worker);
struct end *end_open_as(struct bed *b, bool worker, const char *key_file); /* NULL: without a key */
void end_close(struct end *e);
/* Frames as they are (payload may be NULL); waits for the connection. */
void end_send_raw(struct end *e, const void *data, size_t bytes, const void *payload, size_t payload_bytes);
void end_send(struct end *e, Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t n);

/* The next message within ms, or NULL; heartbeats are skipped. What comes back is freed with wn_codec_free. */
Wn__Envelope *end_recv(struct end *e, int ms);
Wn__Envelope *end_expect(struct end *e, Wn__Envelope__BodyCase kind);
void end_expect_error(struct end *e, uint32_t code, const char *words);

/* Says hello and takes the welcome; worker_open also connects and confirms with a heartbeat. */
void worker_hello(struct end *e, Wn__Role role, const char *name, uint32_t slots, uint32_t pid);
/* With a job that it still has; NULL: none. */
void worker_hello_with(struct end *e, Wn__Role role, const char *name, uint32_t slots, uint32_t pid,
                       const struct order *running);
void worker_heartbeat(struct end *e);
struct end *worker_open(struct bed *b, Wn__Role role, const char *name, uint32_t slots);
struct order take_order(struct end *e, Wn__Envelope__BodyCase kind);
void give_tokens(struct end *e, const struct order *o, uint32_t first, uint32_t id, const char *text);
/* With log-probabilities: 1 + id is the likelier one. */
void give_token_with_logprobs(struct end *e, const struct order *o, uint32_t first, uint32_t id, const char *text);
void give_done(struct end *e, const struct order *o, uint32_t prompt_tokens);
void give_encoded(struct end *e, const struct order *o);
void give_waiting(struct end *e, const struct order *o); /* encoded, and not sent: the leader gives no credit */
void give_error(struct end *e, const struct order *o, wn_status code, bool retriable, const char *text);

/* Send only; image and key may be NULL and "". submit_new has no key, and takes the answer: a new job. */
void submit(struct end *e, const char *prompt, const char *image, const char *key);
void submit_new(struct end *e, const char *prompt, const char *image, char id[32]);
void attach(struct end *e, const char *id, uint32_t from);
void cancel(struct end *e, const char *id);

/* The answers. */
void expect_accepted(struct end *e, bool existed, char id[32]);
void expect_tokens(struct end *e, uint32_t first, size_t n, const char *text);
Wn__Envelope *expect_done(struct end *e, Wn__FinishReason reason, const char *text); /* the caller frees it */
void expect_answer(struct end *e, const char *text);                                  /* a Done that says "stop" */
/* Attaches until the job is not known any more; `words` are in the Error that says so. */
void expect_forgotten(struct end *e, const char *id, const char *words);
Wn__Envelope *ask_status(struct end *e); /* the caller frees it */

#endif
