/* daemon/check_print.c - what `winnow check` found, as tables or as JSON. See check.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "daemon/check.h"

#define COLUMNS  7
#define CELL_LEN 96

/* ---- a table: rows first, widths when it is printed ---- */

struct table {
    char (*cells)[COLUMNS][CELL_LEN];
    size_t rows, room;
    unsigned columns;
};

/* A row of empty cells; NULL if memory runs out: then it is missing. */
static char (*add_row(struct table *t))[CELL_LEN]
{
    if (t->rows == t->room) {
        const size_t room = t->room ? 2 * t->room : 32;
        void *more = realloc(t->cells, room * sizeof(*t->cells));
        if (!more) return NULL;
        t->cells = more;
        t->room = room;
    }
    memset(t->cells[t->rows], 0, sizeof(*t->cells));
    return t->cells[t->rows++];
}

static void add_titles(struct table *t, const char *const *titles)
{
    char(*row)[CELL_LEN] = add_row(t);

    for (unsigned i = 0; row && i < t->columns; i++) snprintf(row[i], CELL_LEN, "%s", titles[i]);
}

/* Prints and empties it. */
static void print_table(struct table *t, FILE *f)
{
    size_t width[COLUMNS] = {0};

    for (size_t r = 0; r < t->rows; r++)
        for (unsigned i = 0; i < t->columns; i++)
            if (strlen(t->cells[r][i]) > width[i]) width[i] = strlen(t->cells[r][i]);
    for (size_t r = 0; r < t->rows; r++) {
        unsigned last = t->columns;
        while (last > 1 && !t->cells[r][last - 1][0]) last--;
        for (unsigned i = 0; i < last; i++)
            fprintf(f, i + 1 < last ? "%-*s  " : "%.*s", (int)(i + 1 < last ? width[i] : CELL_LEN), t->cells[r][i]);
        fputc('\n', f);
    }
    free(t->cells);
    *t = (struct table){0};
}

/* ---- figures ---- */

static void latency_text(char *out, double us)
{
    if (us > 0 && us < 1000)
        snprintf(out, CELL_LEN, "%.*f us", us < 100, us);
    else if (us > 0)
        snprintf(out, CELL_LEN, "%.2f ms", us / 1000);
}

/* Of messages and disks: networks count in thousands. */
static void bytes_text(char *out, double bytes)
{
    const char *unit = bytes >= 1e9 ? "GB" : bytes >= 1e6 ? "MB" : bytes >= 1e3 ? "kB" : "B";
    const double by = bytes >= 1e9 ? 1e9 : bytes >= 1e6 ? 1e6 : bytes >= 1e3 ? 1e3 : 1;

    snprintf(out, CELL_LEN, "%.*f %s", by > 1 && bytes / by < 100, bytes / by, unit);
}

static void rate_text(char *out, double bytes_per_s)
{
    bytes_text(out, bytes_per_s);
    snprintf(out + strlen(out), CELL_LEN - strlen(out), "/s");
}

/* ---- hosts ---- */

/* "scheduler, vision-0, replica-0 ranks 0-3": what runs on that host. */
static void places_text(const struct wn_check *c, const char *host, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < c->crew.parts_n; i++) {
        const struct wn_crew_part *p = &c->crew.parts[i];
        unsigned first = 0, ranks = 0;
        for (unsigned r = 0; r < p->ranks; r++) {
            const json_t *line = wn_check_find(c, "host", p->name, r);
            if (!line || strcmp(wn_check_text(line, "host"), host) != 0) continue;
            if (!ranks++) first = r;
        }
        if (!ranks || n >= CELL_LEN) continue;
        n += (size_t)snprintf(out + n, CELL_LEN - n, "%s%s", n ? ", " : "", p->name);
        if (p->ranks > 1 && n < CELL_LEN) /* layouts give a host neighbours */
            n += (size_t)snprintf(out + n, CELL_LEN - n, ranks > 1 ? " ranks %u-%u" : " rank %u", first,
                                  first + ranks - 1);
    }
}

