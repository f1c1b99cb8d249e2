/* shard/plan_bytes.c - the bytes that one prompt puts on each link; see plan.h. It follows the
 * calls of the decoder, and asks transport/coll.h and device.h what each collective sends. */
#include <stdbool.h>
#include <stddef.h>

#include "shard/plan.h"
#include "transport/device.h"

/* Steps of one size. */
struct steps {
    uint64_t rows; /* of each step */
    uint64_t times;
    uint64_t wanted; /* rows whose logits are wanted, all steps together */
};

#define STEP_SIZES 3 /* full chunks, what is left of the prompt, decodes */

static void list_steps(const struct wn_plan_load *load, struct steps out[STEP_SIZES])
{
    uint64_t rows = (uint64_t)load->text_tokens + load->image_rows;
    uint64_t chunk = load->chunk_tokens && load->chunk_tokens < rows ? load->chunk_tokens : rows;
    uint64_t left = chunk ? rows % chunk : 0;
    bool sampled = rows > 0 && load->new_tokens > 0; /* from the end of the prompt on */

    out[0] = (struct steps){
        .rows = chunk, .times = chunk ? rows / chunk : 0, .wanted = sampled && left == 0};
    out[1] = (struct steps){.rows = left, .times = left > 0, .wanted = sampled && left > 0};
    out[2] = (struct steps){.rows = 1, .times = sampled ? load->new_tokens - 1 : 0};
    out[2].wanted = out[2].times;
}

static uint64_t feature_bytes(const struct wn_plan *p, const struct wn_plan_load *load)
{
    uint32_t width = load->projected ? p->model.text.hidden : p->model.vision.hidden;

    return (uint64_t)load->image_rows * width * wn_dtype_bytes(p->dtype);
}

/* One column part of a step's hidden rows, in the plan's type. */
static uint64_t part_bytes(const struct wn_plan *p, uint64_t rows)
{
    return rows * (p->model.text.hidden / p->tensors) * wn_dtype_bytes(p->dtype);
}

/* An all-gather of equal parts is a ring: each member hands all parts but one to the next. Between GPUs each part
 * counts once for every member that it goes to. */
static uint64_t gather_bytes(uint32_t n, bool gpus, uint32_t from, uint32_t to, uint64_t part)
{
    if (gpus) return part;
    return to == (from + 1) % n ? part * (n - 1) : 0;
}

static uint64_t sum_bytes(int n, bool gpus, int from, int to, size_t floats)
{
    return gpus ? wn_dev_allreduce_bytes(n, false, from, to, floats) : wn_coll_allreduce_bytes(n, from, to, floats);
}

/* Between two tensor ranks of one stage. */
static uint64_t inside_stage(const struct wn_plan *p, const struct wn_plan_load *load,
                             uint32_t stage, uint32_t from, uint32_t to, enum wn_traffic kind)
{
    int n = (int)p->tensors, a = (int)from, b = (int)to;
    uint32_t sums =
        2 * p->layers[stage].n + (stage == 0); /* after o_proj and down_proj; the input rows */
    struct steps steps[STEP_SIZES];
    uint64_t bytes = 0;

    if (kind == WN_TRAFFIC_EMBEDDING && stage == 0)
        return load->gpus ? (a == 0 ? feature_bytes(p, load) : 0)
                          : wn_coll_broadcast_bytes(n, 0, a, b, feature_bytes(p, load));
    list_steps(load, steps);
    for (int i = 0; i < STEP_SIZES; i++) {
        size_t floats = (size_t)steps[i].rows * p->model.text.hidden;
        if (kind == WN_TRAFFIC_ALLREDUCE)
            bytes += sum_bytes(n, load->gpus, a, b, floats) * sums * steps[i].times;
        if (kind == WN_TRAFFIC_ACTIVATION && stage > 0)
            bytes += gather_bytes(p->tensors, load->gpus, from, to, part_bytes(p, steps[i].rows)) *
                     steps[i].times;
        if (kind == WN_TRAFFIC_LOGITS && stage + 1 == p->stages && to == 0)
            bytes += steps[i].wanted * wn_plan_vocab(p, from).n * sizeof(float);
    }
    return bytes;
}

uint64_t wn_plan_link_bytes(const struct wn_plan *p, const struct wn_plan_load *load, uint32_t src,
                            uint32_t dst, enum wn_traffic kind)
{
    uint32_t ranks = p->stages * p->tensors;
    struct steps steps[STEP_SIZES];
    uint64_t bytes = 0;

    if (src == WN_PLAN_VISION)
        return dst == 0 && kind == WN_TRAFFIC_EMBEDDING ? feature_bytes(p, load) : 0;
    if (src >= ranks || dst >= ranks || src == dst) return 0;
    if (src / p->tensors == dst / p->tensors)
        return inside_stage(p, load, src / p->tensors, src % p->tensors, dst % p->tensors, kind);
    if (dst != src + p->tensors || kind != WN_TRAFFIC_ACTIVATION) return 0;
    list_steps(load, steps);
    for (int i = 0; i < STEP_SIZES; i++) bytes += part_bytes(p, steps[i].rows) * steps[i].times;
    return bytes;
}
