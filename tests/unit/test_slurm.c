/* tests/unit/test_slurm.c - what a process makes of a Slurm job's environment, and the file by which clients find its
 * service. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "daemon/slurm.h"
#include "tests/scratch.h"

static char home[64];

static void in_job(const char *id, const char *nodes)
{
    setenv("SLURM_JOB_ID", id, 1);
    setenv("SLURM_JOB_NODELIST", nodes, 1);
}

static void refused(const char *words)
{
    struct wn_slurm s = {0};
    struct wn_err err = {0};

    assert_int_equal(wn_slurm_open(&s, &err), WN_EFORMAT);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    wn_slurm_close(&s);
}

static void environment(void **state)
{
    struct wn_slurm s = {0};
    struct wn_err err = {0};

    (void)state;
    assert_false(wn_slurm_inside());
    in_job("4711", "n[1-3]");
    assert_true(wn_slurm_inside());
    setenv("SLURM_RESTART_COUNT", "2", 1);
    setenv("SLURM_JOB_END_TIME", "1700000000", 1);
    assert_int_equal(wn_slurm_open(&s, &err), WN_OK);
    assert_string_equal(s.job, "4711");
    assert_int_equal(s.nodes.n, 3);
    assert_int_equal(s.restarts, 2);
    assert_int_equal(s.end_s, 1700000000);
    wn_slurm_close(&s);
    setenv("SLURM_JOB_END_TIME", "NONE", 1);
    refused("SLURM_JOB_END_TIME: 'NONE' is not a number");
    unsetenv("SLURM_JOB_END_TIME");
    in_job("../etc", "n1");
    refused("not a job's number");
    in_job("1", "n[1-");
    refused("node list 'n[1-'");
    unsetenv("SLURM_RESTART_COUNT");
}

static void drains_at(int64_t left_s, uint32_t grace_s, int64_t want_s)
{
    const struct wn_slurm s = {.end_s = (int64_t)time(NULL) + left_s};
    const double got_s = (double)(wn_slurm_drain_us(&s, grace_s) - wn_now_us()) * 1e-6;

    if (got_s < (double)want_s - 1.5 || got_s > (double)want_s + 0.5)
        fail_msg("%lld s left: drains in %.1f s, not in %lld", (long long)left_s, got_s, (long long)want_s);
}

static void ends(void **state)
{
    const struct wn_slurm open_end = {0};

    (void)state;
    assert_int_equal(wn_slurm_drain_us(&open_end, 30), WN_NEVER);
    drains_at(3600, 30, 3555); /* 15 s are for Slurm */
    drains_at(100, 30, 55);
    drains_at(60, 30, 30); /* hardly longer than the draining: half of it is for work */
}

static uint32_t ranks_here(const char *node, uint32_t replicas, uint32_t stages, uint32_t tensors)
{
    struct wn_config cfg;

    wn_config_defaults(&cfg);
    cfg.replicas = replicas;
    cfg.pipeline_parallel_size = stages;
    cfg.tensor_parallel_size = tensors;
    setenv("SLURMD_NODENAME", node, 1);
    return wn_slurm_ranks_here(&cfg);
}

static void shares(void **state)
{
    (void)state;
    assert_int_equal(wn_slurm_local_tasks(), 1);
    setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2),1", 1);
    setenv("SLURM_NODEID", "1", 1);
    assert_int_equal(wn_slurm_local_tasks(), 2);
    setenv("SLURM_NODEID", "2", 1);
    assert_int_equal(wn_slurm_local_tasks(), 1);
    in_job("7", "n[1-3]");
    assert_int_equal(ranks_here("n2", 1, 2, 1), 1); /* vision, stage, stage */
    assert_int_equal(ranks_here("n2", 1, 2, 4), 4);
    in_job("7", "n[1-2]");
    assert_int_equal(ranks_here("n2", 4, 1, 2), 4); /* two replicas a node, steps of their own, share its cores */
    assert_int_equal(ranks_here("n2", 2, 4, 1), 4);
    assert_int_equal(ranks_here("n9", 2, 4, 1), 1); /* not of this job: what the step says */
}

