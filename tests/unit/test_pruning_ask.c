/* tests/unit/test_pruning_ask.c - a request about pruning with the server's defaults, limits, and what is in force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/pruning_ask.h"

#define ROWS 576

/* The configuration of these flags. */
static struct wn_config config(const char *a, const char *b, const char *c)
{
    char *argv[] = {(char *)(uintptr_t) "test", (char *)(uintptr_t)a, (char *)(uintptr_t)b, (char *)(uintptr_t)c, NULL};
    struct wn_config cfg;
    struct wn_err err = {0};
    int argc = 1 + (a != NULL) + (b != NULL) + (c != NULL);

    if (wn_config_parse(&cfg, argc, argv, &err) != WN_OK) fail_msg("%s", err.text);
    return cfg;
}

/* Completes, asks, limits; p comes back with the numbers in force. */
static wn_status ask(Wn__Pruning *p, const struct wn_config *cfg, struct wn_prune_ask *out, struct wn_err *err)
{
    const Wn__Pruning asked = *p;
    const struct wn_prune_method *m;
    struct wn_prune_ask a;
    wn_status rc;

    wn_pruning_complete(p, &asked, cfg);
    if ((rc = wn_pruning_ask(p, &m, &a, err)) != WN_OK) return rc;
    if ((rc = wn_pruning_limit(m, &a, ROWS, cfg->image_tokens_max, err)) != WN_OK) return rc;
    wn_pruning_in_force(p, m, &a, ROWS, a.projected);
    if (out) *out = a;
    return WN_OK;
}

