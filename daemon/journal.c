/* daemon/journal.c - the journal's lock, queue and thread; the SQL is in journal_db.c. */
#include "daemon/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/journal_db.h"

#define BATCH_OPS   1024               /* of one transaction: bounds how long its first waits for its last */
#define BATCH_BYTES ((size_t)64 << 20) /* the same, of images */

struct op {
    struct op *next;
    enum wn_journal_op kind;
    char id[WN_JOB_ID_CHARS + 1];
    struct wn_journal_job job; /* its pointers and the state's: into this block, but for the images */
    struct wn_journal_state state;
    uint64_t image_bytes[WN_IMAGES_MAX];
    uint8_t hashes[WN_IMAGES_MAX][WN_BLOB_HASH];
    struct wn_err error;
    uint8_t data[];
};

struct list {
    struct op *first, **end;
    size_t n;
};

struct wn_journal {
    char dir[WN_PATH_LEN];
    int lock_fd, event_fd;
    struct wn_journal_db *db; /* the thread's, once it runs; NULL after a failure: opened anew */
    pthread_t thread;
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t cond;
    struct list in, out;
    bool running, stop;
};

static void list_put(struct list *l, struct op *op)
{
    op->next = NULL;
    *l->end = op;
    l->end = &op->next;
    l->n++;
}

static struct op *list_take(struct list *l)
{
    struct op *op = l->first;

    if (!op) return NULL;
    l->first = op->next;
    if (!l->first) l->end = &l->first;
    l->n--;
    return op;
}

/* ---- opening ---- */

static bool same_file(int a, int b)
{
    struct stat of_a, of_b;

    return a >= 0 && b >= 0 && fstat(a, &of_a) == 0 && fstat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
           of_a.st_ino == of_b.st_ino;
}

/* The lock is the open file's: it goes with the process, however that ends. Taken again after a failure: DIR may be on
 * another disk by then, or be the empty folder below one that is gone; no journal is made there. */
static wn_status take_lock(struct wn_journal *j, struct wn_err *err)
{
    const int make = j->lock_fd < 0 ? O_CREAT : 0;
    char path[WN_PATH_LEN + 16], text[320] = "", host[256] = "";
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "%s/lock", j->dir);
    fd = open(path, O_RDWR | make | O_CLOEXEC, 0600);
    if (fd < 0) return wn_fail(err, WN_EIO, "journal %s: open lock: %s", j->dir, strerror(errno));
    if (same_file(fd, j->lock_fd)) {
        close(fd);
        return WN_OK;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        const int why = errno;
        n = pread(fd, text, sizeof(text) - 1, 0);
        close(fd);
        text[n > 0 ? n : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        if (why != EWOULDBLOCK) return wn_fail(err, WN_EIO, "journal %s: lock: %s", j->dir, strerror(why));
        return wn_fail(err, WN_EBUSY, "journal %s is in use by process %s", j->dir, text[0] ? text : "(unknown)");
    }
    gethostname(host, sizeof(host) - 1);
    snprintf(text, sizeof(text), "%ld on %s\n", (long)getpid(), host);
    if (j->lock_fd >= 0) close(j->lock_fd);
    j->lock_fd = fd;
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, strlen(text), 0) < 0)
        wn_warn("journal", "%s/lock: %s", j->dir, strerror(errno)); /* only who asks for the holder would miss it */
    return WN_OK;
}

wn_status wn_journal_open(struct wn_journal **out, const char *dir, struct wn_err *err)
{
    struct wn_journal *j = calloc(1, sizeof(*j));
    wn_status rc;

    if (!j) return wn_fail(err, WN_ENOMEM, "journal");
    j->lock_fd = j->event_fd = -1;
    j->in.end = &j->in.first;
    j->out.end = &j->out.first;
    pthread_mutex_init(&j->mutex, NULL);
    pthread_cond_init(&j->cond, NULL);
    snprintf(j->dir, sizeof(j->dir), "%s", dir);
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        rc = wn_fail(err, WN_EIO, "journal: make %s: %s", dir, strerror(errno));
        goto out;
    }
    if ((rc = take_lock(j, err)) != WN_OK) goto out;
    if ((j->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        rc = wn_fail(err, WN_EIO, "journal: eventfd: %s", strerror(errno));
        goto out;
    }
    if ((rc = wn_journal_db_open(&j->db, dir, true, err)) != WN_OK) goto out;
    wn_journal_db_sweep(j->db);
    *out = j;
    j = NULL;
out:
    wn_journal_close(j);
    return rc;
}

