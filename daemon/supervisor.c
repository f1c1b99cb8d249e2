/* daemon/supervisor.c - `winnow serve`: checks everything that can be checked before weights load, starts the
 * scheduler, the vision workers and the replicas, says when the service is ready, starts again what dies, and
 * drains on SIGTERM, or when an admin tells its scheduler to.
 *
 * A component that gives up before the service was ready once ends the service: its own error line says why. One that
 * is ended by a signal or loses a rank, and any after that, is started again after a pause; one that keeps dying ends
 * the service (restarts.h). One that is stopped for longer than the lease is as good as dead: it is killed, and started
 * again. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/crew.h"
#include "daemon/encoder.h"
#include "daemon/fit.h"
#include "daemon/harden.h"
#include "daemon/pruning_ask.h"
#include "daemon/restarts.h"
#include "daemon/roles.h"
#include "daemon/worker.h"
#include "proto/codec.h"
#include "shard/backend.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"
#include "shard/tokenizer.h"
#include "transport/endpoint.h"

#define ASK_PERIOD_US   50000ll
#define KILL_GRACE_US   5000000ll
#define FOLLOW_GRACE_US 2000000ll
#define UNTOLD_GRACE_US 300000ll  /* before all were there: who was not has heard nothing, and has nothing to finish */
#define LEAVE_US        3000000ll /* for the scheduler, when the time for its jobs is over */
#define PATIENCE_US     5000000ll /* without a word about what is missing */
#define LEFT_US         1000000ll /* until a worker that left in order is started again: the service may be ending */

struct component {
    const char *name; /* of its part of the crew */
    pid_t pid; /* 0: not running */
    int64_t start_at_us, started_us;
    int64_t stopped_us; /* since when; 0: it is not */
    struct wn_restarts restarts;
};

struct supervisor {
    struct wn_config cfg;
    struct wn_model model;
    struct wn_plan plan;
    struct wn_crew crew;
    int64_t drain_us; /* when the job's time runs out */
    struct component *parts; /* [crew.parts_n]; the scheduler is the first */
    int signals;
    struct wn_net *net;
    struct wn_endpoint *ask;             /* asks the scheduler whether all are there */
    int64_t began_us, asked_us, stop_us; /* stop_us: when the draining ends; 0: not draining */
    int64_t patience_us;                 /* when to say again why it is not ready */
    char missing[WN_ERR_TEXT_MAX];
    bool ready, failed, broken; /* broken: it fails once it has drained */
};

/* ---- before anything starts ---- */

/* What would fail in a worker is better said once, here. */
static wn_status check_model(struct supervisor *s, struct wn_err *err)
{
    char id[WN_MODEL_ID_LEN], path[WN_PATH_MAX];
    struct wn_tokenizer *tokenizer = NULL;
    struct wn_preprocess preprocess;
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    Wn__Pruning pruning;
    wn_status rc = wn_worker_model(&s->cfg, &s->model, id, err);

    if (rc != WN_OK || (rc = wn_worker_plan(&s->cfg, &s->model, &s->plan, err)) != WN_OK) return rc;
    if ((rc = wn_worker_links(&s->cfg, err)) != WN_OK) return rc;
    if ((rc = wn_backend_known(s->cfg.backend, err)) != WN_OK) return rc;
    if (s->cfg.vision_backend[0] && (rc = wn_backend_known(s->cfg.vision_backend, err)) != WN_OK) return rc;
    wn_pruning_complete(&pruning, NULL, &s->cfg);
    if ((rc = wn_pruning_ask(&pruning, &method, &ask, err)) != WN_OK) return rc;
    if ((rc = wn_worker_tensors(&s->cfg, &s->plan, err)) != WN_OK) return rc;
    if ((rc = wn_encoder_preprocess(&preprocess, s->cfg.model, &s->model, err)) != WN_OK) return rc;
    if ((rc = wn_path_join(path, s->cfg.model, "tokenizer.json", err)) != WN_OK) return rc;
    if ((rc = wn_tokenizer_open(&tokenizer, path, err)) == WN_OK) wn_tokenizer_close(tokenizer);
    return rc;
}

