/* client/wire.h - the parts of `winnow bench wire` that need no server: what cells are made of, and their table.
 *
 * A cell is a number of requests under one network rate, one budget of visual tokens, and pictures that are either
 * new to the service or encoded before. Where a request's time to first token goes is told in four parts:
 *   encode   preprocessing, vision tower, choosing tokens
 *   wire     features on their way to the language model, and time that the stage which waited longest did nothing but
 *            wait for bytes of other ranks (struct wn_stage_load, link_us)
 *   prefill  the rest of the prefill: computing, and waiting for the stage before
 *   other    queue, orders, tokens on their way back
 *
 * Functions that can fail say why on standard error and return false. Threads: one. */
#ifndef WN_CLIENT_WIRE_H
#define WN_CLIENT_WIRE_H

#include "client/eval.h"

#define WIRE_CELLS_MAX  256
#define WIRE_STAGES_MAX 64
#define WIRE_KINDS_N    7
#define WIRE_PLANS_N    2

extern const char *const wire_kinds[WIRE_KINDS_N]; /* "image", "embedding", ... */

/* ---- wire_count.c ---- */

/* Totals of everything that the service has sent, and of its first replica's stages, from `winnow status --json`. */
struct wire_counters {
    char model[128]; /* without the folders that it lies in */
    double bytes[WIRE_KINDS_N];
    double link_ms[WIRE_STAGES_MAX];
    uint32_t stages_n;
};

bool wire_counters_parse(const char *json, struct wire_counters *out);

enum { WIRE_ENCODE, WIRE_WIRE, WIRE_PREFILL, WIRE_OTHER, WIRE_PARTS_N };
extern const char *const wire_parts[WIRE_PARTS_N];

struct wire_cell {
    char rate[24];
    bool encoded_before;
    uint32_t keep, answered, failed, cache_hits; /* cache_hits: pictures that needed no encode */
    double ttft_p50_ms, ttft_p95_ms, ttft_ms;    /* from arrival at the scheduler; the last is the mean */
    double part_ms[WIRE_PARTS_N];                /* means; add up to ttft_ms */
    double transfer_ms, exposed_ms;              /* the two halves of wire */
    double wall_s;
    double bytes[WIRE_KINDS_N]; /* a picture */
};

/* Fills the figures of the cell from its answers and from the counters around it. */
bool wire_cell_fill(struct wire_cell *cell, const struct eval_set *set, const struct eval_outcome *out,
                    const struct wire_counters *before, const struct wire_counters *after);

/* Bytes that a generated token puts on all links together, by `winnow plan --json`'s text. */
bool wire_token_bytes(const char *plan_json, double *bytes);

/* ---- wire_report.c ---- */

struct wire_report {
    const char *model, *method, *commit;
    uint32_t concurrency, max_tokens;
    struct wire_cell cells[WIRE_CELLS_MAX];
    uint32_t cells_n;
    double token_bytes[WIRE_PLANS_N]; /* of plain tensor parallelism, T = 2 and 4; 0: not asked for, or no such plan */
};

extern const uint32_t wire_plans[WIRE_PLANS_N]; /* 2, 4 */

void wire_print(FILE *f, const struct wire_report *r);
/* CSV files: a heading, then rows; lines that begin with # are remarks. */
bool wire_check_csv(const char *path); /* whether rows can be appended to it, which need not be there; says why not */
bool wire_write_csv(const char *path, const struct wire_report *r); /* appends; a heading first if the file is new */
/* Rate, budget, pictures and times of all rows about r->model, in place of r's cells: several runs together, sorted. */
bool wire_read_csv(const char *path, struct wire_report *r);
bool wire_write_plot(const char *path, const struct wire_report *r);

/* ---- cmd_wire.c ---- */

int bench_wire(int argc, char **argv); /* the subcommand; returns the exit code */

#endif
