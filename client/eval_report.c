/* client/eval_report.c - what an evaluation came to: sums, tables, CSV. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval.h"

const char *const eval_links[EVAL_LINKS_N] = {"image",     "embedding", "activation",
                                              "allreduce", "logits",    "control"};
const char *const eval_times[EVAL_TIMES_N] = {"queue",    "preprocess", "encode", "prune",
                                              "transfer", "prefill",    "decode"};

static void add_usage(struct eval_row *row, const struct winnow_usage *u)
{
    const uint64_t bytes[EVAL_LINKS_N] = {u->bytes_image,     u->bytes_embedding, u->bytes_activation,
                                          u->bytes_allreduce, u->bytes_logits,    u->bytes_control};
    const uint64_t us[EVAL_TIMES_N] = {u->queue_us,    u->preprocess_us, u->encode_us, u->prune_us,
                                       u->transfer_us, u->prefill_us,    u->decode_us};

    row->tokens += u->image_tokens;
    row->tokens_before += u->image_tokens_before_pruning;
    row->prefix_tokens += u->cached_tokens;
    row->cache_hits += u->vision_cache_hit != 0;
    for (int i = 0; i < EVAL_LINKS_N; i++) row->link_bytes[i] += (double)bytes[i];
    for (int i = 0; i < EVAL_TIMES_N; i++) row->ms[i] += (double)us[i] / 1e3;
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The smallest value that at least `share` of all are not above. */
static double percentile_ms(const uint64_t *sorted, uint32_t n, double share)
{
    uint32_t rank = (uint32_t)(share * n + 0.999999);

    return n ? (double)sorted[rank ? rank - 1 : 0] / 1e3 : 0;
}

bool eval_summarise(struct eval_row *row, const struct eval_set *set, const struct eval_outcome *out)
{
    uint64_t *ttft = malloc(set->n * sizeof(*ttft));

    row->right_q = calloc(set->n, 1);
    if (!ttft || !row->right_q) {
        fprintf(stderr, "winnow: out of memory\n");
        free(ttft);
        return false;
    }
    for (uint32_t i = 0; i < set->n; i++) {
        const uint32_t family = set->q[i].family_i;
        row->family_n[family] += out[i].state != EVAL_OPEN;
        row->failed += out[i].state == EVAL_FAILED;
        if (out[i].state != EVAL_ANSWERED) continue;
        if (row->answered == 0) row->in_force = out[i].usage;
        ttft[row->answered++] = out[i].usage.time_to_first_token_us;
        row->right_q[i] = out[i].right;
        row->right += out[i].right;
        row->family_right[family] += out[i].right;
        add_usage(row, &out[i].usage);
    }
    if (row->answered) {
        row->tokens /= row->answered;
        row->tokens_before /= row->answered;
        row->prefix_tokens /= row->answered;
        for (int i = 0; i < EVAL_LINKS_N; i++) row->link_bytes[i] /= row->answered;
        for (int i = 0; i < EVAL_TIMES_N; i++) row->ms[i] /= row->answered;
    }
    qsort(ttft, row->answered, sizeof(*ttft), ascending);
    row->ttft_p50_ms = percentile_ms(ttft, row->answered, 0.5);
    row->ttft_p95_ms = percentile_ms(ttft, row->answered, 0.95);
    free(ttft);
    return true;
}

double eval_accuracy(const struct eval_row *row)
{
    const uint32_t n = row->answered + row->failed;

    return n ? (double)row->right / n : 0;
}

static double family_accuracy(const struct eval_row *row, uint32_t family)
{
    return row->family_n[family] ? (double)row->family_right[family] / row->family_n[family] : 0;
}

/* ---- against random at the same count ---- */

const struct eval_row *eval_random_twin(const struct eval_row *rows, uint32_t n, const struct eval_row *of)
{
    for (uint32_t i = 0; of->answered && i < n; i++)
        if (&rows[i] != of && rows[i].answered && strcmp(rows[i].setting.method, "random") == 0 &&
            fabs(rows[i].tokens - of->tokens) < 0.5)
            return &rows[i];
    return NULL;
}

