/* daemon/gpu_choice.c - see gpu_choice.h. */
#include "daemon/gpu_choice.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define VARIABLE "CUDA_VISIBLE_DEVICES"

/* An entry of the list, without the blanks around it. */
struct entry {
    const char *text;
    size_t len;
};

/* The next entry from *at on; *at becomes NULL behind the last one. */
static struct entry next_entry(const char **at)
{
    struct entry e = {.text = *at + strspn(*at, " ")};
    const char *end = strchr(e.text, ',');

    *at = end ? end + 1 : NULL;
    e.len = end ? (size_t)(end - e.text) : strlen(e.text);
    while (e.len > 0 && e.text[e.len - 1] == ' ') e.len--;
    return e;
}

static struct entry entry_at(const char *list, uint32_t i)
{
    struct entry e = {.len = 0};

    for (uint32_t k = 0; list && k <= i; k++) e = next_entry(&list);
    return e;
}

static bool is_mig(struct entry e)
{
    return e.len > 4 && strncmp(e.text, "MIG-", 4) == 0;
}

int wn_gpu_listed(const char *visible_env)
{
    int n = 0;

    if (!visible_env || !visible_env[strspn(visible_env, " ")]) return 0;
    for (const char *at = visible_env; at; n++) (void)next_entry(&at);
    return n;
}

/* All entries are MIG instances, and no two the same; CUDA would show none, or fewer, and not say why. */
static wn_status check_migs(const char *env, uint32_t n, struct wn_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct entry e = entry_at(env, i);
        if (!is_mig(e) || e.len >= WN_GPU_NAME_MAX)
            return wn_fail(err, WN_EINVAL, VARIABLE "=%.200s: '%.*s' is no MIG instance, and others are: list one kind",
                           env, (int)(e.len < 80 ? e.len : 80), e.text);
        for (uint32_t k = 0; k < i; k++) {
            const struct entry other = entry_at(env, k);
            if (other.len == e.len && memcmp(other.text, e.text, e.len) == 0)
                return wn_fail(err, WN_EINVAL, VARIABLE "=%.200s: '%.*s' is there twice", env, (int)e.len, e.text);
        }
    }
    return WN_OK;
}

wn_status wn_gpu_choose_mig(const struct wn_gpu_place *p, char out[WN_GPU_NAME_MAX], struct wn_err *err)
{
    const uint32_t n = (uint32_t)wn_gpu_listed(p->visible_env);
    struct entry mine;
    bool any = false;
    wn_status rc;

    out[0] = '\0';
    for (uint32_t i = 0; i < n && !any; i++) any = is_mig(entry_at(p->visible_env, i));
    if (!any) return WN_OK;
    if ((rc = check_migs(p->visible_env, n, err)) != WN_OK) return rc;
    if (n == 1 || p->asked >= 0) return WN_OK; /* CUDA shows the first one, as number 0 */
    if (p->ranks > n)
        return wn_fail(err, WN_EINVAL,
                       "%u ranks of a replica on a host where " VARIABLE "=%.200s lists %u MIG instances: start fewer "
                       "there, or let them share the first with --backend cuda:0",
                       p->ranks, p->visible_env, n);
    mine = entry_at(p->visible_env, (uint32_t)(((uint64_t)p->replica * p->ranks + p->rank) % n));
    snprintf(out, WN_GPU_NAME_MAX, "%.*s", (int)mine.len, mine.text);
    return WN_OK;
}

/* "CUDA_VISIBLE_DEVICES=0,9 lists 2" */
static const char *shown(char out[320], const struct wn_gpu_place *p)
{
    const int n = wn_gpu_listed(p->visible_env);

    if (!p->visible_env) snprintf(out, 320, VARIABLE " is not set");
    else if (n > p->visible && strstr(p->visible_env, "MIG-"))
        snprintf(out, 320, VARIABLE "=%.200s; of MIG instances CUDA shows a process the first", p->visible_env);
    else if (n > p->visible)
        snprintf(out, 320, VARIABLE "=%.200s; CUDA stops at the first entry that it does not know", p->visible_env);
    else
        snprintf(out, 320, VARIABLE "=%.200s", p->visible_env);
    return out;
}

wn_status wn_gpu_choose(const struct wn_gpu_place *p, int *device, struct wn_err *err)
{
    char env[320];

    if (p->visible < 1) return wn_fail(err, WN_EUNSUPP, "no GPU is visible here (%s)", shown(env, p));
    if (p->asked >= p->visible)
        return wn_fail(err, WN_EINVAL, "GPU %d was asked for, and %d are visible here (%s)", p->asked, p->visible,
                       shown(env, p));
    if (p->asked >= 0) {
        *device = p->asked;
    } else if (p->visible == 1 && p->visible_env && wn_gpu_listed(p->visible_env) == 1) {
        *device = 0; /* bound to it; two ranks with the same one are found when their communicator opens */
    } else if (p->ranks > (uint32_t)p->visible) {
        return wn_fail(err, WN_EINVAL,
                       "%u ranks of a replica on a host where %d GPU%s visible (%s): start fewer there, or name one "
                       "that they share with --backend cuda:N",
                       p->ranks, p->visible, p->visible == 1 ? " is" : "s are", shown(env, p));
    } else {
        *device = (int)(((uint64_t)p->replica * p->ranks + p->rank) % (uint32_t)p->visible);
    }
    return WN_OK;
}
