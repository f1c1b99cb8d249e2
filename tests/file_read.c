/* tests/file_read.c - see file_read.h. */
#include "tests/file_read.h"

#include <stdio.h>
#include <stdlib.h>

void *file_read(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    long n = -1;

    if (f && fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) >= 0) data = malloc((size_t)n + 1);
    if (data) {
        rewind(f);
        *bytes = fread(data, 1, (size_t)n, f);
        data[*bytes] = '\0';
    }
    if (data && *bytes != (size_t)n) {
        free(data);
        data = NULL;
    }
    if (f) fclose(f);
    return data;
}
