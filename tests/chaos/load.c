/* tests/chaos/load.c - see load.h. */
#include "tests/chaos/load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/winnow.h"
#include "tests/file_read.h"

#define PICTURES  8
#define TEXT_ROOM 4096

static const char *const with_picture[] = {
    "Describe the picture.", "What color is the object at the bottom right?", "How many objects are there?",
    "What shape is at the center?", "Is there a red circle?", "What is on the left?",
};
static const char *const text_only[] = {"How many objects are there?", "Tell me about colors and shapes."};
static const struct {
    const char *method;
    uint32_t keep;
} prunings[] = {{"none", 0}, {"cls-topk", 64}, {"divprune", 128}, {"prumerge", 64}};

struct question {
    const char *text, *method;
    uint32_t keep, max_tokens;
    int picture; /* -1: none */
    char *answer;
};

struct job {
    uint64_t number; /* 0: was refused, asked again under another */
    unsigned question;
    bool accepted, ended;
    char id[WINNOW_JOB_ID_MAX];
    int64_t asked_us, moved_us;
    char *text; /* the pieces joined, until it ends */
};

struct load {
    char endpoint[128];
    struct winnow *conn;
    unsigned in_flight, state;
    void *pictures[PICTURES];
    size_t picture_bytes[PICTURES];
    struct question questions[LOAD_QUESTIONS];
    struct job *jobs; /* jobs[n].number == n + 1: numbers of one connection count from 1 */
    size_t jobs_n, jobs_room;
    unsigned open;
    int64_t busy_until_us;
    bool learning;
    struct load_totals totals;
};

static bool connect_to(struct load *l)
{
    const struct winnow_options o = {.connect_timeout_ms = 20000, .reconnect_timeout_ms = 120000};

    if (winnow_connect(&l->conn, l->endpoint, &o) == WINNOW_OK) return true;
    fprintf(stderr, "chaos: %s\n", winnow_error(NULL));
    return false;
}

struct load *load_open(const char *endpoint, const char *folder, unsigned in_flight, unsigned seed)
{
    struct load *l = calloc(1, sizeof(*l));
    char path[512];

    if (!l) return NULL;
    snprintf(l->endpoint, sizeof(l->endpoint), "%s", endpoint);
    l->in_flight = in_flight;
    l->state = seed;
    for (int i = 0; i < PICTURES; i++) {
        snprintf(path, sizeof(path), "%s/%03d.jpg", folder, i);
        l->pictures[i] = file_read(path, &l->picture_bytes[i]);
        if (!l->pictures[i]) {
            fprintf(stderr, "chaos: %s cannot be read\n", path);
            load_close(l);
            return NULL;
        }
    }
    for (unsigned i = 0; i < LOAD_QUESTIONS; i++) {
        struct question *q = &l->questions[i];
        const bool plain = i % 6 == 5;
        q->text = plain ? text_only[i / 6 % 2] : with_picture[i % 6 + (i / 6 % 2)];
        q->picture = plain ? -1 : (int)(i % PICTURES);
        q->method = prunings[i % 4].method;
        q->keep = prunings[i % 4].keep;
        q->max_tokens = i % 3 == 0 ? 96 : 4 + 9 * (i % 5);
    }
    if (connect_to(l)) return l;
    load_close(l);
    return NULL;
}

void load_close(struct load *l)
{
    if (!l) return;
    winnow_close(l->conn);
    for (int i = 0; i < PICTURES; i++) free(l->pictures[i]);
    for (int i = 0; i < LOAD_QUESTIONS; i++) free(l->questions[i].answer);
    for (size_t i = 0; i < l->jobs_n; i++) free(l->jobs[i].text);
    free(l->jobs);
    free(l);
}

static bool ask(struct load *l, unsigned question)
{
    const struct question *q = &l->questions[question];
    struct winnow_image image = {0};
    struct winnow_request r = {.prompt = q->text, .max_tokens = q->max_tokens};
    struct job *j;

    if (q->picture >= 0) {
        image = (struct winnow_image){l->pictures[q->picture], l->picture_bytes[q->picture]};
        r.images = &image;
        r.images_n = 1;
        r.pruning_method = q->method;
        r.pruning_keep = q->keep;
    }
    if (l->jobs_n == l->jobs_room) {
        const size_t room = l->jobs_room * 2 + 256;
        struct job *more = realloc(l->jobs, room * sizeof(*more));
        if (!more) return false;
        l->jobs = more;
        l->jobs_room = room;
    }
    j = &l->jobs[l->jobs_n];
    memset(j, 0, sizeof(*j));
    if (!(j->text = calloc(1, TEXT_ROOM)) || winnow_submit(l->conn, &r, &j->number) != WINNOW_OK) {
        free(j->text);
        return false; /* the server is away: later */
    }
    j->question = question;
    j->asked_us = j->moved_us = wn_now_us();
    l->jobs_n++;
    l->open++;
    return true;
}

static void end_job(struct load *l, struct job *j)
{
    j->ended = true;
    l->open--;
    free(j->text);
    j->text = NULL;
}

static void done(struct load *l, struct job *j, const struct winnow_event *ev)
{
    struct question *q = &l->questions[j->question];

    if (l->learning) {
        free(q->answer);
        q->answer = strdup(ev->text);
    } else {
        l->totals.answered++;
        l->totals.replayed += ev->usage.attempts > 1;
        l->totals.tries += ev->usage.attempts;
        if (strcmp(ev->text, q->answer) != 0 || strcmp(j->text, ev->text) != 0) {
            l->totals.wrong++;
            fprintf(stderr, "chaos: job %s answers '%s', streamed as '%s', instead of '%s'\n", j->id, ev->text, j->text,
                    q->answer);
        }
    }
    end_job(l, j);
}

