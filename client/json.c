/* client/json.c - the server's status as JSON. Small enough to write by hand and spare users a library. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/conn.h"

/* Text in quotes; bytes of UTF-8 pass through. */
static void put_text(FILE *f, const char *name, const char *text)
{
    fprintf(f, "\"%s\": \"", name);
    for (; text && *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c < 0x20) fprintf(f, "\\u%04x", c);
        else fputc(c, f);
    }
    fputc('"', f);
}

static const char *role_text(Wn__Role role)
{
    return role == WN__ROLE__ROLE_VISION ? "vision" : role == WN__ROLE__ROLE_LEADER ? "replica" : "unknown";
}

static void put_bytes(FILE *f, const Wn__LinkBytes *b)
{
    if (!b) return;
    fprintf(f,
            ", \"sent_bytes\": {\"control\": %" PRIu64 ", \"embedding\": %" PRIu64 ", \"activation\": %" PRIu64
            ", \"allreduce\": %" PRIu64 ", \"logits\": %" PRIu64 ", \"image\": %" PRIu64 ", \"tokens\": %" PRIu64 "}",
            b->control, b->embedding, b->activation, b->allreduce, b->logits, b->image, b->tokens);
}

static void put_heartbeat(FILE *f, const Wn__Heartbeat *h)
{
    fprintf(f, ", \"running\": %u, \"waiting\": %u, \"kv_pages_used\": %u, \"kv_pages\": %u", h->running, h->waiting,
            h->pages_used, h->pages);
    fprintf(f, ", \"steps\": %" PRIu64 ", \"images\": %" PRIu64 ", \"cache_hits\": %" PRIu64 ", \"encodes\": %" PRIu64
            ", \"ranks\": [", h->steps, h->images, h->cache_hits, h->encodes);
    for (size_t i = 0; i < h->n_ranks; i++) {
        const Wn__RankInfo *r = h->ranks[i];
        fprintf(f, "%s{\"rank\": %u, ", i ? ", " : "", r->rank);
        put_text(f, "host", r->host);
        fprintf(f, ", \"pid\": %u, \"last_seen_ms\": %" PRIu64 ", \"rss_bytes\": %" PRIu64
                ", \"stalled_ms\": %" PRIu64 ", \"load_bytes\": %" PRIu64 ", \"load_us\": %" PRIu64 "}", r->pid,
                r->last_seen_ms, r->rss_bytes, r->stalled_ms, r->load_bytes, r->load_us);
    }
    fprintf(f, "], \"preemptions\": %" PRIu64 ", \"features\": %u, \"feature_slots\": %u", h->preemptions, h->features,
            h->feature_slots);
    for (size_t i = 0; i < h->n_stages; i++)
        fprintf(f, "%s{\"busy_us\": %" PRIu64 ", \"wait_us\": %" PRIu64 ", \"link_us\": %" PRIu64 "}%s",
                i ? ", " : ", \"stages\": [", h->stages[i]->busy_us, h->stages[i]->wait_us, h->stages[i]->link_us,
                i + 1 == h->n_stages ? "]" : "");
    put_bytes(f, h->sent);
}

/* The beginning of a worker's object. */
static void put_who(FILE *f, bool first, Wn__Role role, const char *name, const char *host)
{
    fprintf(f, "%s{\"role\": \"%s\", ", first ? "" : ", ", role_text(role));
    put_text(f, "name", name);
    fputs(", ", f);
    put_text(f, "host", host);
}

static void put_turned_away(FILE *f, const Wn__Status *st)
{
    fprintf(f, "], \"turned_away_total\": %" PRIu64 ", \"turned_away\": [", st->turned_away_total);
    for (size_t i = 0; i < st->n_turned_away; i++) {
        const Wn__TurnedAway *t = st->turned_away[i];
        put_who(f, i == 0, t->role, t->name, t->host);
        fputs(", ", f);
        put_text(f, "why", t->why);
        fprintf(f, ", \"since_ms\": %" PRIu64 ", \"last_ms\": %" PRIu64 ", \"times\": %" PRIu64 "}", t->since_ms,
                t->last_ms, t->times);
    }
}

char *wn_status_json(const Wn__Status *st)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    bool bad;

    if (!f) return NULL;
    fprintf(f, "{\"ready\": %s, ", st->ready ? "true" : "false");
    put_text(f, "not_ready_because", st->not_ready_because);
    fputs(", ", f);
    put_text(f, "model", st->model);
    fputs(", ", f);
    put_text(f, "version", st->version);
    fputs(", ", f);
    put_text(f, "quantization", st->quantization);
    fprintf(f, ", \"queued\": %u, \"running\": %u", st->queued, st->running);
    fprintf(f,
            ", \"accepted\": %" PRIu64 ", \"answered\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"cancelled\": %" PRIu64
            ", \"replayed\": %" PRIu64 ", \"busy\": %" PRIu64 ", \"uptime_ms\": %" PRIu64,
            st->accepted, st->answered, st->failed, st->cancelled, st->replayed, st->busy, st->uptime_ms);
    fprintf(f,
            ", \"prompt_tokens\": %" PRIu64 ", \"generated_tokens\": %" PRIu64 ", \"image_tokens\": %" PRIu64
            ", \"image_tokens_before_pruning\": %" PRIu64 ", \"queue_max\": %u, \"queue_wait_ms\": %u"
            ", \"clients\": %u, \"results\": %u",
            st->prompt_tokens, st->generated_tokens, st->image_tokens, st->image_tokens_before_pruning, st->queue_max,
            st->queue_wait_ms, st->clients, st->results);
    fprintf(f,
            ", \"refused_keys\": %" PRIu64 ", \"refused_handshakes\": %" PRIu64 ", \"refused_messages\": %" PRIu64,
            st->refused_keys, st->refused_handshakes, st->refused_messages);
    put_bytes(f, st->sent);
    fputs(", \"workers\": [", f);
    for (size_t i = 0; i < st->n_workers; i++) {
        const Wn__WorkerStatus *w = st->workers[i];
        put_who(f, i == 0, w->role, w->name, w->host);
        if (w->build[0]) {
            fputs(", ", f);
            put_text(f, "build", w->build);
        }
        fprintf(f, ", \"up\": %s, \"last_seen_ms\": %" PRIu64, w->up ? "true" : "false", w->last_seen_ms);
        if (w->heartbeat) put_heartbeat(f, w->heartbeat);
        fputc('}', f);
    }
    put_turned_away(f, st);
    fputs("]}", f);
    bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) {
        free(text);
        return NULL;
    }
    return text;
}
