/* daemon/front_msg.c - messages between the front and its thread: made, packed, freed. */
#include <stdlib.h>

#include "base/log.h"
#include "daemon/front_impl.h"

struct wn_front_msg *wn_front_msg_new(void)
{
    struct wn_front_msg *m = calloc(1, sizeof(*m));
    if (m) wn_msg_init(&m->msg);
    return m;
}

void wn_front_claim(struct wn_front_msg *m)
{
    if (m->unclaimed_bytes) atomic_fetch_sub(m->unclaimed_bytes, m->payload_bytes);
    m->unclaimed_bytes = NULL;
}

void wn_front_msg_free(struct wn_front_msg *m)
{
    if (!m) return;
    wn_front_claim(m);
    wn_codec_free(m->env);
    wn_msg_clear(&m->msg);
    free(m);
}

static void free_packed(void *data, void *hint)
{
    (void)hint;
    free(data);
}

struct wn_front_msg *wn_front_msg_pack(const struct wn_party *to, Wn__Envelope__BodyCase kind, const void *body,
                                       void *payload, size_t payload_bytes, void (*free_fn)(void *, void *),
                                       void *hint)
{
    struct wn_front_msg *m = wn_front_msg_new();
    struct wn_err err = {0};
    uint8_t *bytes = NULL;
    size_t n = 0;

    if (!m || wn_codec_pack_body(&bytes, &n, kind, body, &err) != WN_OK ||
        wn_msg_add_ref(&m->msg, bytes, n, free_packed, NULL) != WN_OK)
        goto fail;
    bytes = NULL;
    if (payload) {
        if (wn_msg_add_ref(&m->msg, payload, payload_bytes, free_fn, hint) != WN_OK) goto fail;
    }
    m->party = *to;
    return m;
fail:
    wn_error("front", "%s not sent: %s", wn_codec_body_name(kind), err.text);
    free(bytes);
    wn_front_msg_free(m);
    if (payload) free_fn(payload, hint);
    return NULL;
}
