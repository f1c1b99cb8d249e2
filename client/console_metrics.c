/* client/console_metrics.c - see console.h: Prometheus text. A family's lines stand together under HELP and TYPE. */
#include <inttypes.h>

#include "client/console.h"

static void family(FILE *f, const char *name, const char *type, const char *help)
{
    fprintf(f, "# HELP winnow:%s %s\n# TYPE winnow:%s %s\n", name, help, name, type);
}

/* name="value", escaped as the format wants it. */
static void label(FILE *f, const char *separator, const char *name, const char *value)
{
    fprintf(f, "%s%s=\"", separator, name);
    for (; *value; value++) {
        if (*value == '\n') fputs("\\n", f);
        else if (*value == '"' || *value == '\\') fprintf(f, "\\%c", *value);
        else fputc(*value, f);
    }
    fputc('"', f);
}

/* One line: the model, and up to two labels (name and value; NULL: none). */
static void sample(FILE *f, const Wn__Status *st, const char *name, const char *const labels[4], double value)
{
    fprintf(f, "winnow:%s", name);
    label(f, "{", "model_name", st->model);
    for (int i = 0; labels && i < 4 && labels[i]; i += 2) label(f, ",", labels[i], labels[i + 1]);
    if (value >= 0 && value < 1e15 && value == (double)(uint64_t)value) fprintf(f, "} %" PRIu64 "\n", (uint64_t)value);
    else fprintf(f, "} %.9g\n", value);
}

static void single(FILE *f, const Wn__Status *st, const char *name, const char *type, const char *help, double value)
{
    family(f, name, type, help);
    sample(f, st, name, NULL, value);
}

static void requests(FILE *f, const Wn__Status *st)
{
    const struct {
        const char *state;
        uint64_t n;
    } states[] = {{"accepted", st->accepted},
                  {"answered", st->answered},
                  {"failed", st->failed},
                  {"cancelled", st->cancelled},
                  {"busy", st->busy}};

    single(f, st, "ready", "gauge", "1: every role and rank that is expected answers", st->ready);
    single(f, st, "uptime_seconds", "gauge", "Of the scheduler", (double)st->uptime_ms / 1e3);
    single(f, st, "num_requests_running", "gauge", "Jobs at replicas", st->running);
    single(f, st, "num_requests_waiting", "gauge", "Jobs in the queue", st->queued);
    single(f, st, "queue_size_max", "gauge", "Jobs that are held at most", st->queue_max);
    single(f, st, "queue_wait_seconds", "gauge", "Of the first job in the queue", st->queue_wait_ms / 1e3);
    single(f, st, "num_clients", "gauge", "Clients that have jobs", st->clients);
    single(f, st, "num_results_kept", "gauge", "Ended jobs, neither acknowledged nor expired", st->results);
    family(f, "requests_total", "counter", "Jobs by what became of them; busy: told to come back");
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
        sample(f, st, "requests_total", (const char *const[4]){"state", states[i].state}, (double)states[i].n);
    single(f, st, "job_replays_total", "counter", "Attempts after the first", (double)st->replayed);
    single(f, st, "prompt_tokens_total", "counter", "Of ended jobs, visual tokens included", (double)st->prompt_tokens);
    single(f, st, "generation_tokens_total", "counter", "Tokens of answers", (double)st->generated_tokens);
    family(f, "image_tokens_total", "counter", "Visual tokens before and after pruning");
    sample(f, st, "image_tokens_total", (const char *const[4]){"stage", "encoded"},
           (double)st->image_tokens_before_pruning);
    sample(f, st, "image_tokens_total", (const char *const[4]){"stage", "kept"}, (double)st->image_tokens);
}

static void link_bytes(FILE *f, const Wn__Status *st, const char *src, const Wn__LinkBytes *b)
{
    if (!b) return;
    const struct {
        const char *kind;
        uint64_t n;
    } kinds[] = {{"control", b->control},     {"embedding", b->embedding}, {"activation", b->activation},
                 {"allreduce", b->allreduce}, {"logits", b->logits},       {"image", b->image},
                 {"tokens", b->tokens}};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        sample(f, st, "link_bytes_total", (const char *const[4]){"src", src, "kind", kinds[i].kind},
               (double)kinds[i].n);
}

/* From IMAGES on a vision worker's; before it, and from KV_USED on, a replica's. */
enum figure { WORKER_UP, WORKER_SEEN, KV_USED, ITERATIONS, PREEMPTIONS, IMAGES, CACHE_HITS, ENCODES };

static void workers(FILE *f, const Wn__Status *st, const char *name, const char *type, const char *help,
                    enum figure which)
{
    family(f, name, type, help);
    for (size_t i = 0; i < st->n_workers; i++) {
        const Wn__WorkerStatus *w = st->workers[i];
        const Wn__Heartbeat *h = w->heartbeat;
        const bool leader = w->role == WN__ROLE__ROLE_LEADER;
        double v = which == WORKER_UP ? w->up : (double)w->last_seen_ms / 1e3;
        if (which >= KV_USED && (!h || leader == (which >= IMAGES))) continue;
        if (which == KV_USED) v = h->pages ? (double)h->pages_used / h->pages : 0;
        if (which == ITERATIONS) v = (double)h->steps;
        if (which == PREEMPTIONS) v = (double)h->preemptions;
        if (which == IMAGES) v = (double)h->images;
        if (which == CACHE_HITS) v = (double)h->cache_hits;
        if (which == ENCODES) v = (double)h->encodes;
        sample(f, st, name, (const char *const[4]){"role", leader ? "replica" : "vision", "name", w->name}, v);
    }
}

