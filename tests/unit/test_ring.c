/* tests/unit/test_ring.c - base/ring: order, fullness, wake-ups, and two threads. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>

#include "base/ring.h"

static void *item(uintptr_t i)
{
    return (void *)i; /* a number in place of a pointer: the ring never looks */
}

static void test_order_and_fullness(void **state)
{
    struct wn_ring *ring = NULL;
    (void)state;
    assert_int_equal(wn_ring_create(&ring, 3, NULL), WN_OK); /* rounded up to 4 */
    for (int round = 0; round < 5; round++) {
        for (uintptr_t i = 1; i <= 4; i++) assert_true(wn_ring_put(ring, item(i)));
        assert_false(wn_ring_put(ring, item(5)));
        for (uintptr_t i = 1; i <= 4; i++) assert_ptr_equal(wn_ring_take(ring), item(i));
        assert_null(wn_ring_take(ring));
    }
    wn_ring_destroy(ring, NULL);
}

static void test_wake(void **state)
{
    struct wn_ring *ring = NULL;
    struct pollfd p = {.events = POLLIN};
    (void)state;
    assert_int_equal(wn_ring_create(&ring, 8, NULL), WN_OK);
    p.fd = wn_ring_fd(ring);
    assert_int_equal(poll(&p, 1, 0), 0);
    assert_true(wn_ring_put(ring, item(1)));
    assert_int_equal(poll(&p, 1, 0), 1);
    wn_ring_clear_wake(ring);
    assert_int_equal(poll(&p, 1, 0), 0);
    assert_ptr_equal(wn_ring_take(ring), item(1)); /* clearing the wake-up loses nothing */
    assert_true(wn_ring_push(ring, item(2)) && wn_ring_push(ring, item(3)));
    assert_int_equal(poll(&p, 1, 0), 0);
    wn_ring_wake(ring);
    assert_int_equal(poll(&p, 1, 0), 1);
    assert_ptr_equal(wn_ring_take(ring), item(2));
    assert_ptr_equal(wn_ring_take(ring), item(3));
    wn_ring_destroy(ring, NULL);
}

static int dropped;

static void count_drop(void *x)
{
    (void)x;
    dropped++;
}

static void test_destroy_drops(void **state)
{
    struct wn_ring *ring = NULL;
    (void)state;
    assert_int_equal(wn_ring_create(&ring, 8, NULL), WN_OK);
    for (uintptr_t i = 1; i <= 3; i++) assert_true(wn_ring_put(ring, item(i)));
    dropped = 0;
    wn_ring_destroy(ring, count_drop);
    assert_int_equal(dropped, 3);
    wn_ring_destroy(NULL, count_drop);
}

static void test_bad_capacity(void **state)
{
    struct wn_ring *ring = NULL;
    struct wn_err err = {0};
    (void)state;
    assert_int_equal(wn_ring_create(&ring, 0, &err), WN_EINVAL);
    assert_int_equal(wn_ring_create(&ring, 1u << 30, &err), WN_EINVAL);
    assert_null(ring);
}

#define MANY 100000

static void *writer(void *arg)
{
    for (uintptr_t i = 1; i <= MANY; i++)
        while (!wn_ring_put(arg, item(i))) sched_yield();
    return NULL;
}

static void test_two_threads(void **state)
{
    struct wn_ring *ring = NULL;
    pthread_t thread;
    uintptr_t next = 1;
    (void)state;
    assert_int_equal(wn_ring_create(&ring, 16, NULL), WN_OK);
    assert_int_equal(pthread_create(&thread, NULL, writer, ring), 0);
    while (next <= MANY) {
        struct pollfd p = {.fd = wn_ring_fd(ring), .events = POLLIN};
        void *got;
        assert_int_equal(poll(&p, 1, 10000), 1); /* a lost wake-up shows as a time-out here */
        wn_ring_clear_wake(ring);
        while ((got = wn_ring_take(ring)) != NULL) assert_ptr_equal(got, item(next++));
    }
    pthread_join(thread, NULL);
    wn_ring_destroy(ring, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_fullness), cmocka_unit_test(test_wake),
        cmocka_unit_test(test_destroy_drops),      cmocka_unit_test(test_bad_capacity),
        cmocka_unit_test(test_two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
