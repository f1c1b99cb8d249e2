/* client/bench.h - the parts of `winnow bench serve` that need no server: arrivals, quantiles, and the report.
 * Owns:    as said at each.   Threads: one.   Fails: WN_ENOMEM, WN_EIO. */
#ifndef WN_CLIENT_BENCH_H
#define WN_CLIENT_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* ---- bench_stats.c ---- */

struct bench_rng {
    uint64_t state;
}; /* any value is a seed */

uint64_t bench_rng_next(struct bench_rng *r);
double bench_rng_unit(struct bench_rng *r); /* in [0, 1) */

/* Seconds from the start of each of n arrivals of a Poisson process; a rate of 0: all at once. */
void bench_arrivals(double *at_s, uint32_t n, double rate, struct bench_rng *r);

/* 0 .. n-1 in random order. */
void bench_shuffle(uint32_t *order, uint32_t n, struct bench_rng *r);

struct bench_series {
    double *v; /* owned */
    size_t n, room;
};

WN_NODISCARD wn_status bench_series_add(struct bench_series *s, double v, struct wn_err *err);
void bench_series_sort(struct bench_series *s);
void bench_series_fini(struct bench_series *s);

/* Of a sorted series, linear between its members; 0 if it is empty. p: 0 to 100. */
double bench_percentile(const struct bench_series *s, double p);
double bench_mean(const struct bench_series *s);

/* Limits of a good request in ms; 0: none. */
struct bench_slo {
    double ttft_ms, tpot_ms, e2e_ms;
};

/* Adds "ttft:500", "tpot:50", "e2e:3000" or "e2el:3000", several with commas between. False: *text is none of them. */
bool bench_slo_parse(struct bench_slo *slo, const char *text);
bool bench_slo_met(const struct bench_slo *slo, double ttft_s, double tpot_s, double e2e_s);

/* ---- bench_report.c ---- */

struct bench_report {
    const char *model, *dataset, *pruning;
    double rate;          /* requests/s asked for; 0: as fast as may be */
    uint32_t concurrency; /* 0: no limit */
    uint32_t max_tokens, prompts, done, failed, busy, good;
    uint64_t seed;
    double duration_s;
    uint64_t prompt_tokens, answer_tokens, visual, visual_before, feature_bytes;
    struct bench_slo slo;
    struct bench_series ttft, tpot, itl, e2e; /* seconds, sorted */
};

void bench_report_print(const struct bench_report *r, FILE *f);

/* One row; a heading first if the file is new or empty. */
WN_NODISCARD wn_status bench_report_csv(const struct bench_report *r, const char *path, const char *commit,
                                        struct wn_err *err);

/* Share of requests (y) with first token and whole answer within a time (x), as a PNG. */
WN_NODISCARD wn_status bench_report_plot(const struct bench_report *r, const char *path, struct wn_err *err);

#endif
