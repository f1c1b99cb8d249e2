/* tests/integration/test_batch_serve.c - `winnow run-batch` and `winnow bench serve` against a real service: a batch
 * that is killed in the middle, and one that is asked to stop, is finished by the next run, each request answered once.
 *
 *   test_batch_serve PATH-OF-WINNOW */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/integration/service.h"

#define LINES     24
#define PATIENCE  120 /* seconds, for a machine that has more to do */
#define QUESTIONS "tests/eval/questions.jsonl"

static const char *winnow;
static size_t disk_bytes; /* a winnow that is started may write no longer files; 0: any */
static char folder[] = "/tmp/winnow-test-run-batch-XXXXXX", in[96], out[96], err[96], csv[96], png[96];
static struct service service;

static int start(void **state)
{
    const char *flags[] = {"-tp=2", NULL};
    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(in, sizeof(in), "%s/in.jsonl", folder);
    snprintf(out, sizeof(out), "%s/out.jsonl", folder);
    snprintf(err, sizeof(err), "%s/err.txt", folder);
    snprintf(csv, sizeof(csv), "%s/bench.csv", folder);
    snprintf(png, sizeof(png), "%s/bench.png", folder);
    service_start(&service, "models/tiny-llava", flags);
    setenv("WINNOW_ENDPOINT", service.endpoint, 1);
    return 0;
}

static int stop(void **state)
{
    const char *const files[] = {in, out, err, csv, png};
    (void)state;
    assert_int_equal(service_stop(&service), 0);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) unlink(files[i]);
    return rmdir(folder);
}

