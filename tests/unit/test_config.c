/* tests/unit/test_config.c - the option table, the order of its sources, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/config.h"

/* Parses "winnowd a b c"; the words are split at spaces. */
static wn_status parse(struct wn_config *c, const char *line, struct wn_err *err)
{
    static char text[512];
    char *argv[32] = {"winnowd"}, *at = text, *end;
    int argc = 1;

    memset(err, 0, sizeof(*err));
    snprintf(text, sizeof(text), "%s", line);
    while (*at && argc < 32) {
        argv[argc++] = at;
        if (!(end = strchr(at, ' '))) break;
        *end = '\0';
        at = end + 1;
    }
    return wn_config_parse(c, argc, argv, err);
}

static void refused(const char *line, wn_status want, const char *words)
{
    struct wn_config c;
    struct wn_err err;

    assert_int_equal(parse(&c, line, &err), want);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
}

static void yaml_refused(const char *text, wn_status want, const char *words)
{
    struct wn_config c;
    struct wn_err err = {0};

    wn_config_defaults(&c);
    assert_int_equal(wn_config_read_yaml(&c, "w.yaml", text, strlen(text), &err), want);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
}

static void table_is_sound(void **state)
{
    struct wn_config c;

    (void)state;
    wn_config_defaults(&c);
    for (size_t i = 0; i < wn_options_n; i++) {
        const struct wn_option *o = &wn_options[i];
        assert_ptr_equal(wn_config_find(o->name), o); /* no name twice */
        assert_true(o->help[0] && o->group && (o->type == WN_OPT_BOOL) == !o->value);
        assert_true(strlen(o->name) < WN_NAME_LEN - 8);
        assert_true(o->offset + o->size <= offsetof(struct wn_config, source));
        if (o->type == WN_OPT_U32 || o->type == WN_OPT_CHOICE) assert_int_equal(o->size, 4);
        if (o->type == WN_OPT_U64) assert_int_equal(o->size, 8);
        if (o->type == WN_OPT_BOOL) assert_int_equal(o->size, sizeof(bool));
    }
    assert_int_equal(c.port, 5599);
    assert_int_equal(c.image_bytes_max, 32 << 20);
}

static void order_of_sources(void **state)
{
    char path[] = "/tmp/winnow-test-config-XXXXXX", line[128];
    const char *yaml = "# a comment\nport: 1111\nmax-queue: 7\nlease-ms: 9000\n";
    int fd = mkstemp(path);
    struct wn_config c;
    struct wn_err err;

    (void)state;
    assert_true(fd >= 0 && write(fd, yaml, strlen(yaml)) == (ssize_t)strlen(yaml));
    close(fd);
    setenv("WINNOW_MAX_QUEUE", "8", 1);
    setenv("WINNOW_LEASE_MS", "8000", 1);
    snprintf(line, sizeof(line), "models/x -tp 2 --lease-ms=7000 --config %s", path);
    assert_int_equal(parse(&c, line, &err), WN_OK);
    assert_string_equal(c.model, "models/x");
    assert_int_equal(c.tensor_parallel_size, 2);
    assert_int_equal(c.port, 1111);
    assert_int_equal(c.max_queue, 8);
    assert_int_equal(c.lease_ms, 7000);
    assert_int_equal(c.max_attempts, 3);
    assert_int_equal(c.source[wn_config_find("port") - wn_options], WN_FROM_FILE);
    assert_int_equal(c.source[wn_config_find("max-queue") - wn_options], WN_FROM_ENV);
    assert_int_equal(c.source[wn_config_find("lease-ms") - wn_options], WN_FROM_FLAG);
    unsetenv("WINNOW_LEASE_MS");
    setenv("WINNOW_MAX_QUEUE", "many", 1);
    refused("", WN_EINVAL, "WINNOW_MAX_QUEUE: 'many'");
    unsetenv("WINNOW_MAX_QUEUE");
    setenv("WINNOW_CONFIG", path, 1);
    assert_int_equal(parse(&c, "", &err), WN_OK);
    assert_int_equal(c.port, 1111);
    refused("--config /tmp/winnow-no-such-file", WN_EIO, "/tmp/winnow-no-such-file");
    setenv("WINNOW_CONFIG", "", 1);
    refused("", WN_EINVAL, "--config: no file is named");
    unsetenv("WINNOW_CONFIG");
    unlink(path);
    refused(line, WN_EIO, path);
}

