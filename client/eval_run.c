/* client/eval_run.c - asks the questions of an evaluation set, a bounded number at a time. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/eval.h"
#include "proto/codec.h"

#define IMAGE_MAX       ((size_t)256 << 20)
#define ERRORS_NAMED    10
#define RETRY_MS_MAX    5000u
#define WAIT_MS         100
#define PROGRESS_US     200000
#define NO_PICTURE      UINT32_MAX

struct flight { uint64_t job; uint32_t q; };

/* One run of the set. */
struct run {
    struct eval_runner *r;
    const struct eval_setting *setting;
    char label[64];
    struct eval_outcome *out;
    struct flight *flights;
    uint32_t flights_n;
    uint32_t *again; /* questions that the server was too busy for */
    uint32_t again_n, next, done, right;
    int64_t *deadline_us; /* of each question, from its first submit; 0: not submitted yet */
    int64_t busy_until_us, shown_us;
    void *image;
    size_t image_bytes;
    uint32_t picture_i; /* of image */
    bool lost;
};

void eval_setting_text(const struct eval_setting *s, char *out, size_t size)
{
    if (s->keep >= WN_FEATURE_ROWS_MAX) /* as a rate of 0 is asked for */
        snprintf(out, size, "%s:all", s->method);
    else if (s->keep)
        snprintf(out, size, "%s:%u", s->method, s->keep);
    else if (s->rate > 0)
        snprintf(out, size, "%s:%.4g", s->method, (double)s->rate);
    else
        snprintf(out, size, "%s", s->method);
}

static void clear_progress(const struct run *run)
{
    if (run->shown_us) fputs("\r\033[K", stderr);
}

static void show_progress(struct run *run)
{
    const int64_t now = wn_now_us();

    if (!isatty(STDERR_FILENO) || now - run->shown_us < PROGRESS_US) return;
    run->shown_us = now;
    fprintf(stderr, "\r%s %s: %u of %u answered, %u right\033[K", run->r->what, run->label, run->done, run->r->set->n,
            run->right);
}

static void question_failed(struct run *run, uint32_t q, const char *why)
{
    run->out[q].state = EVAL_FAILED;
    run->done++;
    if (run->r->errors++ < ERRORS_NAMED) {
        clear_progress(run);
        fprintf(stderr, "winnow: %s: question %s: %s\n", run->label, run->r->set->q[q].id, why);
    } else if (run->r->errors == ERRORS_NAMED + 1) {
        clear_progress(run);
        fprintf(stderr, "winnow: further errors are only counted\n");
    }
}

/* Equal, apart from white space around the answer. */
static bool is_right(const char *text, const char *answer)
{
    static const char space[] = " \t\r\n";
    size_t n;

    text += strspn(text, space);
    n = strlen(text);
    while (n && strchr(space, text[n - 1])) n--;
    return strlen(answer) == n && strncmp(text, answer, n) == 0;
}

static bool load_picture(struct run *run, const struct eval_question *q)
{
    if (run->picture_i == q->picture_i) return true;
    free(run->image);
    run->picture_i = NO_PICTURE;
    if (!(run->image = cli_read_file(q->image, IMAGE_MAX, &run->image_bytes))) return false;
    run->picture_i = q->picture_i;
    return true;
}

static void put_again(struct run *run, uint32_t q, uint32_t retry_ms, const char *why)
{
    if (wn_deadline_passed(run->deadline_us[q])) {
        question_failed(run, q, why);
        return;
    }
    run->again[run->again_n++] = q;
    run->busy_until_us = wn_deadline_in_us((int64_t)(retry_ms < RETRY_MS_MAX ? retry_ms : RETRY_MS_MAX) * 1000);
}

static void submit(struct run *run, uint32_t q)
{
    const struct eval_question *question = &run->r->set->q[q];
    struct winnow_image image;
    struct winnow_request request = run->r->base;
    uint64_t job;
    int rc;

    request.prompt = question->text;
    request.images = &image;
    request.images_n = 1;
    request.max_tokens = run->r->max_tokens;
    request.pruning_method = run->setting->method;
    request.pruning_keep = run->setting->keep;
    request.pruning_rate = run->setting->rate;
    request.quiet = 1;
    if (!run->deadline_us[q]) run->deadline_us[q] = wn_deadline_in_us((int64_t)run->r->timeout_s * 1000000);
    if (!load_picture(run, question)) {
        question_failed(run, q, "its picture cannot be read");
        return;
    }
    image = (struct winnow_image){.data = run->image, .bytes = run->image_bytes};
    if ((rc = winnow_submit(run->r->w, &request, &job)) == WINNOW_OK) {
        run->flights[run->flights_n++] = (struct flight){.job = job, .q = q};
        return;
    }
    run->lost = rc == WINNOW_ECONNECT;
    if (rc == WINNOW_EBUSY) put_again(run, q, WAIT_MS, winnow_error(run->r->w));
    else question_failed(run, q, winnow_error(run->r->w));
}

