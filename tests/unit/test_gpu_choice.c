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

#define MIG_A "MIG-6f1b9a2c-0d53-5b1d-9b1e-2a1f4b3c5d6e"
#define MIG_B "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0" /* as drivers before 470 name them */

/* What the variable becomes. */
static const char *mig(struct wn_gpu_place p)
{
    static char out[WN_GPU_NAME_MAX];
    struct wn_err err = {0};
    if (wn_gpu_choose_mig(&p, out, &err) != WN_OK) fail_msg("%s", err.text);
    return out;
}

static void refused_mig(struct wn_gpu_place p, const char *word)
{
    char out[WN_GPU_NAME_MAX];
    struct wn_err err = {0};
    assert_int_equal(wn_gpu_choose_mig(&p, out, &err), WN_EINVAL);
    if (!strstr(err.text, word) || !strstr(err.text, "CUDA_VISIBLE_DEVICES=") || !strstr(err.text, p.visible_env))
        fail_msg("'%s' does not say '%s'", err.text, word);
}

/* Of several MIG instances CUDA would show every rank the first. */
static void ranks_take_a_mig_instance_each(void **state)
{
    const char *both = MIG_A ", " MIG_B;
    (void)state;
    assert_string_equal(mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 2, 0, both}), MIG_A);
    assert_string_equal(mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 2, 1, both}), MIG_B);
    assert_string_equal(mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 1, 1, 0, both}), MIG_B); /* the next replica */
    /* one is bound, or asked for, or there are none: CUDA does it */
    assert_string_equal(mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 2, 1, MIG_A}), "");
    assert_string_equal(mig((struct wn_gpu_place){0, 0, 0, 2, 1, both}), "");
    for (uint32_t i = 0; i < 4; i++) {
        static const char *const others[] = {NULL, "", "0,1", "GPU-1a,GPU-2b"};
        assert_string_equal(mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 2, 1, others[i]}), "");
    }
    refused_mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 3, 0, MIG_A "," MIG_B}, "3 ranks");
    refused_mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 1, 0, MIG_A ",0"}, "'0' is no MIG instance");
    refused_mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 1, 0, MIG_A ",,"}, "'' is no MIG instance");
    refused_mig((struct wn_gpu_place){0, WN_GPU_UNASKED, 0, 1, 0, MIG_A "," MIG_A}, "twice");
}

static void lists_are_counted(void **state)
{
    (void)state;
    assert_int_equal(wn_gpu_listed(NULL), 0);
    assert_int_equal(wn_gpu_listed(""), 0);
    assert_int_equal(wn_gpu_listed("  "), 0);
    assert_int_equal(wn_gpu_listed("3"), 1);
    assert_int_equal(wn_gpu_listed("GPU-1a, GPU-2b,7"), 3);
}

/* UUIDs are numbered from 0 as they are listed, and what CUDA leaves out of a list is said. */
static void uuids_and_what_is_hidden(void **state)
{
    (void)state;
    assert_int_equal(chosen((struct wn_gpu_place){2, WN_GPU_UNASKED, 0, 2, 1, "GPU-1a,GPU-2b"}), 1);
    assert_int_equal(chosen((struct wn_gpu_place){1, WN_GPU_UNASKED, 0, 4, 3, "GPU-1a"}), 0);
    assert_int_equal(refused((struct wn_gpu_place){1, WN_GPU_UNASKED, 0, 2, 0, "GPU-1a,GPU-2b"}, "CUDA stops at"),
                     WN_EINVAL);
    assert_int_equal(refused((struct wn_gpu_place){1, 1, 0, 1, 0, MIG_A "," MIG_B}, "shows a process the first"),
                     WN_EINVAL);
    /* one GPU, or the one MIG instance that an unbound process sees: ranks share it only if that is said */
    assert_int_equal(refused((struct wn_gpu_place){1, WN_GPU_UNASKED, 0, 2, 1, NULL}, "1 GPU is visible"), WN_EINVAL);
    assert_int_equal(chosen((struct wn_gpu_place){1, WN_GPU_UNASKED, 0, 1, 0, NULL}), 0);
    assert_int_equal(chosen((struct wn_gpu_place){1, 0, 0, 2, 1, NULL}), 0);
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
        cmocka_unit_test(refusals_name_the_cause),        cmocka_unit_test(ranks_take_a_mig_instance_each),
        cmocka_unit_test(lists_are_counted),              cmocka_unit_test(uuids_and_what_is_hidden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
