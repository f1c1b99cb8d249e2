/* tests/bench/serving.c - see serving.h. */
#include "tests/bench/serving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/order.h"
#include "tests/integration/service.h"

void serving_flags_take(struct serving_flags *f, char **argv, int n)
{
    for (int i = 0; i < n && f->n < SERVING_FLAGS_MAX - 3; i++) {
        const size_t used = strlen(f->text);
        snprintf(f->text + used, sizeof(f->text) - used, "%s%s", f->n ? " " : "", argv[i]);
        f->list[f->n++] = argv[i];
    }
}

void serving_machine(char *out, size_t room)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    snprintf(out, room, "cpu");
    while (f && fgets(line, sizeof(line), f)) {
        char *at = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !at) continue;
        at[strcspn(at, "\n")] = '\0';
        snprintf(out, room, "%s x%ld", at + 2, sysconf(_SC_NPROCESSORS_ONLN));
        break;
    }
    if (f) fclose(f);
}

void serving_pictures(void **data, size_t *bytes, int n)
{
    char path[64];

    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "tests/eval/images/%03d.jpg", i);
        data[i] = read_file(path, &bytes[i]);
    }
}

double serving_quantile_ms(double *seconds, size_t n, double q)
{
    if (n == 0) return 0;
    qsort(seconds, n, sizeof(*seconds), wn_order_double);
    return seconds[(size_t)(q * (double)(n - 1) + 0.5)] * 1e3;
}
