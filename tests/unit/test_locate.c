/* tests/unit/test_locate.c - how clients find the service of a Slurm job. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/conn.h"
#include "tests/scratch.h"

static char home[64];

static void write_file(const char *job, const char *text, mode_t mode)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/.winnow/slurm/%s", home, job);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static void refused(const char *endpoint, wn_status want, const char *words)
{
    struct conn_place place = {.address = "?"};
    struct wn_err err = {0};

    assert_int_equal(conn_locate(endpoint, &place, &err), want);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    assert_string_equal(place.address, "");
}

static void addresses(void **state)
{
    struct conn_place place;

    (void)state;
    assert_int_equal(conn_locate("tcp://h:1", &place, NULL), WN_OK);
    assert_string_equal(place.address, "tcp://h:1");
    assert_string_equal(place.key_file, "");
    write_file("12", "endpoint: tcp://10.0.0.1:99\nkey: /k\n", 0600);
    assert_int_equal(conn_locate("slurm:12", &place, NULL), WN_OK);
    assert_string_equal(place.address, "tcp://10.0.0.1:99");
    assert_string_equal(place.key_file, "/k");
    refused("slurm:13", WN_EPEER, "not ready");
    refused("slurm:", WN_EINVAL, "number of a job");
    refused("slurm:../12", WN_EINVAL, "number of a job");
    refused("slurm:123456789012345678901", WN_EINVAL, "number of a job");
    write_file("14", "endpoint: tcp://10.0.0.1:99\n", 0644);
    refused("slurm:14", WN_EAUTH, "0600");
    write_file("15", "tcp://10.0.0.1:99\n", 0600);
    refused("slurm:15", WN_EFORMAT, "no line 'endpoint: tcp://");
    write_file("16", "", 0600);
    refused("slurm:16", WN_EFORMAT, "no line 'endpoint: tcp://");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses)};
    char path[128];
    int rc;

    if (!scratch_make(home, sizeof(home), "locate")) return 1;
    snprintf(path, sizeof(path), "%s/.winnow", home);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/.winnow/slurm", home);
    mkdir(path, 0700);
    setenv("HOME", home, 1);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    return scratch_remove(home) ? rc : 1;
}
