/* shard/sample.c - see sample.h. Weights and their sums are those of shard/draw.h, so a draw is the same on every
 * machine. Top-k and top-p pop a heap instead of sorting the vocabulary: they mostly need a few ids of many thousand.
 */
#include "shard/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "shard/draw.h"

#define POP_FIRST 64u

struct wn_sampler {
    uint32_t vocab;
    float *score; /* [vocab] logits after the penalty */
    double
        *weight; /* [vocab] not normalised probabilities: of an id, or of the i-th kept candidate */
    double *leaf, *group; /* [vocab / 32], [vocab / 1024], rounded up: sums of weight */
    uint32_t *heap;  /* [vocab] ids, largest (score, lowest id) first out */
    uint32_t *kept;  /* [vocab] ids that survived, largest first */
    uint32_t *stamp; /* [vocab] pick that last punished this id: each id is punished once */
    uint32_t pick;
};

static uint32_t parts(uint32_t n)
{
    return (n + WN_DRAW_FAN - 1) / WN_DRAW_FAN;
}

wn_status wn_sampler_create(struct wn_sampler **out, uint32_t vocab, struct wn_err *err)
{
    struct wn_sampler *s = calloc(1, sizeof(*s));
    wn_status rc = WN_OK;

    if (vocab == 0) {
        rc = wn_fail(err, WN_EINVAL, "sampler: a vocabulary of 0");
        goto out;
    }
    if (s) {
        s->vocab = vocab;
        s->score = calloc(vocab, sizeof(*s->score));
        s->weight = calloc(vocab, sizeof(*s->weight));
        s->leaf = calloc(parts(vocab), sizeof(*s->leaf));
        s->group = calloc(parts(parts(vocab)), sizeof(*s->group));
        s->heap = calloc(vocab, sizeof(*s->heap));
        s->kept = calloc(vocab, sizeof(*s->kept));
        s->stamp = calloc(vocab, sizeof(*s->stamp));
    }
    if (!s || !s->score || !s->weight || !s->leaf || !s->group || !s->heap || !s->kept || !s->stamp) {
        rc = wn_fail(err, WN_ENOMEM, "sampler: vocabulary of %u", vocab);
        goto out;
    }
    *out = s;
    s = NULL;
out:
    wn_sampler_destroy(s);
    return rc;
}

void wn_sampler_destroy(struct wn_sampler *s)
{
    if (!s) return;
    free(s->score);
    free(s->weight);
    free(s->leaf);
    free(s->group);
    free(s->heap);
    free(s->kept);
    free(s->stamp);
    free(s);
}

wn_status wn_sample_opts_check(const struct wn_sample_opts *o, struct wn_err *err)
{
    if (!(o->temperature >= 0.0f && o->temperature <= 100.0f))
        return wn_fail(err, WN_EINVAL, "temperature %g: not in 0 .. 100", (double)o->temperature);
    if (!(o->top_p > 0.0f && o->top_p <= 1.0f))
        return wn_fail(err, WN_EINVAL, "top_p %g: not above 0 and at most 1", (double)o->top_p);
    if (!(o->repetition_penalty > 0.0f && o->repetition_penalty <= 100.0f))
        return wn_fail(err, WN_EINVAL, "repetition_penalty %g: not above 0 and at most 100",
                       (double)o->repetition_penalty);
    return WN_OK;
}

/* Copies the logits and divides (or, below zero, multiplies) those of ids that were seen. */
static wn_status scores_make(struct wn_sampler *s, const struct wn_sample_opts *o,
                             const float *logits, const uint32_t *context, uint32_t context_n,
                             struct wn_err *err)
{
    for (uint32_t i = 0; i < s->vocab; i++) {
        if (!isfinite(logits[i]))
            return wn_fail(err, WN_EINVAL, "logit of id %u is not a finite number", i);
        s->score[i] = logits[i];
    }
    if (o->repetition_penalty == 1.0f) return WN_OK;
    if (++s->pick == 0) { /* wrapped: old stamps would look new */
        memset(s->stamp, 0, (size_t)s->vocab * sizeof(*s->stamp));
        s->pick = 1;
    }
    for (uint32_t i = 0; i < context_n; i++) {
        uint32_t id = context[i];
        if (id >= s->vocab)
            return wn_fail(err, WN_EINVAL, "context id %u: the vocabulary has %u", id, s->vocab);
        if (s->stamp[id] == s->pick) continue;
        s->stamp[id] = s->pick;
        s->score[id] = s->score[id] < 0.0f ? s->score[id] * o->repetition_penalty
                                           : s->score[id] / o->repetition_penalty;
    }
    return WN_OK;
}

