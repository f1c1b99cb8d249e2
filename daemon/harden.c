/* daemon/harden.c - see harden.h. */
#include "daemon/harden.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#define FILES_MIN  64
#define FILES_WANT 16384

wn_status wn_raise_files(struct wn_err *err)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return WN_OK;
    if (files.rlim_cur < FILES_WANT && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max < FILES_WANT ? files.rlim_max : FILES_WANT;
        setrlimit(RLIMIT_NOFILE, &files);
        getrlimit(RLIMIT_NOFILE, &files);
    }
    if (files.rlim_cur >= FILES_MIN) return WN_OK;
    return wn_fail(err, WN_ELIMIT, "only %u open files are allowed (ulimit -n); a service needs %d",
                   (unsigned)files.rlim_cur, FILES_MIN);
}

void wn_harden(bool keys, bool read_by_peers)
{
    const struct rlimit none = {1, 1}; /* a core_pattern with a pipe ignores 0, not 1; of 1 no file is made */

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* cannot fail on a kernel that has it, and there is no other way */
    if (!keys) return;
    setrlimit(RLIMIT_CORE, &none); /* lowering is always allowed */
    if (!read_by_peers) prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
