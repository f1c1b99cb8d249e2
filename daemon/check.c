/* daemon/check.c - `winnow check MODEL [options of serve]`: starts a probe wherever `winnow serve` would start a
 * process, by the same launcher and with the same options, and collects what they say. See check.h and probe.h. */
#include "daemon/check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/harden.h"
#include "daemon/probe.h"
#include "daemon/roles.h"

#define TOTAL_US 150000000ll /* a check that takes longer hangs */
#define END_US   5000000ll
#define LEFT_US  10000000ll /* for the others, when the scheduler's probe is done */
#define GONE_US  20000
#define SAID_LEN 240

/* One started part, and what it writes. */
struct stream {
    pid_t pid; /* 0: it has ended */
    int fd;    /* -1: closed */
    int status;
    char line[WN_PROBE_LINE_MAX + 128];
    size_t n;
    char said[SAID_LEN]; /* the first line with an error that is none of a probe, else the last one: why it failed */
    bool error;
};

/* What this process measures itself, in a thread: the way of a client. It also tells the scheduler's probe whose
 * processes have ended, so that nobody waits for them. */
struct client {
    struct wn_probe probe;
    const struct wn_crew *crew;
    atomic_bool *gone; /* [crew.parts_n] has ended, and was not told yet */
    atomic_bool over;
    char address[WN_TEXT_LEN + 32];
    pthread_t thread;
    bool started;
    double us;
    wn_status rc;
    struct wn_err err;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

/* ---- what probes write ---- */

static void take_line(struct wn_check *c, struct stream *s)
{
    const size_t mark = strlen(WN_PROBE_MARK);
    json_t *line;

    if (strncmp(s->line, WN_PROBE_MARK, mark) == 0) {
        line = json_loads(s->line + mark, JSON_REJECT_DUPLICATES, NULL);
        if (json_is_object(line)) json_array_append(c->lines, line);
        json_decref(line);
    } else if (wn_log_max >= WN_LOG_DEBUG) {
        fprintf(stderr, "%s\n", s->line);
    } else if (!s->error && strpbrk(s->line, "abcdefghijklmnopqrstuvwxyz")) { /* no ruler, no empty line */
        s->error = strstr(s->line, "error: ") != NULL;
        snprintf(s->said, sizeof(s->said), "%s", s->line);
    }
}

static void take_bytes(struct wn_check *c, struct stream *s)
{
    char bytes[4096];
    const ssize_t n = read(s->fd, bytes, sizeof(bytes));

    if (n <= 0) {
        close(s->fd);
        s->fd = -1;
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != '\n' && s->n < sizeof(s->line) - 1) {
            s->line[s->n++] = bytes[i];
        } else if (bytes[i] == '\n') {
            s->line[s->n] = '\0';
            s->n = 0;
            take_line(c, s);
        }
    }
}

static bool reap(struct wn_check *c, struct stream *streams, struct client *cl)
{
    bool left = false;

    for (size_t i = 0; i < c->crew.parts_n; i++) {
        if (streams[i].pid && waitpid(streams[i].pid, &streams[i].status, WNOHANG) == streams[i].pid) {
            streams[i].pid = 0;
            atomic_store(&cl->gone[i], true);
        }
        left |= streams[i].pid != 0;
    }
    return left;
}

/* Until all have ended and all that they wrote is here, or the time is over: a rank that hangs in MPI does not end. */
static void collect(struct wn_check *c, struct stream *streams, struct client *cl, int64_t until)
{
    struct pollfd *fds = calloc(c->crew.parts_n, sizeof(*fds));
    bool left = fds != NULL, led = false;

    while (left && !interrupted && !wn_deadline_passed(until)) {
        for (size_t i = 0; i < c->crew.parts_n; i++)
            fds[i] = (struct pollfd){.fd = streams[i].fd, .events = POLLIN}; /* -1 is left out */
        if (poll(fds, c->crew.parts_n, 20) > 0)
            for (size_t i = 0; i < c->crew.parts_n; i++)
                if (fds[i].revents) take_bytes(c, &streams[i]);
        left = reap(c, streams, cl);
        if (atomic_load(&cl->gone[0]) && !led) {
            led = true;
            if (wn_deadline_in_us(LEFT_US) < until) until = wn_deadline_in_us(LEFT_US);
        }
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\rwinnow: checking, %zu answers ", json_array_size(c->lines));
        for (size_t i = 0; i < c->crew.parts_n; i++) left |= streams[i].fd >= 0;
    }
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    free(fds);
}

/* ---- start and end ---- */

