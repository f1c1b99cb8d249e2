/* bench_journal [DIR [JOBS]] - what it costs that an accepted job survives a power cut, as CSV.
 *
 * A real scheduler takes text jobs from one client over a socket; `window` of them are on their way at a time. Rows:
 * memory (no journal) and journal (--journal DIR/...), both with accepted jobs per second, microseconds a job, the time
 * from Submit to Accepted, and the processor time that client, scheduler and journal took together. `sync` is one
 * 4 KiB write and fsync in the same folder: what the disk itself asks for. Every answer is checked; afterwards the
 * journal is read back and must hold every job. DIR should be on the disk that is to be measured; default ".". */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/order.h"
#include "daemon/journal.h"
#include "tests/integration/sched_bed.h"
#include "tests/scratch.h"
#include "winnow_version.h"

#define WAIT_US 30000000

static char base[512], machine[64];
static unsigned jobs = 2000;

static bool submit_job(struct wn_endpoint *ep, unsigned n)
{
    Wn__Submit r = WN__SUBMIT__INIT;
    struct wn_err err = {0};
    struct wn_msg msg;
    uint8_t *data = NULL;
    size_t bytes = 0;
    char key[32], tag[16], prompt[400];
    wn_status rc;

    snprintf(key, sizeof(key), "key-%u", n);
    snprintf(tag, sizeof(tag), "%u", n);
    memset(prompt, 'w', sizeof(prompt) - 1);
    prompt[sizeof(prompt) - 1] = '\0';
    r.idempotency_key = key;
    r.client_tag = tag;
    r.prompt = prompt;
    r.stream = true;
    if (wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_SUBMIT, &r, &err) != WN_OK) return false;
    wn_msg_init(&msg);
    rc = wn_msg_add_copy(&msg, data, bytes);
    for (int i = 0; rc == WN_OK && i < 5000; i++) {
        if ((rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL)) != WN_EBUSY) break;
        usleep(1000);
        rc = WN_OK;
    }
    wn_msg_clear(&msg);
    free(data);
    return rc == WN_OK;
}

/* The number of the job that was accepted next; -1: something else came, or nothing. */
static long accepted(struct wn_endpoint *ep)
{
    const int64_t deadline = wn_deadline_in_us(WAIT_US);
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    struct wn_msg msg;
    long n = -1;
    wn_status rc;

    wn_msg_init(&msg);
    while ((rc = wn_endpoint_recv(ep, &msg)) == WN_EBUSY) {
        struct wn_poll_item item = {.ep = ep};
        if (wn_endpoint_poll(&item, 1, deadline) != WN_OK) break;
    }
    if (rc == WN_OK && wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) == WN_OK &&
        env->body_case == WN__ENVELOPE__BODY_ACCEPTED)
        n = strtol(env->accepted->client_tag, NULL, 10);
    else
        fprintf(stderr, "bench_journal: no Accepted\n");
    wn_codec_free(env);
    wn_msg_clear(&msg);
    return n;
}

static int64_t cpu_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void row(const char *what, unsigned window, unsigned n, int64_t us, int64_t cpu, int64_t *each)
{
    qsort(each, n, sizeof(*each), wn_order_int64);
    printf("%s,%s,journal,%s,window=%u,%u,%.1f,%.1f,%.1f,%lld,%lld,%lld\n", WN_COMMIT, machine, what, window, n,
           (double)n / (double)us * 1e6, (double)us / n, (double)cpu / n, (long long)each[0], (long long)each[n / 2],
           (long long)each[(size_t)n * 99 / 100]);
    fflush(stdout);
}

/* us: what each took, Submit to Accepted. */
static bool time_jobs(const char *address, unsigned window, int64_t *each, int64_t *total_us, int64_t *total_cpu_us)
{
    struct wn_net *net = NULL;
    struct wn_endpoint *ep = NULL;
    struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER,
                                 .address = address,
                                 .frame_max = {WN_CODEC_BYTES_MAX},
                                 .send_queue_max = 8192,
                                 .recv_queue_max = 8192};
    struct wn_err err = {0};
    int64_t begin_us, begin_cpu_us;
    unsigned sent = 0, got = 0;
    bool ok = wn_net_create(&net, &err) == WN_OK && wn_endpoint_open(&ep, net, &o, &err) == WN_OK;

    begin_us = wn_now_us();
    begin_cpu_us = cpu_us();
    while (ok && got < jobs) {
        long n;
        while (ok && sent < jobs && sent - got < window) {
            each[sent] = wn_now_us();
            ok = submit_job(ep, sent++);
        }
        if (!ok || (n = accepted(ep)) < 0 || n >= (long)jobs) {
            ok = false;
            break;
        }
        each[n] = wn_now_us() - each[n];
        if (got++ == 0) begin_us = wn_now_us(); /* the connection is there */
    }
    *total_us = wn_now_us() - begin_us;
    *total_cpu_us = cpu_us() - begin_cpu_us;
    wn_endpoint_close(ep);
    wn_net_destroy(net);
    return ok;
}

