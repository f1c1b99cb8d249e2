/* tests/scratch.c - see scratch.h. */
#include "tests/scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool scratch_make(char *path, size_t size, const char *name)
{
    snprintf(path, size, "/tmp/winnow-%s-XXXXXX", name);
    return mkdtemp(path) != NULL;
}

bool scratch_write(const char *folder, const char *name, const void *data, size_t bytes)
{
    char path[1024];
    bool good;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    for (char *slash = strchr(path + strlen(folder) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)!mkdir(path, 0700); /* it may be there; if it cannot be, the file tells */
        *slash = '/';
    }
    f = fopen(path, "wb");
    good = f && fwrite(data, 1, bytes, f) == bytes;
    return f && fclose(f) == 0 && good;
}

bool scratch_text(const char *folder, const char *name, const char *text)
{
    return scratch_write(folder, name, text, strlen(text));
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
