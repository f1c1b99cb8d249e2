/* client/locate.c - "slurm:JOBID": the address that `winnow serve` left in ~/.winnow/slurm/JOBID when it was ready. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/conn.h"

#define FILE_MAX 4096

/* Who can write that file can send us anywhere: it has to be ours alone. */
static wn_status read_own(const char *path, char text[FILE_MAX], struct wn_err *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    wn_status rc = WN_OK;
    struct stat st;
    ssize_t n;

    if (fd < 0)
        return wn_fail(err, WN_EPEER, "%s: %s: that job's service is not ready, or is not yours", path,
                       strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        rc = wn_fail(err, WN_EAUTH, "%s is not a file of mode 0600 of this user", path);
    else if ((n = read(fd, text, FILE_MAX - 1)) < 0)
        rc = wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
    else
        text[n] = '\0';
    close(fd);
    return rc;
}

/* The value of the line that starts with `word`, if it fits into out[size]. */
static bool value_of(const char *text, const char *word, char *out, size_t size)
{
    const size_t word_n = strlen(word);

    for (const char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n') {
        const size_t n = strcspn(at, "\n");
        if (strncmp(at, word, word_n) != 0 || n - word_n >= size) continue;
        memcpy(out, at + word_n, n - word_n);
        out[n - word_n] = '\0';
        return true;
    }
    return false;
}

/* ZeroMQ takes "5599x" for 5599, and 99999 for another port. */
static bool has_port(const char *endpoint)
{
    const char *port = strrchr(endpoint, ':') + 1;
    const size_t n = strlen(port);

    return n > 0 && n <= 5 && strspn(port, "0123456789") == n && strtoul(port, NULL, 10) - 1 < 65535;
}

wn_status wn_conn_locate(const char *endpoint, struct conn_place *out, struct wn_err *err)
{
    const char *job = endpoint + 6, *home = getenv("HOME");
    char path[512], text[FILE_MAX], only[256], here[256] = "";
    wn_status rc;

    *out = (struct conn_place){0};
    if (strncmp(endpoint, "slurm:", 6) != 0) {
        if (strlen(endpoint) >= sizeof(out->address))
            return wn_fail(err, WN_EINVAL, "'%.80s...' is no address", endpoint);
        if (strncmp(endpoint, "tcp://", 6) == 0 && !has_port(endpoint))
            return wn_fail(err, WN_EINVAL, "'%s' is not tcp://HOST:PORT with a port from 1 to 65535", endpoint);
        memcpy(out->address, endpoint, strlen(endpoint) + 1);
        return WN_OK;
    }
    if (!job[0] || strlen(job) > 20 || job[strspn(job, "0123456789")])
        return wn_fail(err, WN_EINVAL, "'%.80s' is not slurm:JOBID with the number of a job", endpoint);
    if (snprintf(path, sizeof(path), "%s/.winnow/slurm/%s", home ? home : "", job) >= (int)sizeof(path))
        return wn_fail(err, WN_EINVAL, "HOME is too long");
    if ((rc = read_own(path, text, err)) != WN_OK) return rc;
    if (!value_of(text, "endpoint: ", out->address, sizeof(out->address)) || strncmp(out->address, "tcp://", 6) != 0) {
        out->address[0] = '\0';
        return wn_fail(err, WN_EFORMAT, "%s has no line 'endpoint: tcp://HOST:PORT'", path);
    }
    if (value_of(text, "only on: ", only, sizeof(only)) && gethostname(here, sizeof(here) - 1) == 0 &&
        strcmp(only, here) != 0) {
        rc = wn_fail(err, WN_EPEER, "job %s has its service on %s for clients there only (%s): see --launcher slurm",
                     job, only, out->address);
        out->address[0] = '\0';
        return rc;
    }
    (void)value_of(text, "key: ", out->key_file, sizeof(out->key_file));
    return WN_OK;
}
