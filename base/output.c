/* base/output.c - see output.h. */
#include "base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void wn_output_begin(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
}

/* Does standard output lead to a pipe that nobody reads? */
static bool reader_left(void)
{
    struct pollfd p = {.fd = STDOUT_FILENO};

    return poll(&p, 1, 0) == 1 && (p.revents & POLLERR) != 0;
}

int wn_output_end(const char *program, int code)
{
    bool lost = ferror(stdout) != 0;

    errno = 0;
    lost |= fflush(stdout) != 0;
    if (!lost || code != 0 || reader_left()) return code;
    fprintf(stderr, "%s: cannot write standard output%s%s\n", program, errno ? ": " : "", errno ? strerror(errno) : "");
    return 1;
}