static void flags(void **state)
{
    struct wn_config c;
    struct wn_err err;

    (void)state;
    assert_int_equal(parse(&c, "-pp=3 --dtype bfloat16 --json --image-bytes-max 2K -- -odd-", &err), WN_OK);
    assert_int_equal(c.pipeline_parallel_size, 3);
    assert_int_equal(c.dtype, WN_CONFIG_DTYPE_BFLOAT16);
    assert_true(c.json);
    assert_int_equal(c.image_bytes_max, 2048);
    assert_string_equal(c.model, "-odd-");
    assert_int_equal(parse(&c, "--json=false --help", &err), WN_OK);
    assert_true(c.help && !c.json);
    refused("--max-qeue 3", WN_EINVAL, "did you mean --max-queue?");
    refused("--tensor-paralel-size 3", WN_EINVAL, "did you mean --tensor-parallel-size?");
    refused("--xyz", WN_EINVAL, "--help lists them");
    refused("-tpp 2", WN_EINVAL, "unknown option -tpp");
    refused("--port", WN_EINVAL, "wants a value");
    refused("--port 70000", WN_ELIMIT, "--port: 70000 is not between 0 and 65535");
    refused("--port -1", WN_EINVAL, "not a whole number");
    refused("--port 12x", WN_EINVAL, "not a whole number");
    refused("--port 99999999999999999999", WN_EINVAL, "not a whole number");
    refused("--image-bytes-max 99999999999G", WN_ELIMIT, "not between");
    refused("--image-bytes-max 18014398509481985K", WN_ELIMIT, "not between"); /* 2^64 + 1024 */
    refused("--image-pruning-rate nan", WN_EINVAL, "not a number");
    refused("--image-pruning-rate 1.5", WN_ELIMIT, "not between");
    refused("--dtype float64", WN_EINVAL, "none of auto|float32|bfloat16");
    refused("--dtype auto|float32", WN_EINVAL, "none of");
    refused("--json=perhaps", WN_EINVAL, "--json: 'perhaps' is neither true nor false");
    refused("--keep=many", WN_EINVAL, "--keep: 'many'");
    refused("a b", WN_EINVAL, "unexpected argument 'b'");
    refused("--lease-ms 199 --heartbeat-ms 100", WN_EINVAL, "at least twice");
    assert_int_equal(parse(&c, "--lease-ms 200 --heartbeat-ms 100", &err), WN_OK);
    refused("--host 0.0.0.0", WN_EINVAL, "--host 0.0.0.0 is not on this machine");
    refused("--features-endpoint tcp://*:0", WN_EINVAL, "--features-endpoint tcp://*:0 is not on this machine");
    assert_int_equal(parse(&c, "--host 0.0.0.0 --insecure", &err), WN_OK);
    assert_int_equal(parse(&c, "--host 0.0.0.0 --keys k", &err), WN_OK);
    refused("--image-keep-tokens 64 --image-pruning-rate 0.5", WN_EINVAL, "exclude each other");
}

/* What vLLM's users are used to say. */
static void no_options_have_an_opposite(void **state)
{
    struct wn_config c;
    struct wn_err err;

    (void)state;
    assert_int_equal(parse(&c, "--no-enable-prefix-caching", &err), WN_OK);
    assert_true(c.no_enable_prefix_caching);
    assert_int_equal(parse(&c, "--no-enable-prefix-caching --enable-prefix-caching", &err), WN_OK);
    assert_false(c.no_enable_prefix_caching);
    refused("--enable-prefix-caching=true", WN_EINVAL, "--enable-prefix-caching has no value");
    refused("--able-prefix-caching", WN_EINVAL, "unknown option");
}

static void a_config_has_a_name(void **state)
{
    struct wn_config c;
    struct wn_err err;
    char *argv[] = {"winnowd", "--config", ""};

    (void)state;
    assert_int_equal(wn_config_parse(&c, 3, argv, &err), WN_EINVAL); /* an unset variable of a shell */
    assert_string_equal(err.text, "--config: no file is named");
    refused("--config /", WN_EIO, "/: Is a directory");
}

/* Nobody else's variables are looked at, and each of ours that means nothing is found. */
static void unknown_variables(void **state)
{
    const char *found;
    size_t at = 0;

    (void)state;
    assert_null(wn_config_unknown_env(&at));
    setenv("WINNOW_MAX_QUEUE", "8", 1);
    setenv("WINNOW_ENDPOINT", "tcp://x:1", 1);
    setenv("WINNOWING", "1", 1);
    at = 0;
    assert_null(wn_config_unknown_env(&at));
    setenv("WINNOW_MAX_QUEU", "8", 1);
    setenv("WINNOW_HELP", "1", 1); /* a flag only */
    at = 0;
    for (int i = 0; i < 2; i++) {
        assert_non_null(found = wn_config_unknown_env(&at));
        assert_true(strcmp(found, "WINNOW_MAX_QUEU=8") == 0 || strcmp(found, "WINNOW_HELP=1") == 0);
    }
    assert_null(wn_config_unknown_env(&at));
    unsetenv("WINNOW_MAX_QUEUE");
    unsetenv("WINNOW_ENDPOINT");
    unsetenv("WINNOWING");
    unsetenv("WINNOW_MAX_QUEU");
    unsetenv("WINNOW_HELP");
}

