/* client/bench_stats.c - random arrivals, quantiles, service-level objectives; see bench.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench.h"

#include "base/order.h"

uint64_t bench_rng_next(struct bench_rng *r) /* splitmix64 */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double bench_rng_unit(struct bench_rng *r)
{
    return (double)(bench_rng_next(r) >> 11) * 0x1p-53;
}

void bench_arrivals(double *at_s, uint32_t n, double rate, struct bench_rng *r)
{
    double t = 0;

    for (uint32_t i = 0; i < n; i++) {
        at_s[i] = t; /* the first one opens the run */
        if (rate > 0) t += -log1p(-bench_rng_unit(r)) / rate;
    }
}

void bench_shuffle(uint32_t *order, uint32_t n, struct bench_rng *r)
{
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        const uint32_t j = (uint32_t)(bench_rng_unit(r) * i), had = order[i - 1];
        order[i - 1] = order[j];
        order[j] = had;
    }
}

wn_status bench_series_add(struct bench_series *s, double v, struct wn_err *err)
{
    if (s->n == s->room) {
        const size_t room = s->room ? 2 * s->room : 256;
        double *more = realloc(s->v, room * sizeof(*more));
        if (!more) return wn_fail(err, WN_ENOMEM, "%zu times", room);
        s->v = more;
        s->room = room;
    }
    s->v[s->n++] = v;
    return WN_OK;
}

void bench_series_sort(struct bench_series *s)
{
    if (s->n) qsort(s->v, s->n, sizeof(*s->v), wn_order_double);
}

void bench_series_fini(struct bench_series *s)
{
    free(s->v);
    *s = (struct bench_series){0};
}

double bench_percentile(const struct bench_series *s, double p)
{
    double at, below;
    size_t i;

    if (s->n == 0) return 0;
    at = (p < 0 ? 0 : p > 100 ? 1 : p / 100) * (double)(s->n - 1);
    below = floor(at);
    i = (size_t)below;
    return i + 1 < s->n ? s->v[i] + (at - below) * (s->v[i + 1] - s->v[i]) : s->v[i];
}

double bench_mean(const struct bench_series *s)
{
    double sum = 0;

    for (size_t i = 0; i < s->n; i++) sum += s->v[i];
    return s->n ? sum / (double)s->n : 0;
}

bool bench_slo_parse(struct bench_slo *slo, const char *text)
{
    do {
        const size_t n = strcspn(text, ":");
        double *to = n == 4 && strncmp(text, "ttft", 4) == 0   ? &slo->ttft_ms
                     : n == 4 && strncmp(text, "tpot", 4) == 0 ? &slo->tpot_ms
                     : n == 4 && strncmp(text, "e2el", 4) == 0 ? &slo->e2e_ms
                     : n == 3 && strncmp(text, "e2e", 3) == 0  ? &slo->e2e_ms
                                                               : NULL;
        char *end;
        double v;
        if (!to || text[n] != ':') return false;
        v = strtod(text + n + 1, &end);
        if (end == text + n + 1 || (*end && *end != ',') || !isfinite(v) || v <= 0) return false;
        *to = v;
        text = *end ? end + 1 : end;
        if (*end && !*text) return false;
    } while (*text);
    return true;
}

static bool within(double seconds, double limit_ms)
{
    return limit_ms <= 0 || seconds * 1e3 <= limit_ms;
}

bool bench_slo_met(const struct bench_slo *slo, double ttft_s, double tpot_s, double e2e_s)
{
    return within(ttft_s, slo->ttft_ms) && within(tpot_s, slo->tpot_ms) && within(e2e_s, slo->e2e_ms);
}
