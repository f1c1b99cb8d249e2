/* daemon/check.h - `winnow check`: what its parts share. check.c sends probes (probe.h) to where a service's processes
 * would run and collects their lines, check_judge.c finds what is wrong in them, check_print.c prints.
 *
 * Owns:    the lines, from open to close of the command. Threads: main, and one that asks as a client. */
#ifndef WN_DAEMON_CHECK_H
#define WN_DAEMON_CHECK_H

#include <jansson.h>

#include "daemon/crew.h"
#include "daemon/worker.h"

/* What runs, or would run, on one host. */
struct wn_check_host {
    const char *name;   /* of the line */
    const json_t *line; /* the first of kind "host" from there */
    uint32_t visions;
    uint64_t free_bytes, need_bytes;
};

struct wn_check {
    struct wn_config cfg;
    struct wn_model model;
    struct wn_plan plan;
    bool planned; /* model and plan are filled */
    struct wn_crew crew;
    json_t *lines; /* array; what probes wrote, and what this process adds */
    struct wn_check_host *hosts;
    uint32_t hosts_n;
};

/* What a line "link" may be about, in the order in which they are printed. */
enum { WN_CHECK_LINKS = 5 };
extern const char *const wn_check_links[WN_CHECK_LINKS];

/* Adds a line "wrong"; the same words from one host are said once. */
void wn_check_wrong(struct wn_check *c, const char *host, const char *name, const char *fmt, ...) WN_PRINTF(4, 5);

/* Text of a line; "" if it has none. */
const char *wn_check_text(const json_t *line, const char *key);
double wn_check_number(const json_t *line, const char *key);
bool wn_check_is(const json_t *line, const char *kind);

/* The first line of that kind from a place; NULL: there is none. */
const json_t *wn_check_find(const struct wn_check *c, const char *kind, const char *name, unsigned rank);

/* Fills hosts, and adds what is wrong. Returns how much is wrong in all. */
uint32_t wn_check_judge(struct wn_check *c);

void wn_check_print(const struct wn_check *c, FILE *f);
int wn_check_print_json(const struct wn_check *c, FILE *f);

#endif
