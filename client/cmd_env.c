/* client/cmd_env.c - `winnow collect-env`: what a report of a problem should say about the machine. Reads files under
 * /proc and /sys and asks mpirun and sinfo for their versions; changes nothing. */
#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <zmq.h>

#include "client/cli.h"
#include "proto/codec.h"
#include "winnow_version.h"

extern char **environ;

/* The first line of a file, without its end; "" if it cannot be read. */
static void first_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");

    out[0] = '\0';
    if (f && !fgets(out, (int)size, f)) out[0] = '\0';
    if (f) fclose(f);
    out[strcspn(out, "\n")] = '\0';
}

/* The value of "key<spaces>: value" in a file of such lines. */
static bool field(const char *path, const char *key, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    bool found = false;

    while (f && !found && getline(&line, &room, f) > 0) {
        const char *v = strchr(line, ':');
        size_t n = strlen(key);
        if (strncmp(line, key, n) != 0 || !v || strspn(line + n, " \t") != (size_t)(v - line) - n) continue;
        v += 1 + strspn(v + 1, " \t");
        snprintf(out, size, "%s", v);
        out[strcspn(out, "\n")] = '\0';
        found = true;
    }
    free(line);
    if (f) fclose(f);
    return found;
}

static void print_cpu(void)
{
    static const char *const wanted[] = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni",
                                         "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd",
                                         "sve", "bf16"};
    char text[8192], *save = NULL;

    if (field("/proc/cpuinfo", "model name", text, sizeof(text))) printf("cpu              %s\n", text);
    printf("cpus             %ld online\n", sysconf(_SC_NPROCESSORS_ONLN));
    if (!field("/proc/cpuinfo", "flags", text, sizeof(text)) && !field("/proc/cpuinfo", "Features", text, sizeof(text)))
        return;
    printf("cpu flags       ");
    for (char *flag = strtok_r(text, " ", &save); flag; flag = strtok_r(NULL, " ", &save))
        for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
            if (strcmp(flag, wanted[i]) == 0) printf(" %s", flag);
    putchar('\n');
}

static void print_memory(void)
{
    static const char *const keys[] = {"MemTotal", "MemAvailable", "HugePages_Total", "Hugepagesize"};
    struct rlimit limit;
    char text[256];

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (field("/proc/meminfo", keys[i], text, sizeof(text))) printf("%-16s %s\n", keys[i], text);
    first_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof(text));
    if (text[0]) printf("huge pages       %s\n", text);
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
        printf("locked memory    unlimited\n");
    else
        printf("locked memory    %llu KiB\n", (unsigned long long)limit.rlim_cur / 1024);
}

static void print_numa(void)
{
    for (int i = 0; i < 64; i++) {
        char path[96], cpus[256];
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", i);
        first_line(path, cpus, sizeof(cpus));
        if (cpus[0]) printf("numa node %-6d cpus %s\n", i, cpus);
    }
}

static void print_interfaces(void)
{
    DIR *dir = opendir("/sys/class/net");
    struct dirent *e;

    while (dir && (e = readdir(dir)) != NULL) {
        char path[320], state[64], speed[64], mtu[64];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof(path), "/sys/class/net/%.200s/operstate", e->d_name);
        first_line(path, state, sizeof(state));
        snprintf(path, sizeof(path), "/sys/class/net/%.200s/speed", e->d_name);
        first_line(path, speed, sizeof(speed));
        snprintf(path, sizeof(path), "/sys/class/net/%.200s/mtu", e->d_name);
        first_line(path, mtu, sizeof(mtu));
        printf("interface        %s %s, mtu %s%s%s%s\n", e->d_name, state, mtu, speed[0] && speed[0] != '-' ? ", " : "",
               speed[0] && speed[0] != '-' ? speed : "", speed[0] && speed[0] != '-' ? " Mb/s" : "");
    }
    if (dir) closedir(dir);
}

/* The first line that a fixed command prints. */
static void print_command(const char *label, const char *command)
{
    char text[256] = "";
    FILE *p = popen(command, "r");

    if (p && !fgets(text, sizeof(text), p)) text[0] = '\0';
    if (p) pclose(p);
    text[strcspn(text, "\n")] = '\0';
    printf("%-16s %s\n", label, text[0] ? text : "not found");
}

/* Values may hold secrets: only those of variables known not to. */
static void print_environment(void)
{
    static const char *const prefixes[] = {"SLURM_JOB_ID=",   "SLURM_NTASKS=",  "SLURM_NNODES=", "SLURM_NODELIST=",
                                           "SLURM_PARTITION=", "SLURM_CPUS_",   "SLURM_MPI_TYPE=", "OMP_",
                                           "OMPI_MCA_",        "WINNOW_"};

    for (char **e = environ; *e; e++)
        for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
            if (strncmp(*e, prefixes[i], strlen(prefixes[i])) == 0 && !strstr(*e, "KEY"))
                printf("environment      %s\n", *e);
}

int cmd_collect_env(int argc, char **argv)
{
    static const struct cli_opt opts[] = {{NULL, NULL, NULL}};
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts,
                            .usage = "Usage: winnow collect-env\nPrints versions and what this machine is."};
    struct utsname u;
    char text[256];
    int option = cli_next(&args), major, minor, patch;

    if (option == CLI_EXIT) return CLI_OK;
    if (option == CLI_PLAIN) fprintf(stderr, "winnow: unexpected argument '%.60s'\n", args.value);
    if (option != CLI_END) return CLI_USAGE;
    zmq_version(&major, &minor, &patch);
    printf("winnow           %s (commit %s)\n", WN_VERSION, WN_COMMIT);
    printf("compiler         %s\n", __VERSION__);
    printf("ZeroMQ           %d.%d.%d\n", major, minor, patch);
    printf("protobuf-c       %s\n", protobuf_c_version());
    if (uname(&u) == 0) printf("system           %s %s %s\n", u.sysname, u.release, u.machine);
    if (field("/etc/os-release", "PRETTY_NAME", text, sizeof(text))) printf("distribution     %s\n", text);
    print_cpu();
    print_memory();
    print_numa();
    print_interfaces();
    fflush(stdout);
    print_command("MPI", "mpirun --version 2>/dev/null");
    print_command("Slurm", "sinfo --version 2>/dev/null");
    print_command("NVIDIA", "nvidia-smi -L 2>/dev/null");
    print_environment();
    return CLI_OK;
}