static uint32_t largest(const float *score, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (score[i] > score[best]) best = i;
    return best;
}

/* The same, in loops that the compiler makes vectors of: floats compare as integers do once those below zero are turned
 * round. false: one is not a finite number. */
static bool largest_finite(const float *score, uint32_t n, uint32_t *best)
{
    int32_t top = INT32_MIN, odd = 0;
    float max;

    for (uint32_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &score[i], sizeof(bits));
        odd |= (bits & 0x7f800000) == 0x7f800000;
        bits ^= (bits >> 31) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    if (odd) return false;
    top ^= (top >> 31) & 0x7fffffff;
    memcpy(&max, &top, sizeof(max));
    *best = 0;
    while (score[*best] < max) ++*best; /* the first of its value: both zeros are one */
    return true;
}

static bool comes_before(const struct wn_sampler *s, uint32_t a, uint32_t b)
{
    return s->score[a] > s->score[b] || (s->score[a] == s->score[b] && a < b);
}

static void sift_down(struct wn_sampler *s, uint32_t at, uint32_t n)
{
    uint32_t id = s->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && comes_before(s, s->heap[child + 1], s->heap[child])) child++;
        if (!comes_before(s, s->heap[child], id)) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = id;
}

static uint32_t heap_pop(struct wn_sampler *s, uint32_t *n)
{
    uint32_t top = s->heap[0];
    s->heap[0] = s->heap[--*n];
    if (*n > 0) sift_down(s, 0, *n);
    return top;
}

/* Part i of n summands, as a sum. */
static double part_sum(const double *of, uint32_t n, uint32_t i)
{
    const uint32_t first = i * WN_DRAW_FAN, left = n - first;

    return wn_draw_sum(of + first, left < WN_DRAW_FAN ? left : WN_DRAW_FAN);
}

/* Weights of the whole vocabulary and the sums of its parts; returns the sum of all. */
static double weigh(struct wn_sampler *s, const struct wn_sample_opts *o, float max)
{
    const uint32_t leaves = parts(s->vocab), groups = parts(leaves);

    for (uint32_t i = 0; i < s->vocab; i++) s->weight[i] = wn_draw_weight(s->score[i], max, o->temperature);
    for (uint32_t i = 0; i < leaves; i++) s->leaf[i] = part_sum(s->weight, s->vocab, i);
    for (uint32_t i = 0; i < groups; i++) s->group[i] = part_sum(s->leaf, leaves, i);
    return wn_draw_sum(s->group, groups);
}

/* Where among the members of part `i` of n summands the running sum passes target. */
static uint32_t find_in(const double *of, uint32_t n, uint32_t i, double target, double *before)
{
    const uint32_t first = i * WN_DRAW_FAN, left = n - first;

    return first + wn_draw_find(of + first, left < WN_DRAW_FAN ? left : WN_DRAW_FAN, target, before);
}

/* The id at which the running sum of all weights passes the fraction u of the whole. */
static uint32_t draw_all(const struct wn_sampler *s, double total, double u)
{
    const uint32_t leaves = parts(s->vocab);
    double before = 0.0;
    uint32_t at = wn_draw_find(s->group, parts(leaves), u * total, &before);

    at = find_in(s->leaf, leaves, at, u * total, &before);
    return find_in(s->weight, s->vocab, at, u * total, &before);
}