static void print_hosts(const struct wn_check *c, FILE *f)
{
    static const char *const titles[] = {"HOST", "RUNS", "WINNOW", "MPI", "ZEROMQ", "KERNEL", "MEMORY NEEDED, FREE"};
    struct table t = {.columns = 7};

    add_titles(&t, titles);
    for (uint32_t i = 0; i < c->hosts_n; i++) {
        const struct wn_check_host *h = &c->hosts[i];
        char(*row)[CELL_LEN] = add_row(&t), need[WN_BYTES_TEXT], there[WN_BYTES_TEXT];
        static const char *const keys[] = {"winnow", "mpi", "zmq", "kernel"};
        if (!row) continue;
        snprintf(row[0], CELL_LEN, "%s", h->name);
        places_text(c, h->name, row[1]);
        for (int k = 0; k < 4; k++) snprintf(row[2 + k], CELL_LEN, "%.90s", wn_check_text(h->line, keys[k]));
        snprintf(row[6], CELL_LEN, "%s, %s", wn_bytes_text(need, (double)h->need_bytes, 1),
                 wn_bytes_text(there, (double)h->free_bytes, 1));
    }
    print_table(&t, f);
}

/* ---- links ---- */

/* "n2 - n3": the hosts of a link between ranks. */
static void hosts_text(const struct wn_check *c, const json_t *line, char *out)
{
    const json_t *ranks = json_object_get(line, "ranks"), *rank;
    const char *last = "";
    size_t i, n = 0;

    json_array_foreach(ranks, i, rank)
    {
        const json_t *at = wn_check_find(c, "host", wn_check_text(line, "name"), (unsigned)json_integer_value(rank));
        if (n >= CELL_LEN || strcmp(last, wn_check_text(at, "host")) == 0) continue;
        last = wn_check_text(at, "host");
        n += (size_t)snprintf(out + n, CELL_LEN - n, "%s%s", n ? " - " : "", last);
    }
}

static void link_row(const struct wn_check *c, struct table *t, const json_t *line, double us, double bytes,
                     double rate)
{
    const char *what = wn_check_text(line, "what"), *interface = wn_check_text(line, "interface");
    char(*row)[CELL_LEN] = add_row(t);

    if (!row) return;
    snprintf(row[0], CELL_LEN, "%.90s", wn_check_text(line, "link"));
    hosts_text(c, line, row[3]);
    snprintf(row[1], CELL_LEN, "%.90s", what);
    snprintf(row[2], CELL_LEN, "%.50s%s%.20s", wn_check_text(line, "transport"), interface[0] ? ", " : "", interface);
    if (!row[3][0]) snprintf(row[3], CELL_LEN, "%.90s", wn_check_text(line, "address"));
    latency_text(row[4], us);
    if (bytes > 0) bytes_text(row[5], bytes);
    if (rate > 0) rate_text(row[6], rate);
}

static void print_links(const struct wn_check *c, FILE *f)
{
    static const char *const titles[] = {"LINK", "WHAT", "BY", "WHERE", "TIME", "MESSAGE", "RATE"};
    struct table t = {.columns = 7};
    const json_t *line, *size;
    size_t i, k;

    add_titles(&t, titles);
    for (int what = 0; what < WN_CHECK_LINKS; what++) {
        json_array_foreach(c->lines, i, line)
        {
            const json_t *sizes = json_object_get(line, "sizes");
            if (!wn_check_is(line, "link") || strcmp(wn_check_text(line, "what"), wn_check_links[what]) != 0) continue;
            if (!sizes)
                link_row(c, &t, line, wn_check_number(line, "latency_us"), wn_check_number(line, "bytes"),
                         wn_check_number(line, "bytes_per_s"));
            json_array_foreach(sizes, k, size)
                link_row(c, &t, line, wn_check_number(size, "us"), wn_check_number(size, "bytes"),
                         wn_check_number(size, "bytes_per_s"));
        }
    }
    print_table(&t, f);
}

