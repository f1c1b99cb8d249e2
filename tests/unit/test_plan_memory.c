/* The memory plan of LLaVA-1.5-13B on devices of several sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hostmem.h"
#include "shard/plan_memory.h"
#include "tests/scratch.h"

static struct wn_memory_limits limits_of(uint64_t gb)
{
    return (struct wn_memory_limits){.device_bytes = gb * 1000000000u,
                                     .reserve_bytes = 500000000u,
                                     .page_tokens = 16,
                                     .pages_min = 128,
                                     .pages_max = 1024,
                                     .rows_max = 2048,
                                     .wanted_max = 64,
                                     .slots = 8};
}

static struct wn_plan plan_of(uint32_t stages, uint32_t tensors)
{
    struct wn_model m;
    struct wn_plan p;
    assert_int_equal(wn_model_open(&m, "tests/golden/config/llava-1.5-13b.json", NULL), WN_OK);
    assert_int_equal(wn_plan_make(&p, &m, stages, tensors, NULL, WN_BF16, NULL), WN_OK);
    return p;
}

static void one_device(void **state)
{
    struct wn_plan p = plan_of(1, 1);
    struct wn_memory_limits l = limits_of(80);
    struct wn_memory_plan m;
    uint64_t used;
    (void)state;

    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, NULL), WN_OK);
    assert_int_equal(m.weight_bytes, wn_plan_weight_bytes(&p, 0));
    assert_int_equal(m.page_bytes, 16 * 40 * 2 * 5120 * 2); /* 13 MB: 40 layers, keys and values */
    used = m.weight_bytes + m.step_bytes + m.feature_bytes + l.reserve_bytes;
    assert_true(used + m.pages * m.page_bytes <= l.device_bytes);
    assert_true(used + (m.pages + 1) * m.page_bytes > l.device_bytes);
    assert_true(m.pages > 3500 && m.pages < 4100); /* (80 - 27 GB) / 13 MB */
}

static void too_small(void **state)
{
    struct wn_plan p = plan_of(1, 1);
    struct wn_memory_limits l = limits_of(24);
    struct wn_memory_plan m;
    struct wn_err err = {0};
    (void)state;

    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, &err), WN_ENOMEM);
    assert_int_equal(m.pages, 0);
    assert_non_null(strstr(err.text, "-tp 2 -pp 1 would fit"));
    assert_non_null(strstr(err.text, "rank 0 needs"));
    assert_non_null(strstr(err.text, "128 KV pages of 12.5 MiB (1.6 GiB)"));
    p = plan_of(1, 2); /* and it does */
    for (uint32_t r = 0; r < 2; r++) assert_int_equal(wn_plan_memory(&m, &p, r, &l, NULL), WN_OK);
    l.reserve_bytes = l.device_bytes; /* a device that no layout fits */
    p = plan_of(1, 1);
    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, &err), WN_ENOMEM);
    assert_null(strstr(err.text, "would fit"));
}

/* 13B with its layers in int8 fits where it did not; a layout that would fit is sought among such plans, too. */
static void int8_fits(void **state)
{
    struct wn_plan p = plan_of(1, 1);
    struct wn_memory_limits l = limits_of(24);
    struct wn_memory_plan m;
    struct wn_err err = {0};
    (void)state;

    p.linear = WN_I8;
    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, &err), WN_OK);
    assert_true(m.weight_bytes > 13300000000 && m.weight_bytes < 13500000000);
    assert_true(m.pages > 550 && m.pages < 750); /* (23.5 - 14.6 GB) / 13 MB */
    l = limits_of(12);
    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, &err), WN_ENOMEM);
    assert_non_null(strstr(err.text, "-tp 2 -pp 1 would fit")); /* of bfloat16 it would take four */
}

