/* client/wire_report.c - what `winnow bench wire` found, as a table, CSV and a plot; see wire.h. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/canvas.h"
#include "client/wire.h"

const uint32_t wire_plans[WIRE_PLANS_N] = {2, 4};

static double wire_share(const struct wire_cell *c)
{
    return c->ttft_ms > 0 ? c->part_ms[WIRE_WIRE] / c->ttft_ms : 0;
}

static double requests_s(const struct wire_cell *c)
{
    return c->wall_s > 0 ? c->answered / c->wall_s : 0;
}

void wire_print(FILE *f, const struct wire_report *r)
{
    fprintf(f, "%s, %s, %u at a time, answers of at most %u tokens. Times in ms to the first token: encode, wire,\n"
               "prefill and other are means and add up to the mean; KiB a picture, all links together.\n\n",
            r->model, r->method, r->concurrency, r->max_tokens);
    fprintf(f, "%-9s %5s %-8s %4s %9s %9s | %8s %8s %9s %7s %6s | %6s | %9s %10s %9s %8s\n", "rate", "kept", "pictures",
            "n", "p50", "p95", "encode", "wire", "prefill", "other", "wire", "req/s", "embedding", "activation",
            "allreduce", "control");
    for (uint32_t i = 0; i < r->cells_n; i++) {
        const struct wire_cell *c = &r->cells[i];
        fprintf(f,
                "%-9s %5u %-8s %4u %9.1f %9.1f | %8.1f %8.1f %9.1f %7.1f %5.1f%% | %6.3g | %9.1f %10.1f %9.1f %8.1f\n",
                c->rate, c->keep, c->encoded_before ? "encoded" : "new", c->answered, c->ttft_p50_ms, c->ttft_p95_ms,
                c->part_ms[WIRE_ENCODE], c->part_ms[WIRE_WIRE], c->part_ms[WIRE_PREFILL], c->part_ms[WIRE_OTHER],
                100 * wire_share(c), requests_s(c), c->bytes[1] / 1024, c->bytes[2] / 1024, c->bytes[3] / 1024,
                c->bytes[6] / 1024);
    }
    for (int i = 0; i < WIRE_PLANS_N; i++)
        if (r->token_bytes[i] > 0)
            fprintf(f, "plain tensor parallelism over %u ranks would send %.0f KiB for a generated token\n",
                    wire_plans[i], r->token_bytes[i] / 1024);
}

/* Columns, in their order; those of bytes by kind and of plans follow. */
static const char heading[] =
    "time,commit,host,model,method,rate,kept_tokens,pictures,concurrency,max_tokens,answered,failed,cache_hits,"
    "ttft_p50_ms,ttft_p95_ms,ttft_mean_ms,encode_ms,wire_ms,prefill_ms,other_ms,transfer_ms,exposed_ms,wire_share,"
    "requests_s";
enum { C_MODEL = 3, C_RATE = 5, C_KEPT, C_PICTURES, C_TTFT = 15, C_PARTS, COLUMNS_READ = C_PARTS + WIRE_PARTS_N };

static void put_heading(FILE *f)
{
    fputs(heading, f);
    for (int k = 0; k < WIRE_KINDS_N; k++) fprintf(f, ",%s_bytes", wire_kinds[k]);
    for (int i = 0; i < WIRE_PLANS_N; i++) fprintf(f, ",tp%u_token_bytes", wire_plans[i]);
    fputc('\n', f);
}

/* The next line that is no remark. */
static bool next_line(FILE *f, char **line, size_t *room)
{
    while (getline(line, room, f) > 0)
        if (**line != '#') return true;
    return false;
}

static bool is_heading(const char *line)
{
    return strncmp(line, heading, strlen(heading)) == 0;
}

bool wire_check_csv(const char *path)
{
    FILE *f = fopen(path, "a+");
    char *line = NULL;
    size_t room = 0;
    bool good = false;

    if (!f) {
        fprintf(stderr, "winnow: cannot open %s: %s\n", path, strerror(errno));
        return false;
    }
    fseek(f, 0, SEEK_END);
    good = ftell(f) == 0;
    rewind(f);
    good = good || (next_line(f, &line, &room) && is_heading(line));
    if (!good) fprintf(stderr, "winnow: %s is no file of this benchmark\n", path);
    free(line);
    fclose(f);
    return good;
}

