/* tests/chaos/chaos.c - a real service under load while its processes are ended, stopped and cut off at random: every
 * accepted job must have exactly one right answer.
 *
 *   chaos [--seconds N] [--seed S] [--layout PxT] [--replicas R] [--vision V] [--jobs N] [--csv FILE] [--verbose]
 *
 * The order of faults follows from the seed; when they hit is up to the machine. Recovery of a fault is the time until
 * every job that was open when it struck has moved on. Ends with a table; exit code 0 only if nothing was lost, doubled
 * or wrong. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/order.h"
#include "tests/chaos/faults.h"
#include "tests/chaos/load.h"
#include "tests/processes.h"
#include "tests/scratch.h"
#include "winnow_version.h"

#define PORT       "5599"
#define FAULTS_MAX 4096
#define OPEN_MAX   32
#define READY_US   (120 * 1000000ll)
#define STUCK_US   (90 * 1000000ll) /* a job without an event for so long is lost */
#define DRAIN_US   (60 * 1000000ll)

static struct options {
    unsigned seconds, seed, stages, tensors, replicas, vision, in_flight;
    const char *csv, *program;
    bool verbose;
} opt = {.seconds = 60, .seed = 1, .stages = 2, .tensors = 2, .replicas = 2, .vision = 2, .in_flight = 8};

static char base[64], run_dir[96], log_path[96];
static struct service_info service;
static bool network;
static unsigned orphans; /* processes that outlived their supervisor */

/* One fault that was done; recovery_us < 0: not yet. */
struct strike {
    fault kind;
    int64_t at_us, recovery_us;
};
static struct strike strikes[FAULTS_MAX];
static unsigned strikes_n;

/* How often each kind is drawn. */
static const unsigned weights[FAULTS] = {
    [FAULT_KILL_SCHEDULER] = 10, [FAULT_KILL_VISION] = 10,   [FAULT_KILL_RANK] = 10,   [FAULT_KILL_LEADER] = 8,
    [FAULT_KILL_MPIRUN] = 4,     [FAULT_ABORT_RANK] = 4,     [FAULT_LEAVE_VISION] = 4, [FAULT_PAUSE] = 14,
    [FAULT_HANG_SCHEDULER] = 2,  [FAULT_HANG_VISION] = 4,    [FAULT_HANG_RANK] = 6,    [FAULT_HANG_MPIRUN] = 2,
    [FAULT_RESET] = 10,          [FAULT_CUT_CLIENTS] = 3,    [FAULT_CUT_WORKERS] = 5,  [FAULT_CUT_FEATURES] = 5,
    [FAULT_SLOW_LINKS] = 5,      [FAULT_KILL_SERVICE] = 2,
};

/* ---- the service ---- */

