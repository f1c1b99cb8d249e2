/* base/traffic.c - see traffic.h. */
#include "base/traffic.h"

#include "base/status.h"

const char *wn_traffic_name(wn_traffic kind)
{
    static const char *const names[WN_TRAFFIC_N] = {
        [WN_TRAFFIC_CONTROL] = "control",       [WN_TRAFFIC_IMAGE] = "image",
        [WN_TRAFFIC_EMBEDDING] = "embedding",   [WN_TRAFFIC_ACTIVATION] = "activation",
        [WN_TRAFFIC_ALLREDUCE] = "allreduce",   [WN_TRAFFIC_LOGITS] = "logits",
        [WN_TRAFFIC_TOKENS] = "tokens",
    };
    return (unsigned)kind < WN_TRAFFIC_N ? names[kind] : "?";
}

void wn_traffic_sent(struct wn_traffic_meter *meter, wn_traffic kind, uint64_t bytes)
{
    WN_ASSERT((unsigned)kind < WN_TRAFFIC_N);
    atomic_fetch_add_explicit(&meter->of[kind].sent_bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&meter->of[kind].sent_messages, 1, memory_order_relaxed);
}

void wn_traffic_received(struct wn_traffic_meter *meter, wn_traffic kind, uint64_t bytes)
{
    WN_ASSERT((unsigned)kind < WN_TRAFFIC_N);
    atomic_fetch_add_explicit(&meter->of[kind].received_bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&meter->of[kind].received_messages, 1, memory_order_relaxed);
}

void wn_traffic_snapshot(const struct wn_traffic_meter *meter, struct wn_traffic_table *table)
{
    for (int kind = 0; kind < WN_TRAFFIC_N; kind++) {
        struct wn_traffic_count *to = &table->of[kind];
        to->sent_bytes += atomic_load_explicit(&meter->of[kind].sent_bytes, memory_order_relaxed);
        to->received_bytes += atomic_load_explicit(&meter->of[kind].received_bytes, memory_order_relaxed);
        to->sent_messages += atomic_load_explicit(&meter->of[kind].sent_messages, memory_order_relaxed);
        to->received_messages += atomic_load_explicit(&meter->of[kind].received_messages, memory_order_relaxed);
    }
}
