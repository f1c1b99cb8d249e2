/* client/gateway_watch.c - a thread that asks for the service's status once a second, on a connection of its own: that
 * call waits for its answer, and the gateway's other thread must not; see gateway.h. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/conn.h"
#include "client/console.h"
#include "client/gateway.h"

#define EVERY_MS  1000
#define ANSWER_MS 2000

struct gateway_watch {
    const char *endpoint;
    struct winnow *c; /* NULL: not connected */
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t wake;
    bool stop;
    struct gateway_service now;
    char *metrics;
};

/* The last part of a path: what a model is called. */
static const char *name_of(const char *model)
{
    const char *slash = strrchr(model, '/');

    return slash && slash[1] ? slash + 1 : model;
}

static char *metrics_of(const Wn__Status *st)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);

    if (!f) return NULL;
    if (st->n_workers == 0) fputs("# No worker is shown: there is none, or our key is not an admin's.\n", f);
    console_metrics(f, st);
    fclose(f);
    return text;
}

static void publish(struct gateway_watch *w, const Wn__Status *st, const char *error)
{
    char *metrics = st ? metrics_of(st) : NULL, *old;
    struct gateway_service now = {.answers = st != NULL, .ready = st && st->ready};

    if (st) snprintf(now.model, sizeof(now.model), "%s", name_of(st->model));
    snprintf(now.why, sizeof(now.why), "%s", st ? st->not_ready_because : error);
    pthread_mutex_lock(&w->lock);
    if (!st) {
        now.away_us = w->now.away_us ? w->now.away_us : wn_now_us();
        memcpy(now.model, w->now.model, sizeof(now.model));
    }
    w->now = now;
    old = w->metrics;
    w->metrics = metrics;
    pthread_mutex_unlock(&w->lock);
    free(old);
}

/* A service that is in trouble is asked on a new connection: answers that are still on their way would be old. */
static void look(struct gateway_watch *w)
{
    const struct winnow_options options = {.connect_timeout_ms = ANSWER_MS};
    Wn__Envelope *env = NULL;

    if ((w->c || winnow_connect(&w->c, w->endpoint, &options) == WINNOW_OK) &&
        wn_conn_status(w->c, &env, wn_deadline_in_us((int64_t)ANSWER_MS * 1000)) == WINNOW_OK) {
        publish(w, env->status, NULL);
    } else {
        publish(w, NULL, winnow_error(w->c));
        winnow_close(w->c);
        w->c = NULL;
    }
    wn_codec_free(env);
}

static void *run(void *arg)
{
    struct gateway_watch *w = arg;

    for (bool stop = false; !stop;) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += EVERY_MS / 1000;
        pthread_mutex_lock(&w->lock);
        while (!w->stop && pthread_cond_timedwait(&w->wake, &w->lock, &until) == 0) continue;
        stop = w->stop;
        pthread_mutex_unlock(&w->lock);
        if (!stop) look(w);
    }
    return NULL;
}

wn_status gateway_watch_start(struct gateway_watch **out, const char *endpoint, struct wn_err *err)
{
    struct gateway_watch *w = calloc(1, sizeof(*w));
    pthread_condattr_t attr;

    if (!w) return wn_fail(err, WN_ENOMEM, "watch");
    w->endpoint = endpoint;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &attr);
    pthread_condattr_destroy(&attr);
    look(w);
    if (pthread_create(&w->thread, NULL, run, w) != 0) {
        winnow_close(w->c);
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->lock);
        free(w->metrics);
        free(w);
        return wn_fail(err, WN_EIO, "cannot start a thread");
    }
    *out = w;
    return WN_OK;
}

void gateway_watch_stop(struct gateway_watch *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    winnow_close(w->c);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w->metrics);
    free(w);
}

void gateway_watch_look(struct gateway_watch *w, struct gateway_service *out)
{
    pthread_mutex_lock(&w->lock);
    *out = w->now;
    pthread_mutex_unlock(&w->lock);
}

char *gateway_watch_metrics(struct gateway_watch *w)
{
    char *text;

    pthread_mutex_lock(&w->lock);
    text = w->metrics ? strdup(w->metrics) : NULL;
    pthread_mutex_unlock(&w->lock);
    return text;
}
