/* daemon/harden.c - see harden.h. */
#include "daemon/harden.h"

#include <sys/prctl.h>
#include <sys/resource.h>

void wn_harden(bool keys, bool read_by_peers)
{
    const struct rlimit none = {1, 1}; /* a core_pattern with a pipe ignores 0, not 1; of 1 no file is made */

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* cannot fail on a kernel that has it, and there is no other way */
    if (!keys) return;
    setrlimit(RLIMIT_CORE, &none); /* lowering is always allowed */
    if (!read_by_peers) prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
