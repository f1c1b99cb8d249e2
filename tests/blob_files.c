/* tests/blob_files.c - see blob_files.h. */
#include "tests/blob_files.h"

#include <ftw.h>
#include <string.h>
#include <unistd.h>

static int found;

static int count_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)f;
    found += type == FTW_F && strstr(path, "/blobs/") != NULL;
    return 0;
}

int blob_files_count(const char *journal)
{
    found = 0;
    nftw(journal, count_one, 16, FTW_PHYS);
    return found;
}

static int tear_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    const int before = found;

    count_one(path, st, type, f);
    return found > before ? truncate(path, 3) : 0;
}

int blob_files_tear(const char *journal)
{
    found = 0;
    return nftw(journal, tear_one, 16, FTW_PHYS) == 0 ? found : -1;
}