/* Starts `winnow ARGS`; what it says goes to the file err. */
static pid_t start_winnow(const char *const *args)
{
    const pid_t pid = fork();

    if (pid == 0) {
        const int fd = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        const struct rlimit room = {disk_bytes, disk_bytes};
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        signal(SIGXFSZ, SIG_IGN); /* write says EFBIG, as it says ENOSPC on a full disk */
        if (disk_bytes) setrlimit(RLIMIT_FSIZE, &room);
        execv(winnow, (char **)(uintptr_t)args);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static int finish_winnow(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static pid_t start_batch(const char *concurrency)
{
    const char *args[] = {"winnow",        "run-batch", "-i",           in,           "-o", out,
                          "--concurrency", concurrency, "--image-root", "tests/eval", NULL};

    return start_winnow(args);
}

/* Every third request has its own method of pruning; `bad`: two more lines, which cannot be answered. */
static void write_requests(const char *prefix, bool bad)
{
    FILE *f = fopen(in, "w"), *q = fopen(QUESTIONS, "r");
    char line[1024];

    assert_non_null(f);
    assert_non_null(q);
    for (int i = 0; i < LINES; i++) {
        json_t *o, *request;
        assert_non_null(fgets(line, sizeof(line), q));
        o = json_loads(line, 0, NULL);
        request =
            json_pack("{s:o, s:s, s:s, s:{s:s, s:i, s:[{s:s, s:[{s:s, s:s}, {s:s, s:{s:s}}]}], s:o*}}", "custom_id",
                      json_sprintf("%s-%d", prefix, i), "method", "POST", "url", "/v1/chat/completions", "body",
                      "model", "tiny-llava", "max_tokens", 4, "messages", "role", "user", "content", "type", "text",
                      "text", json_string_value(json_object_get(o, "question")), "type", "image_url", "image_url",
                      "url", json_string_value(json_object_get(o, "image")), "image_pruning",
                      i % 3 ? NULL : json_pack("{s:s, s:i}", "method", "cls-topk", "keep", 64));
        assert_non_null(request);
        assert_int_equal(json_dumpf(request, f, JSON_COMPACT), 0);
        fputc('\n', f);
        json_decref(request);
        json_decref(o);
        if (bad && i == 3) fputs("{broken\n", f);
    }
    if (bad)
        fputs("{\"custom_id\":\"no-file\",\"method\":\"POST\",\"url\":\"/v1/chat/"
              "completions\",\"body\":{\"messages\":[{"
              "\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"image_url\",\"image_"
              "url\":{"
              "\"url\":\"none.jpg\"}}]}]}}\n",
              f);
    fclose(q);
    fclose(f);
}

static int lines_of(const char *path)
{
    FILE *f = fopen(path, "r");
    int n = 0, c;

    while (f && (c = fgetc(f)) != EOF) n += c == '\n';
    if (f) fclose(f);
    return n;
}

/* Waits until the output has so many lines; false: the program ended before. */
static bool wait_for_lines(int n, pid_t pid)
{
    for (int i = 0; i < PATIENCE * 100; i++) {
        siginfo_t info = {0};
        if (lines_of(out) >= n) return true;
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid) return false;
        usleep(10000);
    }
    return false;
}

/* Each custom_id once, with a right-looking answer; returns the number of error lines. */
static int check_output(const char *prefix, int lines)
{
    FILE *f = fopen(out, "r");
    char *line = NULL;
    size_t room = 0;
    int seen[LINES] = {0}, errors = 0, n = 0;

    assert_non_null(f);
    for (; getline(&line, &room, f) > 0; n++) {
        json_t *o = json_loads(line, 0, NULL);
        const json_t *body = json_object_get(json_object_get(o, "response"), "body");
        const json_t *usage = json_object_get(body, "usage"),
                     *details = json_object_get(usage, "prompt_tokens_details");
        const char *id = json_string_value(json_object_get(o, "custom_id"));
        int i;
        if (!o) fail_msg("line %d: %s", n + 1, line);
        if (!json_is_null(json_object_get(o, "error"))) {
            errors++;
        } else {
            assert_non_null(id);
            assert_int_equal(strncmp(id, prefix, strlen(prefix)), 0);
            i = (int)strtol(id + strlen(prefix) + 1, NULL, 10);
            assert_true(i >= 0 && i < LINES);
            if (seen[i]++) fail_msg("%s is there twice", id);
            assert_int_equal(json_integer_value(json_object_get(details, "image_tokens_before_pruning")), 576);
            assert_int_equal(json_integer_value(json_object_get(details, "image_tokens")), i % 3 ? 576 : 64);
            assert_true(json_integer_value(json_object_get(usage, "completion_tokens")) <= 4);
            assert_string_equal(json_string_value(json_object_get(body, "object")), "chat.completion");
        }
        json_decref(o);
    }
    fclose(f);
    free(line);
    assert_int_equal(n, lines);
    for (int i = 0; i < LINES; i++)
        if (!seen[i]) fail_msg("%s-%d has no answer", prefix, i);
    return errors;
}

static void show_what_it_said(void)
{
    size_t n;
    char *text = read_file(err, &n);

    printf("%s", text);
    free(text);
}

/* Jobs that the server has taken in all. */
static long accepted(void)
{
    struct winnow *w = NULL;
    char *text;
    json_t *o;
    long n;

    assert_int_equal(winnow_connect(&w, service.endpoint, NULL), WINNOW_OK);
    text = winnow_status_json(w, 10000);
    assert_non_null(text);
    o = json_loads(text, 0, NULL);
    n = (long)json_integer_value(json_object_get(o, "accepted"));
    json_decref(o);
    free(text);
    winnow_close(w);
    return n;
}

static void test_killed_batch_is_finished_by_the_next_run(void **state)
{
    const long before = accepted();
    pid_t pid;
    int left;
    (void)state;

    unlink(out);
    write_requests("kill", false);
    pid = start_batch("6");
    assert_true(wait_for_lines(5, pid));
    kill(pid, SIGKILL);
    assert_int_equal(finish_winnow(pid), -SIGKILL);
    left = lines_of(out);
    assert_true(left >= 5 && left < LINES);
    assert_int_equal(finish_winnow(start_batch("6")), 0);
    show_what_it_said();
    assert_int_equal(check_output("kill", LINES), 0);
    assert_int_equal(accepted() - before, LINES); /* what was running when the client died was not done twice */
    assert_int_equal(finish_winnow(start_batch("6")), 0); /* nothing is left to do */
    assert_int_equal(check_output("kill", LINES), 0);
    assert_int_equal(accepted() - before, LINES);
}

static void test_stopped_batch_and_bad_lines(void **state)
{
    pid_t pid;
    size_t n;
    char *said;
    (void)state;

    unlink(out);
    write_requests("stop", true);
    pid = start_batch("4");
    assert_true(wait_for_lines(4, pid));
    kill(pid, SIGTERM);
    assert_int_equal(finish_winnow(pid), 1);
    said = read_file(err, &n);
    assert_non_null(strstr(said, "run again to go on"));
    free(said);
    assert_int_equal(finish_winnow(start_batch("32")), 1); /* the bad lines */
    assert_int_equal(check_output("stop", LINES + 2), 2);
}

/* The output cannot grow in the middle of a line: nothing is lost but that line, which the next run writes whole, from
 * the answer that the server still has. */
static void test_full_disk(void **state)
{
    const long before = accepted();
    size_t n;
    char *said;
    (void)state;

    unlink(out);
    write_requests("full", false);
    disk_bytes = 3000;
    assert_int_equal(finish_winnow(start_batch("4")), 1);
    disk_bytes = 0;
    said = read_file(err, &n);
    if (!strstr(said, "cannot write ") || !strstr(said, "run again to go on")) fail_msg("%s", said);
    free(said);
    assert_true(lines_of(out) >= 1 && lines_of(out) < LINES);
    assert_int_equal(finish_winnow(start_batch("4")), 0);
    assert_int_equal(check_output("full", LINES), 0);
    assert_int_equal(accepted() - before, LINES);
}

/* One line with all answers, each drawn from its own seed; tokens are counted over all of them. */
static void test_several_answers(void **state)
{
    static const char request[] =
        "{\"custom_id\":\"many\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{"
        "\"role\":\"user\",\"content\":\"Say something.\"}],\"n\":3,\"temperature\":4,\"seed\":5,\"max_tokens\":8,"
        "\"logprobs\":true}}\n";
    FILE *f = fopen(in, "w");
    json_t *o, *body, *choice, *logprobs;
    const char *text[3];
    size_t n, i, tokens = 0;
    char *line;
    (void)state;

    assert_non_null(f);
    fputs(request, f);
    fclose(f);
    unlink(out);
    assert_int_equal(finish_winnow(start_batch("2")), 0);
    assert_int_equal(lines_of(out), 1);
    line = read_file(out, &n);
    o = json_loads(line, 0, NULL);
    body = json_object_get(json_object_get(o, "response"), "body");
    assert_int_equal(json_array_size(json_object_get(body, "choices")), 3);
    json_array_foreach(json_object_get(body, "choices"), i, choice)
    {
        assert_int_equal(json_integer_value(json_object_get(choice, "index")), i);
        text[i] = json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
        assert_non_null(text[i]);
        logprobs = json_object_get(choice, "logprobs");
        tokens += json_array_size(json_object_get(logprobs, "content"));
    }
    assert_string_not_equal(text[0], text[1]);
    assert_string_not_equal(text[1], text[2]);
    assert_true(tokens > 3);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(body, "usage"), "completion_tokens")), tokens);
    json_decref(o);
    free(line);
}

