/* client/cli_logprobs.c - log-probabilities as OpenAI's JSON, and as a table for people. */
#include <string.h>

#include "base/utf8.h"
#include "client/cli.h"
#include "proto/codec.h"

/* A token's bytes in quotes: what is no UTF-8 (a part of a character) as U+FFFD. */
static void put_text(FILE *f, const struct winnow_chance *c)
{
    char text[3 * WN_TOKEN_TEXT_MAX + 1];
    size_t at = 0;

    for (size_t i = 0; i < c->text_bytes && at + 4 < sizeof(text);) {
        size_t n = 4;
        while (n > 0 && (i + n > c->text_bytes || !wn_utf8_valid(c->text + i, n))) n--;
        memcpy(text + at, n ? c->text + i : "\xef\xbf\xbd", n ? n : 3);
        at += n ? n : 3;
        i += n ? n : 1;
    }
    text[at] = '\0';
    cli_json_text(f, text);
}

static void put_chance(FILE *f, const struct winnow_chance *c)
{
    fputs("{\"token\": ", f);
    put_text(f, c);
    fprintf(f, ", \"logprob\": %.9g, \"bytes\": [", (double)c->logprob);
    for (size_t i = 0; i < c->text_bytes; i++) fprintf(f, "%s%u", i ? ", " : "", (unsigned char)c->text[i]);
    fputc(']', f);
}

void cli_logprobs_json(FILE *f, const struct winnow_event *ev, bool *any)
{
    for (size_t i = 0; ev->logprobs && i < ev->token_ids_n; i++) {
        const struct winnow_logprobs *l = &ev->logprobs[i];
        if (!l->chosen.text) continue;
        if (*any) fputs(", ", f);
        *any = true;
        put_chance(f, &l->chosen);
        fputs(", \"top_logprobs\": [", f);
        for (size_t k = 0; k < l->top_n; k++) {
            if (k) fputs(", ", f);
            put_chance(f, &l->top[k]);
            fputc('}', f);
        }
        fputs("]}", f);
    }
}

void cli_logprobs_table(FILE *f, const struct winnow_event *ev)
{
    for (size_t i = 0; ev->logprobs && i < ev->token_ids_n; i++) {
        const struct winnow_logprobs *l = &ev->logprobs[i];
        if (!l->chosen.text) continue;
        fprintf(f, "%9.4f ", (double)l->chosen.logprob);
        put_text(f, &l->chosen);
        for (size_t k = 0; k < l->top_n; k++) {
            fprintf(f, "%s%.4f ", k ? ", " : "  of ", (double)l->top[k].logprob);
            put_text(f, &l->top[k]);
        }
        fputc('\n', f);
    }
}
