/* The thread pool: every turn once, from any number of callers and from inside turns; helpers that do help; a full
 * queue, loops that end out of order, and starts that fail half-way. Clean under ThreadSanitizer (scripts/tsan.sh). */
#include <setjmp.h>
#include <stdarg.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "shard/threadpool.h"

#define TURNS_MAX 100
#define LATE_MS   20000 /* nobody came: the test fails instead of hanging */

int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
static int creations_left = -1; /* below 0: as many as are asked for */

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
    if (creations_left == 0) return EAGAIN;
    if (creations_left > 0) creations_left--;
    return __real_pthread_create(t, attr, fn, arg);
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* cmocka's assertions are for the main thread; these run on all. */
static void must(bool ok)
{
    if (!ok) abort();
}

static void wait_for(const atomic_uint *at, unsigned value)
{
    for (int ms = 0; atomic_load(at) < value; ms++) {
        must(ms < LATE_MS);
        sleep_ms(1);
    }
}

static struct wn_pool *start(uint32_t threads, uint32_t queue_max)
{
    struct wn_pool *pool = NULL;
    struct wn_err err = {0};

    if (wn_pool_start(&pool, &(struct wn_pool_opts){threads, queue_max}, &err) != WN_OK) fail_msg("%s", err.text);
    return pool;
}

/* ---- every turn once ---- */

struct count {
    struct wn_pool *pool;
    unsigned turns[TURNS_MAX]; /* not atomic: each belongs to one turn, and is seen when the run is over */
    atomic_uint inner;
};

static void turn(void *ctx, size_t i)
{
    must(i < TURNS_MAX);
    ((struct count *)ctx)->turns[i]++;
}

static void innermost_turn(void *ctx, size_t i)
{
    (void)i;
    atomic_fetch_add(&((struct count *)ctx)->inner, 1);
}

static void inner_turn(void *ctx, size_t i)
{
    (void)i;
    wn_pool_run(((struct count *)ctx)->pool, innermost_turn, ctx, 3);
}

static void nested_turn(void *ctx, size_t i)
{
    turn(ctx, i);
    wn_pool_run(((struct count *)ctx)->pool, inner_turn, ctx, 5);
}

static void run_checked(struct wn_pool *pool, wn_pool_fn fn, size_t n)
{
    struct count c = {.pool = pool};

    wn_pool_run(pool, fn, &c, n);
    for (size_t i = 0; i < TURNS_MAX; i++) must(c.turns[i] == (i < n));
    must(c.inner == (fn == nested_turn ? 5 * 3 * n : 0));
}

static void *caller(void *arg)
{
    for (int k = 0; k < 100; k++) run_checked(arg, k % 2 ? nested_turn : turn, (size_t)(k % 50));
    return NULL;
}

static void test_each_turn_once(void **state)
{
    static const struct wn_pool_opts shapes[] = {{0, 1}, {1, 1}, {3, 2}, {4, 16}};
    static const size_t sizes[] = {0, 1, 2, 3, 4, 5, TURNS_MAX}; /* fewer than the threads, as many, more */
    (void)state;

    run_checked(NULL, turn, TURNS_MAX);
    run_checked(NULL, nested_turn, 3);
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        struct wn_pool *pool = start(shapes[s].threads, shapes[s].queue_max);
        for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) run_checked(pool, turn, sizes[k]);
        wn_pool_stop(pool);
    }
}

static void test_callers_of_many_threads_and_loops_within_loops(void **state)
{
    static const struct wn_pool_opts shapes[] = {{1, 1}, {3, 2}, {4, 16}};
    pthread_t callers[4];
    (void)state;

    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        struct wn_pool *pool = start(shapes[s].threads, shapes[s].queue_max);
        for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&callers[i], NULL, caller, pool), 0);
        for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
        wn_pool_stop(pool);
    }
}

/* ---- helpers ---- */

static void meet(void *ctx, size_t i)
{
    (void)i;
    atomic_fetch_add((atomic_uint *)ctx, 1);
    wait_for(ctx, 4);
}

/* Four turns that all wait for each other end only if four threads take them. */
static void test_helpers_and_caller_work_at_the_same_time(void **state)
{
    struct wn_pool *pool = start(3, 1);
    (void)state;

    for (int round = 0; round < 20; round++) {
        atomic_uint met = 0;
        wn_pool_run(pool, meet, &met, 4);
        assert_int_equal(met, 4);
    }
    wn_pool_stop(pool);
}

struct late {
    pthread_t caller;
    atomic_uint begun;
    unsigned ended; /* by the helper */
};

static void late_turn(void *ctx, size_t i)
{
    struct late *l = ctx;

    (void)i;
    atomic_fetch_add(&l->begun, 1);
    wait_for(&l->begun, 2); /* so each of the two has a turn */
    if (pthread_equal(l->caller, pthread_self())) return;
    sleep_ms(20);
    l->ended = 1;
}

static void test_a_run_ends_after_its_last_turn(void **state)
{
    struct wn_pool *pool = start(1, 1);
    (void)state;

    for (int round = 0; round < 5; round++) {
        struct late l = {.caller = pthread_self()};
        wn_pool_run(pool, late_turn, &l, 2);
        assert_int_equal(l.ended, 1);
    }
    wn_pool_stop(pool);
}