static void budgets_in_force(void **state)
{
    const struct wn_config plain = config(NULL, NULL, NULL);
    static const struct {
        const char *method;
        uint32_t keep;
        float rate;
        uint32_t want;
    } cases[] = {
        {"cls-topk", 1, 0, 1},       {"cls-topk", 575, 0, 575}, {"cls-topk", 576, 0, 576},
        {"cls-topk", 577, 0, 576},   {"cls-topk", 0, 0.99f, 6}, {"cls-topk", 0, 1, 1},
        {"cls-topk", 0, 0.5f, 288},  {"cls-topk", 0, 0, 64},    {"cls-topk", 65536, 0, 576},
        {"random", 0, 0, 64},        {"none", 0, 0, 0},         {"none", 7, 0, 0},
        {"prumerge", 0, 0, 0},       {"prumerge", 10, 0, 10},   {"prumerge", 0, 1, 1},
        {"", 0, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Wn__Pruning p = WN__PRUNING__INIT;
        struct wn_err err = {0};
        p.method = (char *)(uintptr_t)cases[i].method;
        p.keep = cases[i].keep;
        p.rate = cases[i].rate;
        if (ask(&p, &plain, NULL, &err) != WN_OK) fail_msg("%s: %s", cases[i].method, err.text);
        if (p.keep != cases[i].want) fail_msg("%s %u: %u is in force", cases[i].method, cases[i].keep, p.keep);
        assert_int_equal(p.position, WN__POSITION_POLICY__POSITION_COMPACT);
    }
}

static void server_defaults(void **state)
{
    const struct wn_config a = config("--image-pruning-method=prumerge", "--keep=32", "--setting=paper"),
                           b = config("--rate=0.75", "--position=original", "--projected"),
                           c = config("--rate=0", "--pruning-options=neighbours=8", "--pruning-seed=5");
    Wn__Pruning p = WN__PRUNING__INIT;
    struct wn_prune_ask got;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(ask(&p, &a, &got, &err), WN_OK);
    assert_string_equal(p.method, "prumerge");
    assert_int_equal(p.keep, 32);
    assert_int_equal(got.setting, WN_PRUNE_PAPER);
    p = (Wn__Pruning)WN__PRUNING__INIT;
    p.method = (char *)(uintptr_t) "cls-topk"; /* which has no such setting */
    assert_int_equal(ask(&p, &a, &got, &err), WN_OK);
    assert_int_equal(p.keep, 32);
    assert_string_equal(p.setting, "");
    p = (Wn__Pruning)WN__PRUNING__INIT;
    p.method = (char *)(uintptr_t) "uniform";
    assert_int_equal(ask(&p, &b, &got, &err), WN_OK);
    assert_int_equal(p.keep, 144);
    assert_int_equal(p.position, WN__POSITION_POLICY__POSITION_ORIGINAL);
    assert_true(p.projected);
    p.position = WN__POSITION_POLICY__POSITION_COMPACT;
    p.keep = 9;
    assert_int_equal(ask(&p, &b, &got, &err), WN_OK);
    assert_int_equal(p.keep, 9);
    assert_int_equal(p.position, WN__POSITION_POLICY__POSITION_COMPACT);
    p = (Wn__Pruning)WN__PRUNING__INIT;
    p.method = (char *)(uintptr_t) "random";
    assert_int_equal(ask(&p, &c, &got, &err), WN_OK); /* a rate of 0 that somebody gave */
    assert_int_equal(p.keep, ROWS);
    assert_int_equal(got.options.neighbours, 8);
    assert_true(got.budget.seed == 5);
}

static void limits(void **state)
{
    const struct wn_config c = config("--image-tokens-max=100", NULL, NULL);
    Wn__Pruning p = WN__PRUNING__INIT;
    struct wn_prune_ask got;
    struct wn_err err = {0};

    (void)state;
    p.method = (char *)(uintptr_t) "cls-topk";
    p.keep = 200;
    assert_int_equal(ask(&p, &c, &got, &err), WN_OK);
    assert_int_equal(p.keep, 100);
    p.keep = 0;
    p.rate = 0.1f;
    assert_int_equal(ask(&p, &c, &got, &err), WN_OK);
    assert_int_equal(p.keep, 100);
    p.keep = 99;
    assert_int_equal(ask(&p, &c, &got, &err), WN_OK);
    assert_int_equal(p.keep, 99);
    p = (Wn__Pruning)WN__PRUNING__INIT;
    p.method = (char *)(uintptr_t) "prumerge+";
    p.cap = 300;
    assert_int_equal(ask(&p, &c, &got, &err), WN_OK);
    assert_int_equal(p.keep, 0);
    assert_int_equal(p.cap, 100);
    p = (Wn__Pruning)WN__PRUNING__INIT;
    assert_int_equal(ask(&p, &c, &got, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "'none' keeps 576 visual tokens of an image; this server takes at most 100"));
}

static void refused_by_name(void **state)
{
    static const struct {
        const char *method, *setting, *options, *words;
    } cases[] = {
        {"sharpen", "", "", "pruning method 'sharpen' is not known; known: none, random"},
        {"prumerge", "papers", "", "pruning setting 'papers'"},
        {"cls-topk", "paper", "", "pruning method 'cls-topk' has no setting 'paper'"},
        {"hiprune", "", "anchor=1", "pruning option 'anchor' is not known; known: neighbours"},
        {"hiprune", "", "anchors=1.5", "pruning option 'anchors' is no number from 0 to 1"},
        {"prumerge", "", "neighbours=2.5", "pruning option 'neighbours' is no whole number"},
        {"prumerge", "", "neighbours", "pruning option 'neighbours' has no value"},
        {"prumerge", "", "neighbours=2,", NULL},
        {"prumerge", "", "neighbours=16,anchors=0.25", NULL},
        {"matryoshka", "", "", NULL},
    };
    const struct wn_config plain = config(NULL, NULL, NULL);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Wn__Pruning p = WN__PRUNING__INIT;
        struct wn_err err = {0};
        p.method = (char *)(uintptr_t)cases[i].method;
        p.setting = (char *)(uintptr_t)cases[i].setting;
        p.options = (char *)(uintptr_t)cases[i].options;
        assert_int_equal(ask(&p, &plain, NULL, &err) == WN_OK, cases[i].words == NULL);
        if (cases[i].words && !strstr(err.text, cases[i].words)) fail_msg("'%s': %s", cases[i].words, err.text);
    }
}