/* Variance of a sum over pictures whose terms are D - n * mean: sum of their squares, times P / (P - 1). Twice through
 * the questions: for the mean, then for the squares. */
struct eval_difference eval_compare(const struct eval_set *set, const struct eval_row *a, const struct eval_row *b,
                                    uint32_t family)
{
    const bool all = family == EVAL_ALL_FAMILIES;
    struct eval_difference d = {.error = NAN};
    uint32_t n = 0, pictures = 0;
    double squares = 0;
    int sum = 0;

    if (!a->right_q || !b->right_q) {
        d.value = all ? eval_accuracy(a) - eval_accuracy(b)
                      : family_accuracy(a, family) - family_accuracy(b, family);
        return d;
    }
    for (uint32_t i = 0; i < set->n; i++) {
        if (!all && set->q[i].family_i != family) continue;
        sum += a->right_q[i] - b->right_q[i];
        n++;
    }
    if (n == 0) return d;
    d.value = (double)sum / n;
    for (uint32_t i = 0; i < set->n;) {
        const uint32_t picture = set->q[i].picture_i;
        uint32_t here = 0;
        double term = 0;
        for (; i < set->n && set->q[i].picture_i == picture; i++) {
            if (!all && set->q[i].family_i != family) continue;
            term += a->right_q[i] - b->right_q[i] - d.value;
            here++;
        }
        pictures += here > 0;
        squares += term * term;
    }
    if (pictures > 1) d.error = sqrt(squares * pictures / (pictures - 1)) / n;
    return d;
}

/* ---- tables ---- */

/* Wide enough for the heading and for "100.0". */
static int column(const char *heading)
{
    const int n = (int)strlen(heading);

    return n > 5 ? n + 2 : 7;
}

/* The setting, and whatever else is in force and not usual: "prumerge:64 paper original". */
static void row_text(const struct eval_row *row, char out[128])
{
    const struct winnow_usage *u = &row->in_force;
    char setting[64];

    eval_setting_text(&row->setting, setting, sizeof(setting));
    snprintf(out, 128, "%s%s%s%s", setting, strcmp(u->pruning_setting, "paper") == 0 ? " paper" : "",
             u->pruning_position == WINNOW_POSITION_ORIGINAL ? " original" : "",
             u->pruning_projected ? " projected" : "");
}

static int label_width(const struct eval_row *rows, uint32_t n)
{
    size_t most = 14;

    for (uint32_t i = 0; i < n; i++) {
        char label[128];
        row_text(&rows[i], label);
        if (strlen(label) > most) most = strlen(label);
    }
    return (int)most + 2;
}

static void print_accuracy(FILE *f, const struct eval_set *set, const struct eval_row *rows, uint32_t n)
{
    const int width = label_width(rows, n);

    fprintf(f, "Accuracy, %% of %u questions about %u pictures; standard error at most %.1f\n%-*s%8s%7s%15s", set->n,
            set->pictures_n, 50 / sqrt(set->n), width, "pruning", "tokens", "all", "- random");
    for (uint32_t k = 0; k < set->families_n; k++) fprintf(f, "%*s", column(set->families[k]), set->families[k]);
    fputc('\n', f);
    for (uint32_t i = 0; i < n; i++) {
        const struct eval_row *row = &rows[i], *twin = eval_random_twin(rows, n, row);
        char label[128], minus[32] = "";
        row_text(row, label);
        if (twin) {
            const struct eval_difference d = eval_compare(set, row, twin, EVAL_ALL_FAMILIES);
            snprintf(minus, sizeof(minus), d.error >= 0 ? "%+.1f +- %.1f" : "%+.1f", 100 * d.value, 100 * d.error);
        }
        fprintf(f, "%-*s%8.1f%7.1f%15s", width, label, row->tokens, 100 * eval_accuracy(row), minus);
        for (uint32_t k = 0; k < set->families_n; k++)
            fprintf(f, "%*.1f", column(set->families[k]), 100 * family_accuracy(row, k));
        if (row->failed) fprintf(f, "  %u failed", row->failed);
        fputc('\n', f);
    }
}

