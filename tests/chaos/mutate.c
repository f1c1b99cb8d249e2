/* tests/chaos/mutate.c - malformed input against every live role, while a normal client goes on asking.
 *
 *   mutate WINNOW WINNOWD [--frames N] [--seconds S] [--seed S] [--only ROLE] [--csv FILE]
 *
 * Starts a service with keys and sends N damaged frames, or as many as S seconds allow, to each of: the clients' port
 * ("clients"), the workers' port ("workers"), a leader's features port ("features"); to the clients' port below ZeroMQ
 * ("wire": noise, cut and replayed handshakes, connections that never finish, announced sizes over the limit); and, as
 * a hostile scheduler would, to a vision worker ("vision"). Prints a row for each: frames, frames/s, slowest normal
 * answer, growth of the process.
 *
 * Fails if a process of the service ends or is replaced, grows by more than GROWTH_MAX, answers the normal client
 * wrongly or later than ANSWER_MAX_S, or lets anybody in. */
#include "tests/chaos/mutate.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "proto/codec.h"
#include "tests/child.h"
#include "tests/scratch.h"
#include "winnow_version.h"

#define MODEL        "models/tiny-llava"
#define GROWTH_MAX   ((long)96 << 20)
#define ANSWER_MAX_S 60.0
#define QUESTION     "What is on the left?"

struct mutate m;

void complain(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fputs("mutate: FAILED: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    m.failed = true;
}

/* ---- the normal client ---- */

static struct {
    pthread_t thread;
    atomic_bool stop;
    atomic_ulong slowest_us, answers;
    char *expected;
} normal;

static void *normal_main(void *arg)
{
    char path[96];
    struct winnow_options options = {.client_key_file = path};
    struct winnow *w = NULL;

    (void)arg;
    snprintf(path, sizeof(path), "%s/client.key", m.keys);
    if (winnow_connect(&w, m.service.endpoint, &options) != WINNOW_OK) {
        complain("the normal client: %s", winnow_error(NULL));
        return NULL;
    }
    while (!atomic_load(&normal.stop)) {
        const int64_t began = wn_now_us();
        char *answer = NULL;
        const enum winnow_event_type type = ask(w, m.picture, m.picture_bytes, QUESTION, &answer, NULL);
        const unsigned long took = (unsigned long)(wn_now_us() - began);
        if (type == WINNOW_EVENT_DONE && !normal.expected) normal.expected = strdup(answer);
        if (type != WINNOW_EVENT_DONE && type != WINNOW_EVENT_BUSY) complain("the normal client got '%s'", answer);
        else if (type == WINNOW_EVENT_DONE && strcmp(answer, normal.expected) != 0)
            complain("the normal client got '%s' instead of '%s'", answer, normal.expected);
        if (took > atomic_load(&normal.slowest_us)) atomic_store(&normal.slowest_us, took);
        atomic_fetch_add(&normal.answers, 1);
        free(answer);
        usleep(100000);
    }
    winnow_close(w);
    return NULL;
}

/* ---- processes ---- */

static long resident(pid_t pid)
{
    char path[64];
    long pages = 0, rss = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
    if (!(f = fopen(path, "r"))) return -1;
    if (fscanf(f, "%ld %ld", &pages, &rss) != 2) rss = -1;
    fclose(f);
    return rss < 0 ? -1 : rss * sysconf(_SC_PAGESIZE);
}

struct census count_processes(void)
{
    static const char *const names[] = {"scheduler", "vision-0", "replica-0"};
    struct census c = {0};

    for (int i = 0; i < 3; i++) c.n += service_pids(&m.service, names[i], c.pid + c.n, PIDS_MAX - c.n);
    for (int i = 0; i < c.n; i++) c.rss[i] = resident(c.pid[i]);
    return c;
}

long compare(const char *role, const struct census *before, const struct census *after)
{
    long most = 0;

    if (before->n != after->n) complain("%s: %d processes were there, now %d", role, before->n, after->n);
    for (int i = 0; i < before->n && i < after->n; i++) {
        const long grown = after->rss[i] - before->rss[i];
        if (before->pid[i] != after->pid[i]) complain("%s: process %d has died", role, (int)before->pid[i]);
        if (grown > most) most = grown;
    }
    if (most > GROWTH_MAX) complain("%s: a process has grown by %ld MiB", role, most >> 20);
    return most;
}

void report(const char *role, uint32_t frames, uint64_t replies, int64_t began_us, long grown)
{
    const double s = (double)(wn_now_us() - began_us) / 1e6, slowest = (double)atomic_load(&normal.slowest_us) / 1e6;

    printf("%-9s %9u frames %9.0f /s %9llu replies   slowest answer %6.2f s   +%ld KiB\n", role, frames,
           frames / s, (unsigned long long)replies, slowest, grown >> 10);
    fflush(stdout);
    if (m.csv)
        fprintf(m.csv, "%s,%s,%u,%.0f,%llu,%.2f,%ld,%s\n", WN_COMMIT, role, frames, frames / s,
                (unsigned long long)replies, slowest, grown >> 10, m.failed ? "FAILED" : "passed");
    if (slowest > ANSWER_MAX_S) complain("%s: an answer took %.1f s", role, slowest);
    atomic_store(&normal.slowest_us, 0);
}

/* ---- frames through ZeroMQ ---- */

void *dealer(const char *address, const struct wn_key *key, const char *server_key)
{
    void *s = zmq_socket(m.zmq, ZMQ_DEALER);
    int linger = 0, hwm = 1000;

    if (!s || zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof(linger)) != 0 ||
        zmq_setsockopt(s, ZMQ_SNDHWM, &hwm, sizeof(hwm)) != 0 ||
        zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, server_key, WN_KEY_CHARS) != 0 ||
        zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, key->public_key, WN_KEY_CHARS) != 0 ||
        zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, key->secret_key, WN_KEY_CHARS) != 0 || zmq_connect(s, address) != 0) {
        fprintf(stderr, "mutate: %s: %s\n", address, zmq_strerror(errno));
        exit(1);
    }
    return s;
}