static wn_status start_all(struct wn_check *c, struct stream *streams, struct wn_err *err)
{
    for (size_t i = 0; i < c->crew.parts_n; i++) {
        int ends[2];
        wn_status rc;
        if (pipe2(ends, O_CLOEXEC) != 0)
            return wn_fail(err, WN_EIO, "pipe to %s: %s", c->crew.parts[i].name, strerror(errno));
        rc = wn_crew_start(&c->crew, i, ends[1], &streams[i].pid, err);
        close(ends[1]);
        streams[i].fd = ends[0];
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

/* They have nothing to finish. */
static void end_all(struct wn_check *c, struct stream *streams, struct client *cl)
{
    const int64_t until = wn_deadline_in_us(END_US);

    for (size_t i = 0; i < c->crew.parts_n; i++)
        if (streams[i].pid) c->crew.launcher->signal(streams[i].pid, SIGKILL);
    while (reap(c, streams, cl) && !wn_deadline_passed(until)) usleep(10000);
}

/* A part that did not end by itself, or badly. */
static void judge_parts(struct wn_check *c, const struct stream *streams)
{
    for (size_t i = 0; i < c->crew.parts_n; i++) {
        const struct wn_crew_part *p = &c->crew.parts[i];
        const struct stream *s = &streams[i];
        const char *host = p->nodes && p->ranks == 1 ? p->nodes[0] : "";
        if (s->pid)
            wn_check_wrong(c, host, p->name, "did not end when all was measured");
        else if (WIFSIGNALED(s->status))
            wn_check_wrong(c, host, p->name, "was ended by signal %d", WTERMSIG(s->status));
        else if (WEXITSTATUS(s->status))
            wn_check_wrong(c, host, p->name, "ended with exit code %d%s%s", WEXITSTATUS(s->status),
                           s->said[0] ? ": " : "", s->said);
    }
}

/* ---- the way of a client ---- */

/* Until the check is over. */
static void tell_gone(struct client *cl, struct wn_endpoint *ep)
{
    struct wn_probe_msg m = wn_probe_msg_make(&cl->probe, WN_PROBE_GONE);

    while (!atomic_load(&cl->over)) {
        for (size_t i = 1; i < cl->crew->parts_n; i++) { /* not the scheduler's own */
            if (!atomic_exchange(&cl->gone[i], false)) continue;
            memcpy(m.name, cl->crew->parts[i].name, sizeof(m.name));
            (void)!wn_probe_send(ep, &m, wn_deadline_in_us(GONE_US)); /* in the end its probe has gone, too */
        }
        usleep(GONE_US);
    }
}

static void *client_main(void *arg)
{
    struct client *cl = arg;
    struct wn_probe_msg done = wn_probe_msg_make(&cl->probe, WN_PROBE_DONE);
    struct wn_endpoint *ep = NULL;

    for (int i = 0; i < 3 && !atomic_load(&cl->gone[0]); i++) { /* job steps take their time to start */
        cl->rc = wn_probe_connect(&cl->probe, true, cl->address, &ep, &cl->err);
        if (cl->rc == WN_OK) cl->rc = wn_probe_ping(&cl->probe, ep, true, &cl->us, &cl->err);
        if (cl->rc == WN_OK) cl->rc = wn_probe_send(ep, &done, wn_deadline_in_us(END_US));
        if (cl->rc == WN_OK || interrupted) break;
        wn_endpoint_close(ep);
        ep = NULL;
    }
    if (cl->rc == WN_OK) tell_gone(cl, ep);
    wn_endpoint_close(ep);
    return NULL;
}

static wn_status client_start(struct wn_check *c, struct client *cl, struct wn_err *err)
{
    int code;

    cl->probe.cfg = c->cfg;
    cl->crew = &c->crew;
    gethostname(cl->probe.host, sizeof(cl->probe.host) - 1);
    wn_crew_client_address(&c->crew, cl->address, sizeof(cl->address));
    if (wn_worker_key(&c->cfg, &cl->probe.key, err) != WN_OK || wn_net_create(&cl->probe.zmq, err) != WN_OK)
        return err->code;
    if ((code = pthread_create(&cl->thread, NULL, client_main, cl)) != 0)
        return wn_fail(err, WN_EIO, "thread that asks as a client: %s", strerror(code));
    cl->started = true;
    return WN_OK;
}

static void client_end(struct wn_check *c, struct client *cl)
{
    struct wn_netif net = {0};
    char host[WN_TEXT_LEN] = "";
    json_t *line;

    atomic_store(&cl->over, true);
    if (cl->started) pthread_join(cl->thread, NULL);
    wn_net_destroy(cl->probe.zmq);
    wn_key_close(cl->probe.key);
    if (!cl->started || interrupted) return;
    if (cl->rc != WN_OK) {
        wn_check_wrong(c, cl->probe.host, "client", "the clients' address %s", cl->err.text);
        return;
    }
    memcpy(host, cl->address + 6, strcspn(cl->address + 6, ":"));
    line = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:f}", "kind", "link", "what", "client", "link",
                     "client - scheduler", "host", cl->probe.host, "transport", "ZeroMQ, TCP", "address", cl->address,
                     "latency_us", cl->us);
    if (wn_netif_choose(&net, "", host, NULL) == WN_OK) json_object_set_new(line, "interface", json_string(net.name));
    json_array_append_new(c->lines, line);
}