static wn_status choose_place(struct supervisor *s, struct wn_err *err)
{
    struct wn_slurm *job = &s->crew.slurm;
    const char *journal = s->cfg.journal;
    wn_status rc = wn_crew_place(&s->crew, err);

    s->drain_us = WN_NEVER;
    if (rc != WN_OK || !job->job[0]) return rc;
    if (job->end_s <= (int64_t)time(NULL)) wn_slurm_ask_end(job); /* not said, or it has been given more since */
    s->drain_us = wn_slurm_drain_us(job, s->cfg.shutdown_timeout_s);
    if (s->crew.launcher == &wn_launcher_slurm) {
        wn_slurm_print(job, &s->cfg, s->plan.stages, s->plan.tensors, stdout);
        fflush(stdout);
    }
    if (!job->restarts) return WN_OK;
    wn_warn("supervisor", "job %s was queued again, this is its run %u%s%s", job->job, job->restarts + 1,
            journal[0] ? ", with the journal in " : "; without --journal its jobs are lost", journal);
    wn_slurm_forget(job);
    return WN_OK;
}

static wn_status make_components(struct supervisor *s, struct wn_err *err)
{
    wn_status rc = wn_crew_make(&s->crew, NULL, err);

    if (rc != WN_OK) return rc;
    s->parts = calloc(s->crew.parts_n, sizeof(*s->parts));
    if (!s->parts) return wn_fail(err, WN_ENOMEM, "components");
    for (size_t i = 0; i < s->crew.parts_n; i++) s->parts[i].name = s->crew.parts[i].name;
    return WN_OK;
}

/* ---- readiness ---- */

static wn_status open_ask(struct supervisor *s, struct wn_err *err)
{
    char address[WN_TEXT_LEN + 32];
    struct wn_key *key = NULL;
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                        .address = address,
                                        .frame_max = {WN_CODEC_BYTES_MAX},
                                        .reconnect_ms = 20,
                                        .reconnect_max_ms = 200,
                                        .insecure = s->cfg.insecure};
    wn_status rc = wn_net_create(&s->net, err);

    if (rc != WN_OK || (rc = wn_worker_key(&s->cfg, &key, err)) != WN_OK) return rc;
    eo.curve = wn_worker_curve(key, true);
    wn_crew_client_address(&s->crew, address, sizeof(address));
    rc = wn_endpoint_open(&s->ask, s->net, &eo, err);
    wn_key_close(key);
    return rc;
}

/* Clients find a service in a Slurm job by the job's number. */
static void publish(struct supervisor *s)
{
    char endpoint[WN_TEXT_LEN + 32], key[WN_PATH_MAX] = "", *keys = NULL;
    struct wn_err err = {0};

    if (!s->crew.slurm.job[0]) return;
    if (s->cfg.keys[0]) keys = realpath(s->cfg.keys, NULL); /* a client runs in another folder */
    if (keys && wn_path_join(key, keys, "client.key", &err) != WN_OK) key[0] = '\0';
    free(keys);
    snprintf(endpoint, sizeof(endpoint), "tcp://%s:%u", s->cfg.host, s->cfg.port);
    if (wn_slurm_publish(&s->crew.slurm, endpoint, key, &err) != WN_OK)
        wn_warn("supervisor", "slurm:%s will not be found: %s", s->crew.slurm.job, err.text);
}

static void say_ready(struct supervisor *s)
{
    s->ready = true;
    publish(s);
    printf("winnow: ready at tcp://%s:%u  (%s: %u stage%s x %u tensor rank%s, %u replica%s, %u "
           "vision worker%s; %.1f s)\n",
           s->cfg.host, s->cfg.port, s->cfg.model, s->plan.stages, s->plan.stages == 1 ? "" : "s",
           s->plan.tensors, s->plan.tensors == 1 ? "" : "s", s->cfg.replicas,
           s->cfg.replicas == 1 ? "" : "s", s->cfg.vision_workers,
           s->cfg.vision_workers == 1 ? "" : "s", (double)(wn_now_us() - s->began_us) / 1e6);
    if (fflush(stdout) != 0) clearerr(stdout); /* nobody listens: no reason to end with an error, some day */
    wn_endpoint_close(s->ask);
    s->ask = NULL;
}

