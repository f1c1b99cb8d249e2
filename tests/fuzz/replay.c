/* tests/fuzz/replay.c - runs every file of the given folders through a fuzz target, in the plain build. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Returns 1 if the file was read and run, 0 if it is not a regular file, -1 on failure. */
static int replay_file(const char *path)
{
    struct stat st;
    uint8_t *data = NULL;
    FILE *f = NULL;
    int rc = -1;

    if (stat(path, &st) != 0) return -1;
    if (!S_ISREG(st.st_mode)) return 0;
    /* exactly st_size bytes on the heap, so that a sanitizer sees the first byte read past the end */
    data = malloc(st.st_size ? (size_t)st.st_size : 1);
    f = fopen(path, "rb");
    if (data && f && fread(data, 1, (size_t)st.st_size, f) == (size_t)st.st_size) {
        LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
        rc = 1;
    }
    if (f) fclose(f);
    free(data);
    return rc;
}

int main(int argc, char **argv)
{
    int passed = 0, failed = 0;

    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        struct dirent *e;
        if (!dir) {
            fprintf(stderr, "cannot open %s\n", argv[i]);
            return 1;
        }
        while ((e = readdir(dir)) != NULL) {
            char path[4096];
            int rc;
            snprintf(path, sizeof(path), "%s/%s", argv[i], e->d_name);
            rc = replay_file(path);
            if (rc > 0) passed++;
            if (rc < 0) failed++;
        }
        closedir(dir);
    }
    printf("%d inputs replayed, %d failed\n", passed, failed);
    return failed || !passed; /* an empty corpus shows nothing */
}