/* ---- the rest ---- */

static void print_others(const struct wn_check *c, FILE *f)
{
    const json_t *line;
    char text[CELL_LEN];
    size_t i;

    if (c->cfg.keys[0])
        fprintf(f, "keys %s: in order; every link over ZeroMQ is encrypted\n", c->cfg.keys);
    else
        fprintf(f, "keys: none, links over ZeroMQ are plain text\n");
    json_array_foreach(c->lines, i, line)
    {
        if (wn_check_is(line, "decode"))
            fprintf(f, "%s on %s decodes and resizes %.0f pictures/s (JPEG, %.0f x %.0f, one thread)\n",
                    wn_check_text(line, "name"), wn_check_text(line, "host"), wn_check_number(line, "images_per_s"),
                    wn_check_number(line, "width"), wn_check_number(line, "height"));
        if (wn_check_is(line, "journal")) {
            bytes_text(text, wn_check_number(line, "free"));
            fprintf(f, "journal %s on %s: %s free\n", wn_check_text(line, "path"), wn_check_text(line, "host"), text);
        }
    }
}

void wn_check_print(const struct wn_check *c, FILE *f)
{
    const json_t *line;
    uint32_t wrong = 0;
    size_t i;

    if (c->crew.parts_n)
        fprintf(f, "%s: %u stage%s x %u tensor rank%s, %u replica%s, %u vision worker%s; launcher %s\n\n",
                c->cfg.model, c->plan.stages, c->plan.stages == 1 ? "" : "s", c->plan.tensors,
                c->plan.tensors == 1 ? "" : "s", c->cfg.replicas, c->cfg.replicas == 1 ? "" : "s",
                c->cfg.vision_workers, c->cfg.vision_workers == 1 ? "" : "s", c->crew.launcher->name);
    if (c->hosts_n) {
        print_hosts(c, f);
        fputc('\n', f);
        print_links(c, f);
        fputc('\n', f);
        print_others(c, f);
        fputc('\n', f);
    }
    json_array_foreach(c->lines, i, line)
    {
        const char *host = wn_check_text(line, "host"), *name = wn_check_text(line, "name");
        if (!wn_check_is(line, "wrong")) continue;
        if (!wrong++) fprintf(f, "wrong:\n");
        fprintf(f, host[0] && name[0] ? "  %s (%s)" : "  %s%s", host, name);
        fprintf(f, "%s%s\n", host[0] || name[0] ? ": " : "", wn_check_text(line, "text"));
    }
    if (!wrong) fprintf(f, "nothing is wrong\n");
}

/* {"hosts", "links", "decode", "journal", "wrong": lines of that kind, "ok", "memory": of each host}. */
int wn_check_print_json(const struct wn_check *c, FILE *f)
{
    static const char *const kinds[][2] = {
        {"host", "hosts"}, {"link", "links"}, {"decode", "decode"}, {"journal", "journal"}, {"wrong", "wrong"}};
    json_t *out = json_object(), *memory = json_array(), *line;
    size_t i;
    int bad;

    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        json_t *list = json_array();
        json_array_foreach(c->lines, i, line) if (wn_check_is(line, kinds[k][0])) json_array_append(list, line);
        json_object_set_new(out, kinds[k][1], list);
    }
    json_object_set_new(out, "ok", json_boolean(json_array_size(json_object_get(out, "wrong")) == 0));
    for (i = 0; i < c->hosts_n; i++)
        json_array_append_new(memory, json_pack("{s:s, s:I, s:I}", "host", c->hosts[i].name, "needed",
                                                (json_int_t)c->hosts[i].need_bytes, "free",
                                                (json_int_t)c->hosts[i].free_bytes));
    json_object_set_new(out, "memory", memory);
    bad = json_dumpf(out, f, JSON_INDENT(2));
    fputc('\n', f);
    json_decref(out);
    return bad ? 1 : 0;
}