/* What is missing, and who was turned away last: it may be what is missed. */
static void note_missing(struct supervisor *s, const Wn__Status *st)
{
    const Wn__TurnedAway *away = st->n_turned_away ? st->turned_away[st->n_turned_away - 1] : NULL;

    snprintf(s->missing, sizeof(s->missing), "%s", st->not_ready_because);
    if (away)
        snprintf(s->missing, sizeof(s->missing), "%.120s; turned away: %s: %.180s", st->not_ready_because, away->name,
                 away->why);
}

static void read_status(struct supervisor *s)
{
    struct wn_msg msg;
    struct wn_err err = {0};

    wn_msg_init(&msg);
    while (s->ask && wn_endpoint_recv(s->ask, &msg) == WN_OK) {
        Wn__Envelope *env = NULL;
        if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) != WN_OK)
            continue;
        if (env->body_case == WN__ENVELOPE__BODY_STATUS) note_missing(s, env->status);
        if (env->body_case == WN__ENVELOPE__BODY_STATUS && env->status->ready) say_ready(s);
        wn_codec_free(env);
    }
    wn_msg_clear(&msg);
}

static void ask_status(struct supervisor *s)
{
    Wn__StatusRequest body = WN__STATUS_REQUEST__INIT;

    s->asked_us = wn_now_us();
    wn_worker_say(s->ask, WN__ENVELOPE__BODY_STATUS_REQUEST, &body);
}

/* Weights may take minutes, and a network that lets nobody through for ever: who waits hears for what. Each time after
 * twice as long. */
static void say_missing(struct supervisor *s)
{
    const int64_t waited_us = wn_now_us() - s->began_us;

    if (!s->ask || s->stop_us || waited_us < s->patience_us) return;
    s->patience_us = 2 * waited_us;
    wn_warn("supervisor", "not ready after %.0f s: %s", (double)waited_us / 1e6,
            s->missing[0] ? s->missing : "the scheduler does not answer");
}

/* ---- life and death of components ---- */

static void fail_service(struct supervisor *s, const char *why)
{
    fprintf(stderr, "winnow: %s\n", why);
    s->failed = true;
}

static void start_due(struct supervisor *s)
{
    for (size_t i = 0; i < s->crew.parts_n && !s->failed; i++) {
        struct component *c = &s->parts[i];
        struct wn_err err = {0};
        if (c->pid || c->start_at_us > wn_now_us()) continue;
        if (wn_crew_start(&s->crew, i, 0, &c->pid, &err) != WN_OK) fail_service(s, err.text);
        c->started_us = wn_now_us();
        wn_info("supervisor", "%s started, process %d", c->name, (int)c->pid);
    }
}

/* By a signal, itself or (mpirun says so by its exit code) a rank of it; or by a rank that was lost. */
static bool was_ended(int status)
{
    return WIFSIGNALED(status) || WEXITSTATUS(status) > 128 || WEXITSTATUS(status) == WN_EXIT_LOST;
}

