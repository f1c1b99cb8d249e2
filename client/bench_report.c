/* client/bench_report.c - what a benchmark found, as a table, a CSV row and a plot; see bench.h. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/canvas.h"
#include "client/bench.h"

static double per_s(double n, double seconds)
{
    return seconds > 0 ? n / seconds : 0;
}

static void print_times(FILE *f, const char *name, const struct bench_series *s)
{
    fprintf(f, "  %-24s %10.1f %10.1f %10.1f %10.1f %10.1f\n", name, bench_mean(s) * 1e3,
            bench_percentile(s, 50) * 1e3, bench_percentile(s, 95) * 1e3, bench_percentile(s, 99) * 1e3,
            bench_percentile(s, 100) * 1e3);
}

static bool has_slo(const struct bench_report *r)
{
    return r->slo.ttft_ms > 0 || r->slo.tpot_ms > 0 || r->slo.e2e_ms > 0;
}

void bench_report_print(const struct bench_report *r, FILE *f)
{
    fprintf(f, "Benchmark of %s\n", r->model[0] ? r->model : "the server");
    fprintf(f, "  %-24s %s, %u requests of at most %u tokens, seed %" PRIu64 "\n", "load", r->dataset, r->prompts,
            r->max_tokens, r->seed);
    if (r->rate > 0)
        fprintf(f, "  %-24s %.3g requests/s, Poisson\n", "arrivals", r->rate);
    else
        fprintf(f, "  %-24s as soon as there is room\n", "arrivals");
    if (r->concurrency) fprintf(f, "  %-24s %u\n", "concurrency at most", r->concurrency);
    fprintf(f, "  %-24s %s\n", "pruning", r->pruning);
    fprintf(f, "  %-24s %u (%u failed, %u refused as busy)\n", "answered", r->done, r->failed, r->busy);
    fprintf(f, "  %-24s %.2f s\n", "duration", r->duration_s);
    fprintf(f, "  %-24s %.3f /s\n", "requests", per_s(r->done, r->duration_s));
    fprintf(f, "  %-24s %.1f /s in %" PRIu64 " tokens\n", "output", per_s((double)r->answer_tokens, r->duration_s),
            r->answer_tokens);
    fprintf(f, "  %-24s %.1f /s in %" PRIu64 " tokens\n", "prompts and output",
            per_s((double)(r->prompt_tokens + r->answer_tokens), r->duration_s), r->prompt_tokens + r->answer_tokens);
    fprintf(f, "  %-24s %" PRIu64 " of %" PRIu64 " kept, %.1f KiB of features\n", "visual tokens", r->visual,
            r->visual_before, (double)r->feature_bytes / 1024);
    if (has_slo(r))
        fprintf(f, "  %-24s %.3f /s: %u of %u within the objective\n", "goodput", per_s(r->good, r->duration_s),
                r->good, r->prompts);
    fprintf(f, "\n  %-24s %10s %10s %10s %10s %10s\n", "milliseconds", "mean", "p50", "p95", "p99", "max");
    print_times(f, "time to first token", &r->ttft);
    print_times(f, "time per output token", &r->tpot);
    print_times(f, "between tokens", &r->itl);
    print_times(f, "end to end", &r->e2e);
}

/* Text with quotes, for it may have commas. */
static void put_quoted(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputs("\",", f);
}

static void put_times(FILE *f, const struct bench_series *s)
{
    fprintf(f, ",%.3f,%.3f,%.3f,%.3f", bench_mean(s) * 1e3, bench_percentile(s, 50) * 1e3,
            bench_percentile(s, 95) * 1e3, bench_percentile(s, 99) * 1e3);
}

static void put_heading(FILE *f)
{
    static const char *const times[] = {"ttft", "tpot", "itl", "e2e"};

    fputs("time,commit,host,model,dataset,pruning,request_rate,max_concurrency,num_prompts,max_tokens,seed,completed,"
          "failed,busy,duration_s,requests_s,output_tokens_s,total_tokens_s,goodput_s,prompt_tokens,output_tokens,"
          "image_tokens,image_tokens_before_pruning,feature_bytes",
          f);
    for (size_t i = 0; i < 4; i++)
        fprintf(f, ",%s_mean_ms,%s_p50_ms,%s_p95_ms,%s_p99_ms", times[i], times[i], times[i], times[i]);
    fputc('\n', f);
}

wn_status bench_report_csv(const struct bench_report *r, const char *path, const char *commit, struct wn_err *err)
{
    FILE *f = fopen(path, "a");
    char host[256] = "", when[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    bool bad;

    if (!f) return wn_fail(err, WN_EIO, "cannot open %.200s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    if (ftell(f) == 0) put_heading(f);
    if (gethostname(host, sizeof(host) - 1) != 0) host[0] = '\0';
    if (gmtime_r(&now, &utc)) strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &utc);
    fprintf(f, "%s,%s,", when, commit);
    put_quoted(f, host);
    put_quoted(f, r->model);
    put_quoted(f, r->dataset);
    put_quoted(f, r->pruning);
    fprintf(f, "%g,%u,%u,%u,%" PRIu64 ",%u,%u,%u,%.4f,%.4f,%.3f,%.3f,", r->rate, r->concurrency, r->prompts,
            r->max_tokens, r->seed, r->done, r->failed, r->busy, r->duration_s, per_s(r->done, r->duration_s),
            per_s((double)r->answer_tokens, r->duration_s),
            per_s((double)(r->prompt_tokens + r->answer_tokens), r->duration_s));
    if (has_slo(r)) fprintf(f, "%.4f", per_s(r->good, r->duration_s));
    fprintf(f, ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64, r->prompt_tokens, r->answer_tokens,
            r->visual, r->visual_before, r->feature_bytes);
    put_times(f, &r->ttft);
    put_times(f, &r->tpot);
    put_times(f, &r->itl);
    put_times(f, &r->e2e);
    fputc('\n', f);
    bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) return wn_fail(err, WN_EIO, "cannot write %.200s", path);
    return WN_OK;
}

