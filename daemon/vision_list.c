/* daemon/vision_list.c - see vision_list.h. */
#include "daemon/vision_list.h"

#include <stdlib.h>
#include <string.h>

void wn_vision_list_init(struct wn_vision_list *l)
{
    *l = (struct wn_vision_list){.end = &l->first};
}

void wn_vision_list_put(struct wn_vision_list *l, struct wn_vision_work *w)
{
    w->next = NULL;
    *l->end = w;
    l->end = &w->next;
    l->n++;
}

struct wn_vision_work *wn_vision_list_take(struct wn_vision_list *l, struct wn_vision_work **at)
{
    struct wn_vision_work *w = *at;
    *at = w->next;
    if (l->end == &w->next) l->end = at;
    l->n--;
    return w;
}

void wn_vision_work_free(struct wn_vision_work *w)
{
    if (!w) return;
    wn_front_msg_free(w->order);
    wn_encode_item_fini(&w->item);
    free(w);
}

void wn_vision_list_clear(struct wn_vision_list *l)
{
    while (l->first) wn_vision_work_free(wn_vision_list_take(l, &l->first));
}

uint32_t wn_vision_list_count(const struct wn_vision_list *l, const char *leader)
{
    uint32_t n = 0;

    for (const struct wn_vision_work *w = l->first; w; w = w->next) n += strcmp(w->e->leader_endpoint, leader) == 0;
    return n;
}

void wn_vision_list_cancel(struct wn_vision_list *l, const Wn__JobRef *job)
{
    for (struct wn_vision_work **at = &l->first; *at;) {
        if (wn_jobref_equal((*at)->e->job, job))
            wn_vision_work_free(wn_vision_list_take(l, at));
        else
            at = &(*at)->next;
    }
}
