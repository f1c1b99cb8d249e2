/* daemon/probe.c - the role `winnowd probe`. See probe.h. */
#include "daemon/probe.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/roles.h"
#include "shard/weights.h"
#include "transport/link.h"

#define ORDER_US 120000000ll /* without a word from the scheduler's probe for so long, there is none any more */
#define SEND_US  5000000ll

/* ---- lines ---- */

void wn_probe_say(const struct wn_probe *p, const char *kind, json_t *body)
{
    char line[WN_PROBE_LINE_MAX + 64], *text = NULL;
    size_t n;

    if (body) {
        json_object_set_new(body, "kind", json_string(kind));
        json_object_set_new(body, "name", json_string(p->cfg.name));
        json_object_set_new(body, "host", json_string(p->host));
        json_object_set_new(body, "rank", json_integer(p->rank));
        text = json_dumps(body, JSON_COMPACT | JSON_ENSURE_ASCII);
    }
    if (text && strlen(text) < WN_PROBE_LINE_MAX) {
        n = (size_t)snprintf(line, sizeof(line), WN_PROBE_MARK "%s\n", text);
        (void)!write(STDOUT_FILENO, line, n);
    }
    free(text);
    json_decref(body);
}

void wn_probe_wrong(struct wn_probe *p, const char *fmt, ...)
{
    char text[WN_ERR_TEXT_MAX];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    wn_probe_say(p, "wrong", json_pack("{s:s}", "text", text));
}

void wn_probe_blame_size(const struct wn_probe *p, size_t bytes, struct wn_err *err)
{
    const uint32_t mtu = p->net.name[0] ? wn_netif_mtu(p->net.name) : 0;
    const size_t n = strlen(err->text);

    if (mtu)
        snprintf(err->text + n, sizeof(err->text) - n,
                 "; small messages come and %zu bytes do not: does the network carry packets of %u bytes, the MTU of "
                 "%s?", bytes, mtu, p->net.name);
}

/* ---- what this process is ---- */

static void set_place(struct wn_probe *p)
{
    gethostname(p->host, sizeof(p->host) - 1);
    p->size = 1;
    if (strncmp(p->cfg.name, "vision-", 7) == 0) {
        p->place = WN_PROBE_VISION;
    } else if (strncmp(p->cfg.name, "replica-", 8) == 0) {
        p->place = WN_PROBE_REPLICA;
        p->size = p->cfg.pipeline_parallel_size * p->cfg.tensor_parallel_size;
        if (p->size > 1)
            p->rank = wn_worker_env("OMPI_COMM_WORLD_RANK",
                                    wn_worker_env("PMIX_RANK", wn_worker_env("SLURM_PROCID", 0)));
    }
}

/* The interface: the scheduler's is that of its address. */
static bool find_interface(struct wn_probe *p)
{
    struct wn_err err = {0};
    wn_status rc;

    if (p->place != WN_PROBE_SCHEDULER) {
        rc = wn_worker_netif(&p->cfg, &p->net, &err);
        if (rc == WN_OK) wn_worker_use_netif(&p->cfg, &p->net);
    } else {
        rc = wn_netif_choose(&p->net, p->cfg.scheduler_endpoint[0] ? p->cfg.interface : "", p->cfg.host, &err);
    }
    if (rc != WN_OK) wn_probe_wrong(p, "%s", err.text);
    return rc == WN_OK;
}

/* config.json, the plan, and the weight files' headers, as this host sees them. */
static bool find_model(struct wn_probe *p)
{
    struct wn_weights *weights = NULL;
    char id[WN_MODEL_ID_LEN];
    struct wn_err err = {0};
    struct stat st;
    wn_status rc = wn_worker_model(&p->cfg, &p->model, id, &err);

    if (rc == WN_OK) rc = wn_worker_plan(&p->cfg, &p->model, &p->plan, &err);
    if (rc == WN_OK && p->place != WN_PROBE_SCHEDULER && stat(p->cfg.model, &st) == 0 && S_ISDIR(st.st_mode)) {
        rc = wn_weights_open(&weights, p->cfg.model, &err);
        wn_weights_close(weights);
    }
    if (rc == WN_OK)
        wn_probe_say(p, "model", json_pack("{s:s}", "id", id));
    else
        wn_probe_wrong(p, "%s", err.text);
    return rc == WN_OK;
}

/* ---- the places of workers ---- */