static void yaml_errors_have_lines(void **state)
{
    (void)state;
    yaml_refused("port: 1\n\nprot: 2\n", WN_EINVAL, "w.yaml:3: unknown key 'prot'");
    yaml_refused("port: x\n", WN_EINVAL, "w.yaml:1: port: 'x'");
    yaml_refused("port: 1\nport: 2\n", WN_EINVAL, "w.yaml:2: port comes twice");
    yaml_refused("port:\n  a: 1\n", WN_EINVAL, "w.yaml:2: a mapping inside another");
    yaml_refused("port: [1, 2]\n", WN_EINVAL, "w.yaml:1: a list");
    yaml_refused("- port\n", WN_EINVAL, "w.yaml:1: a list");
    yaml_refused("port\n", WN_EINVAL, "w.yaml:1: lines must be");
    yaml_refused("port: *a\n", WN_EINVAL, "w.yaml:1: aliases");
    yaml_refused("port: 'a\n", WN_EFORMAT, "w.yaml:");
    yaml_refused("help: true\n", WN_EINVAL, "unknown key 'help'");
    yaml_refused("config: other.yaml\n", WN_EINVAL, "unknown key 'config'");
    yaml_refused("", WN_OK, "");
}

/* What is printed can be read back, and the flags for a child give the same configuration. */
static void print_and_flags_come_back(void **state)
{
    struct wn_config c, again;
    struct wn_err err;
    char **argv, *text = NULL;
    size_t n, bytes = 0;
    FILE *f = open_memstream(&text, &bytes);

    (void)state;
    assert_int_equal(parse(&c, "models/it's --port 6000 --image-pruning-rate 0.333 --dtype float32 --json", &err),
                     WN_OK);
    wn_config_print(f, &c);
    fclose(f);
    wn_config_defaults(&again);
    assert_int_equal(wn_config_read_yaml(&again, "printed", text, bytes, &err), WN_OK);
    memcpy(again.source, c.source, sizeof(c.source));
    assert_memory_equal(&again, &c, sizeof(c));
    free(text);

    assert_int_equal(wn_config_flags(&c, &argv, &n, 1, &err), WN_OK);
    assert_int_equal(n, 5);
    assert_null(argv[n]);
    memmove(argv + 1, argv, n * sizeof(*argv));
    argv[0] = "child";
    assert_int_equal(wn_config_parse(&again, (int)n + 1, argv, &err), WN_OK);
    assert_memory_equal(&again, &c, sizeof(c));
    free(argv);
}

/* Each option has its line, and no name runs into its help. */
static void help(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);

    (void)state;
    wn_config_help(f, "winnow serve MODEL", WN_OPTIONS_SERVICE);
    fclose(f);
    assert_int_equal(strncmp(text, "Usage: winnow serve MODEL\n", 26), 0);
    assert_non_null(strstr(text, "\n  --port N                         TCP port"));
    assert_non_null(strstr(text, "\n  -tp, --tensor-parallel-size N    tensor ranks"));
    assert_non_null(strstr(text, "\n  --method, --image-pruning-method NAME\n"
                                 "                                   how visual tokens"));
    assert_non_null(strstr(text, "\n  --stall-timeout MS               how long"));
    assert_non_null(strstr(text, "\nGeneral\n"));
    assert_null(strstr(text, "--prompt-tokens")); /* winnow plan's */
    free(text);
}

static void text_limits(void **state)
{
    struct wn_config c;
    struct wn_err err = {0};
    char name[WN_NAME_LEN + 1];

    (void)state;
    wn_config_defaults(&c);
    memset(name, 'a', WN_NAME_LEN);
    name[WN_NAME_LEN] = '\0';
    assert_int_equal(wn_config_set(&c, wn_config_find("name"), name, WN_FROM_FLAG, "--name", &err), WN_ELIMIT);
    name[WN_NAME_LEN - 1] = '\0';
    assert_int_equal(wn_config_set(&c, wn_config_find("name"), name, WN_FROM_FLAG, "--name", &err), WN_OK);
    assert_int_equal(wn_config_set(&c, wn_config_find("name"), "a\nb", WN_FROM_FLAG, "--name", &err), WN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(order_of_sources),
        cmocka_unit_test(flags),
        cmocka_unit_test(no_options_have_an_opposite),
        cmocka_unit_test(a_config_has_a_name),
        cmocka_unit_test(unknown_variables),
        cmocka_unit_test(yaml_errors_have_lines),
        cmocka_unit_test(print_and_flags_come_back),
        cmocka_unit_test(help),
        cmocka_unit_test(text_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
