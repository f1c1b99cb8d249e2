/* proto/step.c - see step.h. */
#include "proto/step.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"

#define STEP_MAGIC        0x50545357u /* "WSTP" */
#define STEP_VERSION      4u
#define STEP_HEADER_BYTES 64u

/* Bytes of one element on the wire. */
enum {
    OPEN_BYTES = 32,
    SLOT_BYTES = 4,
    FEATURES_BYTES = 20,
    SEQ_BYTES = 28,
    ROW_BYTES = 12,
    PAGE_BYTES = 4,
    COPY_BYTES = 8
};

struct cursor {
    uint8_t *at;
};

static void put32(struct cursor *c, uint32_t v)
{
    for (int i = 0; i < 4; i++) c->at[i] = (uint8_t)(v >> (8 * i));
    c->at += 4;
}

static void put64(struct cursor *c, uint64_t v)
{
    put32(c, (uint32_t)v);
    put32(c, (uint32_t)(v >> 32));
}

static void putf(struct cursor *c, float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    put32(c, u);
}

struct reader {
    const uint8_t *at;
};

static uint32_t get32(struct reader *r)
{
    const uint8_t *p = r->at;
    r->at += 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(struct reader *r)
{
    const uint64_t low = get32(r);
    return low | (uint64_t)get32(r) << 32;
}

static float getf(struct reader *r)
{
    const uint32_t u = get32(r);
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

wn_status wn_step_record_init(struct wn_step_record *r, const struct wn_step_limits *l,
                              struct wn_err *err)
{
    memset(r, 0, sizeof(*r));
    r->opens = calloc(l->seqs_max, sizeof(*r->opens));
    r->closes = calloc(l->seqs_max, sizeof(*r->closes));
    r->features = calloc(l->features_max, sizeof(*r->features));
    r->drops = calloc(l->features_max, sizeof(*r->drops));
    r->seqs = calloc(l->seqs_max, sizeof(*r->seqs));
    r->rows = calloc(l->rows_max, sizeof(*r->rows));
    r->pages = calloc(l->table_max, sizeof(*r->pages));
    r->copies = calloc(l->seqs_max, sizeof(*r->copies));
    if (!r->opens || !r->closes || !r->features || !r->drops || !r->seqs || !r->rows || !r->pages || !r->copies) {
        wn_step_record_fini(r);
        return wn_fail(err, WN_ENOMEM, "step record for %u rows", l->rows_max);
    }
    return WN_OK;
}

void wn_step_record_fini(struct wn_step_record *r)
{
    free(r->opens);
    free(r->closes);
    free(r->features);
    free(r->drops);
    free(r->seqs);
    free(r->rows);
    free(r->pages);
    free(r->copies);
    memset(r, 0, sizeof(*r));
}

void wn_step_record_clear(struct wn_step_record *r)
{
    r->flags = 0;
    r->opens_n = r->closes_n = r->features_n = r->drops_n = r->seqs_n = r->rows_n = r->pages_n = 0;
    r->copies_n = 0;
}

static size_t body_bytes(uint64_t opens, uint64_t closes, uint64_t features, uint64_t drops,
                         uint64_t seqs, uint64_t rows, uint64_t pages, uint64_t copies)
{
    return (size_t)(opens * OPEN_BYTES + (closes + drops) * SLOT_BYTES + features * FEATURES_BYTES +
                    seqs * SEQ_BYTES + rows * ROW_BYTES + pages * PAGE_BYTES + copies * COPY_BYTES);
}

size_t wn_step_bytes_max(const struct wn_step_limits *l)
{
    return STEP_HEADER_BYTES + body_bytes(l->seqs_max, l->seqs_max, l->features_max,
                                          l->features_max, l->seqs_max, l->rows_max, l->table_max, l->seqs_max);
}

size_t wn_step_encode(const struct wn_step_record *r, uint8_t *out)
{
    struct cursor c = {out};

    put32(&c, STEP_MAGIC);
    put32(&c, STEP_VERSION);
    put64(&c, r->step);
    put32(&c, r->flags);
    put32(&c, r->opens_n);
    put32(&c, r->closes_n);
    put32(&c, r->features_n);
    put32(&c, r->drops_n);
    put32(&c, r->seqs_n);
    put32(&c, r->rows_n);
    put32(&c, r->pages_n);
    put32(&c, r->copies_n);
    memset(c.at, 0, (size_t)(out + STEP_HEADER_BYTES - c.at)); /* reserved */
    c.at = out + STEP_HEADER_BYTES;
    for (uint32_t i = 0; i < r->opens_n; i++) {
        const struct wn_step_open *o = &r->opens[i];
        put32(&c, o->slot);
        putf(&c, o->temperature);
        put32(&c, o->top_k);
        putf(&c, o->top_p);
        putf(&c, o->repetition_penalty);
        put32(&c, o->logprobs);
        put64(&c, o->seed);
    }
    for (uint32_t i = 0; i < r->closes_n; i++) put32(&c, r->closes[i]);
    for (uint32_t i = 0; i < r->features_n; i++) {
        const struct wn_step_features *f = &r->features[i];
        put32(&c, f->slot);
        put32(&c, f->rows);
        put32(&c, f->width);
        put32(&c, f->dtype);
        put32(&c, f->projected);
    }
    for (uint32_t i = 0; i < r->drops_n; i++) put32(&c, r->drops[i]);
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        const struct wn_step_seq *s = &r->seqs[i];
        put32(&c, s->slot);
        put32(&c, s->first_row);
        put32(&c, s->rows);
        put32(&c, s->pos);
        put32(&c, s->first_page);
        put32(&c, s->pages);
        put32(&c, s->sample);
    }
    for (uint32_t i = 0; i < r->rows_n; i++) {
        put32(&c, r->rows[i].id);
        put32(&c, r->rows[i].features);
        put32(&c, r->rows[i].position);
    }
    for (uint32_t i = 0; i < r->pages_n; i++) put32(&c, r->pages[i]);
    for (uint32_t i = 0; i < r->copies_n; i++) {
        put32(&c, r->copies[i].from);
        put32(&c, r->copies[i].to);
    }
    return (size_t)(c.at - out);
}

/* Reads the header and proves that the counts are within the limits and give exactly `bytes`. */
static wn_status decode_header(struct wn_step_record *r, const struct wn_step_limits *l,
                               struct reader *in, size_t bytes, struct wn_err *err)
{
    if (bytes < STEP_HEADER_BYTES)
        return wn_fail(err, WN_EPROTO, "step record of %zu bytes is cut short", bytes);
    if (get32(in) != STEP_MAGIC) return wn_fail(err, WN_EPROTO, "step record: wrong magic number");
    if (get32(in) != STEP_VERSION) return wn_fail(err, WN_EPROTO, "step record: another version");
    r->step = get64(in);
    r->flags = get32(in);
    r->opens_n = get32(in);
    r->closes_n = get32(in);
    r->features_n = get32(in);
    r->drops_n = get32(in);
    r->seqs_n = get32(in);
    r->rows_n = get32(in);
    r->pages_n = get32(in);
    r->copies_n = get32(in);
    if (r->flags & ~(uint32_t)(WN_STEP_STOP | WN_STEP_STATS | WN_STEP_FRESH))
        return wn_fail(err, WN_EPROTO, "step record: unknown flags %#x", r->flags);
    if (r->opens_n > l->seqs_max || r->closes_n > l->seqs_max || r->seqs_n > l->seqs_max)
        return wn_fail(err, WN_EPROTO, "step record: more than %u sequences", l->seqs_max);
    if (r->features_n > l->features_max || r->drops_n > l->features_max)
        return wn_fail(err, WN_EPROTO, "step record: more than %u features", l->features_max);
    if (r->rows_n > l->rows_max)
        return wn_fail(err, WN_EPROTO, "step record: more than %u rows", l->rows_max);
    if (r->pages_n > l->table_max)
        return wn_fail(err, WN_EPROTO, "step record: more than %u pages", l->table_max);
    if (r->copies_n > l->seqs_max)
        return wn_fail(err, WN_EPROTO, "step record: more than %u copies", l->seqs_max);
    if (bytes != STEP_HEADER_BYTES + body_bytes(r->opens_n, r->closes_n, r->features_n, r->drops_n,
                                                r->seqs_n, r->rows_n, r->pages_n, r->copies_n))
        return wn_fail(err, WN_EPROTO, "step record of %zu bytes does not fit its counts", bytes);
    in->at += STEP_HEADER_BYTES - 52; /* reserved */
    return WN_OK;
}

/* The sequences must use rows 0 .. rows_n - 1 one after the other, and as many pages as their tokens need. */
static wn_status check_seqs(const struct wn_step_record *r, const struct wn_step_limits *l,
                            struct wn_err *err)
{
    uint32_t next_row = 0;

    for (uint32_t i = 0; i < r->seqs_n; i++) {
        const struct wn_step_seq *s = &r->seqs[i];
        const uint64_t tokens = (uint64_t)s->pos + s->rows;
        if (s->slot >= l->seqs_max) return wn_fail(err, WN_EPROTO, "step record: slot %u", s->slot);
        if (s->rows == 0 || s->first_row != next_row || s->rows > r->rows_n - next_row)
            return wn_fail(err, WN_EPROTO, "step record: rows of sequence %u", i);
        if (s->first_page > r->pages_n || s->pages > r->pages_n - s->first_page ||
            s->pages != (tokens + l->page_tokens - 1) / l->page_tokens)
            return wn_fail(err, WN_EPROTO, "step record: pages of sequence %u", i);
        if (s->sample > 1)
            return wn_fail(err, WN_EPROTO, "step record: sample flag of sequence %u", i);
        next_row += s->rows;
    }
    if (next_row != r->rows_n)
        return wn_fail(err, WN_EPROTO, "step record: rows that no sequence has");
    return WN_OK;
}

static wn_status check_slots(const struct wn_step_record *r, const struct wn_step_limits *l,
                             struct wn_err *err)
{
    for (uint32_t i = 0; i < r->opens_n; i++) {
        const struct wn_step_open *o = &r->opens[i];
        if (o->slot >= l->seqs_max || !(o->temperature >= 0) || !(o->top_p >= 0) ||
            !(o->repetition_penalty >= 0) || o->logprobs > WN_STEP_TOP_MAX + 1)
            return wn_fail(err, WN_EPROTO, "step record: opening %u", i);
    }
    for (uint32_t i = 0; i < r->closes_n; i++)
        if (r->closes[i] >= l->seqs_max)
            return wn_fail(err, WN_EPROTO, "step record: closing slot %u", r->closes[i]);
    for (uint32_t i = 0; i < r->features_n; i++) {
        const struct wn_step_features *f = &r->features[i];
        if (f->slot >= l->features_max || f->dtype > WN_F16 || f->projected > 1)
            return wn_fail(err, WN_EPROTO, "step record: features %u", i);
    }
    for (uint32_t i = 0; i < r->drops_n; i++)
        if (r->drops[i] >= l->features_max)
            return wn_fail(err, WN_EPROTO, "step record: dropping features %u", r->drops[i]);
    for (uint32_t i = 0; i < r->rows_n; i++) {
        const struct wn_step_row *row = &r->rows[i];
        if (row->features == WN_STEP_NO_FEATURES ? row->id >= l->vocab
                                                 : row->features >= l->features_max)
            return wn_fail(err, WN_EPROTO, "step record: row %u", i);
        if (row->position >= l->positions_max)
            return wn_fail(err, WN_EPROTO, "step record: position %u of row %u", row->position, i);
    }
    for (uint32_t i = 0; i < r->pages_n; i++)
        if (r->pages[i] >= l->pages_max)
            return wn_fail(err, WN_EPROTO, "step record: page %u", r->pages[i]);
    for (uint32_t i = 0; i < r->copies_n; i++) {
        const struct wn_step_copy *copy = &r->copies[i];
        if (copy->from >= l->pages_max || copy->to >= l->pages_max || copy->from == copy->to)
            return wn_fail(err, WN_EPROTO, "step record: copy of page %u to %u", copy->from, copy->to);
    }
    return WN_OK;
}

wn_status wn_step_decode(struct wn_step_record *r, const struct wn_step_limits *limits,
                         const uint8_t *data, size_t bytes, struct wn_err *err)
{
    struct reader in = {data};
    wn_status rc = decode_header(r, limits, &in, bytes, err);

    if (rc != WN_OK) goto out;
    for (uint32_t i = 0; i < r->opens_n; i++) {
        struct wn_step_open *o = &r->opens[i];
        o->slot = get32(&in);
        o->temperature = getf(&in);
        o->top_k = get32(&in);
        o->top_p = getf(&in);
        o->repetition_penalty = getf(&in);
        o->logprobs = get32(&in);
        o->seed = get64(&in);
    }
    for (uint32_t i = 0; i < r->closes_n; i++) r->closes[i] = get32(&in);
    for (uint32_t i = 0; i < r->features_n; i++) {
        struct wn_step_features *f = &r->features[i];
        f->slot = get32(&in);
        f->rows = get32(&in);
        f->width = get32(&in);
        f->dtype = get32(&in);
        f->projected = get32(&in);
    }
    for (uint32_t i = 0; i < r->drops_n; i++) r->drops[i] = get32(&in);
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        struct wn_step_seq *s = &r->seqs[i];
        s->slot = get32(&in);
        s->first_row = get32(&in);
        s->rows = get32(&in);
        s->pos = get32(&in);
        s->first_page = get32(&in);
        s->pages = get32(&in);
        s->sample = get32(&in);
    }
    for (uint32_t i = 0; i < r->rows_n; i++) {
        r->rows[i].id = get32(&in);
        r->rows[i].features = get32(&in);
        r->rows[i].position = get32(&in);
    }
    for (uint32_t i = 0; i < r->pages_n; i++) r->pages[i] = get32(&in);
    for (uint32_t i = 0; i < r->copies_n; i++) {
        r->copies[i].from = get32(&in);
        r->copies[i].to = get32(&in);
    }
    rc = check_slots(r, limits, err);
    if (rc == WN_OK) rc = check_seqs(r, limits, err);
out:
    if (rc != WN_OK) wn_step_record_clear(r);
    return rc;
}
