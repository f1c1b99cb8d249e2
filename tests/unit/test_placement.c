/* Which cores ranks get, on machines that are made up. */
#include "daemon/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static hwloc_topology_t machine(const char *what)
{
    hwloc_topology_t t;
    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, what), 0);
    assert_int_equal(hwloc_topology_load(t), 0);
    return t;
}

/* Each rank has cores of its own, all cores are used, and none spans sockets. */
static void shares_are_equal_and_near(void **state)
{
    hwloc_topology_t t = machine("package:2 l3:1 core:8 pu:2");
    hwloc_cpuset_t used = hwloc_bitmap_alloc(), set = hwloc_bitmap_alloc();
    hwloc_const_cpuset_t all = hwloc_topology_get_allowed_cpuset(t);
    (void)state;
    for (uint32_t rank = 0; rank < 4; rank++) {
        const struct wn_placement p = {.ranks = 4, .rank = rank};
        uint32_t threads = 0;
        assert_true(wn_placement_choose(t, all, &p, set, &threads));
        assert_int_equal(threads, 4); /* cores, not hyper-threads */
        assert_false(hwloc_bitmap_intersects(set, used));
        hwloc_bitmap_or(used, used, set);
        assert_true(hwloc_bitmap_isincluded(set, hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, rank / 2)->cpuset));
    }
    assert_true(hwloc_bitmap_isequal(used, all));
    hwloc_bitmap_free(used);
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(t);
}

/* More processes that compute than cores: nobody is bound, and a rank has a fair share of threads, or one. */
static void nobody_is_bound_when_crowded(void **state)
{
    hwloc_topology_t t = machine("core:4 pu:1");
    hwloc_cpuset_t set = hwloc_bitmap_alloc();
    hwloc_const_cpuset_t all = hwloc_topology_get_allowed_cpuset(t);
    const struct wn_placement crowded[] = {{.ranks = 4, .rank = 1, .others = 1}, {.ranks = 9, .rank = 8}},
                              fits = {.ranks = 3, .rank = 2, .others = 1};
    uint32_t threads = 0;
    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_false(wn_placement_choose(t, all, &crowded[i], set, &threads));
        assert_int_equal(threads, 1);
    }
    assert_true(wn_placement_choose(t, all, &fits, set, &threads));
    assert_true(threads >= 1 && threads <= 2);
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(t);
}

/* Only what the process may use is shared out. */
static void only_what_is_allowed(void **state)
{
    hwloc_topology_t t = machine("package:2 core:4 pu:1");
    hwloc_cpuset_t set = hwloc_bitmap_alloc(), allowed = hwloc_bitmap_alloc();
    const struct wn_placement p = {.ranks = 2, .rank = 1};
    uint32_t threads = 0;
    (void)state;
    hwloc_bitmap_set_range(allowed, 4, 7);
    assert_true(wn_placement_choose(t, allowed, &p, set, &threads));
    assert_int_equal(threads, 2);
    assert_true(hwloc_bitmap_isincluded(set, allowed));
    hwloc_bitmap_free(allowed);
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(t);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_are_equal_and_near),
        cmocka_unit_test(nobody_is_bound_when_crowded),
        cmocka_unit_test(only_what_is_allowed),
    };
    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
