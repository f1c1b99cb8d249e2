/* tests/unit/test_log.c - a record is one line and cannot command a terminal, whatever its text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

/* What a record with this text puts on standard error. */
static void capture(const char *text, char out[2048])
{
    int fd[2], saved = dup(STDERR_FILENO);
    ssize_t n;

    assert_true(saved >= 0);
    assert_int_equal(pipe(fd), 0);
    dup2(fd[1], STDERR_FILENO);
    wn_warn("area", "%s", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd[1]);
    n = read(fd[0], out, 2047);
    close(fd[0]);
    assert_true(n > 0);
    out[n] = '\0';
}

static void expect(const char *text, const char *want)
{
    char out[2048], *said;

    capture(text, out);
    said = strstr(out, "area: ");
    assert_non_null(said);
    said[strlen(said) - 1] = '\0'; /* its newline */
    assert_string_equal(said + 6, want);
}

static void escapes(void **state)
{
    (void)state;
    expect("plain text, \xc3\xa4 and \xe2\x82\xac and \xf0\x9f\x98\x80",
           "plain text, \xc3\xa4 and \xe2\x82\xac and \xf0\x9f\x98\x80");
    expect("one\n12:00:00.000 error forged: two", "one\\n12:00:00.000 error forged: two");
    expect("\x1b[2Jgone\r\t\x7f", "\\x1b[2Jgone\\x0d\\x09\\x7f");
    expect("a\\nb", "a\\\\nb"); /* what was escaped and what came so can be told apart */
    expect("\xc2\x9b" "2J", "\\xc2\\x9b2J"); /* a control character of two bytes */
    expect("\xff\xc3(\xe2\x82", "\\xff\\xc3(\\xe2\\x82");
}

static void long_texts_are_cut(void **state)
{
    char text[4000], out[2048];

    (void)state;
    memset(text, '\n', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    capture(text, out);
    assert_true(strlen(out) <= 1024);
    assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
    memset(text, 'a', sizeof(text) - 1);
    capture(text, out);
    assert_true(strlen(out) <= 1024 && strlen(out) > 900);
    assert_int_equal(out[strlen(out) - 1], '\n');
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(escapes), cmocka_unit_test(long_texts_are_cut)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
