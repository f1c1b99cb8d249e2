/* daemon/job.c - see job.h. */
#include "daemon/job.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/utf8.h"

static const char *const state_names[WN_JOB_STATES] = {
    "accepted", "queued", "running", "done", "failed", "cancelled",
};
static const char *const event_names[WN_JOB_EVENTS] = {
    "queue", "dispatch", "complete", "fail", "lose", "cancel",
};

#define STAY WN_JOB_STATES /* the event does not fit */
static const wn_job_state next_state[3][WN_JOB_EVENTS] = {
    /*                   QUEUE          DISPATCH        COMPLETE     FAIL           LOSE           CANCEL */
    [WN_JOB_ACCEPTED] = {WN_JOB_QUEUED, STAY,           STAY,        WN_JOB_FAILED, STAY,          WN_JOB_CANCELLED},
    [WN_JOB_QUEUED]   = {STAY,          WN_JOB_RUNNING, STAY,        WN_JOB_FAILED, STAY,          WN_JOB_CANCELLED},
    [WN_JOB_RUNNING]  = {STAY,          STAY,           WN_JOB_DONE, WN_JOB_FAILED, WN_JOB_QUEUED, WN_JOB_CANCELLED},
};

bool wn_job_ended(const struct wn_job_life *life)
{
    return life->state >= WN_JOB_DONE;
}

bool wn_job_takes(const struct wn_job_life *life, uint32_t attempt)
{
    return life->state == WN_JOB_RUNNING && life->attempt == attempt;
}

const char *wn_job_state_name(wn_job_state state)
{
    return (unsigned)state < WN_JOB_STATES ? state_names[state] : "unknown";
}

wn_status wn_job_apply(struct wn_job_life *life, wn_job_event event, struct wn_err *err)
{
    wn_job_state next = wn_job_ended(life) ? STAY : next_state[life->state][event];

    if (next == STAY)
        return wn_fail(err, WN_EINVAL, "job: event '%s' does not fit state '%s'", event_names[event],
                       wn_job_state_name(life->state));
    if (event == WN_JOB_DISPATCH) life->attempt++;
    if (event == WN_JOB_LOSE && life->attempt >= life->attempts_max) next = WN_JOB_FAILED;
    life->state = next;
    return WN_OK;
}

void wn_job_id_make(char out[WN_JOB_ID_CHARS + 1])
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    uint8_t random[16];
    struct timespec ts;
    uint64_t ms;

    clock_gettime(CLOCK_REALTIME, &ts);
    ms = (uint64_t)ts.tv_sec * 1000 + (uint64_t)(ts.tv_nsec / 1000000);
    for (size_t at = 0; at < sizeof(random);) { /* cannot fail on a kernel that has booted, but may be interrupted */
        ssize_t n = getrandom(random + at, sizeof(random) - at, 0);
        if (n > 0) at += (size_t)n;
    }
    for (int i = 9; i >= 0; i--, ms >>= 5) out[i] = digits[ms & 31];
    for (int i = 0; i < 16; i++) out[10 + i] = digits[random[i] & 31];
    out[WN_JOB_ID_CHARS] = '\0';
}

void wn_transcript_fini(struct wn_transcript *a)
{
    free(a->ids);
    free(a->text_end);
    free(a->text);
    memset(a, 0, sizeof(*a));
}

/* Grows by doubling; sizes are bounded by the limits that wn_transcript_add checks first. */
static bool make_room(struct wn_transcript *a, size_t ids_n, size_t text_bytes)
{
    if (ids_n > a->ids_room) {
        size_t room = ids_n * 2 + 64;
        uint32_t *ids = realloc(a->ids, room * sizeof(*ids)), *end;
        if (ids) a->ids = ids;
        end = realloc(a->text_end, room * sizeof(*end));
        if (end) a->text_end = end;
        if (!ids || !end) return false;
        a->ids_room = room;
    }
    if (text_bytes + 1 > a->text_room) {
        size_t room = text_bytes * 2 + 256;
        char *text = realloc(a->text, room);
        if (!text) return false;
        a->text = text;
        a->text_room = room;
    }
    return true;
}