struct worker {
    struct wn_probe *p;
    struct wn_endpoint *scheduler;
    struct wn_probe_echo *echo; /* ranks */
};

/* Ranks are reached where a leader takes features. */
static wn_status open_echo(struct worker *w, struct wn_err *err)
{
    const struct wn_probe *p = w->p;
    const size_t payload = p->whole ? (size_t)p->model.vision.patches * p->model.text.hidden * 4 + 4096 : 1 << 20;
    char bind[WN_PATH_LEN + 96];

    if (p->place != WN_PROBE_REPLICA || !p->reachable) return WN_OK;
    if (p->cfg.features_endpoint[0] && p->rank == 0)
        snprintf(bind, sizeof(bind), "%s", p->cfg.features_endpoint);
    else if (p->net.name[0])
        snprintf(bind, sizeof(bind), "tcp://%s:0", p->net.address);
    else
        snprintf(bind, sizeof(bind), "ipc://%s/%s-%d.sock", p->cfg.run_dir, p->cfg.name, (int)getpid());
    return wn_probe_echo_start(&w->echo, p, bind, payload, err);
}

/* Says how a link over ZeroMQ is, with what was measured. */
static void say_way(struct wn_probe *p, const char *what, const char *to, const char *address, json_t *figures)
{
    char name[2 * WN_NAME_LEN + 24];

    if (p->size > 1)
        snprintf(name, sizeof(name), "%s rank %u - %s", p->cfg.name, p->rank, to);
    else
        snprintf(name, sizeof(name), "%s - %s", p->cfg.name, to);
    if (figures) {
        json_object_set_new(figures, "what", json_string(what));
        json_object_set_new(figures, "link", json_string(name));
        json_object_set_new(figures, "address", json_string(address));
        json_object_set_new(figures, "transport",
                            json_string(strncmp(address, "ipc:", 4) == 0 ? "ZeroMQ, Unix socket" : "ZeroMQ, TCP"));
        if (p->net.name[0] && !json_object_get(figures, "interface"))
            json_object_set_new(figures, "interface", json_string(p->net.name));
    }
    wn_probe_say(p, "link", figures);
}

static bool greet_scheduler(struct worker *w)
{
    struct wn_probe *p = w->p;
    struct wn_probe_msg hello = wn_probe_msg_make(p, WN_PROBE_HELLO);
    char address[WN_TEXT_LEN];
    struct wn_err err = {0};
    double us = 0;
    wn_status rc;

    wn_role_scheduler_address(&p->cfg, address, sizeof(address));
    rc = wn_probe_connect(p, true, address, &w->scheduler, &err);
    if (rc == WN_OK) rc = wn_probe_ping(p, w->scheduler, true, &us, &err);
    if (rc != WN_OK) {
        wn_probe_wrong(p, "the scheduler's address %s%s%s", err.text, p->net.name[0] ? ", by interface " : "",
                       p->net.name);
        return false;
    }
    say_way(p, "control", "scheduler", address, json_pack("{s:f}", "latency_us", us));
    hello.ok = p->whole;
    if (w->echo) snprintf(hello.address, sizeof(hello.address), "%s", wn_probe_echo_address(w->echo));
    return wn_probe_send(w->scheduler, &hello, wn_deadline_in_us(SEND_US)) == WN_OK;
}

/* Features are sent as many as they are and as wide as they are, one image a message. */
static wn_status measure_features(struct wn_probe *p, const struct wn_probe_msg *to, struct wn_endpoint *ep,
                                  double latency_us, struct wn_err *err)
{
    const size_t bytes = (size_t)p->model.vision.patches * p->model.vision.hidden *
                         wn_dtype_bytes(wn_worker_dtype(&p->cfg, &p->model));
    char interface[WN_NETIF_NAME_LEN] = "";
    struct wn_probe_tx before;
    double bytes_per_s = 0;
    uint64_t sent = 0;
    json_t *figures;
    wn_status rc;

    wn_probe_tx_read(&before);
    if ((rc = wn_probe_stream(p, ep, bytes, &bytes_per_s, &sent, err)) != WN_OK) return rc;
    if (strncmp(to->address, "tcp:", 4) == 0) wn_probe_tx_by(&before, sent, interface);
    figures = json_pack("{s:f, s:I, s:f}", "latency_us", latency_us, "bytes", (json_int_t)bytes, "bytes_per_s",
                        bytes_per_s);
    if (figures && interface[0]) json_object_set_new(figures, "interface", json_string(interface));
    say_way(p, "features", to->name, to->address, figures);
    if (interface[0] && strcmp(to->host, p->host) != 0 && p->net.name[0] && strcmp(interface, p->net.name) != 0)
        wn_probe_wrong(p, "features to %s leave by interface %s, not by %s", to->name, interface, p->net.name);
    return WN_OK;
}

