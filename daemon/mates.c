/* daemon/mates.c - see mates.h. */
#include "daemon/mates.h"

/* By page, then by age. Shell's sort: qsort takes memory for more than a few, and a step takes none. */
static void sort(const struct wn_mate *m, uint32_t *order, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    for (uint32_t gap = n / 2; gap > 0; gap /= 2)
        for (uint32_t i = gap; i < n; i++) {
            const uint32_t x = order[i];
            uint32_t j = i;
            for (; j >= gap; j -= gap) {
                const uint32_t y = order[j - gap];
                if (m[y].page < m[x].page || (m[y].page == m[x].page && y < x)) break;
                order[j] = y;
            }
            order[j] = x;
        }
}

static void find_groups(struct wn_mate *m, uint32_t n, uint32_t *order)
{
    sort(m, order, n);
    for (uint32_t at = 0, end; at < n; at = end) {
        uint32_t here = 0;
        for (end = at; end < n && m[order[end]].page == m[order[at]].page; end++) here += m[order[end]].ready;
        for (uint32_t i = at; i < end; i++) {
            m[order[i]].at = at;
            m[order[i]].all = end - at;
            m[order[i]].here = here;
        }
    }
}

static void choose(struct wn_mate *one, uint32_t *room)
{
    if (!one->ready || one->chosen || *room == 0) return;
    one->chosen = true;
    --*room;
}

/* This one, and its mates as far as there is room. */
static void choose_group(struct wn_mate *m, const uint32_t *order, uint32_t i, uint32_t *room)
{
    choose(&m[i], room);
    for (uint32_t k = m[i].at; k < m[i].at + m[i].all; k++) choose(&m[order[k]], room);
}

/* Most of its mates are in other steps. */
static bool is_stray(const struct wn_mate *one)
{
    return 2 * one->here < one->all;
}

void wn_mates_choose(struct wn_mate *m, uint32_t n, uint32_t *order, uint32_t share, bool may_wait)
{
    uint32_t left = 0, room = share;

    for (uint32_t i = 0; i < n; i++) {
        m[i].chosen = false;
        left += m[i].ready;
    }
    if (left > share || may_wait) {
        find_groups(m, n, order);
        for (uint32_t i = 0; i < n; i++)
            if (m[i].passed && m[i].ready && !m[i].chosen) choose_group(m, order, i, &room);
        for (uint32_t i = 0; i < n; i++)
            if (m[i].ready && !m[i].chosen && !is_stray(&m[i]) && m[i].here <= room) choose_group(m, order, i, &room);
        left -= share - room;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!m[i].ready || m[i].chosen) continue;
        if (may_wait && left == 1 && is_stray(&m[i]) && !m[i].passed) continue;
        left -= room > 0;
        choose(&m[i], &room);
    }
}