/* A component has ended, not because it was told to. */
static void plan_restart(struct supervisor *s, struct component *c, int status)
{
    char why[192];
    const int64_t now = wn_now_us();
    int64_t pause;

    if (WIFSIGNALED(status))
        snprintf(why, sizeof(why), "%s was ended by signal %d (%s)", c->name, WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(why, sizeof(why), "%s ended with exit code %d", c->name, WEXITSTATUS(status));
    if (!s->ready && !was_ended(status) && status != 0) {
        snprintf(why + strlen(why), sizeof(why) - strlen(why), " before the service was ready%s",
                 s->crew.parts[c - s->parts].ranks > 1 ? " (--log-level info shows what MPI has to say)" : "");
        fail_service(s, why);
        return;
    }
    if ((pause = wn_restarts_pause(&c->restarts, now, now - c->started_us)) < 0) {
        snprintf(why + strlen(why), sizeof(why) - strlen(why), ", for the %uth time in a minute soon after it began",
                 c->restarts.n);
        fail_service(s, why);
        return;
    }
    if (status == 0 && pause < LEFT_US) pause = LEFT_US;
    if (status != 0) wn_crew_move(&s->crew, (size_t)(c - s->parts));
    c->start_at_us = now + pause;
    WN_LOG(status == 0 ? WN_LOG_INFO : WN_LOG_WARN, "supervisor", "%s; it starts again in %lld ms", why,
           (long long)pause / 1000);
}

/* The scheduler drains: it finishes its jobs, tells the workers to leave, and leaves. One that has just died cannot:
 * what it had is on record, or lost, and the workers are ended by us. */
static void begin_stop(struct supervisor *s)
{
    if (s->stop_us) return;
    wn_info("supervisor", "draining");
    s->stop_us = wn_deadline_in_us((int64_t)s->cfg.shutdown_timeout_s * 1000000 + LEAVE_US);
    if (s->parts[0].pid) s->crew.launcher->signal(s->parts[0].pid, SIGTERM);
    else s->stop_us = 1; /* now */
}

/* The job's time is nearly over, unless it has been given more. */
static void end_of_time(struct supervisor *s)
{
    struct wn_slurm *job = &s->crew.slurm;

    if (wn_slurm_ask_end(job)) {
        s->drain_us = wn_slurm_drain_us(job, s->cfg.shutdown_timeout_s);
        wn_warn("supervisor", "job %s has been given more time", job->job);
        return;
    }
    wn_warn("supervisor", "the time of job %s is nearly over", job->job);
    begin_stop(s);
}

static void reap(struct supervisor *s)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0) {
        for (size_t i = 0; i < s->crew.parts_n; i++) {
            struct component *c = &s->parts[i];
            if (c->pid != pid) continue;
            c->stopped_us = WIFSTOPPED(status) ? wn_now_us() : 0;
            if (WIFSTOPPED(status) || WIFCONTINUED(status)) break;
            c->pid = 0;
            wn_crew_ended(&s->crew, i);
            if (c == &s->parts[0] && status == 0 && !s->stop_us) s->stop_us = WN_NEVER; /* an admin told it to drain */
            if (s->stop_us && c == &s->parts[0]) { /* it has told the others to leave: they have this long */
                const int64_t until = wn_deadline_in_us(s->ready ? FOLLOW_GRACE_US : UNTOLD_GRACE_US);
                if (until < s->stop_us) s->stop_us = until;
            }
            if (s->stop_us || s->failed)
                wn_info("supervisor", "%s has left", c->name);
            else
                plan_restart(s, c, status);
        }
    }
}

/* Whoever is stopped cannot say that it is alive. */
static void kill_stopped(struct supervisor *s)
{
    for (size_t i = 0; i < s->crew.parts_n; i++) {
        struct component *c = &s->parts[i];
        if (!c->pid || !c->stopped_us || wn_now_us() - c->stopped_us <= (int64_t)s->cfg.lease_ms * 1000) continue;
        wn_warn("supervisor", "%s is stopped; it is killed", c->name);
        s->crew.launcher->signal(c->pid, SIGKILL);
        c->stopped_us = 0;
    }
}

static bool any_running(const struct supervisor *s)
{
    for (size_t i = 0; i < s->crew.parts_n; i++)
        if (s->parts[i].pid) return true;
    return false;
}

/* Ends what is left: asks first, then kills. */
static void end_all(struct supervisor *s)
{
    static const int how[] = {SIGTERM, SIGKILL};

    for (int k = 0; k < 2 && any_running(s); k++) {
        const int64_t until = wn_deadline_in_us(KILL_GRACE_US);
        for (size_t i = 0; i < s->crew.parts_n; i++)
            if (s->parts[i].pid) s->crew.launcher->signal(s->parts[i].pid, how[k]);
        while (any_running(s) && !wn_deadline_passed(until)) {
            usleep(10000);
            reap(s);
        }
    }
}

static void take_signals(struct supervisor *s)
{
    struct signalfd_siginfo info;

    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) continue;
        if (s->stop_us) s->stop_us = 1; /* the second time: now */
        begin_stop(s);
    }
    reap(s);
}

