/* base/traffic.h - what the bytes on a wire are for, and meters that count them.
 *
 * Owns:    nothing; a meter lives inside the link or endpoint that it measures.
 * Threads: one thread adds to a meter, any thread takes a snapshot. Each figure is exact; figures of one snapshot
 *          may differ by the messages that were on their way through when it was taken. */
#ifndef WN_BASE_TRAFFIC_H
#define WN_BASE_TRAFFIC_H

#include <stdatomic.h>
#include <stdint.h>

/* The values travel in usage reports: append, never renumber. At most 16 (links put the kind in 4 bits of a tag). */
typedef enum wn_traffic {
    WN_TRAFFIC_CONTROL = 0, /* orders, step records, status words, heartbeats */
    WN_TRAFFIC_IMAGE,       /* encoded pictures: client to scheduler to vision worker */
    WN_TRAFFIC_EMBEDDING,   /* visual tokens: vision worker to leader, and leader to ranks */
    WN_TRAFFIC_ACTIVATION,  /* hidden states: stage to stage */
    WN_TRAFFIC_ALLREDUCE,   /* partial sums between the tensor ranks of a stage */
    WN_TRAFFIC_LOGITS,      /* scores: tensor ranks of the last stage to the one that samples */
    WN_TRAFFIC_TOKENS,      /* token ids and text: last stage to leader to scheduler to client */
    WN_TRAFFIC_N
} wn_traffic;

/* Payload only: without frame headers, identities or what the network adds. */
struct wn_traffic_count {
    uint64_t sent_bytes, received_bytes;
    uint64_t sent_messages, received_messages;
};

/* A snapshot, by kind. Plain data: copy it, add it up. */
struct wn_traffic_table {
    struct wn_traffic_count of[WN_TRAFFIC_N];
};

/* The live figures. Zero-initialise. */
struct wn_traffic_meter {
    struct {
        _Atomic uint64_t sent_bytes, received_bytes, sent_messages, received_messages;
    } of[WN_TRAFFIC_N];
};

/* "control", "image", "embedding", "activation", "allreduce", "logits", "tokens"; "?" for any other value. */
const char *wn_traffic_name(wn_traffic kind);

void wn_traffic_sent(struct wn_traffic_meter *meter, wn_traffic kind, uint64_t bytes);     /* one message */
void wn_traffic_received(struct wn_traffic_meter *meter, wn_traffic kind, uint64_t bytes); /* one message */

/* Adds the live figures to *table, which the caller has zeroed or filled from other meters. */
void wn_traffic_snapshot(const struct wn_traffic_meter *meter, struct wn_traffic_table *table);

#endif
