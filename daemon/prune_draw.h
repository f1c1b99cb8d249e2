/* daemon/prune_draw.h - what pruning did to a picture, drawn: kept, merged and dropped patches, and the scores.
 *
 * Owns:    nothing; the canvas that a function makes is the caller's.   Threads: any.
 * Fails:   WN_ELIMIT (a picture too large to draw), WN_ENOMEM. */
#ifndef WN_DAEMON_PRUNE_DRAW_H
#define WN_DAEMON_PRUNE_DRAW_H

#include "base/canvas.h"
#include "daemon/encoder.h"

/* One method's result on one picture; all borrowed. */
struct wn_prune_view {
    const struct wn_encode_item *item; /* rc != WN_OK: its error is shown in place of the picture */
    struct wn_picture picture;         /* what the tower saw */
    struct wn_prune_shape shape;
    size_t row_bytes, kept_row_bytes;  /* a visual token on the vision link, unpruned and as this method sends it */
};

/* What the rows of a view came to. */
struct wn_prune_figures {
    uint32_t kept, of, merged, extra;
    uint64_t bytes_before, bytes_after;
};
struct wn_prune_figures wn_prune_figures(const struct wn_prune_view *v);

/* The picture at twice its size with dropped patches dimmed and merged ones tinted, the scores beside it, the figures
 * below. */
WN_NODISCARD wn_status wn_prune_draw_one(struct wn_canvas *out, const struct wn_prune_view *v, struct wn_err *err);

/* All views on one sheet under a title. */
WN_NODISCARD wn_status wn_prune_draw_all(struct wn_canvas *out, const struct wn_prune_view *v, uint32_t n,
                                         const char *title, struct wn_err *err);

#endif
