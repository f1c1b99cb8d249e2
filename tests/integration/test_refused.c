/* tests/integration/test_refused.c - a real worker's front and a scheduler that does not want it: both sides say why,
 * and the worker is let in when the reason is gone. Keys are made by `winnow keygen` (its path is the argument). */
#include "sched_bed.h"

#include "base/key.h"
#include "daemon/front.h"
#include "tests/file_read.h"
#include "tests/scratch.h"

static const char *winnow;
static char dir[64], log_path[96];
static int real_stderr;

static int setup(void **state)
{
    char command[256];

    if (bed_setup(state) != 0 || !scratch_make(dir, sizeof(dir), "refused")) return -1;
    snprintf(log_path, sizeof(log_path), "%s/log", dir);
    if ((real_stderr = dup(STDERR_FILENO)) < 0 || !freopen(log_path, "w", stderr)) return -1;
    snprintf(command, sizeof(command), "%s keygen %s/keys >/dev/null", winnow, dir);
    return system(command) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    const int rc = bed_teardown(state);

    fflush(stderr);
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    return rc == 0 && scratch_remove(dir) ? 0 : -1;
}

static struct wn_front *worker(const struct bed *b, const struct wn_key *key)
{
    const struct wn_front_opts o = {.role = WN__ROLE__ROLE_VISION, .name = "vision-1", .model_id = "m", .build = "b",
                                    .scheduler = b->workers, .slots = 4, .payload_max = 4096, .key = key};
    struct wn_front *f = NULL;
    struct wn_err err = {0};

    if (wn_front_start(&f, &o, &err) != WN_OK) fail_msg("%s", err.text);
    return f;
}

/* How often these words are in the log. */
static int count_logged(const char *words)
{
    size_t bytes = 0;
    char *text = file_read(log_path, &bytes);
    int n = 0;

    assert_non_null(text);
    for (const char *at = text; (at = strstr(at, words)) != NULL; at++) n++;
    free(text);
    return n;
}

/* They come there, and once only. */
static void expect_logged(const char *words)
{
    const int64_t until_us = wn_deadline_in_us(10000000);

    while (count_logged(words) == 0 && !wn_deadline_passed(until_us)) usleep(20000);
    assert_int_equal(count_logged(words), 1);
}

/* Until the status names somebody with these words, or (NULL) nobody. times: that it must have asked. */
static void wait_for(struct end *admin, const char *name, const char *words, uint64_t times)
{
    const int64_t until_us = wn_deadline_in_us(10000000);
    bool found = false;

    while (!found) {
        Wn__Envelope *env = ask_status(admin);
        const Wn__Status *st = env->status;
        for (size_t i = 0; name && i < st->n_turned_away; i++)
            found = found || (strncmp(st->turned_away[i]->name, name, strlen(name)) == 0 &&
                              strstr(st->turned_away[i]->why, words) && st->turned_away[i]->times >= times);
        if (!name) found = st->n_turned_away == 0;
        wn_codec_free(env);
        if (!found && wn_deadline_passed(until_us)) fail_msg("nobody '%s' with '%s'", name ? name : "", words);
        usleep(20000);
    }
}

/* Its checkpoint is another one than that of who works here already; then that one leaves. */
static void another_model(void **state)
{
    struct bed *b = *state;
    struct wn_front *f;

    b->cfg.heartbeat_ms = 50;
    bed_start_with(b, 4, 0);
    f = worker(b, NULL);
    wait_for(b->client, "vision-1", "vision-1 serves model m, but replica-0 serves abc", 3);
    expect_logged("refuses this worker: vision-1 serves model m");
    expect_logged("turned away vision-1");
    end_close(b->leader);
    wait_for(b->client, NULL, NULL, 0);
    wn_front_stop(f, 0);
}

/* Its key is none of ours. The scheduler is started again with a list that has it: the worker that waits is let in. */
static void a_key_that_is_not_in_the_list(void **state)
{
    struct bed *b = *state;
    struct wn_key *key = NULL;
    struct wn_front *f;
    char path[128], name[64], address[WN_TEXT_LEN];
    struct end *admin;
    FILE *list;

    snprintf(b->cfg.keys, sizeof(b->cfg.keys), "%s/keys", dir);
    bed_start(b);
    snprintf(path, sizeof(path), "%s/worker.key", b->cfg.keys);
    assert_int_equal(wn_key_open(&key, path, NULL), WN_OK);
    assert_int_equal(wn_curve_keypair(key->public_key, key->secret_key, NULL), WN_OK);
    snprintf(path, sizeof(path), "%s/admin.key", b->cfg.keys);
    snprintf(name, sizeof(name), "key %s", key->public_key);
    admin = end_open_as(b, false, path);
    f = worker(b, key);
    wait_for(admin, name, "its key is not that of the workers", 2); /* it tries again */
    expect_logged("this worker's key is not in its list");

    snprintf(address, sizeof(address), "%s", b->workers);
    b->workers_at = address;
    bed_stop(b);
    snprintf(path, sizeof(path), "%s/authorized", b->cfg.keys);
    assert_non_null(list = fopen(path, "a"));
    assert_true(fprintf(list, "worker %s late\n", key->public_key) > 0);
    assert_int_equal(fclose(list), 0);
    bed_start(b);
    snprintf(path, sizeof(path), "%s/admin.key", b->cfg.keys);
    admin = end_open_as(b, false, path);
    for (size_t workers = 0; workers == 0;) { /* the test's time limit ends this */
        Wn__Envelope *env = ask_status(admin);
        workers = env->status->n_workers;
        wn_codec_free(env);
        usleep(20000);
    }
    wait_for(admin, NULL, NULL, 0);
    wn_front_stop(f, 0);
    wn_key_close(key);
}

/* Keys on one side only. */
static void no_key(void **state)
{
    struct bed *b = *state;
    struct wn_front *f;
    char path[128];

    snprintf(b->cfg.keys, sizeof(b->cfg.keys), "%s/keys", dir);
    bed_start(b);
    f = worker(b, NULL);
    snprintf(path, sizeof(path), "%s/admin.key", b->cfg.keys);
    wait_for(end_open_as(b, false, path), "no name", "no handshake: it has no key", 2);
    expect_logged("no handshake: it wants a key");
    wn_front_stop(f, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(another_model, setup, teardown),
                                       cmocka_unit_test_setup_teardown(a_key_that_is_not_in_the_list, setup, teardown),
                                       cmocka_unit_test_setup_teardown(no_key, setup, teardown)};

    winnow = argc > 1 ? argv[1] : "winnow";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