/* Each row of the table is another pruning than all others; its twin says the same in other words. */
static void hashes_keep_them_apart(void **state)
{
    static const struct {
        Wn__Pruning p, twin;
        bool projected;
    } cases[] = {
#define SAYS(...) {.base = PROTOBUF_C_MESSAGE_INIT(&wn__pruning__descriptor), __VA_ARGS__}
#define METHOD    .method = (char *)(uintptr_t)
        {SAYS(METHOD "none"), SAYS(METHOD "", .keep = 64, .position = WN__POSITION_POLICY__POSITION_ORIGINAL), false},
        {SAYS(METHOD "none"), SAYS(METHOD "none", .seed = 3), true},
        {SAYS(METHOD "cls-topk", .keep = 64), SAYS(METHOD "cls-topk"), false},
        {SAYS(METHOD "cls-topk", .keep = 65), SAYS(METHOD "cls-topk", .keep = 65, .rate = 0.5f), false},
        {SAYS(METHOD "cls-topk", .keep = 576), SAYS(METHOD "cls-topk", .keep = 9999), false},
        {SAYS(METHOD "uniform", .keep = 576), SAYS(METHOD "uniform", .keep = 577), false},
        {SAYS(METHOD "cls-topk", .keep = 288), SAYS(METHOD "cls-topk", .rate = 0.5f), false},
        {SAYS(METHOD "cls-topk", .keep = 288), SAYS(METHOD "cls-topk", .rate = 0.5f), true},
        {SAYS(METHOD "cls-topk", .keep = 64, .position = WN__POSITION_POLICY__POSITION_ORIGINAL),
         SAYS(METHOD "cls-topk", .position = WN__POSITION_POLICY__POSITION_ORIGINAL), false},
        {SAYS(METHOD "random", .keep = 64), SAYS(METHOD "random"), false},
        {SAYS(METHOD "random", .keep = 64, .seed = 1), SAYS(METHOD "random", .seed = 1), false},
        {SAYS(METHOD "prumerge"), SAYS(METHOD "prumerge", .setting = (char *)(uintptr_t) "faithful"), false},
        {SAYS(METHOD "prumerge", .cap = 100), SAYS(METHOD "prumerge", .cap = 100), false},
        {SAYS(METHOD "prumerge", .setting = (char *)(uintptr_t) "paper"),
         SAYS(METHOD "prumerge", .setting = (char *)(uintptr_t) "paper"), false},
        {SAYS(METHOD "prumerge", .options = (char *)(uintptr_t) "neighbours=8"),
         SAYS(METHOD "prumerge", .options = (char *)(uintptr_t) "neighbours=8"), false},
#undef METHOD
#undef SAYS
    };
    enum { N = sizeof(cases) / sizeof(cases[0]) };
    uint8_t name[N][WN_SHA256_BYTES], twin[WN_SHA256_BYTES];

    (void)state;
    for (size_t i = 0; i < N; i++) {
        wn_pruning_hash(&cases[i].p, ROWS, cases[i].projected, name[i]);
        wn_pruning_hash(&cases[i].twin, ROWS, cases[i].projected, twin);
        if (memcmp(name[i], twin, sizeof(twin)) != 0) fail_msg("case %zu and its twin have two names", i);
        for (size_t k = 0; k < i; k++)
            if (memcmp(name[i], name[k], sizeof(twin)) == 0) fail_msg("cases %zu and %zu have one name", k, i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets_in_force),
        cmocka_unit_test(server_defaults),
        cmocka_unit_test(limits),
        cmocka_unit_test(refused_by_name),
        cmocka_unit_test(hashes_keep_them_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
