/* daemon/vision_list.h - the images that a vision worker has, in lists that own them. Threads: one. */
#ifndef WN_DAEMON_VISION_LIST_H
#define WN_DAEMON_VISION_LIST_H

#include "daemon/encoder.h"
#include "daemon/front.h"

/* An image on its way through: first the order, then its features. */
struct wn_vision_work {
    struct wn_vision_work *next;
    struct wn_front_msg *order;
    const Wn__Encode *e; /* inside order */
    struct wn_encode_item item;
    int64_t until_us; /* when features are given up that are for a leader which has never answered */
    bool told;        /* the scheduler knows that they wait for credit */
    bool cancelled;   /* sent, and only its credit is still waited for */
};

struct wn_vision_list {
    struct wn_vision_work *first, **end;
    uint32_t n;
};

void wn_vision_work_free(struct wn_vision_work *w); /* NULL is fine */

void wn_vision_list_init(struct wn_vision_list *l);
void wn_vision_list_put(struct wn_vision_list *l, struct wn_vision_work *w);
/* Takes *at out of the list: the caller's. */
struct wn_vision_work *wn_vision_list_take(struct wn_vision_list *l, struct wn_vision_work **at);
void wn_vision_list_clear(struct wn_vision_list *l);
void wn_vision_list_cancel(struct wn_vision_list *l, const Wn__JobRef *job);              /* frees the job's images */
uint32_t wn_vision_list_count(const struct wn_vision_list *l, const char *leader_endpoint); /* of this leader */

#endif
