/* tests/unit/test_key.c - key files and the list of keys: what is read, what is refused, and what keys may do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/access.h"

#define K1 "F95%*4s]d/a#3!%ShpETLIaVaGME}K0.[<2=VgmK"
#define K2 "TLt4qsGqUj2Fudnw5(hda}8Va!EWk&tZm%t0me87"
#define K3 "nzL/sG3&ZkBlT/Or@50Vf0b+pQH&ZNh=+2yw&xPI"

#define GOOD "# a comment\n\nrole: client\nname: alice\npublic: " K1 "\nsecret: " K2 "\nserver: " K3 "\n"

static void file_reads(void **state)
{
    struct wn_key *key = NULL;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_key_create(&key, &err), WN_OK);
    assert_int_equal(wn_key_parse(key, "f", GOOD, strlen(GOOD), &err), WN_OK);
    assert_int_equal(key->role, WN_KEY_CLIENT);
    assert_string_equal(key->name, "alice");
    assert_string_equal(key->public_key, K1);
    assert_string_equal(key->secret_key, K2);
    assert_string_equal(key->server_key, K3);
    assert_int_equal(wn_key_parse(key, "f", GOOD, strlen(GOOD) - 1, &err), WN_OK); /* no newline at the end */
    wn_key_close(key);
}

static void file_refuses(void **state)
{
    static const struct {
        const char *text, *words;
        wn_status code;
    } bad[] = {
        {"", "has role", WN_EFORMAT},
        {"role: client\nname: alice\npublic: " K1 "\nsecret: " K2 "\n", "has role", WN_EFORMAT},
        {"role: king\n", "f:1: the role", WN_EFORMAT},
        {"role: client\nrole: admin\n", "f:2: a second role", WN_EFORMAT},
        {"name: a b\n", "f:1: not a name", WN_EFORMAT},
        {"name: ../x\n", "f:1: not a name", WN_EFORMAT},
        {"\npublic: short\n", "f:2: not a key", WN_EFORMAT},
        {"public: " K1 "x\n", "f:1: not a key", WN_EFORMAT},
        {"public: \"95%*4s]d/a#3!%ShpETLIaVaGME}K0.[<2=VgmK\n", "f:1: not a key", WN_EFORMAT},
        {"public: " K1 "\npublic: " K1 "\n", "f:2: a second public", WN_EFORMAT},
        {"secret:" K1 "\n", "f:1: not a line", WN_EFORMAT},
        {"word: x\n", "f:1: not a line", WN_EFORMAT},
        {":\n", "f:1", WN_EFORMAT},
    };
    struct wn_key *key = NULL;
    char *large = calloc(1, WN_KEY_FILE_MAX + 1);

    (void)state;
    assert_int_equal(wn_key_create(&key, NULL), WN_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct wn_err err = {0};
        assert_int_equal(wn_key_parse(key, "f", bad[i].text, strlen(bad[i].text), &err), bad[i].code);
        if (!strstr(err.text, bad[i].words)) fail_msg("'%s' is not in '%s'", bad[i].words, err.text);
        if (strstr(err.text, K1)) fail_msg("the error shows a key: %s", err.text);
    }
    assert_non_null(large);
    assert_int_equal(wn_key_parse(key, "f", large, WN_KEY_FILE_MAX + 1, NULL), WN_ELIMIT);
    free(large);
    wn_key_close(key);
}