static void send_cancel(void *socket, const char *job_id)
{
    Wn__Cancel c = WN__CANCEL__INIT;
    Wn__JobRef ref = WN__JOB_REF__INIT;
    uint8_t *data;
    size_t n;

    ref.job_id = (char *)(uintptr_t)job_id;
    c.job = &ref;
    if (wn_codec_pack_body(&data, &n, WN__ENVELOPE__BODY_CANCEL, &c, NULL) != WN_OK) return;
    (void)!zmq_send(socket, data, n, ZMQ_DONTWAIT);
    free(data);
}

/* Takes what is there. Some mutants are jobs: they are cancelled, so that the model has time for the normal client. */
static uint64_t drain(void *socket)
{
    uint64_t n = 0;
    zmq_msg_t msg;

    zmq_msg_init(&msg);
    while (zmq_msg_recv(&msg, socket, ZMQ_DONTWAIT) >= 0) {
        Wn__Envelope *env = NULL;
        n += !zmq_msg_more(&msg);
        if (wn_codec_unpack(&env, zmq_msg_data(&msg), zmq_msg_size(&msg), NULL) != WN_OK) continue;
        if (env->body_case == WN__ENVELOPE__BODY_ACCEPTED) send_cancel(socket, env->accepted->job_id);
        wn_codec_free(env);
    }
    zmq_msg_close(&msg);
    return n;
}

/* Waits for room and takes replies meanwhile. */
static bool put_frame(void *socket, const void *data, size_t n, bool more, uint64_t *replies)
{
    int64_t heard_us = wn_now_us();

    while (wn_now_us() - heard_us < 60000000) {
        const uint64_t had = *replies;
        zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN | ZMQ_POLLOUT};
        if (zmq_send(socket, data, n, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) >= 0) return true;
        if (errno != EAGAIN) return false;
        *replies += drain(socket);
        if (*replies != had) heard_us = wn_now_us(); /* slow, but it answers */
        (void)!zmq_poll(&item, 1, 100);
    }
    complain("nothing was taken and nothing answered for a minute");
    return false;
}

