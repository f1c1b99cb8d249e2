/* base/ring.c - see ring.h. */
#include "base/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING_CAPACITY_MAX (1u << 20)

struct wn_ring {
    uint32_t mask;
    int fd;
    /* Positions grow without end and wrap at 2^32; head is the reader's, tail the writer's. */
    _Alignas(64) _Atomic uint32_t head;
    _Alignas(64) _Atomic uint32_t tail;
    void *items[];
};

wn_status wn_ring_create(struct wn_ring **out, uint32_t capacity, struct wn_err *err)
{
    struct wn_ring *ring;
    uint32_t n = 1;
    size_t bytes;

    if (capacity == 0 || capacity > RING_CAPACITY_MAX)
        return wn_fail(err, WN_EINVAL, "ring capacity %u is not in 1..%u", capacity,
                       RING_CAPACITY_MAX);
    while (n < capacity) n *= 2;
    bytes = (sizeof(*ring) + n * sizeof(void *) + 63) / 64 * 64;
    ring = aligned_alloc(64, bytes);
    if (!ring) return wn_fail(err, WN_ENOMEM, "ring of %u items", n);
    memset(ring, 0, bytes);
    ring->mask = n - 1;
    ring->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ring->fd < 0) {
        free(ring);
        return wn_fail(err, WN_EIO, "eventfd: %s", strerror(errno));
    }
    *out = ring;
    return WN_OK;
}

void wn_ring_destroy(struct wn_ring *ring, void (*drop)(void *item))
{
    void *item;
    if (!ring) return;
    while ((item = wn_ring_take(ring)) != NULL) {
        if (drop) drop(item);
    }
    close(ring->fd);
    free(ring);
}

bool wn_ring_push(struct wn_ring *ring, void *item)
{
    const uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

    if (tail - atomic_load_explicit(&ring->head, memory_order_acquire) > ring->mask) return false;
    ring->items[tail & ring->mask] = item;
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    return true;
}

void wn_ring_wake(struct wn_ring *ring)
{
    const uint64_t one = 1;
    (void)!write(ring->fd, &one, sizeof(one)); /* EAGAIN: the counter is at its end, so the reader is awake */
}

bool wn_ring_put(struct wn_ring *ring, void *item)
{
    if (!wn_ring_push(ring, item)) return false;
    wn_ring_wake(ring);
    return true;
}

void *wn_ring_take(struct wn_ring *ring)
{
    const uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    void *item;

    if (head == atomic_load_explicit(&ring->tail, memory_order_acquire)) return NULL;
    item = ring->items[head & ring->mask];
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    return item;
}

int wn_ring_fd(const struct wn_ring *ring)
{
    return ring->fd;
}

void wn_ring_clear_wake(struct wn_ring *ring)
{
    uint64_t n;
    (void)!read(ring->fd, &n, sizeof(n));
}
