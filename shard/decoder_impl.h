/* shard/decoder_impl.h - what a stage is made of: for decoder.c (open, close, check, features) and decoder_run.c. */
#ifndef WN_SHARD_DECODER_IMPL_H
#define WN_SHARD_DECODER_IMPL_H

#include "shard/decoder.h"
#include "shard/loader.h"
#include "transport/device.h"

#define WN_STAGE_CLOSE_US 5000000 /* for the last rows to leave */

struct wn_layer {
    const float *norm1, *norm2;               /* [hidden] */
    const struct wn_weight *q, *k, *v, *o;    /* this rank's heads */
    const struct wn_weight *gate, *up, *down; /* this rank's columns of the MLP */
    struct wn_mat keys, values;               /* [pages * page_tokens, kv_heads * head_dim] */
};

struct wn_slot {
    struct wn_buf buf;  /* kept when the slot is dropped: the next features are mostly as large */
    struct wn_mat rows; /* ptr NULL: empty */
    bool projected;
};

struct wn_stage {
    struct wn_stage_opts o;
    struct wn_plan plan; /* the copy that o.plan points to */
    uint32_t stage, tensor;
    bool first, last;
    uint32_t slices;               /* parts of each row-parallel sum that this rank makes */
    uint32_t heads, kv_heads, mlp; /* of this rank */
    struct wn_range vocab;         /* rows of the embedding or the head on this rank */
    int ranks[WN_TENSOR_MAX];      /* of the link: the tensor ranks of this stage */
    struct wn_comm comm;
    struct wn_loader *loader;
    struct wn_layer *layers; /* [plan.layers[stage].n] */
    const struct wn_weight *linear1, *linear2, *head;
    const float *linear1_bias, *norm;
    struct wn_mat linear2_bias; /* [1, hidden] float32: a table, to be repeated row by row */
    struct wn_mat embedding;    /* [vocab.n, hidden] */
    struct wn_slot *slots;      /* [o.slots], stage 0 only */

    struct wn_buf *bufs; /* all scratch and the KV memory */
    uint32_t bufs_n, bufs_max;
    struct wn_mat x, normed; /* [rows_max, hidden] */
    struct wn_mat qkv;       /* [rows_max, (heads + 2 kv_heads) * head_dim]: queries, keys, values */
    struct wn_mat attn;      /* [rows_max, heads * head_dim] */
    struct wn_mat gate, up;  /* [rows_max, mlp] */
    struct wn_mat sums;      /* [rows_max, hidden] float32: partial sums, for the all-reduce */
    struct wn_mat image, image_mid; /* stage 0: [rows_max, vision hidden], [rows_max, hidden / T] */
    struct wn_mat image_sums;       /* stage 0: [rows_max, hidden] float32 */
    struct wn_mat part, next; /* [rows_max, hidden / T] to send; to receive, for the next step */
    struct wn_mat parts;      /* T > 1: [rows_max * T, hidden / T], part after part */
    struct wn_mat wanted;         /* last: [wanted_max, hidden] */
    struct wn_mat rounded;        /* last: [wanted_max, vocab.n], what the head stores */
    struct wn_mat scores;         /* last: the same in float32; the same memory if that is the type */
    struct wn_mat all_scores;     /* last, tensor rank 0: [wanted_max * vocab], rank after rank */
    struct wn_mat whole;          /* the same with a link that has a device: [wanted_max, vocab] */
    struct wn_buf picked;         /* wn_stage_can_pick: [wanted_max] ids; host: how each is chosen, of a padded step */
    struct wn_pick *picks;
    uint32_t *index, *zeros, *position; /* [rows_max] host */
    uint32_t *wanted_rows;              /* [wanted_max] host */
    uint32_t rows, wanted_n;            /* of the step that runs, with the rows that pad it */
    wn_op sending;                      /* the send to the next stage that `part` is lent to */
    struct wn_stage_waits waits;        /* since open */
    bool failed;                        /* a run failed: messages may be in flight */
    bool device, staged; /* matrices on a device: the link reaches it, or goes by way of the buffers below */
    void *host, *host_part, *host_next; /* staged: host memory of the largest message; host_part is lent to `sending` */
    void *spread;                       /* features on their way to the device; grows */
    size_t sending_bytes;
    wn_op coming;     /* the receive of the next step's rows that `next`, or host_next, is lent to */
    bool came, large; /* they are whole; the last ones were a large message */
    size_t came_bytes;
};

/* ---- decoder_link.c ---- */
WN_NODISCARD wn_status wn_stage_links_open(struct wn_stage *s, struct wn_err *err); /* after the matrices */
void wn_stage_links_close(struct wn_stage *s);
WN_NODISCARD wn_status wn_stage_sync(struct wn_stage *s, int64_t deadline_us); /* the host waits for what is queued */
/* Moves the rows on that leave and that come: between two matmuls. */
WN_NODISCARD wn_status wn_stage_drive(struct wn_stage *s);
/* `rows` rows of s->sums become the sums over the tensor ranks. */
WN_NODISCARD wn_status wn_stage_sum(struct wn_stage *s, uint32_t rows, int64_t deadline_us);
/* Later stages, into s->x: this rank's columns from the stage before, the others from the tensor ranks beside it. */
WN_NODISCARD wn_status wn_stage_receive(struct wn_stage *s, uint32_t rows, int64_t deadline_us);
/* Sends this rank's columns of s->x on and returns while they are on their way. */
WN_NODISCARD wn_status wn_stage_send(struct wn_stage *s, uint32_t rows, int64_t deadline_us);
/* Last stage, with a device link: the scores of all tensor ranks to s->whole of tensor rank 0. Queued. */
WN_NODISCARD wn_status wn_stage_gather_scores(struct wn_stage *s, uint32_t wanted);
/* Last stage: the scores of all tensor ranks to tensor rank 0's logits [wanted, vocab]. */
WN_NODISCARD wn_status wn_stage_collect(struct wn_stage *s, uint32_t wanted, int64_t deadline_us, float *logits);
/* Stage 0: tensor rank 0's features, which `data` has on the host too, to its tensor ranks' buffers. */
WN_NODISCARD wn_status wn_stage_spread(struct wn_stage *s, void *features, const void *data, size_t bytes,
                                       int64_t deadline_us);

#endif