static void file_stays_private(void **state)
{
    char path[64];
    struct wn_key *key = NULL, *back = NULL;
    struct wn_err err = {0};
    struct stat st;

    (void)state;
    snprintf(path, sizeof(path), "/tmp/wn-test-key-%d", (int)getpid());
    assert_int_equal(wn_key_create(&key, &err), WN_OK);
    assert_int_equal(wn_key_parse(key, "f", GOOD, strlen(GOOD), &err), WN_OK);
    assert_int_equal(wn_key_write(key, path, &err), WN_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(wn_key_write(key, path, &err), WN_EIO); /* never written over */
    assert_int_equal(wn_key_open(&back, path, &err), WN_OK);
    assert_memory_equal(back, key, sizeof(*key));
    wn_key_close(back);
    back = NULL;
    assert_int_equal(chmod(path, 0604), 0);
    assert_int_equal(wn_key_open(&back, path, &err), WN_EAUTH);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(wn_key_open(&back, path, &err), WN_EAUTH);
    assert_null(back);
    unlink(path);
    assert_int_equal(wn_key_open(&back, path, &err), WN_EIO);
    assert_int_equal(wn_key_open(&back, "/tmp", &err), WN_EIO);
    wn_key_close(key);
}

/* What the server opens in DIR of --keys: its own key, and who may come. */
static void server_folder(void **state)
{
    static const char server[] = "role: server\nname: s\npublic: " K1 "\nsecret: " K2 "\nserver: " K1 "\n";
    char dir[64], key_file[96], list_file[96];
    struct wn_access *a = NULL;
    struct wn_key *key = NULL;
    struct wn_err err = {0};
    FILE *f;

    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/wn-test-keys-%d", (int)getpid());
    snprintf(key_file, sizeof(key_file), "%s/server.key", dir);
    snprintf(list_file, sizeof(list_file), "%s/authorized", dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(wn_key_create(&key, &err), WN_OK);
    assert_int_equal(wn_key_parse(key, "f", server, strlen(server), &err), WN_OK);
    assert_int_equal(wn_key_write(key, key_file, &err), WN_OK);
    assert_int_equal(wn_access_open(&a, dir, &err), WN_EIO); /* no list */
    assert_non_null(strstr(err.text, "authorized"));
    assert_non_null(f = fopen(list_file, "w"));
    fputs("client " K2 " alice\n", f);
    fclose(f);
    assert_int_equal(chmod(list_file, 0644), 0);
    assert_int_equal(wn_access_open(&a, dir, &err), WN_OK);
    assert_string_equal(wn_access_find(a, K2)->name, "alice");
    wn_access_close(a);
    a = NULL;
    for (unsigned who = 020; who >= 02; who /= 8) { /* its group, or others, may write it */
        assert_int_equal(chmod(list_file, 0600 | who), 0);
        assert_int_equal(wn_access_open(&a, dir, &err), WN_EAUTH);
    }
    assert_int_equal(chmod(list_file, 0600), 0);
    assert_int_equal(truncate(list_file, (off_t)WN_ACCESS_FILE_MAX + 1), 0);
    assert_int_equal(wn_access_open(&a, dir, &err), WN_ELIMIT);
    assert_int_equal(truncate(key_file, (off_t)WN_KEY_FILE_MAX + 1), 0);
    assert_int_equal(wn_access_open(&a, dir, &err), WN_ELIMIT);
    unlink(key_file);
    /* a client's key in the server's place */
    assert_int_equal(wn_key_parse(key, "f", GOOD, strlen(GOOD), &err), WN_OK);
    assert_int_equal(wn_key_write(key, key_file, &err), WN_OK);
    assert_int_equal(wn_access_open(&a, dir, &err), WN_EAUTH);
    assert_non_null(strstr(err.text, "has the role client, not server"));
    assert_null(a);
    wn_key_close(key);
    unlink(key_file);
    unlink(list_file);
    rmdir(dir);
}

static void names(void **state)
{
    char longest[WN_KEY_NAME_LEN + 1];

    (void)state;
    memset(longest, 'n', sizeof(longest));
    assert_true(wn_key_name_valid(longest, WN_KEY_NAME_LEN - 1));
    assert_false(wn_key_name_valid(longest, WN_KEY_NAME_LEN));
    assert_false(wn_key_name_valid(longest, 0));
    assert_true(wn_key_name_valid("a.b_c-9", 7));
    assert_false(wn_key_name_valid(".a", 2));
    assert_false(wn_key_name_valid("-a", 2));
}

static wn_status list(struct wn_access *a, const char *text, struct wn_err *err)
{
    memset(a, 0, sizeof(*a));
    memset(err, 0, sizeof(*err));
    return wn_access_parse(a, "authorized", text, strlen(text), err);
}

static void list_reads(void **state)
{
    struct wn_access a;
    struct wn_err err;
    const char *const *keys;
    size_t n;

    (void)state;
    assert_int_equal(list(&a, "# who\nworker " K1 " w\n\nclient " K2 "  alice\nadmin " K3 " root", &err), WN_OK);
    assert_int_equal(a.n, 3);
    assert_string_equal(wn_access_find(&a, K2)->name, "alice");
    assert_int_equal(wn_access_find(&a, K3)->role, WN_KEY_ADMIN);
    assert_null(wn_access_find(&a, "short"));
    assert_null(wn_access_find(&a, NULL));
    keys = wn_access_keys(&a, 1u << WN_KEY_WORKER, &n);
    assert_int_equal(n, 1);
    assert_string_equal(keys[0], K1);
    wn_access_keys(&a, ~0u, &n);
    assert_int_equal(n, 3);
    wn_access_fini(&a);
    assert_int_equal(list(&a, "", &err), WN_OK); /* nobody */
    assert_null(wn_access_find(&a, K1));
    wn_access_fini(&a);
}

static void list_refuses(void **state)
{
    static const char *const bad[][2] = {
        {"client\n", "authorized:1: not 'ROLE"},
        {"client " K1 "\n", "authorized:1: not 'ROLE"},
        {"client " K1 " a b\n", "authorized:1: not 'ROLE"},
        {"\nserver " K1 " a\n", "authorized:2: the role"},
        {"client x a\n", "authorized:1: not a key"},
        {"client " K1 " a/b\n", "authorized:1: not a name"},
        {"client " K1 " a\nadmin " K1 " b\n", "comes twice"},
    };
    struct wn_access a;
    struct wn_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(list(&a, bad[i][0], &err), WN_EFORMAT);
        if (!strstr(err.text, bad[i][1])) fail_msg("'%s' is not in '%s'", bad[i][1], err.text);
        wn_access_fini(&a);
    }
}

static void roles(void **state)
{
    const struct wn_access_entry client = {.key = K1, .role = WN_KEY_CLIENT};
    const struct wn_access_entry other = {.key = K2, .role = WN_KEY_CLIENT};
    const struct wn_access_entry admin = {.key = K3, .role = WN_KEY_ADMIN}, worker = {.role = WN_KEY_WORKER};
    Wn__Submit job = WN__SUBMIT__INIT;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_access_check(&client, WN__ENVELOPE__BODY_SUBMIT, &err), WN_OK);
    assert_int_equal(wn_access_check(&admin, WN__ENVELOPE__BODY_CANCEL, &err), WN_OK);
    assert_int_equal(wn_access_check(&worker, WN__ENVELOPE__BODY_STATUS_REQUEST, &err), WN_OK);
    assert_int_equal(wn_access_check(NULL, WN__ENVELOPE__BODY_SUBMIT, &err), WN_OK);
    assert_int_equal(wn_access_check(NULL, WN__ENVELOPE__BODY_DRAIN, &err), WN_OK);
    assert_int_equal(wn_access_check(&admin, WN__ENVELOPE__BODY_DRAIN, &err), WN_OK);
    assert_int_equal(wn_access_check(&client, WN__ENVELOPE__BODY_DRAIN, &err), WN_EAUTH);
    assert_string_equal(err.text, "a client key may not send Drain here");
    for (int kind = 1; kind < 60; kind++) {
        if (kind == WN__ENVELOPE__BODY_STATUS_REQUEST) continue;
        assert_int_equal(wn_access_check(&worker, (Wn__Envelope__BodyCase)kind, &err), WN_EAUTH);
    }
    assert_int_equal(wn_access_stamp(&job, &client), WN_OK);
    assert_string_equal(job.owner, K1);
    assert_int_equal(wn_access_stamp(&job, &client), WN_OK); /* over what was there */
    assert_true(wn_access_owns(&client, &job));
    assert_false(wn_access_owns(&other, &job));
    assert_true(wn_access_owns(&admin, &job));
    assert_true(wn_access_owns(NULL, &job));
    free(job.owner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_reads), cmocka_unit_test(file_refuses), cmocka_unit_test(file_stays_private),
        cmocka_unit_test(server_folder), cmocka_unit_test(names),
        cmocka_unit_test(list_reads), cmocka_unit_test(list_refuses), cmocka_unit_test(roles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