/* ---- the command ---- */

static wn_status run(struct wn_check *c, struct wn_err *err)
{
    struct client *cl = calloc(1, sizeof(*cl));
    struct stream *streams = NULL;
    wn_status rc = cl ? WN_OK : wn_fail(err, WN_ENOMEM, "client");

    if (rc == WN_OK) rc = wn_crew_place(&c->crew, err);
    if (rc == WN_OK) rc = wn_crew_check_keys(&c->crew, err);
    if (rc == WN_OK) rc = wn_crew_choose_port(&c->crew, err);
    if (rc == WN_OK) rc = wn_crew_make(&c->crew, "probe", err);
    if (rc == WN_OK && (!(streams = calloc(c->crew.parts_n, sizeof(*streams))) ||
                        !(cl->gone = calloc(c->crew.parts_n, sizeof(*cl->gone)))))
        rc = wn_fail(err, WN_ENOMEM, "parts");
    for (size_t i = 0; streams && i < c->crew.parts_n; i++) streams[i].fd = -1;
    if (rc == WN_OK) rc = start_all(c, streams, err);
    if (rc == WN_OK) rc = client_start(c, cl, err);
    if (rc == WN_OK) collect(c, streams, cl, wn_deadline_in_us(TOTAL_US));
    if (cl) client_end(c, cl);
    if (rc == WN_OK && !interrupted) judge_parts(c, streams);
    if (streams) end_all(c, streams, cl);
    for (size_t i = 0; streams && i < c->crew.parts_n; i++)
        if (streams[i].fd >= 0) close(streams[i].fd);
    free(streams);
    if (cl) free(cl->gone);
    free(cl);
    return rc;
}

static void set_signals(void)
{
    const struct sigaction sa = {.sa_handler = on_signal};

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int wn_cmd_check(int argc, char **argv)
{
    static const char usage[] =
        "winnow check MODEL [OPTION]...\n"
        "Measures what a service with these options would use, before weights load: networks, versions, memory, keys.\n"
        "Names what is wrong, and ends with 1 then. MODEL is a checkpoint folder, or only its config.json.";
    struct wn_check c = {0};
    struct wn_err err = {0};
    char id[WN_MODEL_ID_LEN], host[WN_PROBE_HOST_LEN] = "";
    uint32_t wrong = 1;
    wn_status rc;
    int code = wn_config_start(&c.cfg, argc, argv, usage, WN_OPTIONS_SERVICE | WN_OPTIONS_OUTPUT);

    if (code >= 0) return code;
    if (!wn_role_has_model(&c.cfg)) return 2;
    wn_log_role("check");
    wn_harden(c.cfg.keys[0] != '\0', false);
    set_signals();
    gethostname(host, sizeof(host) - 1);
    c.lines = json_array();
    c.crew = (struct wn_crew){.cfg = &c.cfg, .plan = &c.plan};
    rc = wn_worker_model(&c.cfg, &c.model, id, &err);
    if (rc == WN_OK) rc = wn_worker_plan(&c.cfg, &c.model, &c.plan, &err);
    c.planned = rc == WN_OK;
    if (rc == WN_OK) rc = run(&c, &err);
    if (rc != WN_OK) wn_check_wrong(&c, host, "", "%s", err.text);
    if (interrupted) {
        fprintf(stderr, "winnow: interrupted\n");
    } else {
        wrong = wn_check_judge(&c);
        code = c.cfg.json ? wn_check_print_json(&c, stdout) : 0;
        if (!c.cfg.json) wn_check_print(&c, stdout);
    }
    wn_crew_close(&c.crew);
    free(c.hosts);
    json_decref(c.lines);
    return wrong || code > 0 ? 1 : 0;
}
