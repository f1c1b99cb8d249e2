/* tests/integration/side.h - a scripted scheduler or leader for one real worker: a ROUTER that says and expects. */
#ifndef WN_TESTS_SIDE_H
#define WN_TESTS_SIDE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "proto/codec.h"
#include "transport/endpoint.h"

struct side {
    struct wn_endpoint *ep;
    struct wn_peer_id worker; /* who spoke last */
};

void side_open(struct side *s, struct wn_net *net, const char *address);

/* The next message of this kind; others are skipped, heartbeats are answered. NULL: it did not come in time. */
Wn__Envelope *side_wait(struct side *s, Wn__Envelope__BodyCase kind, int ms);

/* The same; fails the test if it does not come within a minute. */
Wn__Envelope *side_expect(struct side *s, Wn__Envelope__BodyCase kind);

void side_say(struct side *s, Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t bytes);

/* The same of a DEALER, as a vision worker's end is; waits wait_ms at most for room. */
void end_say(struct wn_endpoint *ep, int wait_ms, Wn__Envelope__BodyCase kind, const void *body, const void *payload,
             size_t bytes);

#endif