static void print_cost(FILE *f, const struct eval_row *rows, uint32_t n)
{
    const int width = label_width(rows, n);

    fprintf(f, "\nCost of a question, means; TTFT: time to the first token; prefix: tokens that were cached\n%-*s",
            width, "pruning");
    for (int k = 0; k < EVAL_LINKS_N; k++) fprintf(f, "%*s", column(eval_links[k]) + 1, eval_links[k]);
    for (int k = 0; k < EVAL_TIMES_N; k++) fprintf(f, "%*s", column(eval_times[k]) + 1, eval_times[k]);
    fprintf(f, "%9s%9s%8s%8s\n%-*s", "TTFT p50", "p95", "vision", "prefix", width, "");
    for (int k = 0; k < EVAL_LINKS_N; k++) fprintf(f, "%*s", column(eval_links[k]) + 1, "KiB");
    for (int k = 0; k < EVAL_TIMES_N; k++) fprintf(f, "%*s", column(eval_times[k]) + 1, "ms");
    fprintf(f, "%9s%9s%8s%8s\n", "ms", "ms", "hits %", "tokens");
    for (uint32_t i = 0; i < n; i++) {
        const struct eval_row *row = &rows[i];
        char label[128];
        row_text(row, label);
        fprintf(f, "%-*s", width, label);
        for (int k = 0; k < EVAL_LINKS_N; k++)
            fprintf(f, "%*.1f", column(eval_links[k]) + 1, row->link_bytes[k] / 1024);
        for (int k = 0; k < EVAL_TIMES_N; k++) fprintf(f, "%*.2f", column(eval_times[k]) + 1, row->ms[k]);
        fprintf(f, "%9.1f%9.1f%8.0f%8.1f\n", row->ttft_p50_ms, row->ttft_p95_ms,
                row->answered ? 100.0 * row->cache_hits / row->answered : 0, row->prefix_tokens);
    }
}

static void print_loser(FILE *f, const char *before, const struct eval_row *row, const char *family,
                        const struct eval_difference *d)
{
    char label[64];

    eval_setting_text(&row->setting, label, sizeof(label));
    fprintf(f, "%s%s%s%s %+.1f", before, label, family ? " " : "", family ? family : "", 100 * d->value);
    if (d->error >= 0) fprintf(f, " +- %.1f", 100 * d->error);
}

/* Where a method is no better than drawing lots: over all questions, and by two standard errors in single families. */
static void print_losers(FILE *f, const struct eval_set *set, const struct eval_row *rows, uint32_t n)
{
    bool any = false;

    for (uint32_t i = 0; i < n; i++) {
        const struct eval_row *twin = eval_random_twin(rows, n, &rows[i]);
        const struct eval_difference d =
            twin ? eval_compare(set, &rows[i], twin, EVAL_ALL_FAMILIES) : (struct eval_difference){0};
        if (!(d.value < 0)) continue;
        print_loser(f, any ? ", " : "\nWorse than random at the same count: ", &rows[i], NULL, &d);
        any = true;
    }
    if (any) fputc('\n', f);
    any = false;
    for (uint32_t k = 0; k < set->families_n; k++)
        for (uint32_t i = 0; i < n; i++) {
            const struct eval_row *twin = eval_random_twin(rows, n, &rows[i]);
            const struct eval_difference d = twin ? eval_compare(set, &rows[i], twin, k) : (struct eval_difference){0};
            if (!(d.value < 0 && d.value <= -2 * d.error)) continue;
            print_loser(f, any ? ", " : "\nIn single families, by two standard errors or more: ", &rows[i],
                        set->families[k], &d);
            any = true;
        }
    if (any) fputc('\n', f);
}