static void submit_some(struct run *run)
{
    while (!run->lost && run->flights_n < run->r->concurrency && wn_now_us() >= run->busy_until_us) {
        if (run->again_n)
            submit(run, run->again[--run->again_n]);
        else if (run->next < run->r->set->n)
            submit(run, run->next++);
        else
            break;
    }
}

static void take_event(struct run *run, const struct winnow_event *ev)
{
    uint32_t i = 0, q;

    while (i < run->flights_n && run->flights[i].job != ev->job) i++;
    if (i == run->flights_n) {
        if (ev->type == WINNOW_EVENT_ERROR && !ev->job) fprintf(stderr, "winnow: %s\n", ev->text);
        return;
    }
    if (ev->type < WINNOW_EVENT_DONE) return;
    q = run->flights[i].q;
    run->flights[i] = run->flights[--run->flights_n];
    if (ev->type == WINNOW_EVENT_BUSY) {
        put_again(run, q, ev->retry_ms, ev->text);
    } else if (ev->type == WINNOW_EVENT_ERROR) {
        question_failed(run, q, ev->text);
    } else {
        run->out[q].state = EVAL_ANSWERED;
        run->out[q].right = is_right(ev->text, run->r->set->q[q].answer);
        run->out[q].usage = ev->usage;
        run->right += run->out[q].right;
        run->done++;
    }
}

static void drop_late(struct run *run)
{
    for (uint32_t i = 0; i < run->flights_n;) {
        const struct flight f = run->flights[i];
        if (!wn_deadline_passed(run->deadline_us[f.q])) {
            i++;
            continue;
        }
        run->flights[i] = run->flights[--run->flights_n];
        (void)!winnow_cancel(run->r->w, f.job);
        question_failed(run, f.q, "no answer in time");
    }
}

static bool run_all(struct run *run)
{
    while (run->done < run->r->set->n && !cli_stopped) {
        struct winnow_event ev;
        int rc;
        submit_some(run);
        if (run->lost) break;
        rc = winnow_next(run->r->w, &ev, run->flights_n ? WAIT_MS : 10);
        if (rc == WINNOW_OK) {
            take_event(run, &ev);
        } else if (rc != WINNOW_TIMEOUT) {
            clear_progress(run);
            fprintf(stderr, "winnow: %s\n", winnow_error(run->r->w));
            break;
        }
        drop_late(run);
        show_progress(run);
    }
    clear_progress(run);
    if (run->done == run->r->set->n) return true;
    for (uint32_t i = 0; i < run->flights_n; i++) (void)!winnow_cancel(run->r->w, run->flights[i].job);
    return false;
}

bool eval_check(struct eval_runner *r, const struct eval_setting *setting)
{
    struct winnow_request q = r->base;
    char label[64];

    q.pruning_method = setting->method;
    q.pruning_keep = setting->keep;
    q.pruning_rate = setting->rate;
    eval_setting_text(setting, label, sizeof(label));
    return cli_try(r->w, &q, label, r->timeout_s);
}

bool eval_run(struct eval_runner *r, const struct eval_setting *setting, struct eval_outcome *out)
{
    struct run run = {.r = r, .setting = setting, .out = out, .picture_i = NO_PICTURE};
    bool good = false;

    eval_setting_text(setting, run.label, sizeof(run.label));
    memset(out, 0, r->set->n * sizeof(*out));
    run.flights = calloc(r->concurrency, sizeof(*run.flights));
    run.again = calloc(r->set->n, sizeof(*run.again));
    run.deadline_us = calloc(r->set->n, sizeof(*run.deadline_us));
    if (run.flights && run.again && run.deadline_us)
        good = run_all(&run);
    else
        fprintf(stderr, "winnow: out of memory\n");
    free(run.flights);
    free(run.again);
    free(run.deadline_us);
    free(run.image);
    return good;
}