/* A service on this machine: loopback, as a host is its own only neighbour here. */
static void addresses(void **state)
{
    struct wn_slurm s = {0};
    struct wn_config cfg;
    struct wn_err err = {0};
    uint32_t workers = 0;

    (void)state;
    in_job("7", "localhost");
    setenv("SLURMD_NODENAME", "localhost", 1);
    unsetenv("SLURM_SUBMIT_HOST");
    wn_config_defaults(&cfg);
    cfg.port = 0;
    assert_int_equal(wn_slurm_open(&s, &err), WN_OK);
    if (wn_slurm_place(&s, &cfg, 1, 1, &err) != WN_OK) fail_msg("%s", err.text);
    assert_true(s.here);
    assert_string_equal(s.net.name, "lo");
    assert_string_equal(cfg.host, "127.0.0.1");
    assert_int_equal(sscanf(cfg.scheduler_endpoint, "tcp://127.0.0.1:%u", &workers), 1);
    assert_true(cfg.port > 0 && workers > 0 && cfg.port != workers);
    wn_slurm_close(&s);
}

static void address_file(void **state)
{
    struct wn_slurm s = {0}, again = {0};
    struct wn_err err = {0};
    char path[128], text[128] = "";
    struct stat st;
    FILE *f;

    (void)state;
    in_job("12", "n1");
    snprintf(path, sizeof(path), "%s/.winnow/slurm/12", home);
    assert_int_equal(wn_slurm_open(&s, &err), WN_OK);
    umask(0);
    assert_int_equal(wn_slurm_publish(&s, "tcp://10.0.0.1:99", "/k", &err), WN_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_non_null(f = fopen(path, "r"));
    assert_true(fread(text, 1, sizeof(text) - 1, f) > 0);
    fclose(f);
    assert_string_equal(text, "endpoint: tcp://10.0.0.1:99\nkey: /k\n");
    wn_slurm_close(&s);
    assert_int_equal(access(path, F_OK), -1);

    assert_int_equal(wn_slurm_open(&s, &err), WN_OK); /* killed: it did not close */
    assert_int_equal(wn_slurm_publish(&s, "tcp://10.0.0.1:99", "", &err), WN_OK);
    assert_int_equal(wn_slurm_open(&again, &err), WN_OK);
    assert_int_equal(access(path, F_OK), 0);
    wn_slurm_forget(&again);
    assert_int_equal(access(path, F_OK), -1);
    wn_slurm_close(&again);
    wn_slurm_close(&s);
}

/* squeue says which nodes are left; what is no list of the job's nodes is no answer. */
static void nodes_lost(void **state)
{
    static const struct {
        const char *says;
        const char *lost; /* of n1 n2 n3 n4 */
    } cases[] = {{"n[1-2,4]", "..3."}, {"n[1-4]", NULL}, {"n4", "123."},
                 {"", NULL},           {"(null)", NULL}, {"slurm_load_jobs error: Unable to contact", NULL}};
    struct wn_slurm s = {0};
    char path[4200], script[128];

    (void)state;
    in_job("7", "n[1-4]");
    assert_int_equal(wn_slurm_open(&s, NULL), WN_OK);
    snprintf(path, sizeof(path), "%s:%s", home, getenv("PATH"));
    setenv("PATH", path, 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool lost[4] = {false, false, false, false};
        snprintf(script, sizeof(script), "#!/bin/sh\n[ \"$*\" = '--noheader --jobs 7 --format=%%N' ] && echo '%s'\n",
                 cases[i].says);
        assert_true(scratch_text(home, "squeue", script));
        snprintf(path, sizeof(path), "%s/squeue", home);
        assert_int_equal(chmod(path, 0755), 0);
        assert_int_equal(wn_slurm_ask_lost(&s, lost), cases[i].lost != NULL);
        for (int k = 0; k < 4; k++) assert_int_equal(lost[k], cases[i].lost && cases[i].lost[k] != '.');
    }
    wn_slurm_close(&s);
}

int main(void)
{
    static const char *const job[] = {"SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_END_TIME", "SLURM_RESTART_COUNT",
                                      "SLURM_STEP_TASKS_PER_NODE"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(environment),
        cmocka_unit_test(ends),
        cmocka_unit_test(shares),
        cmocka_unit_test(addresses),
        cmocka_unit_test(address_file),
        cmocka_unit_test(nodes_lost),
    };
    int rc;

    for (size_t i = 0; i < sizeof(job) / sizeof(job[0]); i++) unsetenv(job[i]); /* the tests may run in a job */
    if (!scratch_make(home, sizeof(home), "slurm")) return 1;
    setenv("HOME", home, 1);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    return scratch_remove(home) ? rc : 1;
}