wn_status wn_journal_load(struct wn_journal *j, wn_journal_fn fn, void *arg, struct wn_err *err)
{
    WN_ASSERT(!j->running);
    return wn_journal_db_load(j->db, fn, arg, err);
}

/* ---- the thread ---- */

static wn_status apply(struct wn_journal *j, struct op *op, struct wn_err *err)
{
    switch (op->kind) {
    case WN_JOURNAL_ADD:
        return wn_journal_db_add(j->db, &op->job, &op->state.life, op->hashes, err);
    case WN_JOURNAL_SAVE:
        return wn_journal_db_save(j->db, op->id, &op->state, err);
    case WN_JOURNAL_FORGET:
        return wn_journal_db_forget(j->db, op->id, err);
    case WN_JOURNAL_PROBE:
        return wn_journal_db_probe(j->db, err);
    }
    return WN_OK;
}

static void fail_all(struct op *first, const struct wn_err *err)
{
    for (struct op *op = first; op; op = op->next)
        if (op->error.code == WN_OK) op->error = *err;
}

/* One transaction. An image that cannot be written fails its own job; anything else fails them all. */
static void commit(struct wn_journal *j, struct op *first)
{
    struct wn_err err = {0};

    if (!j->db && (take_lock(j, &err) != WN_OK || wn_journal_db_open(&j->db, j->dir, false, &err) != WN_OK)) {
        fail_all(first, &err);
        return;
    }
    for (struct op *op = first; op; op = op->next)
        if (op->kind == WN_JOURNAL_ADD && op->job.images_n > 0)
            (void)!wn_journal_db_images(j->db, &op->job, op->hashes, &op->error);
    if (wn_journal_db_begin(j->db, &err) == WN_OK) {
        wn_status rc = WN_OK;
        for (struct op *op = first; op && rc == WN_OK; op = op->next)
            if (op->error.code == WN_OK) rc = apply(j, op, &err);
        if (rc != WN_OK)
            wn_journal_db_rollback(j->db);
        else if (wn_journal_db_commit(j->db, &err) == WN_OK)
            return;
    }
    fail_all(first, &err);
    wn_journal_db_close(j->db); /* what the disk did meanwhile, only a fresh look can tell */
    j->db = NULL;
}

static void *journal_main(void *arg)
{
    struct wn_journal *j = arg;

    pthread_mutex_lock(&j->mutex);
    for (;;) {
        struct list batch = {.end = &batch.first};
        size_t bytes = 0;
        while (!j->in.first && !j->stop) pthread_cond_wait(&j->cond, &j->mutex);
        if (!j->in.first) break;
        while (j->in.first && batch.n < BATCH_OPS && bytes < BATCH_BYTES) {
            struct op *op = list_take(&j->in);
            for (uint32_t i = 0; i < op->job.images_n; i++) bytes += (size_t)op->image_bytes[i];
            list_put(&batch, op);
        }
        pthread_mutex_unlock(&j->mutex);
        commit(j, batch.first);
        pthread_mutex_lock(&j->mutex);
        for (struct op *op; (op = list_take(&batch)) != NULL;) {
            if (op->job.release) op->job.release(op->job.hint);
            list_put(&j->out, op);
        }
        eventfd_write(j->event_fd, 1);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

wn_status wn_journal_start(struct wn_journal *j, struct wn_err *err)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&j->thread, NULL, journal_main, j);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) return wn_fail(err, WN_EIO, "journal: thread: %s", strerror(rc));
    j->running = true;
    return WN_OK;
}

/* ---- operations ---- */

/* An operation with room for `bytes`. */
static struct op *op_new(enum wn_journal_op kind, const char *id, size_t bytes)
{
    struct op *op = calloc(1, sizeof(*op) + bytes);

    if (!op) return NULL;
    op->kind = kind;
    snprintf(op->id, sizeof(op->id), "%s", id);
    return op;
}