static void start_service(void)
{
    static char text[16][160];
    const char *argv[32] = {opt.program, "serve", "models/tiny-llava"};
    int n = 3, k = 0;
    FILE *log;

#define ADD(...) (snprintf(text[k], sizeof(text[k]), __VA_ARGS__), argv[n++] = text[k++])
    ADD("--run-dir=%s", run_dir);
    ADD("--journal=%s/journal", base);
    ADD("-pp=%u", opt.stages);
    ADD("-tp=%u", opt.tensors);
    ADD("--replicas=%u", opt.replicas);
    ADD("--vision-workers=%u", opt.vision);
    ADD("--port=" PORT);
    ADD("--max-attempts=100"); /* the faults are ours, not the jobs' */
    ADD("--max-results=100000");
    ADD("--result-ttl=86400");
    ADD("--log-level=%s", opt.verbose ? "info" : "warn");
    ADD("--host=%s", network ? CLIENTS_HOST : "127.0.0.1");
    if (network) {
        ADD("--scheduler-endpoint=tcp://" WORKERS_HOST ":5601");
        ADD("--features-endpoint=tcp://" FEATURES_HOST ":0");
    }
#undef ADD
    argv[n] = NULL;
    service.pid = fork();
    if (service.pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if ((log = freopen(log_path, "a", stderr)) == NULL || dup2(fileno(log), STDOUT_FILENO) < 0) _exit(126);
    execv(argv[0], (char **)(uintptr_t)argv);
    _exit(127);
}

/* Waits for its end. Returns its exit code, or -1. */
static int wait_service(int64_t us)
{
    const int64_t until = wn_deadline_in_us(us);
    int status = 0;

    while (waitpid(service.pid, &status, WNOHANG) == 0) {
        if (wn_deadline_passed(until)) return -1;
        usleep(20000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Nothing of it may be left soon after its supervisor has ended. */
static void expect_no_orphans(void)
{
    const int64_t until = wn_deadline_in_us(8000000);
    pid_t pids[64];
    int n;

    while ((n = processes_of(run_dir, NULL, false, pids, 64)) > 0 && !wn_deadline_passed(until)) usleep(50000);
    for (int i = 0; i < n; i++) kill(pids[i], SIGKILL);
    if (n > 0) fprintf(stderr, "chaos: %d processes outlived their supervisor\n", n);
    orphans += (unsigned)n;
}

static void start_again(void)
{
    int status;

    waitpid(service.pid, &status, 0);
    expect_no_orphans();
    start_service();
}

/* ---- faults ---- */

static fault draw(unsigned *state)
{
    unsigned sum = 0, at;

    for (int i = 0; i < FAULTS; i++) sum += weights[i];
    at = (unsigned)rand_r(state) % sum;
    for (int i = 0; i < FAULTS; i++) {
        if (at < weights[i]) return (fault)i;
        at -= weights[i];
    }
    return FAULT_PAUSE;
}

static void strike(unsigned *state)
{
    const fault kind = draw(state);
    const unsigned dice = (unsigned)rand_r(state);
    const int64_t now = wn_now_us();

    if (!faults_strike(&service, kind, dice)) return;
    if (opt.verbose) fprintf(stderr, "chaos: %s\n", fault_names[kind]);
    strikes[strikes_n++] = (struct strike){.kind = kind, .at_us = now, .recovery_us = -1};
    if (kind == FAULT_KILL_SERVICE) start_again();
}

/* Notes which faults are over. Returns how many are not. */
static unsigned look(const struct load *l)
{
    unsigned open = 0;

    for (unsigned i = strikes_n > OPEN_MAX ? strikes_n - OPEN_MAX : 0; i < strikes_n; i++) {
        if (strikes[i].recovery_us >= 0) continue;
        if (load_moved_since(l, strikes[i].at_us)) strikes[i].recovery_us = wn_now_us() - strikes[i].at_us;
        else open++;
    }
    return open;
}

/* The supervisor ends only when it is told to, or killed. */
static bool service_runs(void)
{
    int status;

    if (waitpid(service.pid, &status, WNOHANG) == 0) return true;
    fprintf(stderr, "chaos: the service has ended by itself\n");
    return false;
}

/* Faults until the time is over, then peace until every job has ended. false: jobs are stuck. */
static bool storm(struct load *l)
{
    const int64_t until = wn_deadline_in_us((int64_t)opt.seconds * 1000000);
    unsigned state = opt.seed;
    int64_t next_us = wn_deadline_in_us(1000000);

    while (!wn_deadline_passed(until) && strikes_n < FAULTS_MAX) {
        unsigned open;
        if (!load_turn(l, 10, true)) return false;
        faults_turn();
        open = look(l);
        if (load_quiet_us(l) > STUCK_US || !service_runs()) return false;
        if (wn_now_us() < next_us) continue;
        if (open && rand_r(&state) % 400 != 0) continue; /* now and then a second one before all is well again */
        strike(&state);
        next_us = wn_deadline_in_us((int64_t)(rand_r(&state) % 1500) * 1000);
    }
    faults_end();
    while (load_pending(l) > 0) {
        if (!load_turn(l, 10, false) || load_quiet_us(l) > STUCK_US) return false;
        look(l);
    }
    return true;
}

/* ---- the table ---- */

struct recovery {
    unsigned n;
    int64_t p50, p95, max; /* us */
};

/* Of one kind, or (FAULTS) all. */
static struct recovery recovery_of(fault kind)
{
    static int64_t us[FAULTS_MAX];
    struct recovery r = {0};

    for (unsigned i = 0; i < strikes_n; i++)
        if ((kind == FAULTS || strikes[i].kind == kind) && strikes[i].recovery_us >= 0)
            us[r.n++] = strikes[i].recovery_us;
    if (r.n == 0) return r;
    qsort(us, r.n, sizeof(*us), wn_order_int64);
    r.p50 = us[(r.n - 1) / 2];
    r.p95 = us[(r.n * 95 + 99) / 100 - 1];
    r.max = us[r.n - 1];
    return r;
}

static void report(const struct load_totals *t, unsigned asked_again)
{
    FILE *csv = opt.csv ? fopen(opt.csv, "w") : NULL;

    if (csv) fprintf(csv, "commit,seconds,seed,layout,fault,n,recovery_p50_ms,recovery_p95_ms,recovery_max_ms\n");
    printf("%-16s %5s %9s %9s %9s\n", "fault", "n", "p50 s", "p95 s", "max s");
    for (int k = 0; k <= FAULTS; k++) {
        const struct recovery r = recovery_of((fault)k);
        const char *name = k == FAULTS ? "all" : fault_names[k];
        if (r.n == 0) continue;
        printf("%-16s %5u %9.2f %9.2f %9.2f\n", name, r.n, (double)r.p50 / 1e6, (double)r.p95 / 1e6,
               (double)r.max / 1e6);
        if (csv)
            fprintf(csv, WN_COMMIT ",%u,%u,%ux(%ux%u)+%u,%s,%u,%lld,%lld,%lld\n", opt.seconds, opt.seed, opt.replicas,
                    opt.stages, opt.tensors, opt.vision, name, r.n, (long long)r.p50 / 1000, (long long)r.p95 / 1000,
                    (long long)r.max / 1000);
    }
    printf("jobs accepted %u, answered %u, replayed %u, doubled %u, lost %u, wrong %u; busy %u, orphans %u, "
           "another result later %u\n",
           t->accepted, t->answered, t->replayed, t->doubled, t->lost, t->wrong, t->busy, orphans, asked_again);
    if (!csv) return;
    fprintf(csv, "# accepted %u, answered %u, replayed %u, doubled %u, lost %u, wrong %u, orphans %u\n", t->accepted,
            t->answered, t->replayed, t->doubled, t->lost, t->wrong, orphans);
    fclose(csv);
}

static bool ready(struct load **l)
{
    const int64_t until = wn_deadline_in_us(READY_US);
    char endpoint[64];

    snprintf(endpoint, sizeof(endpoint), "tcp://%s:" PORT, network ? CLIENTS_HOST : "127.0.0.1");
    while (!wn_deadline_passed(until)) {
        if ((*l = load_open(endpoint, "tests/eval/images", opt.in_flight, opt.seed)) != NULL) return true;
        usleep(200000);
    }
    return false;
}

/* SIGTERM: exit code 0, and no process is left. */
static bool drain(void)
{
    int code;

    kill(service.pid, SIGTERM);
    code = wait_service(DRAIN_US);
    if (code != 0) fprintf(stderr, "chaos: the service ended with %d after SIGTERM\n", code);
    if (code < 0) {
        kill(service.pid, SIGKILL);
        wait_service(DRAIN_US);
    }
    expect_no_orphans();
    return code == 0;
}

static int run(void)
{
    struct load_totals t = {0};
    struct load *l = NULL;
    unsigned asked_again;
    bool ok;

    start_service();
    if (!ready(&l) || !load_learn(l, 300)) {
        fprintf(stderr, "chaos: the service does not answer in peace; see %s\n", log_path);
        load_close(l);
        drain();
        return 1;
    }
    ok = storm(l);
    if (!ok) load_print_open(l);
    load_totals(l, &t);
    t.lost += load_pending(l);
    ok = drain() && ok;
    start_service(); /* results are still there */
    asked_again = load_ask_again(l);
    ok = drain() && ok;
    report(&t, asked_again);
    load_close(l);
    ok = ok && strikes_n > 0 && t.lost == 0 && t.doubled == 0 && t.wrong == 0 && asked_again == 0 && orphans == 0 &&
         t.answered == t.accepted;
    if (!ok) fprintf(stderr, "chaos: failed; seed %u, log %s\n", opt.seed, log_path);
    return ok ? 0 : 1;
}

static unsigned number(const char *text)
{
    return (unsigned)strtoul(text, NULL, 10);
}

static bool parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"seconds", 1, NULL, 's'}, {"seed", 1, NULL, 'r'}, {"layout", 1, NULL, 'l'},  {"replicas", 1, NULL, 'n'},
        {"vision", 1, NULL, 'v'},  {"jobs", 1, NULL, 'j'}, {"csv", 1, NULL, 'c'},     {"verbose", 0, NULL, 'V'},
        {"winnowd", 1, NULL, 'w'}, {0}};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (c) {
        case 's': opt.seconds = number(optarg); break;
        case 'r': opt.seed = number(optarg); break;
        case 'l': if (sscanf(optarg, "%ux%u", &opt.stages, &opt.tensors) != 2) return false; break;
        case 'n': opt.replicas = number(optarg); break;
        case 'v': opt.vision = number(optarg); break;
        case 'j': opt.in_flight = number(optarg); break;
        case 'c': opt.csv = optarg; break;
        case 'V': opt.verbose = true; break;
        case 'w': opt.program = optarg; break;
        default: return false;
        }
    }
    return opt.program && opt.replicas > 0 && opt.vision > 0 && optind == argc;
}

int main(int argc, char **argv)
{
    int code;

    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: chaos --winnowd PATH [--seconds N] [--seed S] [--layout PxT] [--replicas R] "
                        "[--vision V] [--jobs N] [--csv FILE] [--verbose]\n");
        return 2;
    }
    if (!scratch_make(base, sizeof(base), "chaos")) return 1;
    snprintf(run_dir, sizeof(run_dir), "%s/run", base);
    snprintf(log_path, sizeof(log_path), "%s/log", base);
    network = faults_init();
    if (!network) fprintf(stderr, "chaos: no network of our own here: links are left alone\n");
    service = (struct service_info){.run_dir = run_dir, .vision = opt.vision, .replicas = opt.replicas,
                                    .ranks = opt.stages * opt.tensors};
    code = run();
    if (code == 0) code = scratch_remove(base) ? 0 : 1;
    return code;
}