wn_status wn_transcript_add(struct wn_transcript *a, uint32_t first, const uint32_t *ids, size_t ids_n,
                            const char *text, bool *news, struct wn_err *err)
{
    const size_t bytes = strlen(text);

    *news = false;
    if (ids_n > 0 && first + ids_n <= a->ids_n) return WN_OK;
    if (first != a->ids_n)
        return wn_fail(err, WN_EPROTO, "tokens from %u on; %zu are there", first, a->ids_n);
    if (ids_n > WN_EMITTED_MAX - a->ids_n || bytes > WN_ANSWER_BYTES_MAX - a->text_bytes)
        return wn_fail(err, WN_ELIMIT, "answer longer than %d tokens or %zu bytes", WN_EMITTED_MAX,
                       WN_ANSWER_BYTES_MAX);
    if (!make_room(a, a->ids_n + ids_n, a->text_bytes + bytes)) return wn_fail(err, WN_ENOMEM, "answer");
    memcpy(a->text + a->text_bytes, text, bytes + 1);
    a->text_bytes += bytes;
    for (size_t i = 0; i < ids_n; i++) {
        a->ids[a->ids_n] = ids[i];
        a->text_end[a->ids_n] = (uint32_t)(i + 1 < ids_n ? a->text_bytes - bytes : a->text_bytes);
        a->ids_n++;
    }
    if (ids_n == 0 && a->ids_n > 0) a->text_end[a->ids_n - 1] = (uint32_t)a->text_bytes;
    *news = ids_n > 0 || bytes > 0;
    return WN_OK;
}

wn_status wn_transcript_restore(struct wn_transcript *a, const uint32_t *ids, const uint32_t *text_end, size_t ids_n,
                                const char *text, size_t text_bytes, struct wn_err *err)
{
    if (ids_n > WN_EMITTED_MAX || text_bytes > WN_ANSWER_BYTES_MAX || !wn_utf8_valid(text, text_bytes))
        return wn_fail(err, WN_EFORMAT, "its answer is damaged");
    for (size_t i = 0; i < ids_n; i++)
        if (text_end[i] > text_bytes || (i > 0 && text_end[i] < text_end[i - 1]))
            return wn_fail(err, WN_EFORMAT, "its answer is damaged");
    if (ids_n == 0 && text_bytes == 0) return WN_OK;
    if (!make_room(a, ids_n, text_bytes)) return wn_fail(err, WN_ENOMEM, "answer");
    if (ids_n > 0) {
        memcpy(a->ids, ids, ids_n * sizeof(*ids));
        memcpy(a->text_end, text_end, ids_n * sizeof(*text_end));
    }
    if (text_bytes > 0) memcpy(a->text, text, text_bytes);
    a->text[text_bytes] = '\0';
    a->ids_n = ids_n;
    a->text_bytes = text_bytes;
    return WN_OK;
}

size_t wn_transcript_text_at(const struct wn_transcript *a, size_t from)
{
    if (from == 0) return 0;
    return from <= a->ids_n ? a->text_end[from - 1] : a->text_bytes;
}

void wn_chances_fini(struct wn_chances *c)
{
    for (size_t i = 0; i < c->n; i++) free(c->of[i].data);
    free(c->of);
    memset(c, 0, sizeof(*c));
}

bool wn_chances_add(struct wn_chances *c, size_t first, const ProtobufCBinaryData *values, size_t n)
{
    if (first + n > c->room) {
        const size_t room = (first + n) * 2 + 64;
        ProtobufCBinaryData *of = realloc(c->of, room * sizeof(*of));
        if (!of) return false;
        c->of = of;
        c->room = room;
    }
    while (c->n < first + n) c->of[c->n++] = (ProtobufCBinaryData){0, NULL};
    for (size_t i = 0; i < n; i++) {
        ProtobufCBinaryData *to = &c->of[first + i];
        if (to->data || values[i].len == 0 || !(to->data = malloc(values[i].len))) continue;
        memcpy(to->data, values[i].data, values[i].len);
        to->len = values[i].len;
    }
    return true;
}