enum rank_figure { RANK_UP, RANK_SEEN, RANK_STALLED, RANK_LOAD_BYTES, RANK_LOAD_SECONDS };

static void ranks(FILE *f, const Wn__Status *st, const char *name, const char *help, enum rank_figure which)
{
    family(f, name, "gauge", help);
    for (size_t i = 0; i < st->n_workers; i++) {
        const Wn__WorkerStatus *w = st->workers[i];
        for (size_t k = 0; w->heartbeat && k < w->heartbeat->n_ranks; k++) {
            const Wn__RankInfo *r = w->heartbeat->ranks[k];
            const double v[] = {[RANK_UP] = w->up,
                                [RANK_SEEN] = (double)(r->last_seen_ms + w->last_seen_ms) / 1e3,
                                [RANK_STALLED] = (double)r->stalled_ms / 1e3,
                                [RANK_LOAD_BYTES] = (double)r->load_bytes,
                                [RANK_LOAD_SECONDS] = (double)r->load_us / 1e6};
            char rank[16];
            snprintf(rank, sizeof(rank), "%u", r->rank);
            sample(f, st, name, (const char *const[4]){"replica", w->name, "rank", rank}, v[which]);
        }
    }
}

enum stage_figure { STAGE_BUBBLE, STAGE_BUSY, STAGE_WAIT, STAGE_LINK };

static void stages(FILE *f, const Wn__Status *st, const char *name, const char *type, const char *help,
                   enum stage_figure which)
{
    family(f, name, type, help);
    for (size_t i = 0; i < st->n_workers; i++) {
        const Wn__WorkerStatus *w = st->workers[i];
        for (size_t k = 0; w->heartbeat && k < w->heartbeat->n_stages; k++) {
            const Wn__StageLoad *l = w->heartbeat->stages[k];
            const double s[] = {[STAGE_BUSY] = (double)l->busy_us / 1e6,
                                [STAGE_WAIT] = (double)l->wait_us / 1e6,
                                [STAGE_LINK] = (double)l->link_us / 1e6};
            const double all = s[STAGE_BUSY] + s[STAGE_WAIT] + s[STAGE_LINK];
            char stage[24];
            snprintf(stage, sizeof(stage), "%zu", k);
            sample(f, st, name, (const char *const[4]){"replica", w->name, "stage", stage},
                   which != STAGE_BUBBLE ? s[which] : all > 0 ? s[STAGE_WAIT] / all : 0);
        }
    }
}

void console_metrics(FILE *f, const Wn__Status *st)
{
    requests(f, st);
    workers(f, st, "worker_up", "gauge", "1: heard of within the lease", WORKER_UP);
    workers(f, st, "worker_last_seen_seconds", "gauge", "Since its last message", WORKER_SEEN);
    single(f, st, "workers_turned_away", "gauge", "Workers that want to work here and may not",
           (double)st->n_turned_away);
    single(f, st, "workers_turned_away_total", "counter", "Times that such a worker asked",
           (double)st->turned_away_total);
    workers(f, st, "kv_cache_usage_perc", "gauge", "Share of KV pages in use, 1 is all", KV_USED);
    workers(f, st, "iterations_total", "counter", "Steps of a replica", ITERATIONS);
    workers(f, st, "num_preemptions_total", "counter", "Times that a job lost its pages to an older one", PREEMPTIONS);
    workers(f, st, "images_encoded_total", "counter", "Images of a vision worker", IMAGES);
    workers(f, st, "image_cache_hits_total", "counter", "Those of them that it had encoded before", CACHE_HITS);
    workers(f, st, "encodes_total", "counter", "Runs of its tower, which the other images share", ENCODES);
    ranks(f, st, "rank_up", "1: its replica is up", RANK_UP);
    ranks(f, st, "rank_last_seen_seconds", "Since the rank's last sign of life", RANK_SEEN);
    ranks(f, st, "rank_stalled_seconds", "For which a rank that lives has done nothing", RANK_STALLED);
    ranks(f, st, "rank_load_bytes", "Of the checkpoint's files that a rank loaded at its start", RANK_LOAD_BYTES);
    ranks(f, st, "rank_load_seconds", "In which a rank loaded them", RANK_LOAD_SECONDS);
    stages(f, st, "pipeline_bubble_ratio", "gauge", "Share of its time under load that a stage waited for a step",
           STAGE_BUBBLE);
    stages(f, st, "stage_busy_seconds_total", "counter", "Of a stage's ranks together, on steps", STAGE_BUSY);
    stages(f, st, "stage_wait_seconds_total", "counter", "The same, waiting for a step", STAGE_WAIT);
    stages(f, st, "link_seconds_total", "counter", "The same, waiting for bytes: communication not hidden", STAGE_LINK);
    family(f, "link_bytes_total", "counter", "Payload bytes sent, by sender and kind");
    link_bytes(f, st, "scheduler", st->sent);
    for (size_t i = 0; i < st->n_workers; i++)
        if (st->workers[i]->heartbeat) link_bytes(f, st, st->workers[i]->name, st->workers[i]->heartbeat->sent);
}
