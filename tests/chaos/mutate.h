/* tests/chaos/mutate.h - what the parts of mutate share. */
#ifndef WN_TESTS_MUTATE_H
#define WN_TESTS_MUTATE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "base/key.h"
#include "tests/chaos/mutator.h"
#include "tests/integration/service.h"

#define PIDS_MAX 16

struct mutate {
    const char *winnow, *winnowd, *only;
    uint32_t frames;
    int64_t limit_us;
    struct dice dice;
    struct seeds seeds;
    struct service service;
    char keys[64], folder[64];
    struct wn_key *client, *worker;
    void *zmq, *picture;
    size_t picture_bytes;
    bool failed;
    FILE *csv; /* NULL: none */
};
extern struct mutate m;

/* Processes of the service and their resident bytes. */
struct census {
    pid_t pid[PIDS_MAX];
    long rss[PIDS_MAX];
    int n;
};

void complain(const char *fmt, ...) WN_PRINTF(1, 2); /* and go on: the run has failed */
struct census count_processes(void);
long compare(const char *role, const struct census *before, const struct census *after); /* the largest growth */
void report(const char *role, uint32_t frames, uint64_t replies, int64_t began_us, long grown);
void *dealer(const char *address, const struct wn_key *key, const char *server_key); /* a ZeroMQ socket */

void attack_wire(void); /* mutate_wire.c */

#endif
