/* Which GPU a rank takes, for what CUDA and launchers show it. */
#include "daemon/gpu_choice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static int chosen(struct wn_gpu_place p)
{
    struct wn_err err = {0};
    int device = -7;
    assert_int_equal(wn_gpu_choose(&p, &device, &err), WN_OK);
    return device;
}

static wn_status refused(struct wn_gpu_place p, const char *word)
{
    struct wn_err err = {0};
    int device = -7;
    wn_status rc = wn_gpu_choose(&p, &device, &err);
    assert_int_equal(device, -7);
    assert_non_null(strstr(err.text, word));
    return rc;
}

/* Slurm's binding, or CUDA_VISIBLE_DEVICES=5: one device, whatever the rank's place is. */
static void one_visible_device_is_number_0(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 4; rank++)
        assert_int_equal(chosen((struct wn_gpu_place){1, WN_GPU_UNASKED, 2, 4, rank, "5"}), 0);
}

static void ranks_of_a_host_take_one_each(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 4; rank++)
        assert_int_equal(chosen((struct wn_gpu_place){4, WN_GPU_UNASKED, 0, 4, rank, NULL}), (int)rank);
    /* a mask is CUDA's affair: of "2,3" the numbers are 0 and 1 */
    assert_int_equal(chosen((struct wn_gpu_place){2, WN_GPU_UNASKED, 0, 2, 1, "2,3"}), 1);
}

static void the_next_replica_goes_on(void **state)
{
    (void)state;
    assert_int_equal(chosen((struct wn_gpu_place){4, WN_GPU_UNASKED, 1, 2, 0, NULL}), 2);
    assert_int_equal(chosen((struct wn_gpu_place){4, WN_GPU_UNASKED, 1, 2, 1, NULL}), 3);
    /* on a host of its own, or where all are taken, it starts from the front */
    assert_int_equal(chosen((struct wn_gpu_place){4, WN_GPU_UNASKED, 1, 4, 3, NULL}), 3);
    assert_int_equal(chosen((struct wn_gpu_place){4, WN_GPU_UNASKED, 4000000000u, 4, 1, NULL}), 1);
}

static void what_is_asked_for_holds(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 4; rank++)
        assert_int_equal(chosen((struct wn_gpu_place){2, 1, 0, 4, rank, NULL}), 1);
    assert_int_equal(refused((struct wn_gpu_place){2, 2, 0, 1, 0, "0,1"}, "GPU 2"), WN_EINVAL);
}

static void refusals_name_the_cause(void **state)
{
    (void)state;
    assert_int_equal(refused((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 1, 0, ""}, "no GPU"), WN_EUNSUPP);
    assert_int_equal(refused((struct wn_gpu_place){0, 0, 0, 1, 0, NULL}, "not set"), WN_EUNSUPP);
    assert_int_equal(refused((struct wn_gpu_place){2, WN_GPU_UNASKED, 0, 3, 0, "6,7"}, "6,7"), WN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_visible_device_is_number_0), cmocka_unit_test(ranks_of_a_host_take_one_each),
        cmocka_unit_test(the_next_replica_goes_on),       cmocka_unit_test(what_is_asked_for_holds),
        cmocka_unit_test(refusals_name_the_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