/* ---- the plot ---- */

#define WIDTH  900
#define HEIGHT 520
#define LEFT   80
#define TOP    50
#define PLOT_W (WIDTH - LEFT - 30)
#define PLOT_H (HEIGHT - TOP - 70)

static const struct wn_color ink = {30, 30, 30}, faint = {222, 222, 222}, first_color = {0, 114, 178},
                             whole_color = {213, 94, 0}; /* told apart by colour-blind people, too */

/* 1, 2 or 5 times a power of ten: about six of them in max. */
static double nice_step(double max)
{
    const double raw = max / 6, unit = pow(10, floor(log10(raw))), m = raw / unit;

    return unit * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

static void draw_axes(struct wn_canvas *c, double max_ms)
{
    const double step = nice_step(max_ms);
    char text[32];

    for (int i = 0; i <= 4; i++) {
        const int y = TOP + PLOT_H - i * PLOT_H / 4;
        wn_canvas_fill(c, (struct wn_box){LEFT, y, PLOT_W, 1}, faint, 1);
        snprintf(text, sizeof(text), "%d%%", 25 * i);
        wn_canvas_text(c, LEFT - 10 - wn_text_width(2, text), y - 7, 2, ink, text);
    }
    for (int i = 0; i * step <= max_ms * 1.0001; i++) {
        const int x = LEFT + (int)lround(i * step / max_ms * PLOT_W);
        wn_canvas_fill(c, (struct wn_box){x, TOP, 1, PLOT_H}, faint, 1);
        snprintf(text, sizeof(text), "%.6g", i * step);
        wn_canvas_text(c, x - wn_text_width(2, text) / 2, TOP + PLOT_H + 8, 2, ink, text);
    }
    wn_canvas_fill(c, (struct wn_box){LEFT, TOP, 2, PLOT_H}, ink, 1);
    wn_canvas_fill(c, (struct wn_box){LEFT, TOP + PLOT_H, PLOT_W, 2}, ink, 1);
}

/* Share of all requests that were within x: failed ones never were. */
static void draw_share(struct wn_canvas *c, const struct bench_series *s, uint32_t all, double max_ms,
                       struct wn_color color)
{
    float x = LEFT, y = TOP + PLOT_H;

    for (size_t i = 0; i < s->n; i++) {
        const float to_x = (float)(LEFT + s->v[i] * 1e3 / max_ms * PLOT_W);
        const float to_y = (float)(TOP + PLOT_H - (double)(i + 1) / all * PLOT_H);
        wn_canvas_line(c, x, y, to_x, y, 2.5f, color);
        wn_canvas_line(c, to_x, y, to_x, to_y, 2.5f, color);
        x = to_x;
        y = to_y;
    }
    wn_canvas_line(c, x, y, LEFT + PLOT_W, y, 2.5f, color);
}

static void draw_slo(struct wn_canvas *c, double ms, double max_ms, struct wn_color color)
{
    const float x = (float)(LEFT + ms / max_ms * PLOT_W);

    for (int y = TOP; ms > 0 && ms < max_ms && y < TOP + PLOT_H; y += 12)
        wn_canvas_line(c, x, (float)y, x, (float)y + 5, 1.5f, color);
}

wn_status bench_report_plot(const struct bench_report *r, const char *path, struct wn_err *err)
{
    double max_ms = 1.05e3 * bench_percentile(&r->e2e, 100);
    struct wn_canvas c = {0};
    char title[160];
    int x;
    wn_status rc = wn_canvas_init(&c, WIDTH, HEIGHT, (struct wn_color){255, 255, 255}, err);

    if (rc != WN_OK) return rc;
    if (max_ms < 1) max_ms = 1;
    snprintf(title, sizeof(title), "%.2f requests/s, %.0f tokens/s, pruning %.40s", per_s(r->done, r->duration_s),
             per_s((double)r->answer_tokens, r->duration_s), r->pruning);
    wn_canvas_text(&c, LEFT, 16, 2, ink, title);
    draw_axes(&c, max_ms);
    draw_slo(&c, r->slo.ttft_ms, max_ms, first_color);
    draw_slo(&c, r->slo.e2e_ms, max_ms, whole_color);
    draw_share(&c, &r->ttft, r->prompts, max_ms, first_color);
    draw_share(&c, &r->e2e, r->prompts, max_ms, whole_color);
    x = wn_canvas_text(&c, LEFT, HEIGHT - 30, 2, ink, "share of requests within ms:  ");
    x = wn_canvas_text(&c, x, HEIGHT - 30, 2, first_color, "first token  ");
    wn_canvas_text(&c, x, HEIGHT - 30, 2, whole_color, "whole answer");
    rc = wn_canvas_write_png(&c, path, err);
    wn_canvas_fini(&c);
    return rc;
}