/* Four ranks on one device take what each of them takes, and have the same number of pages. */
static void shared_device(void **state)
{
    static const uint32_t all[] = {0, 1, 2, 3};
    struct wn_plan p = plan_of(2, 2);
    struct wn_memory_limits l = limits_of(80);
    struct wn_memory_plan m, one, sum = {0};
    struct wn_err err = {0};
    (void)state;

    for (uint32_t r = 0; r < 4; r++) {
        assert_int_equal(wn_plan_memory(&one, &p, r, &l, NULL), WN_OK);
        sum.weight_bytes += one.weight_bytes;
        sum.step_bytes += one.step_bytes;
        sum.feature_bytes += one.feature_bytes;
        sum.page_bytes += one.page_bytes;
        assert_int_equal(one.feature_bytes, r < 2 ? 8ull * 577 * 1024 * 2 : 0); /* the first stage holds them */
    }
    assert_int_equal(wn_plan_memory_shared(&m, &p, all, 4, &l, NULL), WN_OK);
    assert_int_equal(m.weight_bytes, sum.weight_bytes);
    assert_int_equal(m.step_bytes, sum.step_bytes);
    assert_int_equal(m.feature_bytes, sum.feature_bytes);
    assert_int_equal(m.page_bytes, sum.page_bytes);
    assert_true(m.pages > 3500 && m.pages < 4100); /* as one rank there would have: it is the same model */
    l.replicas = 3;
    assert_int_equal(wn_plan_memory_shared(&m, &p, all, 4, &l, &err), WN_ENOMEM); /* 3 x 27 GB of weights */
    assert_non_null(strstr(err.text, "12 ranks on one device need"));
    assert_non_null(strstr(err.text, "128 KV pages of 3.1 MiB each"));
    assert_int_equal(m.weight_bytes, 3 * sum.weight_bytes);
}

/* The table and the JSON say what wn_plan_memory says. */
static void printed(void **state)
{
    struct wn_plan p = plan_of(1, 2);
    struct wn_memory_limits l = limits_of(24);
    struct wn_memory_plan m;
    char want[64], *text = NULL, *json;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    (void)state;

    assert_non_null(out);
    assert_int_equal(wn_plan_memory(&m, &p, 1, &l, NULL), WN_OK);
    wn_plan_print_memory(&p, &l, out);
    fclose(out);
    snprintf(want, sizeof(want), " %llu\n", (unsigned long long)m.pages);
    assert_non_null(strstr(text, "pages that fit\n"));
    assert_non_null(strstr(text, want));
    free(text);
    assert_non_null(json = wn_plan_json(&p, NULL, &l));
    snprintf(want, sizeof(want), "\"pages_that_fit\": %llu", (unsigned long long)m.pages);
    assert_non_null(strstr(json, want));
    free(json);
    l.device_bytes = 0; /* not known: nothing is said about it */
    assert_non_null(json = wn_plan_json(&p, NULL, &l));
    assert_null(strstr(json, "pages_that_fit"));
    free(json);
}

static uint64_t free_of(const char *root)
{
    struct wn_hostmem m;
    assert_int_equal(wn_hostmem_at(&m, root, NULL), WN_OK);
    return m.free_bytes;
}

/* The tightest of the kernel's estimate and of all control groups around the process. */
static void host_memory(void **state)
{
    char root[64];
    struct wn_hostmem m;
    (void)state;

    assert_int_equal(wn_hostmem(&m, NULL), WN_OK); /* of this machine */
    assert_true(m.free_bytes > 0 && m.free_bytes <= m.total_bytes);
    assert_true(scratch_make(root, sizeof(root), "hostmem"));
    assert_int_equal(wn_hostmem_at(&m, root, NULL), WN_EIO);
    assert_true(scratch_text(root, "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  800 kB\n"));
    assert_int_equal(free_of(root), 800 * 1024);
    assert_true(scratch_text(root, "proc/self/cgroup", "0::/job/step\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/job/step/memory.max", "max\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/job/memory.max", "600000\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/job/memory.current", "500000\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/job/memory.stat", "anon 100000\nfile 300000\nfile_mapped 7\n"));
    assert_int_equal(free_of(root), 400000); /* cached pages can be had */
    assert_true(scratch_text(root, "proc/self/cgroup", "9:cpuset:/x\n4:memory:/slurm/job_7\n"));
    /* version 1's "unlimited" */
    assert_true(scratch_text(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "300000\n"));
    assert_true(scratch_text(root, "sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", "400000\n"));
    assert_int_equal(free_of(root), 0);
    assert_true(scratch_text(root, "sys/fs/cgroup/memory/slurm/job_7/memory.stat", "cache 1\ntotal_cache 250000\n"));
    assert_int_equal(free_of(root), 150000);
    assert_true(scratch_remove(root));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(one_device), cmocka_unit_test(too_small),
                                              cmocka_unit_test(int8_fits), cmocka_unit_test(shared_device),
                                              cmocka_unit_test(printed), cmocka_unit_test(host_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
