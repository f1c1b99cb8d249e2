/* tests/scratch.c - see scratch.h. */
#include "tests/scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

bool scratch_make(char *path, size_t size, const char *name)
{
    snprintf(path, size, "/tmp/winnow-%s-XXXXXX", name);
    return mkdtemp(path) != NULL;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

bool scratch_remove(const char *path)
{
    return nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0;
}
