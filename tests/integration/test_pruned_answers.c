/* tests/integration/test_pruned_answers.c - answers about pruned pictures, both policies of position, through a whole
 * service of 2 stages x 2 tensor ranks in float32: the tokens that Transformers gives when it gets the same rows
 * (scripts/golden/pruned.py, which has methods of its own). All questions are in flight together. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/service.h"

#define MODEL      "models/tiny-llava"
#define GOLDEN     "tests/golden/tiny-llava/pruned.txt"
#define CASES_MAX  128
#define TOKENS_MAX 64

struct golden_case {
    char *picture, *question, method[WINNOW_METHOD_MAX];
    unsigned keep;
    enum winnow_position position;
    uint32_t want[TOKENS_MAX], got[TOKENS_MAX], want_n, got_n;
    uint64_t job;
};

static struct golden_case cases[CASES_MAX];
static int cases_n;

/* The line at *at, without its end; *at goes on to the next. */
static char *take_line(char **at)
{
    char *line = *at, *end = strchr(line, '\n');

    if (!end) fail_msg("%s ends within a question", GOLDEN);
    *end = '\0';
    *at = end + 1;
    return line;
}

/* pictures and questions point into the text, which is returned. */
static char *load_cases(void)
{
    size_t n;
    char *text = read_file(GOLDEN, &n), *at = text;

    take_line(&at); /* the checkpoint's hash: test_tiny_llava checks it in answers.txt */
    for (; *at; cases_n++) {
        struct golden_case *c = &cases[cases_n];
        char policy[16], *id;
        assert_true(cases_n < CASES_MAX);
        assert_int_equal(strncmp(take_line(&at), "question ", 9), 0);
        c->picture = take_line(&at);
        c->question = take_line(&at);
        if (sscanf(take_line(&at), "%31s %u %15s", c->method, &c->keep, policy) != 3) fail_msg("%s: a method", GOLDEN);
        c->position = strcmp(policy, "original") == 0 ? WINNOW_POSITION_ORIGINAL : WINNOW_POSITION_COMPACT;
        for (id = take_line(&at); c->want_n < TOKENS_MAX && *id; c->want_n++)
            c->want[c->want_n] = (uint32_t)strtoul(id, &id, 10);
        assert_true(c->want_n > 0 && !*id);
    }
    return text;
}

static void submit(struct winnow *w, struct golden_case *c)
{
    char path[256];
    struct winnow_image image;
    struct winnow_request r = {.prompt = c->question,
                               .images = &image,
                               .images_n = 1,
                               .max_tokens = 40,
                               .pruning_method = c->method,
                               .pruning_keep = c->keep,
                               .pruning_position = c->position};

    snprintf(path, sizeof(path), "tests/eval/%s", c->picture);
    image.data = read_file(path, &image.bytes);
    if (winnow_submit(w, &r, &c->job) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
    free((void *)(uintptr_t)image.data);
}

static void take_tokens(struct golden_case *c, const struct winnow_event *ev)
{
    assert_true(ev->token_ids_n == 0 || ev->first_token == c->got_n);
    assert_true(c->got_n + ev->token_ids_n <= TOKENS_MAX);
    memcpy(c->got + c->got_n, ev->token_ids, ev->token_ids_n * sizeof(*c->got));
    c->got_n += (uint32_t)ev->token_ids_n;
}

static void test_tokens_are_those_of_transformers(void **state)
{
    const char *flags[] = {"-tp=2", "-pp=2", "--dtype=float32", NULL};
    char *text = load_cases();
    struct winnow *w = NULL;
    struct service s;
    int wrong = 0;
    (void)state;

    assert_true(cases_n >= 12 * 6);
    service_start(&s, MODEL, flags);
    assert_int_equal(winnow_connect(&w, s.endpoint, NULL), WINNOW_OK);
    for (int i = 0; i < cases_n; i++) submit(w, &cases[i]);
    for (int done = 0; done < cases_n;) {
        struct winnow_event ev;
        struct golden_case *c = cases;
        if (winnow_next(w, &ev, 60000) != WINNOW_OK) fail_msg("after %d answers: %s", done, winnow_error(w));
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY) fail_msg("job failed: %s", ev.text);
        while (c < cases + cases_n && c->job != ev.job) c++;
        assert_true(c < cases + cases_n);
        if (ev.type == WINNOW_EVENT_TEXT) take_tokens(c, &ev);
        if (ev.type != WINNOW_EVENT_DONE) continue;
        assert_int_equal(ev.usage.image_tokens, c->keep);
        assert_int_equal(ev.usage.pruning_position, c->position);
        done++;
    }
    winnow_close(w);
    assert_int_equal(service_stop(&s), 0);
    for (int i = 0; i < cases_n; i++) {
        const struct golden_case *c = &cases[i];
        if (c->got_n == c->want_n && memcmp(c->got, c->want, c->want_n * sizeof(*c->want)) == 0) continue;
        print_error("%s, '%s', %s:%u, policy %d: other tokens\n", c->picture, c->question, c->method, c->keep,
                    (int)c->position);
        wrong++;
    }
    assert_int_equal(wrong, 0);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tokens_are_those_of_transformers)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