static wn_status count(void *arg, const struct wn_journal_job *job, const struct wn_journal_state *state,
                       const struct wn_err *damage, struct wn_err *err)
{
    (void)job;
    (void)state;
    (void)damage;
    (void)err;
    ++*(unsigned *)arg;
    return WN_OK;
}

static bool all_there(const char *dir)
{
    struct wn_journal *j = NULL;
    struct wn_err err = {0};
    unsigned n = 0;
    bool ok = wn_journal_open(&j, dir, &err) == WN_OK && wn_journal_load(j, count, &n, &err) == WN_OK && n == jobs;

    if (!ok) fprintf(stderr, "bench_journal: %s: %u of %u jobs: %s\n", dir, n, jobs, err.text);
    wn_journal_close(j);
    return ok;
}

static bool bench(const char *what, unsigned window, int64_t *each)
{
    struct bed b;
    char dir[600] = "";
    int64_t us, cpu;
    bool ok;

    if (strcmp(what, "journal") == 0) snprintf(dir, sizeof(dir), "%s/%u", base, window);
    bed_init(&b);
    b.cfg.max_queue = jobs + 1;
    b.cfg.max_queue_share = 1;
    b.cfg.no_worker_timeout_ms = 0;
    snprintf(b.cfg.journal, sizeof(b.cfg.journal), "%s", dir);
    bed_start(&b);
    if ((ok = time_jobs(b.clients, window, each, &us, &cpu))) row(what, window, jobs, us, cpu, each);
    bed_stop(&b);
    return ok && (!dir[0] || all_there(dir));
}

static bool bench_sync(int64_t *each)
{
    char path[600], page[4096];
    unsigned n = jobs < 200 ? jobs : 200;
    int64_t begin_us = wn_now_us(), begin_cpu = cpu_us();
    bool ok;
    int fd;

    snprintf(path, sizeof(path), "%s/sync", base);
    memset(page, 'x', sizeof(page));
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ok = fd >= 0;
    for (unsigned i = 0; ok && i < n; i++) {
        int64_t at = wn_now_us();
        ok = pwrite(fd, page, sizeof(page), (off_t)i * 4096) == (ssize_t)sizeof(page) && fsync(fd) == 0;
        each[i] = wn_now_us() - at;
    }
    if (ok)
        row("sync", 1, n, wn_now_us() - begin_us, cpu_us() - begin_cpu, each);
    else
        fprintf(stderr, "bench_journal: %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
    return ok;
}

int main(int argc, char **argv)
{
    static const unsigned windows[] = {1, 16, 256};
    int64_t *each;
    bool ok = true;

    if (argc > 2) jobs = (unsigned)strtoul(argv[2], NULL, 10);
    if (jobs < 10 || jobs > 1000000) return 2;
    snprintf(base, sizeof(base), "%.400s/bench-journal-XXXXXX", argc > 1 ? argv[1] : ".");
    if (!mkdtemp(base)) {
        perror(base);
        return 1;
    }
    gethostname(machine, sizeof(machine) - 1);
    if (getenv("WN_MACHINE")) snprintf(machine, sizeof(machine), "%s", getenv("WN_MACHINE"));
    wn_log_max = WN_LOG_ERROR;
    each = calloc(jobs < 200 ? 200 : jobs, sizeof(*each));
    if (!each) return 1;
    printf("commit,machine,bench,what,window,n,jobs/s,us/job,cpu_us/job,min_us,p50_us,p99_us\n");
    ok = bench_sync(each);
    for (size_t i = 0; ok && i < sizeof(windows) / sizeof(windows[0]); i++)
        ok = bench("memory", windows[i], each) && bench("journal", windows[i], each);
    scratch_remove(base);
    free(each);
    return ok ? 0 : 1;
}
