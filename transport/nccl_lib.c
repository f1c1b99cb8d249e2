/* transport/nccl_lib.c - see nccl_lib.h. */
#include "transport/nccl_lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#define OLDEST 21800 /* 2.18: non-blocking communicators that can be relied upon */

static struct wn_nccl_lib lib;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

static wn_status lib_find(struct wn_err *err)
{
    static const char *const names[] = {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2",
                                        "/usr/local/cuda/lib/libnccl.so.2"};
    const char *wish = getenv("WINNOW_NCCL");
    void *found = NULL;

    if (wish && *wish) {
        found = dlopen(lib.path = wish, RTLD_NOW);
        if (!found) return wn_fail(err, WN_EUNSUPP, "NCCL: WINNOW_NCCL=%s: %s", wish, dlerror());
    }
    for (size_t i = 0; !found && i < sizeof(names) / sizeof(names[0]); i++)
        found = dlopen(lib.path = names[i], RTLD_NOW);
    if (!found)
        return wn_fail(err, WN_EUNSUPP,
                       "NCCL: %s is not there: install it, name the file with WINNOW_NCCL, or use --link mpi",
                       names[0]);
#define LOAD(name)                                                                                    \
    *(void **)&lib.name = dlsym(found, #name);                                                        \
    if (!lib.name) return wn_fail(err, WN_EUNSUPP, "NCCL: %s has no " #name ": 2.18 or later is needed", lib.path);
    WN_NCCL_FUNCTIONS(LOAD)
#undef LOAD
    *(void **)&lib.ncclCommDeregister = dlsym(found, "ncclCommDeregister");
    if (lib.ncclCommDeregister) *(void **)&lib.ncclCommRegister = dlsym(found, "ncclCommRegister");
    if (lib.ncclGetVersion(&lib.version) != ncclSuccess || lib.version < OLDEST)
        return wn_fail(err, WN_EUNSUPP, "NCCL: %s is version %d.%d, 2.18 or later is needed", lib.path,
                       lib.version / 10000, lib.version / 100 % 100);
    return WN_OK;
}

wn_status wn_nccl_lib_open(const struct wn_nccl_lib **out, struct wn_err *err)
{
    static bool open;
    wn_status rc = WN_OK;

    pthread_mutex_lock(&opening);
    if (!open) rc = lib_find(err);
    if (rc == WN_OK) open = true;
    pthread_mutex_unlock(&opening);
    *out = &lib;
    return rc;
}