/* Measures the way to whom `to` describes. */
static bool go(struct wn_probe *p, const struct wn_probe_msg *to)
{
    struct wn_endpoint *ep = NULL;
    struct wn_err err = {0};
    double us = 0;
    wn_status rc = wn_probe_connect(p, false, to->address, &ep, &err);

    if (rc == WN_OK) rc = wn_probe_ping(p, ep, false, &us, &err);
    if (rc == WN_OK && p->place == WN_PROBE_VISION) rc = measure_features(p, to, ep, us, &err);
    if (rc != WN_OK)
        wn_probe_wrong(p, "%s rank %u on %s: %s%s%s", to->name, to->rank, to->host, err.text,
                       p->net.name[0] ? ", by interface " : "", p->net.name);
    wn_endpoint_close(ep);
    return rc == WN_OK;
}

/* False: MPI is in no state to be left in order. */
static bool obey(struct worker *w)
{
    struct wn_probe_msg order, done = wn_probe_msg_make(w->p, WN_PROBE_DONE);
    struct wn_err err = {0};

    while (wn_probe_recv(w->scheduler, &order, wn_deadline_in_us(ORDER_US)) == WN_OK && order.word != WN_PROBE_END) {
        wn_status rc = WN_OK;
        wn_debug("probe", "order %u, %s rank %u", order.word, order.name, order.rank);
        if (order.word == WN_PROBE_GO) {
            done.ok = go(w->p, &order);
        } else if (order.word == WN_PROBE_LINK) {
            if ((rc = wn_probe_ranks(w->p, &err)) != WN_OK) wn_probe_wrong(w->p, "%s", err.text);
            done.ok = rc == WN_OK;
        } else {
            continue; /* an answer that came too late */
        }
        wn_debug("probe", "done");
        if (wn_probe_send(w->scheduler, &done, wn_deadline_in_us(SEND_US)) != WN_OK || rc != WN_OK) return false;
    }
    (void)!wn_probe_send(w->scheduler, &done, wn_deadline_in_us(SEND_US));
    return true;
}

static wn_status work(struct wn_probe *p, struct wn_err *err)
{
    struct worker w = {.p = p};
    bool in_order = true;
    wn_status rc = open_echo(&w, err);

    if (rc == WN_OK && p->place == WN_PROBE_VISION && p->whole) wn_probe_say_decode(p);
    if (rc == WN_OK && greet_scheduler(&w)) in_order = obey(&w);
    wn_endpoint_close(w.scheduler);
    if (!in_order) wn_link_mpi_abort(WN_EXIT_LOST); /* the others wait for this rank, and would do so for ever */
    wn_probe_echo_stop(w.echo);
    return rc;
}

int wn_role_probe(int argc, char **argv)
{
    struct wn_probe p = {0};
    struct wn_err err = {0};
    wn_status rc;
    int code = wn_config_start(&p.cfg, argc, argv, "winnowd probe MODEL [OPTION]...\nOne process of winnow check.",
                               WN_OPTIONS_SERVICE);

    if (code >= 0) return code;
    signal(SIGPIPE, SIG_IGN);
    set_place(&p);
    wn_worker_start("probe", &p.cfg, p.size > 1);
    p.reachable = find_interface(&p);
    wn_probe_say_host(&p);
    p.whole = find_model(&p) && p.reachable;
    if (p.place == WN_PROBE_SCHEDULER) wn_probe_say_journal(&p);
    rc = wn_net_create(&p.zmq, &err);
    if (rc == WN_OK && p.place != WN_PROBE_SCHEDULER) rc = wn_worker_key(&p.cfg, &p.key, &err);
    if (rc == WN_OK) rc = p.place == WN_PROBE_SCHEDULER ? wn_probe_lead(&p, &err) : work(&p, &err);
    if (rc != WN_OK) wn_probe_wrong(&p, "%s", err.text);
    wn_net_destroy(p.zmq);
    wn_key_close(p.key);
    return 0; /* one that fails would end the other ranks of its job */
}
