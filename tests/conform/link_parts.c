/* tests/conform/link_parts.c - see link_parts.h. */
#include "tests/conform/link_parts.h"

#include <stdio.h>
#include <string.h>

#define RANKS_MAX 16

void link_check_failed(int rank, const char *name, int *bad, const char *file, int line, const char *what,
                       const char *why)
{
    if ((*bad)++ < 5)
        fprintf(stderr, "rank %d: %s: %s:%d: %s%s%s\n", rank, name, file, line, what, why[0] ? ": " : "", why);
}

uint64_t link_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

float link_element(int rank, size_t i, uint64_t seed)
{
    const uint64_t u = link_mix(link_mix(seed + i) + (uint64_t)rank);
    const uint32_t bits = (127 - 20 + (uint32_t)(u & 1023) % 41) << 23;
    float scale;

    memcpy(&scale, &bits, sizeof(scale));
    return (float)((int64_t)(u >> 40) - (1 << 23)) * scale;
}

static float tree_sum(const float *parts, int first, int width, int n)
{
    float left;
    if (width == 1) return parts[first];
    left = tree_sum(parts, first, width / 2, n);
    return first + width / 2 < n ? left + tree_sum(parts, first + width / 2, width / 2, n) : left;
}

float link_sum(const int *ranks, int n, size_t i, uint64_t seed)
{
    float parts[RANKS_MAX];
    int width = 1;

    WN_ASSERT(n <= RANKS_MAX);
    while (width < n) width *= 2;
    for (int k = 0; k < n; k++) parts[k] = link_element(ranks[k], i, seed);
    return tree_sum(parts, 0, width, n);
}

static void *thread_main(void *arg)
{
    struct link_thread *t = arg;
    t->run(t);
    return NULL;
}

void link_threads_run(int size, void (*run)(struct link_thread *t), void *arg, struct link_suite_result *sum)
{
    struct link_thread threads[LINK_THREADS_MAX] = {0};
    struct wn_local_hub *hub = NULL;

    WN_ASSERT(size <= LINK_THREADS_MAX && wn_local_hub_create(&hub, size, NULL) == WN_OK);
    for (int i = 0; i < size; i++) {
        threads[i] = (struct link_thread){.hub = hub, .rank = i, .size = size, .run = run, .arg = arg};
        WN_ASSERT(pthread_create(&threads[i].thread, NULL, thread_main, &threads[i]) == 0);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(threads[i].thread, NULL);
        if (i == 0) sum->passed += threads[i].result.passed;
        sum->failed += threads[i].result.failed;
    }
    wn_local_hub_destroy(hub);
}

struct wn_link *link_thread_open(const struct link_thread *t)
{
    const struct wn_group group = {.rank = t->rank, .size = t->size, .hub = t->hub};
    struct wn_link *link = NULL;
    struct wn_err err = {0};

    if (wn_link_open(&link, "local", &group, &err) != WN_OK) fprintf(stderr, "%s\n", err.text);
    WN_ASSERT(link);
    return link;
}

int link_suite_report(const char *name, struct link_suite_result sum)
{
    printf("%s: %d passed, %d failed\n", name, sum.passed, sum.failed);
    return sum.failed || !sum.passed ? 1 : 0;
}
