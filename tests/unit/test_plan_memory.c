/* The memory plan of LLaVA-1.5-13B on devices of several sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/plan_memory.h"

static struct wn_memory_limits limits_of(uint64_t gb)
{
    return (struct wn_memory_limits){.device_bytes = gb * 1000000000u,
                                     .reserve_bytes = 500000000u,
                                     .page_tokens = 16,
                                     .pages_min = 128,
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
    p = plan_of(1, 2); /* and it does */
    for (uint32_t r = 0; r < 2; r++) assert_int_equal(wn_plan_memory(&m, &p, r, &l, NULL), WN_OK);
    l.reserve_bytes = l.device_bytes; /* a device that no layout fits */
    p = plan_of(1, 1);
    assert_int_equal(wn_plan_memory(&m, &p, 0, &l, &err), WN_ENOMEM);
    assert_null(strstr(err.text, "would fit"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(one_device), cmocka_unit_test(too_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
