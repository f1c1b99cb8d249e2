/* shard/threadpool.c - see threadpool.h. */
#include "shard/threadpool.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* One wn_pool_run(); lives in its caller's frame, which outlives its place in the queue. */
struct loop {
    wn_pool_fn fn;
    void *ctx;
    size_t n, next; /* turns in all, first turn not yet taken */
    size_t busy;    /* helpers inside fn */
    bool queued;
    struct loop *after;
    pthread_cond_t quiet; /* busy fell to 0 */
};

struct wn_pool {
    pthread_mutex_t lock; /* of everything below, and of the loops */
    pthread_cond_t work;
    struct loop *head, *tail;
    uint32_t queued, queue_max;
    bool stopping;
    uint32_t threads;
    pthread_t thread[];
};

/* Takes l out of the queue, wherever it stands. */
static void unqueue(struct wn_pool *p, struct loop *l)
{
    struct loop **at = &p->head, *before = NULL;

    if (!l->queued) return;
    for (; *at != l; at = &(*at)->after) before = *at;
    *at = l->after;
    if (p->tail == l) p->tail = before;
    l->queued = false;
    p->queued--;
}

/* Takes the next turn of l; the lock is held. false: there is none left. */
static bool take(struct wn_pool *p, struct loop *l, size_t *i)
{
    if (l->next == l->n) return false;
    *i = l->next++;
    if (l->next == l->n) unqueue(p, l);
    return true;
}

static void *helper(void *arg)
{
    struct wn_pool *p = arg;
    size_t i;

    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        struct loop *l = p->head;
        if (!l) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        l->busy++;
        while (take(p, l, &i)) {
            pthread_mutex_unlock(&p->lock);
            l->fn(l->ctx, i);
            pthread_mutex_lock(&p->lock);
        }
        if (--l->busy == 0) pthread_cond_signal(&l->quiet); /* l may be gone once the lock is */
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

wn_status wn_pool_start(struct wn_pool **out, const struct wn_pool_opts *opts, struct wn_err *err)
{
    struct wn_pool *p = NULL;
    wn_status rc = WN_OK;

    if (opts->threads > WN_POOL_THREADS_MAX || !opts->queue_max ||
        opts->queue_max > WN_POOL_QUEUE_MAX)
        return wn_fail(err, WN_EINVAL,
                       "thread pool of %u threads (at most %d), queue of %u (1 to %d)",
                       opts->threads, WN_POOL_THREADS_MAX, opts->queue_max, WN_POOL_QUEUE_MAX);
    p = calloc(1, sizeof(*p) + opts->threads * sizeof(p->thread[0]));
    if (!p) return wn_fail(err, WN_ENOMEM, "thread pool of %u threads", opts->threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    p->queue_max = opts->queue_max;
    while (p->threads < opts->threads) {
        int e = pthread_create(&p->thread[p->threads], NULL, helper, p);
        if (e) {
            rc = wn_fail(err, WN_EIO, "thread %u of %u: %s", p->threads + 1, opts->threads,
                         strerror(e));
            goto out;
        }
        p->threads++;
    }
    *out = p;
    p = NULL;
out:
    wn_pool_stop(p);
    return rc;
}

void wn_pool_stop(struct wn_pool *pool)
{
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    WN_ASSERT(!pool->head);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->threads; i++) pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void wn_pool_run(struct wn_pool *pool, wn_pool_fn fn, void *ctx, size_t n)
{
    struct loop l = {.fn = fn, .ctx = ctx, .n = n};
    size_t i;

    if (!pool || !pool->threads || n < 2) {
        for (i = 0; i < n; i++) fn(ctx, i);
        return;
    }
    pthread_cond_init(&l.quiet, NULL);
    pthread_mutex_lock(&pool->lock);
    if (pool->queued < pool->queue_max) {
        l.queued = true;
        if (pool->tail)
            pool->tail->after = &l;
        else
            pool->head = &l;
        pool->tail = &l;
        pool->queued++;
        pthread_cond_broadcast(&pool->work);
    }
    while (take(pool, &l, &i)) {
        pthread_mutex_unlock(&pool->lock);
        fn(ctx, i);
        pthread_mutex_lock(&pool->lock);
    }
    while (l.busy) pthread_cond_wait(&l.quiet, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&l.quiet);
}
