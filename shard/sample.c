/* Sums of probabilities are made in double and in one fixed order, so a draw is the same on every machine whose exp()
 * is. Top-k and top-p pop a heap instead of sorting the vocabulary: they mostly need a few ids of many thousand. */
#include "shard/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct wn_sampler {
    uint32_t vocab;
    float *score; /* [vocab] logits after the penalty */
    double
        *weight; /* [vocab] not normalised probabilities: of an id, or of the i-th kept candidate */
    uint32_t *heap;  /* [vocab] ids, largest (score, lowest id) first out */
    uint32_t *kept;  /* [vocab] ids that survived, largest first */
    uint32_t *stamp; /* [vocab] pick that last punished this id: each id is punished once */
    uint32_t pick;
};

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
        s->heap = calloc(vocab, sizeof(*s->heap));
        s->kept = calloc(vocab, sizeof(*s->kept));
        s->stamp = calloc(vocab, sizeof(*s->stamp));
    }
    if (!s || !s->score || !s->weight || !s->heap || !s->kept || !s->stamp) {
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

void wn_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0],
             k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* In [0, 1), 53 bits. */
static double uniform_at(uint64_t seed, uint64_t position)
{
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, word[4];

    wn_philox(counter, key, word);
    return (double)(((uint64_t)word[1] << 32 | word[0]) >> 11) * 0x1p-53;
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

static bool before(const struct wn_sampler *s, uint32_t a, uint32_t b)
{
    return s->score[a] > s->score[b] || (s->score[a] == s->score[b] && a < b);
}

static void sift_down(struct wn_sampler *s, uint32_t at, uint32_t n)
{
    uint32_t id = s->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && before(s, s->heap[child + 1], s->heap[child])) child++;
        if (!before(s, s->heap[child], id)) break;
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

/* Fills kept and weight (in kept's order) and returns how many: top_k first, then top_p of what top_k left. */
static uint32_t filter(struct wn_sampler *s, const struct wn_sample_opts *o, double max)
{
    uint32_t n = s->vocab, k = o->top_k && o->top_k < n ? o->top_k : n, heap_n = n, kept_n = 0;
    double total = 0.0, taken = 0.0, temperature = (double)o->temperature;

    for (uint32_t i = 0; i < n; i++) s->heap[i] = i;
    for (uint32_t i = n / 2; i-- > 0;) sift_down(s, i, n);
    if (k == n) { /* top_p alone: stop popping as soon as enough is taken */
        for (uint32_t i = 0; i < n; i++) total += exp(((double)s->score[i] - max) / temperature);
    } else {
        while (kept_n < k) s->kept[kept_n++] = heap_pop(s, &heap_n);
        for (uint32_t i = 0; i < kept_n; i++) {
            s->weight[i] = exp(((double)s->score[s->kept[i]] - max) / temperature);
            total += s->weight[i];
        }
    }
    if (o->top_p >= 1.0f) return kept_n;
    for (uint32_t i = 0; i < k; i++) {
        if (i > 0 && taken >= (double)o->top_p * total) return i;
        if (k == n) {
            s->kept[i] = heap_pop(s, &heap_n);
            s->weight[i] = exp(((double)s->score[s->kept[i]] - max) / temperature);
        }
        taken += s->weight[i];
    }
    return k;
}

/* The index at which the running sum of weight [n] passes the fraction u of the whole. */
static uint32_t draw(const double *weight, uint32_t n, double u)
{
    double total = 0.0, sum = 0.0;
    uint32_t last = 0;

    for (uint32_t i = 0; i < n; i++) total += weight[i];
    for (uint32_t i = 0; i < n; i++) {
        if (weight[i] <= 0.0) continue;
        sum += weight[i];
        last = i;
        if (sum > u * total) return i;
    }
    return last; /* u * total rounded up to the whole sum */
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

wn_status wn_sampler_pick(struct wn_sampler *s, const struct wn_sample_opts *o, const float *logits,
                          const uint32_t *context, uint32_t context_n, uint64_t position,
                          bool logprob, struct wn_sampled *out, struct wn_err *err)
{
    struct wn_sampled picked = {0};
    wn_status rc = wn_sample_opts_check(o, err);

    if (rc == WN_OK) rc = scores_make(s, o, logits, context, context_n, err);
    if (rc != WN_OK) return rc;
    picked.token = largest(s->score, s->vocab);
    if (o->temperature > 0.0f) {
        double max = (double)s->score[picked.token], u = uniform_at(o->seed, position);
        bool all = (o->top_k == 0 || o->top_k >= s->vocab) && o->top_p >= 1.0f;
        if (all) {
            for (uint32_t i = 0; i < s->vocab; i++)
                s->weight[i] = exp(((double)s->score[i] - max) / (double)o->temperature);
            picked.token = draw(s->weight, s->vocab, u);
        } else {
            uint32_t n = filter(s, o, max);
            picked.token = s->kept[draw(s->weight, n, u)];
        }
    }
    if (logprob) picked.logprob = logprob_of(logits, s->vocab, picked.token);
    *out = picked;
    return WN_OK;
}
