/* client/logprobs.c - log-probabilities as they come to what winnow.h shows. */
#include <stdlib.h>
#include <string.h>

#include "client/conn.h"

struct chances {
    struct winnow_logprobs *list;
    size_t n;
    Wn__TokenLogprobs **of; /* [n] NULL: not known */
    char **text;            /* [n] all texts of one, ended by zeros */
};

void wn_chances_free(struct chances *c)
{
    if (!c) return;
    for (size_t i = 0; i < c->n; i++) {
        if (c->of && c->of[i]) wn__token_logprobs__free_unpacked(c->of[i], NULL);
        if (c->text) free(c->text[i]);
        if (c->list) free((void *)(uintptr_t)c->list[i].top);
    }
    free(c->of);
    free(c->text);
    free(c->list);
    free(c);
}

/* Copies the text behind *at. */
static struct winnow_chance chance(const Wn__TokenChance *from, char **at)
{
    struct winnow_chance c = {.id = from->id, .logprob = from->logprob, .text = *at, .text_bytes = from->text.len};

    if (from->text.len) memcpy(*at, from->text.data, from->text.len);
    (*at)[from->text.len] = '\0';
    *at += from->text.len + 1;
    return c;
}

static int unpack_one(struct winnow *w, struct chances *c, size_t i, const ProtobufCBinaryData *value)
{
    const Wn__TokenLogprobs *t;
    struct winnow_chance *top;
    size_t bytes;
    char *at;

    if (value->len == 0) return WINNOW_OK;
    if (wn_codec_unpack_logprobs(&c->of[i], value->data, value->len, &w->error) != WN_OK) return WINNOW_EPROTO;
    t = c->of[i];
    if (!t->chosen) return wn_conn_result(wn_fail(&w->error, WN_EPROTO, "TokenLogprobs: no token"));
    bytes = t->chosen->text.len + 1;
    for (size_t k = 0; k < t->n_top; k++) bytes += t->top[k]->text.len + 1;
    at = c->text[i] = malloc(bytes);
    c->list[i].top = top = calloc(t->n_top + 1, sizeof(*top));
    if (!at || !top) return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "log-probabilities"));
    c->list[i].chosen = chance(t->chosen, &at);
    for (size_t k = 0; k < t->n_top; k++) top[k] = chance(t->top[k], &at);
    c->list[i].top_n = t->n_top;
    return WINNOW_OK;
}

int wn_chances_unpack(struct winnow *w, const ProtobufCBinaryData *values, size_t n, const struct winnow_logprobs **out,
                      struct chances **keep)
{
    struct chances *c = calloc(1, sizeof(*c));
    int rc = WINNOW_OK;

    if (!c) return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "log-probabilities"));
    *keep = c;
    c->list = calloc(n + 1, sizeof(*c->list));
    c->of = calloc(n + 1, sizeof(*c->of));
    c->text = calloc(n + 1, sizeof(*c->text));
    if (!c->list || !c->of || !c->text) return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "log-probabilities"));
    c->n = n;
    for (size_t i = 0; rc == WINNOW_OK && i < n; i++) rc = unpack_one(w, c, i, &values[i]);
    if (rc == WINNOW_OK) *out = c->list;
    return rc;
}