/* One message: mostly a mutant alone, sometimes with a payload or with frames too many; rarely a frame that is too
 * large, which costs the connection. */
static bool send_mutant(void *socket, uint64_t *replies)
{
    static uint8_t large[2 << 20];
    uint8_t data[MUTANT_MAX];
    const size_t n = mutate(&m.dice, &m.seeds, data);
    const uint32_t shape = dice_roll(&m.dice, 64);
    const uint32_t extra = shape < 8 ? 1 : shape == 8 ? 2 + dice_roll(&m.dice, 8) : 0;

    if (dice_roll(&m.dice, 20000) == 0) return put_frame(socket, large, sizeof(large), false, replies);
    if (!put_frame(socket, data, n, extra > 0, replies)) return false;
    for (uint32_t i = 0; i < extra; i++) {
        const size_t bytes = shape == 7 ? m.picture_bytes / 2 : dice_roll(&m.dice, 3000);
        if (!put_frame(socket, shape == 7 ? m.picture : large, bytes, i + 1 < extra, replies)) return false;
    }
    return true;
}

static void attack(const char *role, const char *address, const struct wn_key *key, const char *server_key)
{
    const struct census before = count_processes();
    const int64_t began = wn_now_us();
    struct census after;
    uint64_t replies = 0;
    uint32_t i = 0;
    void *socket = dealer(address, key, server_key);

    for (; i < m.frames && wn_now_us() - began < m.limit_us; i++) {
        if (!send_mutant(socket, &replies)) break;
        if (i % 64 == 0) replies += drain(socket);
        if (i % 50000 == 49999) { /* a connection that ends in the middle of a message */
            (void)!zmq_send(socket, "half", 4, ZMQ_SNDMORE | ZMQ_DONTWAIT);
            zmq_close(socket);
            socket = dealer(address, key, server_key);
        }
    }
    for (int quiet = 0, tries = 0; quiet < 3 && tries < 1000; tries++) { /* until nothing more comes back */
        zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
        quiet = zmq_poll(&item, 1, 100) > 0 ? 0 : quiet + 1;
        replies += drain(socket);
    }
    zmq_close(socket);
    after = count_processes();
    report(role, i, replies, began, compare(role, &before, &after));
}

/* The leader's socket: RUN_DIR/replica-0-PID.sock. */
static bool features_address(char *out, size_t size)
{
    DIR *d = opendir(m.service.run_dir);
    struct dirent *e;
    bool found = false;

    while (d && (e = readdir(d)) != NULL)
        if (strncmp(e->d_name, "replica-0-", 10) == 0)
            found = snprintf(out, size, "ipc://%s/%.100s", m.service.run_dir, e->d_name) > 0;
    if (d) closedir(d);
    return found;
}

/* ---- names instead of pictures ---- */

/* Nothing that a client writes is a name to the service: no file is opened for it, and nobody is called. */
static void ask_by_name(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    const int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char key[96], url[64], path[PATH_MAX + 8];
    const char *const names[] = {url, path, path + 7, "data:image/png;base64,iVBORw0KGgo="};
    struct winnow_options options = {.client_key_file = key};
    struct winnow *w = NULL;
    struct pollfd p = {.fd = door, .events = POLLIN};

    if (bind(door, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(door, 4) != 0 ||
        getsockname(door, (struct sockaddr *)&a, &len) != 0)
        exit(1);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/a.jpg", ntohs(a.sin_port));
    memcpy(path, "file://", 7);
    if (!realpath(MODEL "/demo.jpg", path + 7)) exit(1); /* it would be a good picture */
    snprintf(key, sizeof(key), "%s/client.key", m.keys);
    if (winnow_connect(&w, m.service.endpoint, &options) != WINNOW_OK) exit(1);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *answer = NULL;
        if (ask(w, names[i], strlen(names[i]), names[i], &answer, NULL) != WINNOW_EVENT_ERROR)
            complain("'%s' was taken for a picture: '%s'", names[i], answer);
        free(answer);
    }
    if (poll(&p, 1, 0) != 0) complain("a URL of a client was called");
    winnow_close(w);
    close(door);
}