bool wire_write_csv(const char *path, const struct wire_report *r)
{
    FILE *f = fopen(path, "a");
    char host[256] = "", when[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    bool good;

    if (!f) {
        fprintf(stderr, "winnow: cannot open %s: %s\n", path, strerror(errno));
        return false;
    }
    fseek(f, 0, SEEK_END);
    if (ftell(f) == 0) put_heading(f);
    if (gethostname(host, sizeof(host) - 1) != 0) host[0] = '\0';
    if (gmtime_r(&now, &utc)) strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &utc);
    for (uint32_t i = 0; i < r->cells_n; i++) {
        const struct wire_cell *c = &r->cells[i];
        fprintf(f, "%s,%s,%s,\"%s\",%s,%s,%u,%s,%u,%u,%u,%u,%u,%.3f,%.3f,%.3f", when, r->commit, host, r->model,
                r->method, c->rate, c->keep, c->encoded_before ? "encoded" : "new", r->concurrency, r->max_tokens,
                c->answered, c->failed, c->cache_hits, c->ttft_p50_ms, c->ttft_p95_ms, c->ttft_ms);
        for (int p = 0; p < WIRE_PARTS_N; p++) fprintf(f, ",%.3f", c->part_ms[p]);
        fprintf(f, ",%.3f,%.3f,%.4f,%.4f", c->transfer_ms, c->exposed_ms, wire_share(c), requests_s(c));
        for (int k = 0; k < WIRE_KINDS_N; k++) fprintf(f, ",%.0f", c->bytes[k]);
        for (int k = 0; k < WIRE_PLANS_N; k++) fprintf(f, ",%.0f", r->token_bytes[k]);
        fputc('\n', f);
    }
    good = !ferror(f);
    if (fclose(f) == 0 && good) return true;
    fprintf(stderr, "winnow: cannot write %s\n", path);
    return false;
}

/* The first columns of a line, in place; a field in quotes has no quotes inside. Returns how many there are. */
static int split(char *line, char *fields[COLUMNS_READ])
{
    int n = 0;

    while (n < COLUMNS_READ && line) {
        const bool quoted = *line == '"';
        char *end = quoted ? strchr(++line, '"') : line;
        fields[n++] = line;
        if (quoted && !end) return 0;
        if (quoted) *end++ = '\0';
        if ((line = strchr(end, ',')) != NULL) *line++ = '\0';
    }
    return n;
}

/* Groups of the plot lie together: by the name of the rate, new pictures first, most tokens first. */
static int by_group(const void *a, const void *b)
{
    const struct wire_cell *x = a, *y = b;
    const int rate = strcmp(x->rate, y->rate);

    if (rate) return rate;
    if (x->encoded_before != y->encoded_before) return x->encoded_before ? 1 : -1;
    return (x->keep < y->keep) - (x->keep > y->keep);
}

bool wire_read_csv(const char *path, struct wire_report *r)
{
    FILE *f = fopen(path, "r");
    char *line = NULL, *field[COLUMNS_READ];
    size_t room = 0;
    bool good = f && next_line(f, &line, &room) && is_heading(line);

    r->cells_n = 0;
    while (good && r->cells_n < WIRE_CELLS_MAX && next_line(f, &line, &room)) {
        struct wire_cell *c = &r->cells[r->cells_n];
        if (split(line, field) < COLUMNS_READ || strcmp(field[C_MODEL], r->model) != 0) continue;
        *c = (struct wire_cell){.keep = (uint32_t)strtoul(field[C_KEPT], NULL, 10),
                                .encoded_before = strcmp(field[C_PICTURES], "encoded") == 0,
                                .ttft_ms = strtod(field[C_TTFT], NULL)};
        snprintf(c->rate, sizeof(c->rate), "%s", field[C_RATE]);
        for (int p = 0; p < WIRE_PARTS_N; p++) c->part_ms[p] = strtod(field[C_PARTS + p], NULL);
        r->cells_n++;
    }
    qsort(r->cells, r->cells_n, sizeof(*r->cells), by_group);
    free(line);
    if (f) fclose(f);
    if (!good) fprintf(stderr, "winnow: %s is no file of this benchmark\n", path);
    return good;
}

/* ---- the plot: a bar a cell, in the parts of its time to first token ---- */

#define WIDTH  1280
#define HEIGHT 640
#define LEFT   100
#define TOP    90
#define PLOT_W (WIDTH - LEFT - 30)
#define PLOT_H (HEIGHT - TOP - 110)
#define SCALE  2

static const struct wn_color paper = {255, 255, 255}, ink = {30, 30, 30}, faint = {222, 222, 222};
static const struct wn_color part_color[WIRE_PARTS_N] = {
    {0, 114, 178}, {213, 94, 0}, {86, 180, 233}, {170, 170, 170}}; /* told apart by colour-blind people, too */