void eval_print(FILE *f, const struct eval_set *set, const struct eval_row *rows, uint32_t n)
{
    print_accuracy(f, set, rows, n);
    print_cost(f, rows, n);
    print_losers(f, set, rows, n);
}

/* Quoted if it has to be. */
static void csv_text(FILE *f, const char *text)
{
    if (!text[strcspn(text, ",\"\n\r")]) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

static void csv_head(FILE *f, const struct eval_set *set)
{
    fputs("method,keep,rate,setting,position,projected,cap,seed,options,questions,failed,accuracy,minus_random,"
          "minus_random_se",
          f);
    for (uint32_t k = 0; k < set->families_n; k++) {
        char name[128];
        snprintf(name, sizeof(name), ",accuracy_%.100s", set->families[k]);
        fputc(',', f);
        csv_text(f, name + 1);
    }
    fputs(",tokens,tokens_before", f);
    for (int k = 0; k < EVAL_LINKS_N; k++) fprintf(f, ",%s_bytes", eval_links[k]);
    for (int k = 0; k < EVAL_TIMES_N; k++) fprintf(f, ",%s_ms", eval_times[k]);
    fputs(",ttft_p50_ms,ttft_p95_ms,vision_cache_hits,prefix_tokens,wall_s\n", f);
}

/* What was asked for, and what was in force beside it. */
static void csv_setting(FILE *f, const struct eval_row *row)
{
    const struct winnow_usage *u = &row->in_force;

    csv_text(f, row->setting.method);
    fprintf(f, ",%u,%.6g,%s,%s,%d,%u,%" PRIu64 ",", row->setting.keep, (double)row->setting.rate,
            u->pruning_setting[0] ? u->pruning_setting : "faithful",
            u->pruning_position == WINNOW_POSITION_ORIGINAL ? "original" : "compact", u->pruning_projected != 0,
            u->pruning_cap, u->pruning_seed);
    csv_text(f, u->pruning_options);
}

static void csv_row(FILE *f, const struct eval_set *set, const struct eval_row *row, const struct eval_row *twin)
{
    csv_setting(f, row);
    fprintf(f, ",%u,%u,%.4f,", row->answered + row->failed, row->failed, eval_accuracy(row));
    if (twin) {
        const struct eval_difference d = eval_compare(set, row, twin, EVAL_ALL_FAMILIES);
        fprintf(f, "%.4f,", d.value);
        if (d.error >= 0) fprintf(f, "%.4f", d.error);
    } else {
        fputc(',', f);
    }
    for (uint32_t k = 0; k < set->families_n; k++) fprintf(f, ",%.4f", family_accuracy(row, k));
    fprintf(f, ",%.2f,%.2f", row->tokens, row->tokens_before);
    for (int k = 0; k < EVAL_LINKS_N; k++) fprintf(f, ",%.1f", row->link_bytes[k]);
    for (int k = 0; k < EVAL_TIMES_N; k++) fprintf(f, ",%.3f", row->ms[k]);
    fprintf(f, ",%.3f,%.3f,%u,%.2f,%.3f\n", row->ttft_p50_ms, row->ttft_p95_ms, row->cache_hits, row->prefix_tokens,
            row->wall_s);
}

bool eval_write_csv(const char *path, const struct eval_set *set, const struct eval_row *rows, uint32_t n)
{
    FILE *f = fopen(path, "w");
    bool good = f != NULL;

    if (f) {
        csv_head(f, set);
        for (uint32_t i = 0; i < n; i++) csv_row(f, set, &rows[i], eval_random_twin(rows, n, &rows[i]));
        good = !ferror(f);
        good = fclose(f) == 0 && good;
    }
    if (!good) fprintf(stderr, "winnow: cannot write %s: %s\n", path, strerror(errno));
    return good;
}
