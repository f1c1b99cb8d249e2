/* daemon/turned_away.c - see turned_away.h. */
#include "daemon/turned_away.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* What a worker says of itself may be cut where a character is not at its end: the Status must be valid text. It comes
 * from anybody, and goes to an admin's terminal: no control characters. */
static void copy_text(char *to, size_t size, const char *from)
{
    size_t n;

    snprintf(to, size, "%s", from);
    n = strlen(to);
    for (size_t i = 0; (i += wn_utf8_check(to + i, n - i)) < n;) to[i] = '?';
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)to[i] < ' ' || to[i] == 0x7f) to[i] = '?';
}

/* Its place, a new one, or that of who has not tried for the longest time. */
static struct wn_turned_away *place_of(struct wn_turned_away_list *l, const struct wn_turned_away *who)
{
    struct wn_turned_away *oldest = &l->of[0];

    for (uint32_t i = 0; i < l->n; i++) {
        struct wn_turned_away *t = &l->of[i];
        if (t->role == who->role && strcmp(t->name, who->name) == 0 && strcmp(t->host, who->host) == 0) return t;
        if (t->last_us < oldest->last_us) oldest = t;
    }
    if (l->n < WN_TURNED_AWAY_MAX) oldest = &l->of[l->n++];
    *oldest = (struct wn_turned_away){0};
    return oldest;
}

bool wn_turned_away_note(struct wn_turned_away_list *l, Wn__Role role, const char *name, const char *host,
                         const char *why, int64_t now_us)
{
    struct wn_turned_away who = {.role = role, .since_us = now_us, .times = 0}, *t;
    bool news;

    copy_text(who.name, sizeof(who.name), name);
    copy_text(who.host, sizeof(who.host), host);
    copy_text(who.why, sizeof(who.why), why);
    t = place_of(l, &who);
    news = t->times == 0 || strcmp(t->why, who.why) != 0;
    if (news) *t = who;
    t->last_us = now_us;
    t->times++;
    l->total++;
    return news;
}

static void drop(struct wn_turned_away_list *l, uint32_t i)
{
    l->n--;
    memmove(&l->of[i], &l->of[i + 1], (l->n - i) * sizeof(l->of[0]));
}

void wn_turned_away_forget(struct wn_turned_away_list *l, Wn__Role role, const char *name)
{
    for (uint32_t i = l->n; i-- > 0;)
        if (l->of[i].role == role && strcmp(l->of[i].name, name) == 0) drop(l, i);
}

void wn_turned_away_expire(struct wn_turned_away_list *l, int64_t now_us)
{
    for (uint32_t i = l->n; i-- > 0;)
        if (now_us - l->of[i].last_us > WN_TURNED_AWAY_KEPT_US) drop(l, i);
}
