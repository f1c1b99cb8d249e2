/* client/wire_count.c - counters and times of `winnow bench wire`; see wire.h. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire.h"

const char *const wire_kinds[WIRE_KINDS_N] = {"image",  "embedding", "activation", "allreduce",
                                              "logits", "tokens",    "control"};
const char *const wire_parts[WIRE_PARTS_N] = {"encode", "wire", "prefill", "other"};

static double number(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static void add_bytes(struct wire_counters *out, const json_t *of)
{
    const json_t *sent = json_object_get(of, "sent_bytes");

    for (int k = 0; k < WIRE_KINDS_N; k++) out->bytes[k] += number(sent, wire_kinds[k]);
}

/* The last part of a path: where the server keeps it is nobody's business. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

bool wire_counters_parse(const char *json, struct wire_counters *out)
{
    json_t *root = json_loads(json, 0, NULL), *workers = json_object_get(root, "workers"), *worker, *stage;
    const bool good = json_is_array(workers);
    size_t i, k;

    memset(out, 0, sizeof(*out));
    if (json_is_string(json_object_get(root, "model")))
        snprintf(out->model, sizeof(out->model), "%s", base_name(json_string_value(json_object_get(root, "model"))));
    add_bytes(out, root);
    json_array_foreach(workers, i, worker)
    {
        const json_t *stages = json_object_get(worker, "stages");
        add_bytes(out, worker);
        if (out->stages_n || !json_is_array(stages)) continue;
        json_array_foreach(stages, k, stage)
        {
            if (k == WIRE_STAGES_MAX) break;
            out->link_ms[k] = number(stage, "link_us") / 1e3;
            out->stages_n = (uint32_t)k + 1;
        }
    }
    json_decref(root);
    if (!good) fprintf(stderr, "winnow: the server's status makes no sense\n");
    return good;
}

/* Mean over the answers of what no compute hid, at the stage that waited longest. */
static double exposed_ms(const struct wire_counters *before, const struct wire_counters *after, uint32_t answers)
{
    double most = 0;

    for (uint32_t i = 0; i < after->stages_n; i++) {
        const double ms = after->link_ms[i] - before->link_ms[i];
        if (ms > most) most = ms;
    }
    return answers ? most / answers : 0;
}

bool wire_cell_fill(struct wire_cell *cell, const struct eval_set *set, const struct eval_outcome *out,
                    const struct wire_counters *before, const struct wire_counters *after)
{
    enum { QUEUE, PREPROCESS, ENCODE, PRUNE, TRANSFER, PREFILL };
    struct eval_row row = {0};
    double *part = cell->part_ms;

    if (!eval_summarise(&row, set, out)) {
        free(row.right_q);
        return false;
    }
    cell->answered = row.answered;
    cell->failed = row.failed;
    cell->cache_hits = row.cache_hits;
    cell->ttft_p50_ms = row.ttft_p50_ms;
    cell->ttft_p95_ms = row.ttft_p95_ms;
    cell->ttft_ms = 0;
    for (uint32_t i = 0; i < set->n; i++)
        if (out[i].state == EVAL_ANSWERED)
            cell->ttft_ms += (double)out[i].usage.time_to_first_token_us / 1e3 / row.answered;
    cell->transfer_ms = row.ms[TRANSFER];
    cell->exposed_ms = exposed_ms(before, after, row.answered);
    if (cell->exposed_ms > row.ms[PREFILL]) cell->exposed_ms = row.ms[PREFILL]; /* the rest was while decoding */
    part[WIRE_ENCODE] = row.ms[PREPROCESS] + row.ms[ENCODE] + row.ms[PRUNE];
    part[WIRE_WIRE] = cell->transfer_ms + cell->exposed_ms;
    part[WIRE_PREFILL] = row.ms[PREFILL] - cell->exposed_ms;
    part[WIRE_OTHER] = cell->ttft_ms - part[WIRE_ENCODE] - part[WIRE_WIRE] - part[WIRE_PREFILL];
    for (int k = 0; k < WIRE_KINDS_N; k++)
        cell->bytes[k] = row.answered ? (after->bytes[k] - before->bytes[k]) / row.answered : 0;
    free(row.right_q);
    return true;
}

bool wire_token_bytes(const char *plan_json, double *bytes)
{
    json_t *root = json_loads(plan_json, 0, NULL), *kinds = json_object_get(root, "token_bytes"), *value;
    const bool good = json_is_object(kinds);
    const char *key;

    *bytes = 0;
    json_object_foreach(kinds, key, value) *bytes += json_number_value(value);
    json_decref(root);
    return good;
}