static void test_scheduler_dies_under_a_batch(void **state)
{
    pid_t pid, scheduler[4];
    int code;
    (void)state;

    unlink(out);
    write_requests("dies", false);
    pid = start_batch("8");
    assert_true(wait_for_lines(4, pid));
    assert_int_equal(service_pids(&service, "scheduler", scheduler, 4), 1);
    kill(scheduler[0], SIGKILL);
    code = finish_winnow(pid);
    show_what_it_said();
    assert_int_equal(code, 0);
    assert_int_equal(check_output("dies", LINES), 0);
}

static void bench(const char *load, const char *value)
{
    const char *args[] = {"winnow",      "bench",     "serve",       "--dataset",    QUESTIONS, "--num-prompts",
                          "8",           load,        value,         "--max-tokens", "4",       "--pruning",
                          "cls-topk:64", "--goodput", "ttft:100000", "e2e:100000",   "--csv",   csv,
                          "--plot",      png,         "--ignore-eos", NULL};
    char *said;
    const int code = finish_winnow(start_winnow(args));
    size_t n;

    if (code != 0) show_what_it_said();
    assert_int_equal(code, 0);
    said = read_file(err, &n);
    assert_non_null(strstr(said, "8 (0 failed, 0 refused as busy)"));
    assert_non_null(strstr(said, "512 of 4608 kept"));
    assert_non_null(strstr(said, "in 32 tokens")); /* none ended by itself */
    assert_non_null(strstr(said, "8 of 8 within the objective"));
    free(said);
}

static void test_bench(void **state)
{
    char *text;
    size_t n;
    (void)state;

    bench("--max-concurrency", "2");
    bench("--request-rate", "20");
    assert_int_equal(lines_of(csv), 3); /* a heading and two rows */
    text = read_file(png, &n);
    assert_true(n > 1000);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_batch_is_finished_by_the_next_run),
        cmocka_unit_test(test_stopped_batch_and_bad_lines),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_several_answers),
        cmocka_unit_test(test_scheduler_dies_under_a_batch),
        cmocka_unit_test(test_bench),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: test_batch_serve PATH-OF-WINNOW\n");
        return 2;
    }
    winnow = argv[1];
    return cmocka_run_group_tests(tests, start, stop);
}
