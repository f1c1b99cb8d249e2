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

wn_status conn_locate(const char *endpoint, char address[256], struct wn_err *err)
{
    const char *job = endpoint + 6, *home = getenv("HOME"), *at;
    char path[512], text[FILE_MAX];
    size_t n = strlen(endpoint);
    wn_status rc;

    if (strncmp(endpoint, "slurm:", 6) != 0) {
        if (n >= 256) return wn_fail(err, WN_EINVAL, "'%.80s...' is no address", endpoint);
        memcpy(address, endpoint, n + 1);
        return WN_OK;
    }
    if (!job[0] || strlen(job) > 20 || job[strspn(job, "0123456789")])
        return wn_fail(err, WN_EINVAL, "'%.80s' is not slurm:JOBID with the number of a job", endpoint);
    if (snprintf(path, sizeof(path), "%s/.winnow/slurm/%s", home ? home : "", job) >= (int)sizeof(path))
        return wn_fail(err, WN_EINVAL, "HOME is too long");
    if ((rc = read_own(path, text, err)) != WN_OK) return rc;
    at = strncmp(text, "endpoint: ", 10) == 0 ? text + 10 : "";
    n = strcspn(at, "\n");
    if (strncmp(at, "tcp://", 6) != 0 || n >= 256)
        return wn_fail(err, WN_EFORMAT, "%s does not start with 'endpoint: tcp://'", path);
    memcpy(address, at, n);
    address[n] = '\0';
    return WN_OK;
}