static void take_event(struct load *l, const struct winnow_event *ev)
{
    struct job *j = ev->job >= 1 && ev->job <= l->jobs_n ? &l->jobs[ev->job - 1] : NULL;

    if (!j || j->number != ev->job) return;
    j->moved_us = wn_now_us();
    if (j->ended) {
        l->totals.doubled++;
        fprintf(stderr, "chaos: job %s: event %d after its end\n", j->id, ev->type);
        return;
    }
    switch (ev->type) {
    case WINNOW_EVENT_ACCEPTED:
        if (!l->learning && !j->accepted) l->totals.accepted++;
        j->accepted = true;
        memcpy(j->id, ev->job_id, sizeof(j->id));
        break;
    case WINNOW_EVENT_TEXT:
        snprintf(j->text + strlen(j->text), TEXT_ROOM - strlen(j->text), "%s", ev->text);
        break;
    case WINNOW_EVENT_DONE: done(l, j, ev); break;
    case WINNOW_EVENT_BUSY: /* nothing was taken: the question comes again some time */
        l->totals.busy++;
        l->busy_until_us = wn_deadline_in_us((int64_t)ev->retry_ms * 1000);
        end_job(l, j);
        break;
    default:
        l->totals.lost++;
        fprintf(stderr, "chaos: job %s failed: %s\n", j->id[0] ? j->id : "(not accepted)", ev->text);
        end_job(l, j);
    }
}

bool load_turn(struct load *l, int ms, bool more)
{
    const int64_t until = wn_deadline_in_us((int64_t)ms * 1000);

    while (more && l->open < l->in_flight && wn_deadline_passed(l->busy_until_us))
        if (!ask(l, (unsigned)rand_r(&l->state) % LOAD_QUESTIONS)) break;
    do {
        struct winnow_event ev;
        const int64_t left_ms = (until - wn_now_us()) / 1000;
        const int rc = winnow_next(l->conn, &ev, left_ms > 0 ? (int)left_ms : 0);
        if (rc == WINNOW_OK) take_event(l, &ev);
        else if (rc == WINNOW_ECONNECT && l->open == 0) usleep(10000);
        else if (rc != WINNOW_TIMEOUT) {
            fprintf(stderr, "chaos: %s\n", winnow_error(l->conn));
            return false;
        }
    } while (!wn_deadline_passed(until));
    return true;
}

bool load_learn(struct load *l, int seconds)
{
    const int64_t until = wn_deadline_in_us((int64_t)seconds * 1000000);
    unsigned asked = 0, answers = 0;

    l->learning = true;
    while ((asked < LOAD_QUESTIONS || l->open) && !wn_deadline_passed(until)) {
        while (asked < LOAD_QUESTIONS && l->open < l->in_flight && ask(l, asked)) asked++;
        if (!load_turn(l, 20, false)) return false;
    }
    l->learning = false;
    for (int i = 0; i < LOAD_QUESTIONS; i++) answers += l->questions[i].answer != NULL;
    return answers == LOAD_QUESTIONS && l->totals.lost == 0 && l->totals.doubled == 0;
}

unsigned load_pending(const struct load *l)
{
    return l->open;
}

int64_t load_quiet_us(const struct load *l)
{
    const int64_t now = wn_now_us();
    int64_t longest = 0;

    for (size_t i = 0; i < l->jobs_n; i++)
        if (!l->jobs[i].ended && now - l->jobs[i].moved_us > longest) longest = now - l->jobs[i].moved_us;
    return longest;
}

bool load_moved_since(const struct load *l, int64_t us)
{
    for (size_t i = 0; i < l->jobs_n; i++)
        if (!l->jobs[i].ended && l->jobs[i].asked_us < us && l->jobs[i].moved_us <= us) return false;
    return true;
}

void load_totals(const struct load *l, struct load_totals *t)
{
    *t = l->totals;
}

void load_print_open(const struct load *l)
{
    for (size_t i = 0; i < l->jobs_n; i++)
        if (!l->jobs[i].ended)
            fprintf(stderr, "chaos: open: %s, question %u, '%s', no event for %.1f s\n",
                    l->jobs[i].accepted ? l->jobs[i].id : "(not accepted)", l->jobs[i].question, l->jobs[i].text,
                    (double)(wn_now_us() - l->jobs[i].moved_us) / 1e6);
}

unsigned load_ask_again(struct load *l)
{
    unsigned bad = 0;

    winnow_close(l->conn);
    l->conn = NULL;
    if (!connect_to(l)) return (unsigned)l->jobs_n;
    for (size_t i = 0; i < l->jobs_n; i++) {
        const struct job *j = &l->jobs[i];
        struct winnow_event ev = {0};
        uint64_t number;
        if (!j->accepted) continue;
        if (winnow_attach(l->conn, j->id, UINT32_MAX, &number) != WINNOW_OK) {
            bad++;
            continue;
        }
        while (winnow_next(l->conn, &ev, 10000) == WINNOW_OK && ev.type < WINNOW_EVENT_DONE) continue;
        if (ev.type == WINNOW_EVENT_DONE && strcmp(ev.text, l->questions[j->question].answer) == 0) continue;
        /* its end was heard and acknowledged, so the server may have forgotten it; it must not run again */
        if (ev.type == WINNOW_EVENT_ERROR && (strstr(ev.text, "not known") || strstr(ev.text, "acknowledged")))
            continue;
        bad++;
        fprintf(stderr, "chaos: job %s, asked again: %s\n", j->id, ev.text ? ev.text : "nothing");
    }
    return bad;
}
