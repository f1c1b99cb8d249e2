/* daemon/ledger.c - see ledger.h. */
#include "daemon/ledger.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define BUCKETS 256

/* One answer: where its frame lies in the job's bytes. */
struct entry {
    struct wn_ledger_note note;
    size_t at, bytes;
};

struct job {
    struct job *prev, *next; /* in order of arrival */
    struct job *chain;       /* in its bucket */
    Wn__JobRef ref; /* its text is id */
    char id[WN_JOB_ID_CHARS + 1];
    bool answering;   /* has given a token in this attempt */
    int64_t ended_us; /* when its end was said; 0: it runs */
    struct entry *entries;
    size_t entries_n, entries_room;
    uint8_t *frames;
    size_t frames_bytes, frames_room;
};

struct wn_ledger {
    struct job *first, *last;
    struct job *buckets[BUCKETS]; /* jobs that have ended stay a while: each token would pass them all */
    size_t jobs_n;
    Wn__JobRef **running, **answering; /* of the last Hello */
    size_t lists_room;
};

wn_status wn_ledger_create(struct wn_ledger **out, struct wn_err *err)
{
    struct wn_ledger *l = calloc(1, sizeof(*l));

    if (!l) return wn_fail(err, WN_ENOMEM, "ledger");
    *out = l;
    return WN_OK;
}

static struct job **bucket_of(struct wn_ledger *l, const char *id)
{
    return &l->buckets[wn_hash(id, strlen(id)) % BUCKETS];
}

static struct job *find(struct wn_ledger *l, const Wn__JobRef *ref)
{
    struct job *j = *bucket_of(l, ref->job_id);

    while (j && !wn_jobref_equal(&j->ref, ref)) j = j->chain;
    return j;
}

static void remove_job(struct wn_ledger *l, struct job *j)
{
    struct job **at = bucket_of(l, j->id);

    while (*at != j) at = &(*at)->chain;
    *at = j->chain;
    if (j->prev) j->prev->next = j->next;
    else l->first = j->next;
    if (j->next) j->next->prev = j->prev;
    else l->last = j->prev;
    l->jobs_n--;
    free(j->entries);
    free(j->frames);
    free(j);
}

void wn_ledger_clear(struct wn_ledger *l)
{
    while (l->first) remove_job(l, l->first);
}

void wn_ledger_destroy(struct wn_ledger *l)
{
    if (!l) return;
    wn_ledger_clear(l);
    free(l->running);
    free(l->answering);
    free(l);
}

void wn_ledger_order(struct wn_ledger *l, const Wn__JobRef *ref)
{
    struct job *j, **bucket;

    if (!wn_job_id_valid(ref->job_id) || find(l, ref) || l->jobs_n == WN_RUNNING_MAX) return;
    if (!(j = calloc(1, sizeof(*j)))) return;
    memcpy(j->id, ref->job_id, sizeof(j->id)); /* valid: it has exactly that length */
    j->ref = (Wn__JobRef)WN__JOB_REF__INIT;
    j->ref.job_id = j->id;
    j->ref.attempt = ref->attempt;
    bucket = bucket_of(l, j->id);
    j->chain = *bucket;
    *bucket = j;
    j->prev = l->last;
    if (j->prev) j->prev->next = j;
    else l->first = j;
    l->last = j;
    l->jobs_n++;
}

/* Room for one more entry and its bytes, by doubling. */
static bool make_room(struct job *j, size_t bytes)
{
    if (j->entries_n == j->entries_room) {
        const size_t room = j->entries_room * 2 + 16;
        struct entry *more = realloc(j->entries, room * sizeof(*more));
        if (!more) return false;
        j->entries = more;
        j->entries_room = room;
    }
    if (j->frames_bytes + bytes > j->frames_room) {
        const size_t room = (j->frames_bytes + bytes) * 2 + 512;
        uint8_t *more = realloc(j->frames, room);
        if (!more) return false;
        j->frames = more;
        j->frames_room = room;
    }
    return true;
}

bool wn_ledger_said(struct wn_ledger *l, const Wn__JobRef *ref, struct wn_ledger_note note, const void *frame,
                    size_t bytes, int64_t now_us)
{
    struct job *j = find(l, ref);

    if (!j) return false;
    if (!make_room(j, bytes)) {
        remove_job(l, j);
        return false;
    }
    memcpy(j->frames + j->frames_bytes, frame, bytes);
    j->entries[j->entries_n++] = (struct entry){.note = note, .at = j->frames_bytes, .bytes = bytes};
    j->frames_bytes += bytes;
    if (note.end) j->ended_us = now_us;
    else j->answering = true;
    return true;
}

void wn_ledger_drop(struct wn_ledger *l, const Wn__JobRef *ref)
{
    struct job *j = find(l, ref);

    if (j) remove_job(l, j);
}

void wn_ledger_expire(struct wn_ledger *l, int64_t before_us)
{
    for (struct job *j = l->first, *next; j; j = next) {
        next = j->next;
        if (j->ended_us && j->ended_us < before_us) remove_job(l, j);
    }
}

wn_status wn_ledger_hello(struct wn_ledger *l, Wn__Hello *hello, struct wn_err *err)
{
    if (l->jobs_n > l->lists_room) {
        Wn__JobRef **running = realloc(l->running, l->jobs_n * sizeof(*running)), **answering;
        if (running) l->running = running;
        answering = realloc(l->answering, l->jobs_n * sizeof(*answering));
        if (answering) l->answering = answering;
        if (!running || !answering) return wn_fail(err, WN_ENOMEM, "list of %zu jobs", l->jobs_n);
        l->lists_room = l->jobs_n;
    }
    hello->n_running = hello->n_answering = 0;
    hello->running = l->running;
    hello->answering = l->answering;
    for (struct job *j = l->first; j; j = j->next) {
        l->running[hello->n_running++] = &j->ref;
        if (j->answering || j->ended_us) l->answering[hello->n_answering++] = &j->ref;
    }
    return WN_OK;
}

void wn_ledger_resume(struct wn_ledger *l, const Wn__JobRef *ref, uint32_t tokens,
                      void (*say)(void *arg, const void *frame, size_t bytes), void *arg)
{
    const struct job *j = find(l, ref);

    for (size_t i = 0; j && i < j->entries_n; i++) {
        const struct entry *e = &j->entries[i];
        if (e->note.end || e->note.tokens > tokens) say(arg, j->frames + e->at, e->bytes);
    }
}

size_t wn_ledger_size(const struct wn_ledger *l)
{
    return l->jobs_n;
}
