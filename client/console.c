/* client/console.c - see console.h: the table for people. */
#include "client/console.h"

#include <inttypes.h>

#include "base/bytes.h"

#define STALLED_MS 1000 /* in the middle of a product of large matrices that may be so */

static const char *role_text(Wn__Role role)
{
    return role == WN__ROLE__ROLE_VISION ? "vision" : role == WN__ROLE__ROLE_LEADER ? "replica" : "unknown";
}

static void print_bytes(FILE *f, double bytes)
{
    char text[WN_BYTES_TEXT];

    fputs(wn_bytes_text(text, bytes, 1), f);
}

void console_bytes(const Wn__Status *st, Wn__LinkBytes *sum)
{
    *sum = (Wn__LinkBytes)WN__LINK_BYTES__INIT;
    wn_link_bytes_add(sum, st->sent);
    for (size_t i = 0; i < st->n_workers; i++)
        if (st->workers[i]->heartbeat) wn_link_bytes_add(sum, st->workers[i]->heartbeat->sent);
}

/* A counter as a rate, or its total; a counter that went back (a restart) has no rate yet. */
static double figure(uint64_t now, uint64_t before, double seconds)
{
    if (seconds <= 0) return (double)now;
    return now >= before ? (double)(now - before) / seconds : 0;
}

static void print_links(FILE *f, const Wn__Status *now, const Wn__Status *before, double seconds)
{
    Wn__LinkBytes n, b = WN__LINK_BYTES__INIT;

    console_bytes(now, &n);
    if (before) console_bytes(before, &b);
    const struct {
        const char *name;
        uint64_t now, before;
    } kinds[] = {{"image", n.image, b.image},
                 {"embedding", n.embedding, b.embedding},
                 {"activation", n.activation, b.activation},
                 {"allreduce", n.allreduce, b.allreduce},
                 {"logits", n.logits, b.logits},
                 {"tokens", n.tokens, b.tokens},
                 {"control", n.control, b.control}};
    fprintf(f, "sent%s:", before ? " each second" : "");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        fprintf(f, "%s %s ", i ? "," : "", kinds[i].name);
        print_bytes(f, figure(kinds[i].now, kinds[i].before, before ? seconds : 0));
    }
    fputc('\n', f);
}

/* What the leader has said of it is as old as the leader's last word. */
static void print_rank(FILE *f, const Wn__RankInfo *r, const Wn__WorkerStatus *w)
{
    fprintf(f, "    rank %-7u %-16s pid %-8u seen %.1f s ago", r->rank, r->host, r->pid,
            (double)(r->last_seen_ms + w->last_seen_ms) / 1e3);
    if (r->stalled_ms >= STALLED_MS) fprintf(f, ", STALLED for %.1f s", (double)r->stalled_ms / 1e3);
    if (r->rss_bytes) {
        fputs(", ", f);
        print_bytes(f, (double)r->rss_bytes);
    }
    fputc('\n', f);
}

/* How much of the time with something to run each stage had a step to work on, and how much it waited for bytes. */
static void print_stages(FILE *f, const Wn__Heartbeat *h)
{
    for (size_t i = 0; i < h->n_stages; i++) {
        const double busy = (double)h->stages[i]->busy_us, link = (double)h->stages[i]->link_us;
        const double all = busy + link + (double)h->stages[i]->wait_us;
        fprintf(f, "%s %.0f %% (links %.0f %%)", i ? "," : "    stages under load at work",
                all > 0 ? 100 * busy / all : 0.0, all > 0 ? 100 * link / all : 0.0);
    }
    if (h->n_stages) fputc('\n', f);
}

static void print_worker(FILE *f, const Wn__WorkerStatus *w)
{
    const Wn__Heartbeat *h = w->heartbeat;

    fprintf(f, "  %-7s %-12s %-16s %-4s seen %.1f s ago", role_text(w->role), w->name, w->host, w->up ? "up" : "LOST",
            (double)w->last_seen_ms / 1e3);
    if (w->build[0]) fprintf(f, ", OF BUILD %s", w->build);
    if (h) fprintf(f, ", %u running, %u waiting", h->running, h->waiting);
    if (h && w->role == WN__ROLE__ROLE_LEADER) {
        fprintf(f, ", %u of %u KV pages (%.0f %%), %" PRIu64 " steps, %" PRIu64 " preemptions\n", h->pages_used,
                h->pages, h->pages ? 100.0 * h->pages_used / h->pages : 0.0, h->steps, h->preemptions);
        print_stages(f, h);
        for (size_t i = 0; i < h->n_ranks; i++) print_rank(f, h->ranks[i], w);
        return;
    }
    if (h) fprintf(f, ", %" PRIu64 " images so far", h->images);
    if (h && h->cache_hits) fprintf(f, ", %" PRIu64 " of them known", h->cache_hits);
    if (h && h->encodes && h->images > h->cache_hits)
        fprintf(f, ", %.1f an encode", (double)(h->images - h->cache_hits) / (double)h->encodes);
    fputc('\n', f);
}

/* Who wants to work here and may not. */
static void print_turned_away(FILE *f, const Wn__TurnedAway *t)
{
    fprintf(f, "  %-7s %-12s %-16s TURNED AWAY for %.1f s, %" PRIu64 " times, %.1f s ago: %s\n", role_text(t->role),
            t->name, t->host, (double)t->since_ms / 1e3, t->times, (double)t->last_ms / 1e3, t->why);
}

void console_status(FILE *f, const char *endpoint, const Wn__Status *now, const Wn__Status *before, double seconds)
{
    fprintf(f, "%s: %s%s\n", endpoint, now->ready ? "ready" : "not ready: ", now->ready ? "" : now->not_ready_because);
    if (now->model[0]) fprintf(f, "model %s%s%s, ", now->model, now->quantization[0] ? " in " : "", now->quantization);
    fprintf(f, "version %s, up for %.1f s\n", now->version, (double)now->uptime_ms / 1e3);
    fprintf(f, "jobs: %u queued of at most %u", now->queued, now->queue_max);
    if (now->queued) fprintf(f, " (the first for %.1f s)", now->queue_wait_ms / 1e3);
    fprintf(f, ", %u running, %u clients, %u results kept\n", now->running, now->clients, now->results);
    fprintf(f,
            "so far: %" PRIu64 " accepted, %" PRIu64 " answered, %" PRIu64 " failed, %" PRIu64 " cancelled, %" PRIu64
            " replayed, %" PRIu64 " told to come back\n",
            now->accepted, now->answered, now->failed, now->cancelled, now->replayed, now->busy);
    if (now->refused_keys + now->refused_handshakes + now->refused_messages)
        fprintf(f, "refused: %" PRIu64 " keys, %" PRIu64 " other handshakes, %" PRIu64 " messages\n", now->refused_keys,
                now->refused_handshakes, now->refused_messages);
    fprintf(f, "tokens%s: %.0f generated, %.0f of prompts", before ? " each second" : "",
            figure(now->generated_tokens, before ? before->generated_tokens : 0, before ? seconds : 0),
            figure(now->prompt_tokens, before ? before->prompt_tokens : 0, before ? seconds : 0));
    if (now->image_tokens_before_pruning)
        fprintf(f, "; %.1f %% of visual tokens kept",
                100.0 * (double)now->image_tokens / (double)now->image_tokens_before_pruning);
    fputc('\n', f);
    print_links(f, now, before, seconds);
    for (size_t i = 0; i < now->n_workers; i++) print_worker(f, now->workers[i]);
    for (size_t i = 0; i < now->n_turned_away; i++) print_turned_away(f, now->turned_away[i]);
}
