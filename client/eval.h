/* client/eval.h - the parts of `winnow eval`: the evaluation set, one run of it, and what is made of the answers.
 * Functions that can fail say why on standard error and return false. Threads: one. */
#ifndef WN_CLIENT_EVAL_H
#define WN_CLIENT_EVAL_H

#include "client/cli.h"

#define EVAL_FAMILIES_MAX  32
#define EVAL_QUESTIONS_MAX 1000000u
#define EVAL_SETTINGS_MAX  256

/* ---- eval_set.c ---- */

struct eval_question {
    char *id, *image, *family, *text, *answer; /* image: with the set's folder before it */
    uint32_t family_i, picture_i;
};

/* Questions about the same picture lie together; owned by the set. */
struct eval_set {
    struct eval_question *q;
    uint32_t n, room, pictures_n, families_n;
    const char *families[EVAL_FAMILIES_MAX]; /* of questions */
};

/* Reads the first `limit` lines (0: all) of a JSONL file: objects with the strings id, image, family, question and
 * answer. */
bool eval_set_load(struct eval_set *set, const char *path, uint32_t limit);
void eval_set_free(struct eval_set *set);

/* ---- eval_run.c ---- */

struct eval_setting {
    char method[WINNOW_METHOD_MAX];
    uint32_t keep; /* 0: by rate; neither: the method's own count */
    float rate;
};

/* "cls-topk:64", "prumerge", "random:0.9", "uniform:all" */
void eval_setting_text(const struct eval_setting *s, char *out, size_t size);

enum eval_state { EVAL_OPEN, EVAL_ANSWERED, EVAL_FAILED };

struct eval_outcome {
    enum eval_state state;
    bool right;
    struct winnow_usage usage;
};

struct eval_runner {
    struct winnow *w; /* borrowed, as is set */
    const struct eval_set *set;
    uint32_t concurrency, max_tokens, timeout_s;
    struct winnow_request base; /* of every question: what else is said about pruning */
    const char *what; /* for the progress line */
    uint32_t errors;  /* counted over all runs; the first ones are named on standard error */
};

/* Does the server know this way of pruning? Asks it without a picture, which costs next to nothing. False: it does not,
 * or cannot be asked, or cli_stopped. */
bool eval_check(struct eval_runner *r, const struct eval_setting *setting);

/* Asks all questions under one setting; out has a place for each. False: the connection is of no more use, or
 * cli_stopped. */
bool eval_run(struct eval_runner *r, const struct eval_setting *setting, struct eval_outcome *out);

/* ---- eval_report.c ---- */

enum { EVAL_LINKS_N = 6, EVAL_TIMES_N = 7 };
extern const char *const eval_links[EVAL_LINKS_N]; /* "image", "embedding", ... */
extern const char *const eval_times[EVAL_TIMES_N]; /* "queue", "preprocess", ... */

/* One setting's answers, summed up. Means are over answered questions. */
struct eval_row {
    struct eval_setting setting;
    struct winnow_usage in_force; /* of the first answer: what the server made of the setting */
    uint8_t *right_q; /* [set.n] was the question answered rightly? Owned: free(). NULL: not known */
    uint32_t answered, failed, right, cache_hits;
    uint32_t family_n[EVAL_FAMILIES_MAX], family_right[EVAL_FAMILIES_MAX]; /* n: answered and failed */
    double tokens, tokens_before, prefix_tokens; /* prefix: not computed again, all kinds of tokens */
    double link_bytes[EVAL_LINKS_N];
    double ms[EVAL_TIMES_N], ttft_p50_ms, ttft_p95_ms;
    double wall_s;
};

bool eval_summarise(struct eval_row *row, const struct eval_set *set, const struct eval_outcome *out);
double eval_accuracy(const struct eval_row *row); /* 0 .. 1; a failed question is a wrong one */

void eval_print(FILE *f, const struct eval_set *set, const struct eval_row *rows, uint32_t n);
bool eval_write_csv(const char *path, const struct eval_set *set, const struct eval_row *rows, uint32_t n);

#define EVAL_ALL_FAMILIES UINT32_MAX

/* The row of `random` with as many tokens kept, or NULL. */
const struct eval_row *eval_random_twin(const struct eval_row *rows, uint32_t n, const struct eval_row *of);

/* A difference of accuracies on the same questions, and its standard error (NAN: fewer than two pictures, or it is not
 * known which questions were right). */
struct eval_difference { double value, error; };

/* a - b, in one family or all. Questions are paired, and those about one picture count as one draw: a method chooses
 * its tokens once a picture, and what it dropped there it dropped for all of them. */
struct eval_difference eval_compare(const struct eval_set *set, const struct eval_row *a, const struct eval_row *b,
                                    uint32_t family);

/* ---- eval_plot.c ---- */

/* Accuracy against tokens kept, one line a method. */
bool eval_write_plot(const char *path, const struct eval_set *set, const struct eval_row *rows, uint32_t n);

#endif
