/* Which GPU a rank takes from what mpirun, srun and CUDA show its process, and what NCCL is told: with simulated
 * devices, as many as a binding leaves. The choice itself: tests/unit/test_gpu_choice.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/worker.h"

static struct wn_config cfg;

static int fresh(void **state)
{
    static const char *const names[] = {
        "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_STEP_ID",
        "SLURM_LOCALID",              "SLURM_NODEID",               "SLURM_STEP_TASKS_PER_NODE",
        "CUDA_VISIBLE_DEVICES",       "NCCL_SOCKET_IFNAME",         "NCCL_HOSTID"};
    (void)state;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) unsetenv(names[i]);
    setenv("WN_CUDASIM_DEVICES", "4", 1);
    wn_config_defaults(&cfg);
    snprintf(cfg.backend, sizeof(cfg.backend), "cuda");
    return 0;
}

static int device_of(uint32_t rank, uint32_t size)
{
    struct wn_err err = {0};
    int device = -1;

    if (wn_worker_device(&cfg, rank, size, &device, &err) != WN_OK) fail_msg("%s", err.text);
    return device;
}

static void under_mpirun(void **state)
{
    (void)state;
    setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
    snprintf(cfg.name, sizeof(cfg.name), "replica-0");
    assert_int_equal(device_of(3, 4), 1);
    snprintf(cfg.name, sizeof(cfg.name), "replica-1");
    assert_int_equal(device_of(3, 4), 3);
    assert_null(getenv("NCCL_HOSTID"));
}

/* The second node of a step, with three of its five tasks, that all see all GPUs of the node. */
static void under_srun(void **state)
{
    struct wn_err err = {0};
    int device;
    (void)state;

    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_STEP_TASKS_PER_NODE", "2,3", 1);
    setenv("SLURM_NODEID", "1", 1);
    setenv("SLURM_LOCALID", "2", 1);
    assert_int_equal(device_of(4, 5), 2);
    setenv("SLURM_LOCALID", "0", 1);
    assert_int_equal(device_of(2, 5), 0);
    setenv("WN_CUDASIM_DEVICES", "2", 1);
    setenv("CUDA_VISIBLE_DEVICES", "1,3", 1);
    assert_int_equal(wn_worker_device(&cfg, 2, 5, &device, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "3 ranks"));
    assert_non_null(strstr(err.text, "1,3"));
}

/* srun --gpus-per-task=1: each task sees one GPU, another one, as number 0. */
static void bound_by_srun(void **state)
{
    (void)state;
    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_STEP_TASKS_PER_NODE", "4", 1);
    setenv("SLURM_NODEID", "0", 1);
    setenv("SLURM_LOCALID", "3", 1);
    setenv("CUDA_VISIBLE_DEVICES", "3", 1);
    setenv("WN_CUDASIM_DEVICES", "1", 1);
    assert_int_equal(device_of(3, 4), 0);
    assert_null(getenv("NCCL_HOSTID")); /* they are different cards of one host, and NCCL may know it */
}

/* One GPU for all of them, which NCCL refuses within a host. */
static void one_is_shared(void **state)
{
    char first[128];
    (void)state;

    snprintf(cfg.backend, sizeof(cfg.backend), "cuda:2");
    setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0", 1);
    assert_int_equal(device_of(0, 2), 2);
    assert_non_null(getenv("NCCL_HOSTID"));
    snprintf(first, sizeof(first), "%s", getenv("NCCL_HOSTID"));
    unsetenv("NCCL_HOSTID");
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
    assert_int_equal(device_of(1, 2), 2);
    assert_string_not_equal(getenv("NCCL_HOSTID"), first);
    setenv("NCCL_HOSTID", "mine", 1);
    assert_int_equal(device_of(1, 2), 2);
    assert_string_equal(getenv("NCCL_HOSTID"), "mine");
}

static void interface_is_passed_on(void **state)
{
    const struct wn_netif none = {0}, chosen = {.name = "eth1", .address = "10.0.0.1"};
    (void)state;

    wn_worker_use_netif(&cfg, &none);
    assert_null(getenv("NCCL_SOCKET_IFNAME"));
    wn_worker_use_netif(&cfg, &chosen);
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "=eth1"); /* and not eth10 */
    unsetenv("NCCL_SOCKET_IFNAME");
    snprintf(cfg.interface, sizeof(cfg.interface), "ib0");
    wn_worker_use_netif(&cfg, &none);
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "=ib0");
    setenv("NCCL_SOCKET_IFNAME", "users", 1);
    wn_worker_use_netif(&cfg, &chosen);
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "users");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(under_mpirun, fresh),  cmocka_unit_test_setup(under_srun, fresh),
        cmocka_unit_test_setup(bound_by_srun, fresh), cmocka_unit_test_setup(one_is_shared, fresh),
        cmocka_unit_test_setup(interface_is_passed_on, fresh),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