/* ---- the service ---- */

static bool wanted(const char *role)
{
    return !m.only || strcmp(m.only, role) == 0;
}

static void attack_service(void)
{
    char keys_flag[96], address[256];
    const char *const flags[] = {keys_flag, "--vision-workers=1", "--log-level=error", NULL};

    snprintf(keys_flag, sizeof(keys_flag), "--keys=%s", m.keys);
    service_start(&m.service, MODEL, flags);
    if (pthread_create(&normal.thread, NULL, normal_main, NULL) != 0) exit(1);
    while (atomic_load(&normal.answers) < 2 && !m.failed) usleep(10000); /* what is allocated once is there */
    ask_by_name();
    if (wanted("clients")) attack("clients", m.service.endpoint, m.client, m.client->server_key);
    snprintf(address, sizeof(address), "ipc://%s/scheduler.sock", m.service.run_dir);
    if (wanted("workers")) attack("workers", address, m.worker, m.worker->server_key);
    if (!features_address(address, sizeof(address))) complain("no socket for features");
    else if (wanted("features")) attack("features", address, m.worker, m.worker->public_key);
    if (wanted("wire")) attack_wire();
    atomic_store(&normal.stop, true);
    pthread_join(normal.thread, NULL);
    printf("%lu normal answers, all '%s'\n", atomic_load(&normal.answers), normal.expected ? normal.expected : "?");
    if (service_stop(&m.service) != 0) complain("the service did not stop in order");
}

/* ---- a vision worker, and we are its scheduler and its leader ---- */

static struct {
    void *orders, *features; /* ROUTERs */
    char orders_at[128], features_at[128];
    pid_t pid;
    uint8_t peer[64];
    size_t peer_n;
    uint32_t sent, images;
    uint64_t replies;
} v;

static void *router(char *address, size_t size)
{
    void *s = zmq_socket(m.zmq, ZMQ_ROUTER);
    int linger = 0, yes = 1;

    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof(linger));
    zmq_setsockopt(s, ZMQ_ROUTER_MANDATORY, &yes, sizeof(yes)); /* a full queue is said, not hidden */
    if (zmq_bind(s, "tcp://127.0.0.1:*") != 0 || zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, address, &size) != 0) exit(1);
    return s;
}