static const void *copy(uint8_t **at, const void *data, size_t bytes)
{
    void *to = *at;

    if (bytes) memcpy(to, data, bytes);
    *at += (bytes + 7) / 8 * 8;
    return to;
}

static wn_status queue(struct wn_journal *j, struct op *op)
{
    bool full;

    if (!op) return WN_ENOMEM;
    pthread_mutex_lock(&j->mutex);
    full = j->in.n + j->out.n >= WN_JOURNAL_QUEUE_MAX;
    if (!full) {
        list_put(&j->in, op);
        pthread_cond_signal(&j->cond);
    }
    pthread_mutex_unlock(&j->mutex);
    if (full) free(op);
    return full ? WN_EBUSY : WN_OK;
}

wn_status wn_journal_add(struct wn_journal *j, const struct wn_journal_job *job, const struct wn_job_life *life)
{
    struct op *op = op_new(WN_JOURNAL_ADD, job->id, job->request_bytes + 8);
    uint8_t *at;

    if (!op) return WN_ENOMEM;
    WN_ASSERT(job->images_n <= WN_IMAGES_MAX);
    at = op->data;
    op->job = *job;
    op->job.id = op->id;
    op->job.request = copy(&at, job->request, job->request_bytes);
    if (job->images_n) memcpy(op->image_bytes, job->image_bytes, job->images_n * sizeof(op->image_bytes[0]));
    op->job.image_bytes = op->image_bytes;
    op->state.life = *life;
    return queue(j, op);
}

wn_status wn_journal_save(struct wn_journal *j, const char *id, const struct wn_journal_state *s)
{
    const size_t ids_bytes = s->ids_n * sizeof(*s->ids), error_bytes = strlen(s->error) + 1;
    struct op *op = op_new(WN_JOURNAL_SAVE, id, 2 * ids_bytes + s->text_bytes + s->outcome_bytes + error_bytes + 64);
    uint8_t *at;

    if (!op) return WN_ENOMEM;
    at = op->data + (8 - (uintptr_t)op->data % 8) % 8;
    op->state = *s;
    op->state.ids = copy(&at, s->ids, ids_bytes);
    op->state.text_end = copy(&at, s->text_end, ids_bytes);
    op->state.text = copy(&at, s->text, s->text_bytes);
    op->state.outcome = copy(&at, s->outcome, s->outcome_bytes);
    op->state.error = copy(&at, s->error, error_bytes);
    return queue(j, op);
}

wn_status wn_journal_forget(struct wn_journal *j, const char *id)
{
    return queue(j, op_new(WN_JOURNAL_FORGET, id, 0));
}

wn_status wn_journal_probe(struct wn_journal *j)
{
    return queue(j, op_new(WN_JOURNAL_PROBE, "", 0));
}

int wn_journal_fd(const struct wn_journal *j)
{
    return j->event_fd;
}

bool wn_journal_take(struct wn_journal *j, struct wn_journal_outcome *out)
{
    struct op *op;
    eventfd_t n;

    pthread_mutex_lock(&j->mutex);
    op = list_take(&j->out);
    if (!j->out.first) (void)!eventfd_read(j->event_fd, &n);
    pthread_mutex_unlock(&j->mutex);
    if (!op) return false;
    out->op = op->kind;
    memcpy(out->id, op->id, sizeof(out->id));
    out->error = op->error;
    free(op);
    return true;
}

void wn_journal_close(struct wn_journal *j)
{
    struct op *op;

    if (!j) return;
    if (j->running) {
        pthread_mutex_lock(&j->mutex);
        j->stop = true;
        pthread_cond_signal(&j->cond);
        pthread_mutex_unlock(&j->mutex);
        pthread_join(j->thread, NULL);
    }
    while ((op = list_take(&j->in)) != NULL) {
        if (op->job.release) op->job.release(op->job.hint);
        free(op);
    }
    while ((op = list_take(&j->out)) != NULL) free(op);
    wn_journal_db_close(j->db);
    if (j->event_fd >= 0) close(j->event_fd);
    if (j->lock_fd >= 0) close(j->lock_fd);
    pthread_cond_destroy(&j->cond);
    pthread_mutex_destroy(&j->mutex);
    free(j);
}
