/* tests/unit/test_locate.c - how clients find the service of a Slurm job, and who listens at an address. */
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

#include "client/conn.h"
#include "tests/scratch.h"

static char home[64];

static void write_place(const char *job, const char *text, mode_t mode)
{
    char folder[96], path[128];

    snprintf(folder, sizeof(folder), "%s/.winnow/slurm", home);
    snprintf(path, sizeof(path), "%s/%s", folder, job);
    assert_true(scratch_text(folder, job, text));
    assert_int_equal(chmod(path, mode), 0);
}

static void refused(const char *endpoint, wn_status want, const char *words)
{
    struct conn_place place = {.address = "?"};
    struct wn_err err = {0};

    assert_int_equal(wn_conn_locate(endpoint, &place, &err), want);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    assert_string_equal(place.address, "");
}

static void addresses(void **state)
{
    struct conn_place place;
    char text[400], host[256] = "";

    (void)state;
    assert_int_equal(wn_conn_locate("tcp://h:1", &place, NULL), WN_OK);
    assert_string_equal(place.address, "tcp://h:1");
    assert_string_equal(place.key_file, "");
    write_place("12", "endpoint: tcp://10.0.0.1:99\nkey: /k\n", 0600);
    assert_int_equal(wn_conn_locate("slurm:12", &place, NULL), WN_OK);
    assert_string_equal(place.address, "tcp://10.0.0.1:99");
    assert_string_equal(place.key_file, "/k");
    assert_int_equal(wn_conn_locate("tcp://[::1]:65535", &place, NULL), WN_OK);
    refused("tcp://", WN_EINVAL, "is not tcp://HOST:PORT");
    refused("tcp://h", WN_EINVAL, "is not tcp://HOST:PORT");
    refused("tcp://h:", WN_EINVAL, "is not tcp://HOST:PORT");
    refused("tcp://h:0", WN_EINVAL, "with a port from 1 to 65535");
    refused("tcp://h:65536", WN_EINVAL, "with a port from 1 to 65535");
    refused("tcp://h:5599x", WN_EINVAL, "with a port from 1 to 65535");
    refused("slurm:13", WN_EPEER, "not ready");
    refused("slurm:", WN_EINVAL, "number of a job");
    refused("slurm:../12", WN_EINVAL, "number of a job");
    refused("slurm:123456789012345678901", WN_EINVAL, "number of a job");
    gethostname(host, sizeof(host) - 1);
    snprintf(text, sizeof(text), "endpoint: tcp://127.0.0.1:99\nonly on: %s\n", host);
    write_place("17", text, 0600);
    assert_int_equal(wn_conn_locate("slurm:17", &place, NULL), WN_OK);
    write_place("18", "endpoint: tcp://127.0.0.1:99\nonly on: elsewhere.site\n", 0600);
    refused("slurm:18", WN_EPEER, "service on elsewhere.site for clients there only (tcp://127.0.0.1:99)");
    write_place("14", "endpoint: tcp://10.0.0.1:99\n", 0644);
    refused("slurm:14", WN_EAUTH, "0600");
    write_place("15", "tcp://10.0.0.1:99\n", 0600);
    refused("slurm:15", WN_EFORMAT, "no line 'endpoint: tcp://");
    write_place("16", "", 0600);
    refused("slurm:16", WN_EFORMAT, "no line 'endpoint: tcp://");
}

/* A listener that greets the next comer with this, or hangs up at once. Returns its port; *child is its process. */
static unsigned other_program(const char *greeting, pid_t *child)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(a);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, size), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &size), 0);
    if ((*child = fork()) == 0) {
        const int to = accept(fd, NULL, NULL);
        _exit(to >= 0 && write(to, greeting, strlen(greeting)) == (ssize_t)strlen(greeting) ? 0 : 1);
    }
    close(fd);
    return ntohs(a.sin_port);
}

static void who_listens(void **state)
{
    static const char *const greetings[] = {"SSH-2.0-x\r\n", ""};
    void *ctx = zmq_ctx_new(), *socket = zmq_socket(ctx, ZMQ_ROUTER);
    char address[64];
    size_t n = sizeof(address);
    pid_t child;

    (void)state;
    for (int i = 0; i < 2; i++) {
        int status = -1;
        snprintf(address, sizeof(address), "tcp://127.0.0.1:%u", other_program(greetings[i], &child));
        assert_false(wn_conn_is_zeromq(address, 5000));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_false(wn_conn_is_zeromq(address, 5000)); /* nobody is there any more */
    }
    assert_int_equal(zmq_bind(socket, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, address, &n), 0);
    assert_true(wn_conn_is_zeromq(address, 5000));
    zmq_close(socket);
    zmq_ctx_term(ctx);
    assert_true(wn_conn_is_zeromq("ipc:///tmp/x", 5000)); /* who else would listen there */
    assert_false(wn_conn_is_zeromq("tcp://127.0.0.1", 5000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses), cmocka_unit_test(who_listens)};
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