static void give(void *socket, const void *peer, size_t peer_n, Wn__Envelope__BodyCase kind, const void *body,
                 const void *payload, size_t payload_n)
{
    uint8_t *data;
    size_t n;

    if (wn_codec_pack_body(&data, &n, kind, body, NULL) != WN_OK) return;
    if (zmq_send(socket, peer, peer_n, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0) {
        (void)!zmq_send(socket, data, n, payload ? ZMQ_SNDMORE : 0);
        if (payload) (void)!zmq_send(socket, payload, payload_n, 0);
    }
    free(data);
}

/* Answers hellos of the worker, and counts features of good orders. */
static void serve_vision(void)
{
    void *const sockets[] = {v.orders, v.features};

    for (int i = 0; i < 2; i++) {
        uint8_t peer[64];
        int peer_n;
        while ((peer_n = zmq_recv(sockets[i], peer, sizeof(peer), ZMQ_DONTWAIT)) > 0) {
            Wn__Envelope *env = NULL;
            zmq_msg_t msg;
            int more = 1;
            zmq_msg_init(&msg);
            if (zmq_msg_recv(&msg, sockets[i], 0) >= 0)
                (void)!wn_codec_unpack(&env, zmq_msg_data(&msg), zmq_msg_size(&msg), NULL);
            v.replies++;
            if (env && env->body_case == WN__ENVELOPE__BODY_HELLO) {
                Wn__Welcome w = WN__WELCOME__INIT;
                memcpy(v.peer, peer, v.peer_n = (size_t)peer_n);
                give(v.orders, v.peer, v.peer_n, WN__ENVELOPE__BODY_WELCOME, &w, NULL, 0);
            } else if (env && env->body_case == WN__ENVELOPE__BODY_HEARTBEAT) {
                Wn__Heartbeat h = WN__HEARTBEAT__INIT;
                give(v.orders, v.peer, v.peer_n, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0);
            } else if (env && env->body_case == WN__ENVELOPE__BODY_FEATURES_HELLO) {
                Wn__Credit c = WN__CREDIT__INIT;
                c.images = 8;
                give(v.features, peer, (size_t)peer_n, WN__ENVELOPE__BODY_CREDIT, &c, NULL, 0);
            } else if (env && env->body_case == WN__ENVELOPE__BODY_FEATURES) {
                Wn__FeaturesAck a = WN__FEATURES_ACK__INIT;
                a.job = env->features->job;
                give(v.features, peer, (size_t)peer_n, WN__ENVELOPE__BODY_FEATURES_ACK, &a, NULL, 0);
                v.images++;
            }
            wn_codec_free(env);
            for (more = zmq_msg_more(&msg); more; more = zmq_msg_more(&msg))
                if (zmq_msg_recv(&msg, sockets[i], 0) < 0) break;
            zmq_msg_close(&msg);
        }
    }
}

/* A good order; its features must come. */
static void expect_features(void)
{
    static uint32_t number;
    char id[32];
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Encode e = WN__ENCODE__INIT;
    const uint32_t had = v.images;
    const int64_t began = wn_now_us();
    unsigned long took;

    snprintf(id, sizeof(id), "01ARZ3NDEKTSV4RRFF%08u", number++);
    ref.job_id = id;
    ref.attempt = 1;
    e.job = &ref;
    e.leader_endpoint = v.features_at;
    e.leader_name = "replica-0";
    for (int tries = 0; v.images == had && tries < 60; tries++) { /* a full queue answers busy: ask again */
        give(v.orders, v.peer, v.peer_n, WN__ENVELOPE__BODY_ENCODE, &e, m.picture, m.picture_bytes);
        for (int i = 0; v.images == had && i < 100; i++) {
            usleep(10000);
            serve_vision();
        }
    }
    took = (unsigned long)(wn_now_us() - began);
    if (v.images == had) complain("vision: no features came");
    if (took > atomic_load(&normal.slowest_us)) atomic_store(&normal.slowest_us, took);
}

/* Mutants that are right are followed, as by any scheduler: an order is taken back; a Drain is not sent. */
static bool send_order(void)
{
    uint8_t data[MUTANT_MAX];
    const size_t n = mutate(&m.dice, &m.seeds, data);
    const bool payload = dice_roll(&m.dice, 3) == 0;
    Wn__Envelope *env = NULL;
    bool sent;

    if (wn_codec_unpack(&env, data, n, NULL) == WN_OK && env->body_case == WN__ENVELOPE__BODY_DRAIN) {
        wn_codec_free(env);
        return false;
    }
    sent = zmq_send(v.orders, v.peer, v.peer_n, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0;
    if (sent) {
        (void)!zmq_send(v.orders, data, n, payload ? ZMQ_SNDMORE : 0);
        if (payload) {
            const struct seed_file *f = &m.seeds.file[dice_roll(&m.dice, (uint32_t)m.seeds.n)];
            (void)!zmq_send(v.orders, f->data, f->bytes, 0);
        }
    }
    if (env && env->body_case == WN__ENVELOPE__BODY_ENCODE) {
        Wn__Cancel c = WN__CANCEL__INIT;
        c.job = env->encode->job;
        give(v.orders, v.peer, v.peer_n, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0);
    }
    wn_codec_free(env);
    return sent;
}

static void attack_vision(void)
{
    char endpoint[192];
    const char *const argv[] = {m.winnowd,         "vision",            MODEL, endpoint,
                                "--name=vision-0", "--log-level=error", NULL};
    int status = 0;
    long rss;
    int64_t began;

    v.orders = router(v.orders_at, sizeof(v.orders_at));
    v.features = router(v.features_at, sizeof(v.features_at));
    snprintf(endpoint, sizeof(endpoint), "--scheduler-endpoint=%s", v.orders_at);
    v.pid = child_start(argv);
    for (int i = 0; i < 3000 && !v.peer_n; i++) {
        usleep(10000);
        serve_vision();
    }
    if (!v.peer_n) complain("vision: no hello");
    else expect_features();
    rss = resident(v.pid);
    atomic_store(&normal.slowest_us, 0);
    began = wn_now_us();
    while (v.sent < m.frames && v.peer_n && !m.failed && wn_now_us() - began < m.limit_us) {
        if (!send_order()) {
            usleep(200);
            serve_vision();
            continue;
        }
        v.sent++;
        if (v.sent % 32 == 0) serve_vision();
        if (v.sent % 10000 == 0) expect_features();
    }
    expect_features();
    rss = resident(v.pid) - rss;
    if (waitpid(v.pid, &status, WNOHANG) != 0) complain("vision: the worker has died, status %d", status);
    if (rss > GROWTH_MAX) complain("vision: it has grown by %ld MiB", rss >> 20);
    report("vision", v.sent, v.replies, began, rss);
    status = child_end(v.pid, SIGTERM);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) complain("vision: it did not stop in order: %d", status);
    zmq_close(v.orders);
    zmq_close(v.features);
}

/* ---- */

static void make_keys(void)
{
    char command[1024], path[96];
    struct wn_err err = {0};

    if (!scratch_make(m.folder, sizeof(m.folder), "mutate")) exit(1);
    snprintf(m.keys, sizeof(m.keys), "%s/k", m.folder);
    snprintf(command, sizeof(command), "%s keygen %s >/dev/null && %s keygen %s --client hostile >/dev/null", m.winnow,
             m.keys, m.winnow, m.keys);
    if (system(command) != 0) exit(1);
    snprintf(path, sizeof(path), "%s/hostile.key", m.keys);
    if (wn_key_open(&m.client, path, &err) != WN_OK ||
        wn_key_open_role(&m.worker, m.keys, WN_KEY_WORKER, &err) != WN_OK) {
        fprintf(stderr, "mutate: %s\n", err.text);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *csv = NULL;
    uint64_t seed = 1;

    m.frames = 20000;
    m.limit_us = WN_NEVER;
    for (int i = 3; i < argc; i++) {
        if (i + 1 < argc && strcmp(argv[i], "--frames") == 0) m.frames = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) m.limit_us = strtoll(argv[++i], NULL, 10) * 1000000;
        else if (i + 1 < argc && strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[++i], NULL, 10);
        else if (i + 1 < argc && strcmp(argv[i], "--only") == 0) m.only = argv[++i];
        else if (i + 1 < argc && strcmp(argv[i], "--csv") == 0) csv = argv[++i];
        else argc = 0;
    }
    if (argc < 3) {
        fprintf(stderr, "Usage: mutate WINNOW WINNOWD [--frames N] [--seconds S] [--seed S] [--only ROLE] "
                        "[--csv FILE]\n");
        return 2;
    }
    if (csv && !(m.csv = fopen(csv, "w"))) {
        fprintf(stderr, "mutate: %s: %s\n", csv, strerror(errno));
        return 2;
    }
    if (m.csv) fprintf(m.csv, "commit,role,frames,frames_per_s,replies,slowest_answer_s,grown_kib,result\n");
    signal(SIGPIPE, SIG_IGN);
    m.winnow = argv[1];
    m.winnowd = argv[2];
    m.dice.state = seed;
    seeds_read(&m.seeds, "tests/fuzz/corpus/envelope");
    m.picture = read_file(MODEL "/demo.jpg", &m.picture_bytes);
    make_keys();
    m.zmq = zmq_ctx_new();
    if (!m.only || strcmp(m.only, "vision") != 0) attack_service();
    if (wanted("vision")) attack_vision();
    zmq_ctx_term(m.zmq);
    wn_key_close(m.client);
    wn_key_close(m.worker);
    if (!scratch_remove(m.folder)) complain("%s is left", m.folder);
    seeds_free(&m.seeds);
    free(m.picture);
    free(normal.expected);
    if (m.csv && fclose(m.csv) != 0) complain("%s was not written", csv);
    printf("%s\n", m.failed ? "FAILED" : "passed");
    return m.failed ? 1 : 0;
}
