/* base/hostmem.c - see hostmem.h. */
#include "base/hostmem.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define PATH_LEN  1024
#define UNLIMITED ((uint64_t)1 << 60) /* version 1 has no word for it, only numbers near 2^63 */

/* The number after `key` at the start of a line; times 1024 where "kB" follows it. */
static bool keyed_number(const char *path, const char *key, uint64_t *out)
{
    char line[256], unit[8];
    const size_t n = strlen(key);
    bool found = false;
    FILE *f = fopen(path, "re");

    if (!f) return false;
    while (!found && fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, n) != 0) continue;
        unit[0] = '\0';
        found = sscanf(line + n, " %" SCNu64 " %7s", out, unit) >= 1;
        if (found && strcmp(unit, "kB") == 0) *out *= 1024;
    }
    fclose(f);
    return found;
}

struct names {
    const char *mount, *limit, *used, *cached;
};

static const struct names v1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                "total_cache "};
static const struct names v2 = {"sys/fs/cgroup", "memory.max", "memory.current", "file "};

/* Lowers *out to what one control group has left. */
static void apply_group(struct wn_hostmem *out, const char *root, const struct names *n, const char *group)
{
    char path[PATH_LEN];
    uint64_t limit, used, cached = 0;

    snprintf(path, sizeof(path), "%s/%s%s/%s", root, n->mount, group, n->limit);
    if (!keyed_number(path, "", &limit) || limit > UNLIMITED) return; /* "max" is no number */
    snprintf(path, sizeof(path), "%s/%s%s/%s", root, n->mount, group, n->used);
    if (!keyed_number(path, "", &used)) return;
    snprintf(path, sizeof(path), "%s/%s%s/memory.stat", root, n->mount, group);
    if (keyed_number(path, n->cached, &cached)) used -= cached < used ? cached : used;
    if (limit < out->total_bytes) out->total_bytes = limit;
    if (limit - (used < limit ? used : limit) < out->free_bytes)
        out->free_bytes = limit - (used < limit ? used : limit);
}

/* A group and all groups around it. */
static void apply_groups(struct wn_hostmem *out, const char *root, const struct names *n, char *group)
{
    for (;;) {
        char *slash = strrchr(group, '/');
        apply_group(out, root, n, strcmp(group, "/") == 0 ? "" : group);
        if (!slash) return;
        *slash = '\0';
    }
}

wn_status wn_hostmem_at(struct wn_hostmem *out, const char *root, struct wn_err *err)
{
    char path[PATH_LEN], line[PATH_LEN];
    struct wn_hostmem m;
    FILE *f;

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    if (!keyed_number(path, "MemTotal:", &m.total_bytes) || !keyed_number(path, "MemAvailable:", &m.free_bytes))
        return wn_fail(err, WN_EIO, "%s: no MemTotal or no MemAvailable", path);
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) { /* "4:memory:/slurm/job_7", "0::/user.slice" */
        char *kinds = strchr(line, ':'), *group = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (strcmp(kinds, ":memory") == 0)
            apply_groups(&m, root, &v1, group);
        else if (strcmp(kinds, ":") == 0)
            apply_groups(&m, root, &v2, group);
    }
    if (f) fclose(f);
    *out = m;
    return WN_OK;
}

wn_status wn_hostmem(struct wn_hostmem *out, struct wn_err *err)
{
    return wn_hostmem_at(out, "", err);
}