/* ---- the queue ---- */

/* A loop whose caller and helper stay in their first turns until they are let go. */
struct held {
    struct wn_pool *pool;
    atomic_uint inside, go, left;
    pthread_t thread;
};

static void held_turn(void *ctx, size_t i)
{
    struct held *h = ctx;

    (void)i;
    atomic_fetch_add(&h->inside, 1);
    wait_for(&h->go, 1);
    atomic_fetch_add(&h->left, 1);
}

static void *run_held(void *arg)
{
    struct held *h = arg;

    wn_pool_run(h->pool, held_turn, h, 3);
    return NULL;
}

/* In: the pool's only helper and the caller are inside, and one turn is left, so the loop stays in the queue. */
static void hold(struct held *h, struct wn_pool *pool, unsigned inside)
{
    *h = (struct held){.pool = pool};
    assert_int_equal(pthread_create(&h->thread, NULL, run_held, h), 0);
    wait_for(&h->inside, inside);
}

static void let_go(struct held *h)
{
    atomic_store(&h->go, 1);
    pthread_join(h->thread, NULL);
    assert_int_equal(h->left, 3);
}

struct alone {
    pthread_t self;
    unsigned turns;
};

static void alone_turn(void *ctx, size_t i)
{
    struct alone *a = ctx;

    (void)i;
    must(pthread_equal(a->self, pthread_self()));
    a->turns++;
}

static void test_a_loop_that_finds_the_queue_full_waits_for_nobody(void **state)
{
    struct wn_pool *pool = start(1, 1);
    struct alone alone = {.self = pthread_self()};
    struct held held;
    atomic_uint met = 2; /* meet: two more make four */
    (void)state;

    hold(&held, pool, 2);
    wn_pool_run(pool, alone_turn, &alone, 50);
    assert_int_equal(alone.turns, 50);
    let_go(&held);
    wn_pool_run(pool, meet, &met, 2); /* the place in the queue is free again */
    wn_pool_stop(pool);
}

/* Loops leave the queue from its middle and its end, in whatever order their turns run out. */
static void test_loops_end_in_any_order(void **state)
{
    struct wn_pool *pool = start(1, 4);
    struct alone alone = {.self = pthread_self()};
    struct held first, second, third;
    atomic_uint met = 2;
    (void)state;

    hold(&first, pool, 2);
    hold(&second, pool, 1); /* its caller only: the helper is in the first */
    wn_pool_run(pool, alone_turn, &alone, 5); /* behind the second, and gone before it */
    hold(&third, pool, 1);
    let_go(&second); /* from between the others: its caller, or the helper, takes what is left */
    wn_pool_run(pool, alone_turn, &alone, 5);
    let_go(&third);
    wn_pool_run(pool, alone_turn, &alone, 5);
    assert_int_equal(alone.turns, 15);
    let_go(&first);
    wn_pool_run(pool, meet, &met, 2);
    wn_pool_stop(pool);
}

/* ---- start and stop ---- */

static void test_starts_and_stops(void **state)
{
    struct wn_pool *pool = NULL;
    struct wn_err err = {0};
    (void)state;

    for (int i = 0; i < 50; i++) wn_pool_stop(start(4, 1)); /* before a helper has looked, too */
    wn_pool_stop(start(0, WN_POOL_QUEUE_MAX));
    wn_pool_stop(NULL);
    assert_int_equal(wn_pool_start(&pool, &(struct wn_pool_opts){1, 0}, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "queue of 0"));
    assert_int_equal(wn_pool_start(&pool, &(struct wn_pool_opts){1, WN_POOL_QUEUE_MAX + 1}, NULL), WN_EINVAL);
    assert_int_equal(wn_pool_start(&pool, &(struct wn_pool_opts){WN_POOL_THREADS_MAX + 1, 1}, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "257 threads"));
    assert_null(pool);
    pool = start(WN_POOL_THREADS_MAX, 1);
    run_checked(pool, turn, TURNS_MAX);
    wn_pool_stop(pool);
}

/* A machine that is out of threads: an error that says how far it came, and no thread stays behind. */
static void test_a_thread_that_cannot_be_made(void **state)
{
    (void)state;
    for (int made = 0; made < 4; made++) {
        struct wn_pool *pool = NULL;
        struct wn_err err = {0};
        char want[64];
        creations_left = made;
        snprintf(want, sizeof(want), "thread %d of 4: %s", made + 1, strerror(EAGAIN));
        assert_int_equal(wn_pool_start(&pool, &(struct wn_pool_opts){4, 1}, &err), WN_EIO);
        assert_non_null(strstr(err.text, want));
        assert_null(pool);
    }
    creations_left = -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_turn_once),
        cmocka_unit_test(test_callers_of_many_threads_and_loops_within_loops),
        cmocka_unit_test(test_helpers_and_caller_work_at_the_same_time),
        cmocka_unit_test(test_a_run_ends_after_its_last_turn),
        cmocka_unit_test(test_a_loop_that_finds_the_queue_full_waits_for_nobody),
        cmocka_unit_test(test_loops_end_in_any_order),
        cmocka_unit_test(test_starts_and_stops),
        cmocka_unit_test(test_a_thread_that_cannot_be_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