/* 1, 2 or 5 times a power of ten: about six of them in max. */
static double nice_step(double max)
{
    const double raw = max / 6, unit = pow(10, floor(log10(raw))), m = raw / unit;

    return unit * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

static void draw_scale(struct wn_canvas *c, double max_ms)
{
    const double step = nice_step(max_ms);
    char text[32];

    for (int i = 0; i * step <= max_ms * 1.0001; i++) {
        const int y = TOP + PLOT_H - (int)lround(i * step / max_ms * PLOT_H);
        wn_canvas_fill(c, (struct wn_box){LEFT, y, PLOT_W, 1}, faint, 1);
        snprintf(text, sizeof(text), "%.6g", i * step);
        wn_canvas_text(c, LEFT - 10 - wn_text_width(SCALE, text), y - 7, SCALE, ink, text);
    }
    wn_canvas_text(c, LEFT, TOP - 30, SCALE, ink, "ms to the first token, mean");
}

static void draw_key(struct wn_canvas *c)
{
    int x = LEFT + PLOT_W / 2;

    for (int p = 0; p < WIRE_PARTS_N; p++) {
        wn_canvas_fill(c, (struct wn_box){x, TOP - 30, 14, 14}, part_color[p], 1);
        x = wn_canvas_text(c, x + 20, TOP - 30, SCALE, ink, wire_parts[p]) + 20;
    }
}

static void draw_bar(struct wn_canvas *c, const struct wire_cell *cell, struct wn_box at, double max_ms)
{
    double below = 0;
    char text[24];

    for (int p = 0; p < WIRE_PARTS_N; p++) {
        const double ms = fmax(cell->part_ms[p], 0);
        const int from = (int)lround(below / max_ms * PLOT_H), to = (int)lround((below + ms) / max_ms * PLOT_H);
        wn_canvas_fill(c, (struct wn_box){at.x, TOP + PLOT_H - to, at.w, to - from}, part_color[p], 1);
        below += ms;
    }
    snprintf(text, sizeof(text), "%u", cell->keep);
    wn_canvas_text(c, at.x + (at.w - wn_text_width(SCALE, text)) / 2, TOP + PLOT_H + 8, SCALE, ink, text);
}

static bool same_group(const struct wire_cell *a, const struct wire_cell *b)
{
    return strcmp(a->rate, b->rate) == 0 && a->encoded_before == b->encoded_before;
}

static void draw_cells(struct wn_canvas *c, const struct wire_report *r, double max_ms)
{
    uint32_t groups = 1, first = 0;
    int x = LEFT + 10, w;

    for (uint32_t i = 1; i < r->cells_n; i++) groups += !same_group(&r->cells[i], &r->cells[i - 1]);
    w = (PLOT_W - 20) / (int)(r->cells_n + groups); /* a bar's place is left free between two groups */
    for (uint32_t i = 0; i < r->cells_n; i++) {
        if (i && !same_group(&r->cells[i], &r->cells[i - 1])) x += w;
        draw_bar(c, &r->cells[i], (struct wn_box){x + w / 8, 0, w - w / 4, 0}, max_ms);
        x += w;
        if (i + 1 == r->cells_n || !same_group(&r->cells[i], &r->cells[i + 1])) {
            const int middle = x - (int)(i + 1 - first) * w / 2;
            const char *pictures = r->cells[i].encoded_before ? "encoded before" : "new pictures";
            wn_canvas_text(c, middle - wn_text_width(SCALE, r->cells[i].rate) / 2, TOP + PLOT_H + 34, SCALE, ink,
                           r->cells[i].rate);
            wn_canvas_text(c, middle - wn_text_width(1, pictures) / 2, TOP + PLOT_H + 58, 1, ink, pictures);
            first = i + 1;
        }
    }
    wn_canvas_fill(c, (struct wn_box){LEFT, TOP, 2, PLOT_H}, ink, 1);
    wn_canvas_fill(c, (struct wn_box){LEFT, TOP + PLOT_H, PLOT_W, 2}, ink, 1);
}

bool wire_write_plot(const char *path, const struct wire_report *r)
{
    double max_ms = 1;
    struct wn_canvas c = {0};
    struct wn_err err = {0};
    char title[200];
    wn_status rc = wn_canvas_init(&c, WIDTH, HEIGHT, paper, &err);

    for (uint32_t i = 0; i < r->cells_n; i++) max_ms = fmax(max_ms, 1.05 * r->cells[i].ttft_ms);
    if (rc == WN_OK) {
        snprintf(title, sizeof(title), "%.80s, visual tokens kept by %s", r->model, r->method);
        wn_canvas_text(&c, LEFT, 18, SCALE, ink, title);
        draw_scale(&c, max_ms);
        draw_key(&c);
        draw_cells(&c, r, max_ms);
        rc = wn_canvas_write_png(&c, path, &err);
    }
    wn_canvas_fini(&c);
    if (rc != WN_OK) fprintf(stderr, "winnow: %s\n", err.text);
    return rc == WN_OK;
}
