/* daemon/answer.c - see answer.h. */
#include "daemon/answer.h"

#include <stdlib.h>
#include <string.h>

#include "shard/detok.h"

struct wn_answer {
    struct wn_detok detok;
    char **stop;
    size_t *stop_bytes, stop_n;
    char *held; /* text that has not been shown, terminated */
    size_t held_n, held_cap;
    char *shown; /* what the last call gave out */
    size_t shown_cap;
};

wn_status wn_answer_create(struct wn_answer **out, const struct wn_tokenizer *tok,
                           char *const *stop, size_t stop_n, struct wn_err *err)
{
    struct wn_answer *a = calloc(1, sizeof(*a));
    wn_status rc = WN_OK;

    if (!a) return wn_fail(err, WN_ENOMEM, "answer");
    wn_detok_init(&a->detok, tok, false);
    a->stop = calloc(stop_n + 1, sizeof(*a->stop));
    a->stop_bytes = calloc(stop_n + 1, sizeof(*a->stop_bytes));
    if (!a->stop || !a->stop_bytes) rc = wn_fail(err, WN_ENOMEM, "stop strings");
    for (size_t i = 0; rc == WN_OK && i < stop_n; i++) {
        a->stop_bytes[i] = strlen(stop[i]);
        if (a->stop_bytes[i] == 0)
            rc = wn_fail(err, WN_EINVAL, "stop string %zu is empty", i);
        else if (!(a->stop[i] = strdup(stop[i])))
            rc = wn_fail(err, WN_ENOMEM, "stop strings");
        else
            a->stop_n++;
    }
    if (rc != WN_OK) {
        wn_answer_destroy(a);
        return rc;
    }
    *out = a;
    return WN_OK;
}

void wn_answer_destroy(struct wn_answer *a)
{
    if (!a) return;
    wn_detok_fini(&a->detok);
    for (size_t i = 0; a->stop && i < a->stop_n; i++) free(a->stop[i]);
    free(a->stop);
    free(a->stop_bytes);
    free(a->held);
    free(a->shown);
    free(a);
}

static wn_status room(char **text, size_t *cap, size_t need, struct wn_err *err)
{
    size_t n = *cap ? *cap : 64;
    char *more;

    if (need <= *cap) return WN_OK;
    while (n < need) n *= 2;
    if (!(more = realloc(*text, n))) return wn_fail(err, WN_ENOMEM, "answer of %zu bytes", need);
    *text = more;
    *cap = n;
    return WN_OK;
}

/* The first `n` held bytes go to *text. */
static wn_status show(struct wn_answer *a, size_t n, const char **text, struct wn_err *err)
{
    wn_status rc = room(&a->shown, &a->shown_cap, n + 1, err);

    if (rc != WN_OK) return rc;
    if (n) memcpy(a->shown, a->held, n);
    a->shown[n] = '\0';
    if (n) memmove(a->held, a->held + n, a->held_n - n + 1);
    a->held_n -= n;
    *text = a->shown;
    return WN_OK;
}

/* Where the first complete stop string begins; held_n if there is none. */
static size_t find_stop(const struct wn_answer *a)
{
    size_t first = a->held_n;

    for (size_t i = 0; i < a->stop_n; i++) {
        const char *at =
            a->held_n ? memmem(a->held, a->held_n, a->stop[i], a->stop_bytes[i]) : NULL;
        if (at && (size_t)(at - a->held) < first) first = (size_t)(at - a->held);
    }
    return first;
}

/* How many held bytes, from the start, cannot belong to a stop string any more. */
static size_t safe_bytes(const struct wn_answer *a)
{
    size_t safe = a->held_n;

    for (size_t i = 0; i < a->stop_n; i++) {
        size_t longest = a->stop_bytes[i] - 1 < a->held_n ? a->stop_bytes[i] - 1 : a->held_n;
        while (longest && memcmp(a->held + a->held_n - longest, a->stop[i], longest) != 0)
            longest--;
        if (a->held_n - longest < safe) safe = a->held_n - longest;
    }
    /* A stop string may begin inside a character only if it is not UTF-8, and then cutting there is what
     * it asks for. */
    return safe;
}

static wn_status hold(struct wn_answer *a, const char *text, size_t bytes, struct wn_err *err)
{
    wn_status rc = room(&a->held, &a->held_cap, a->held_n + bytes + 1, err);

    if (rc != WN_OK) return rc;
    /* A NUL character would end the text for everybody who gets it as a string: it is left out. */
    for (size_t i = 0; i < bytes; i++)
        if (text[i]) a->held[a->held_n++] = text[i];
    a->held[a->held_n] = '\0';
    return WN_OK;
}

wn_status wn_answer_push(struct wn_answer *a, uint32_t id, const char **text, bool *stopped,
                         struct wn_err *err)
{
    const char *piece;
    size_t bytes, at;
    wn_status rc = wn_detok_feed(&a->detok, &id, 1, &piece, &bytes, err);

    *text = "";
    *stopped = false;
    if (rc != WN_OK || (rc = hold(a, piece, bytes, err)) != WN_OK) return rc;
    at = find_stop(a);
    if (at < a->held_n) {
        *stopped = true;
        return show(a, at, text, err);
    }
    return show(a, safe_bytes(a), text, err);
}

wn_status wn_answer_push_last(struct wn_answer *a, uint32_t id, const char **text, bool *stopped, struct wn_err *err)
{
    const char *piece;
    size_t bytes, at;
    wn_status rc = wn_detok_feed(&a->detok, &id, 1, &piece, &bytes, err);

    *text = "";
    *stopped = false;
    if (rc != WN_OK || (rc = hold(a, piece, bytes, err)) != WN_OK) return rc;
    at = find_stop(a);
    *stopped = at < a->held_n;
    return *stopped ? show(a, at, text, err) : wn_answer_finish(a, text, err);
}

wn_status wn_answer_finish(struct wn_answer *a, const char **text, struct wn_err *err)
{
    const char *piece;
    size_t bytes;
    wn_status rc = wn_detok_flush(&a->detok, &piece, &bytes, err);

    *text = "";
    if (rc != WN_OK || (rc = hold(a, piece, bytes, err)) != WN_OK) return rc;
    return show(a, find_stop(a), text, err);
}