/* Draining is over: all have left, or their time is up, and end_all() ends the rest. */
static bool stopped(const struct supervisor *s)
{
    if (!s->stop_us) return false;
    return !any_running(s) || wn_deadline_passed(s->stop_us);
}

/* Somebody has cleaned up: whoever starts or connects from now on does not find the others. What runs may end. */
static void miss_run_dir(struct supervisor *s)
{
    if (s->stop_us || wn_run_dir_there(&s->crew.run)) return;
    fprintf(stderr, "winnow: the run folder %s was removed: the service ends\n", s->cfg.run_dir);
    s->broken = true;
    begin_stop(s);
}

static void run(struct supervisor *s)
{
    while (!s->failed && !stopped(s)) {
        struct wn_poll_item items[2] = {{.fd = s->signals}, {.ep = s->ask}};
        int64_t until = wn_deadline_in_us(s->ask ? ASK_PERIOD_US : 1000000);

        if (!s->stop_us) start_due(s);
        for (size_t i = 0; i < s->crew.parts_n; i++)
            if (!s->parts[i].pid && s->parts[i].start_at_us < until)
                until = s->parts[i].start_at_us;
        if (s->stop_us) until = wn_deadline_in_us(20000);
        if (!s->stop_us && wn_deadline_passed(s->drain_us)) end_of_time(s);
        if (s->ask && wn_now_us() - s->asked_us >= ASK_PERIOD_US) ask_status(s);
        (void)!wn_endpoint_poll(items, s->ask ? 2 : 1, until);
        take_signals(s);
        kill_stopped(s);
        miss_run_dir(s);
        read_status(s);
        say_missing(s);
    }
}

static wn_status block_signals(struct supervisor *s, struct wn_err *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN); /* whoever read our lines may leave; the service stays */
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->signals >= 0 ? WN_OK : wn_fail(err, WN_EIO, "signalfd: %s", strerror(errno));
}

static void close_supervisor(struct supervisor *s)
{
    end_all(s);
    wn_endpoint_close(s->ask);
    wn_net_destroy(s->net);
    free(s->parts);
    wn_crew_close(&s->crew);
    if (s->signals >= 0) close(s->signals);
}

int wn_role_serve(int argc, char **argv)
{
    struct supervisor s = {.signals = -1, .began_us = wn_now_us(), .patience_us = PATIENCE_US};
    struct wn_err err = {0};
    int code = wn_config_start(&s.cfg, argc, argv,
                               "winnow serve MODEL [OPTION]...\n"
                               "Starts a service and watches over it: what dies is started again. SIGTERM drains it:\n"
                               "nothing new is taken, and what runs is finished.",
                               WN_OPTIONS_SERVICE);
    wn_status rc;

    if (code >= 0) return code;
    if (!wn_role_has_model(&s.cfg)) return 2;
    s.crew = (struct wn_crew){.cfg = &s.cfg, .plan = &s.plan};
    wn_log_role("serve");
    if ((rc = wn_raise_files(&err)) != WN_OK || (rc = check_model(&s, &err)) != WN_OK) goto out;
    if ((rc = choose_place(&s, &err)) != WN_OK) goto out;
    wn_harden(s.cfg.keys[0] != '\0', false);
    if ((rc = wn_crew_check_keys(&s.crew, &err)) != WN_OK) goto out;
    if (s.crew.launcher == &wn_launcher_local && strncmp(s.cfg.backend, "cpu", 3) == 0 &&
        (rc = wn_fit_host(&s.cfg, &s.plan, &err)) != WN_OK)
        goto out;
    if ((rc = wn_crew_choose_port(&s.crew, &err)) != WN_OK) goto out;
    if ((rc = block_signals(&s, &err)) != WN_OK) goto out;
    if ((rc = make_components(&s, &err)) != WN_OK) goto out;
    start_due(&s);
    if ((rc = open_ask(&s, &err)) != WN_OK)
        goto out; /* after fork: ZeroMQ's threads do not survive one */
    run(&s);
out:
    if (rc != WN_OK) fail_service(&s, err.text);
    close_supervisor(&s);
    return rc == WN_OK && !s.failed && !s.broken ? 0 : 1;
}