/* Fills kept and weight (in kept's order) and returns how many: top_k first, then top_p of what top_k left. */
static uint32_t filter(struct wn_sampler *s, const struct wn_sample_opts *o, float max)
{
    uint32_t n = s->vocab, k = o->top_k && o->top_k < n ? o->top_k : n, heap_n = n, want = k;
    double total = 0.0;

    if (k == n) total = weigh(s, o, max);
    for (uint32_t i = 0; i < n; i++) s->heap[i] = i;
    for (uint32_t i = n / 2; i-- > 0;) sift_down(s, i, n);
    if (k == n && want > POP_FIRST) want = POP_FIRST; /* top_p alone mostly stops long before the end */
    for (uint32_t have = 0;; want = want < k / 2 ? 2 * want : k) {
        for (; have < want; have++) {
            s->kept[have] = heap_pop(s, &heap_n);
            s->weight[have] = wn_draw_weight(s->score[s->kept[have]], max, o->temperature);
        }
        if (k < n) total = wn_draw_sum(s->weight, k);
        if (o->top_p >= 1.0f) return k;
        const uint32_t stay = wn_draw_cut(s->weight, have, o->top_p, total);
        if (stay <= have || have == k) return stay < k ? stay : k;
    }
}

static float logprob_of(const float *logits, uint32_t vocab, uint32_t token)
{
    double max = (double)logits[largest(logits, vocab)], sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - max);
    return (float)((double)logits[token] - max - log(sum));
}

uint32_t wn_sampler_logprobs(const struct wn_sampler *s, const float *logits, uint32_t token, float *chosen,
                             struct wn_sampled *top, uint32_t n)
{
    const double max = (double)logits[largest(logits, s->vocab)];
    double sum = 0.0;
    uint32_t have = 0;

    if (n > s->vocab) n = s->vocab;
    for (uint32_t i = 0; i < s->vocab; i++) sum += exp((double)logits[i] - max);
    sum = max + log(sum);
    *chosen = (float)((double)logits[token] - sum);
    for (uint32_t i = 0; i < s->vocab && n > 0; i++) { /* kept sorted; among equals the lower id stays before */
        uint32_t at = have;
        if (have == n && !(logits[i] > logits[top[n - 1].token])) continue;
        if (have == n) at--;
        else have++;
        for (; at > 0 && logits[i] > logits[top[at - 1].token]; at--) top[at] = top[at - 1];
        top[at].token = i;
    }
    for (uint32_t i = 0; i < have; i++) top[i].logprob = (float)((double)logits[top[i].token] - sum);
    return have;
}

/* Above temperature 0: max is the largest score. */
static uint32_t draw(struct wn_sampler *s, const struct wn_sample_opts *o, float max, uint64_t position)
{
    const double u = wn_draw_uniform(o->seed, position);
    double before = 0.0;
    uint32_t n;

    if ((o->top_k == 0 || o->top_k >= s->vocab) && o->top_p >= 1.0f) return draw_all(s, weigh(s, o, max), u);
    n = filter(s, o, max);
    return s->kept[wn_draw_find(s->weight, n, u * wn_draw_sum(s->weight, n), &before)];
}

wn_status wn_sampler_pick(struct wn_sampler *s, const struct wn_sample_opts *o, const float *logits,
                          const uint32_t *context, uint32_t context_n, uint64_t position,
                          bool logprob, struct wn_sampled *out, struct wn_err *err)
{
    const bool plain = o->repetition_penalty == 1.0f && !(o->temperature > 0.0f);
    struct wn_sampled picked = {0};
    wn_status rc = wn_sample_opts_check(o, err);

    if (rc != WN_OK) return rc;
    if (!plain || !largest_finite(logits, s->vocab, &picked.token)) {
        if ((rc = scores_make(s, o, logits, context, context_n, err)) != WN_OK) return rc;
        picked.token = largest(s->score, s->vocab);
        if (o->temperature > 0.0f) picked.token = draw(s, o, s->score[picked.token], position);
    }
    if (logprob) picked.logprob = logprob_of(logits, s->vocab, picked.token);
    *out = picked;
    return WN_OK;
}
