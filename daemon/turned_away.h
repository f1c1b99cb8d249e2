/* daemon/turned_away.h - who wanted to work here and may not, and why: for the admin, who looks for a worker that is
 * not there. A bounded list; an entry goes when its worker is let in, after an hour without another try, or when others
 * need its place.
 * Owns:    nothing. Threads: one. Time is the caller's. */
#ifndef WN_DAEMON_TURNED_AWAY_H
#define WN_DAEMON_TURNED_AWAY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/codec.h"

#define WN_TURNED_AWAY_MAX     32
#define WN_TURNED_AWAY_KEPT_US 3600000000ll

struct wn_turned_away {
    Wn__Role role;                    /* unset: it was not let in far enough to say */
    char name[65], host[257];         /* then what is known: its key, its address */
    char why[WN_ERR_TEXT_MAX];
    int64_t since_us, last_us;        /* since it has been turned away for this reason */
    uint64_t times;
};

struct wn_turned_away_list {
    struct wn_turned_away of[WN_TURNED_AWAY_MAX]; /* [n] */
    uint32_t n;
    uint64_t total; /* times, of all that ever were */
};

/* true: it is new, or the reason is. The texts are copied, and cut where they are too long. */
bool wn_turned_away_note(struct wn_turned_away_list *l, Wn__Role role, const char *name, const char *host,
                         const char *why, int64_t now_us);

/* It was let in. */
void wn_turned_away_forget(struct wn_turned_away_list *l, Wn__Role role, const char *name);

void wn_turned_away_expire(struct wn_turned_away_list *l, int64_t now_us);

#endif
