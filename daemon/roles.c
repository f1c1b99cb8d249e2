/* daemon/roles.c - what several roles need: addresses inside the run folder. */
#include "daemon/roles.h"

#include <stdio.h>
#include <string.h>

bool wn_role_has_model(const struct wn_config *cfg)
{
    if (!cfg->model[0]) fprintf(stderr, "winnow: no MODEL; --help says how to name one\n");
    return cfg->model[0] != '\0';
}

bool wn_role_has_place(const struct wn_config *cfg)
{
    if (cfg->run_dir[0] || cfg->scheduler_endpoint[0]) return true;
    fprintf(stderr, "winnow: neither --run-dir nor --scheduler-endpoint is given: winnow serve starts all roles\n");
    return false;
}

void wn_role_scheduler_address(const struct wn_config *cfg, char *out, size_t size)
{
    if (cfg->scheduler_endpoint[0])
        snprintf(out, size, "%s", cfg->scheduler_endpoint);
    else
        snprintf(out, size, "ipc://%s/scheduler.sock", cfg->run_dir);
}
