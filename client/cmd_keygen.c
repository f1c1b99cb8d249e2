/* client/cmd_keygen.c - `winnow keygen`: the key files of a service. Nothing that is there is ever written over.
 *
 * DIR (of mode 0700, if it is new) gets server.key, worker.key, admin.key and client.key (0600; see base/key.h), and
 * `authorized`, the public keys that the server lets in (see daemon/access.h). A node that only runs workers needs
 * worker.key alone, a client its own file alone. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "base/key.h"
#include "client/cli.h"

#define PATH_BYTES 1200

static const struct cli_opt opts[] = {
    {"client", "NAME", "make NAME.key for one more client of the server whose keys are in DIR"},
    {NULL, NULL, NULL},
};

/* Makes DIR/NAME.key; server NULL: it is the server's own. */
static wn_status make_key(const char *dir, wn_key_role role, const char *name, const char *server,
                          char public_key[WN_KEY_CHARS], struct wn_err *err)
{
    char path[PATH_BYTES];
    struct wn_key *key = NULL;
    wn_status rc = wn_key_create(&key, err);

    if (rc != WN_OK) return rc;
    key->role = role;
    snprintf(key->name, sizeof(key->name), "%s", name);
    snprintf(path, sizeof(path), "%.1024s/%s.key", dir, name);
    if (zmq_curve_keypair(key->public_key, key->secret_key) != 0)
        rc = wn_fail(err, WN_EUNSUPP, "key pair: %s", zmq_strerror(errno));
    memcpy(key->server_key, server ? server : key->public_key, WN_KEY_CHARS);
    memcpy(public_key, key->public_key, WN_KEY_CHARS);
    if (rc == WN_OK) rc = wn_key_write(key, path, err);
    wn_key_close(key);
    return rc;
}

/* Adds to DIR/authorized; `first` makes it. One write: a reader sees a whole line or none. */
static wn_status authorize(const char *dir, bool first, const char *lines, struct wn_err *err)
{
    char path[PATH_BYTES];
    const size_t n = strlen(lines);
    int fd;
    wn_status rc = WN_OK;

    snprintf(path, sizeof(path), "%.1024s/authorized", dir);
    fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW | (first ? O_CREAT | O_EXCL : 0), 0600);
    if (fd < 0) return wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
    if (write(fd, lines, n) != (ssize_t)n || fsync(fd) != 0) rc = wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
    close(fd);
    if (rc != WN_OK && first) unlink(path);
    return rc;
}

static wn_status fill(const char *dir, struct wn_err *err)
{
    static const wn_key_role roles[] = {WN_KEY_WORKER, WN_KEY_ADMIN, WN_KEY_CLIENT};
    char server[WN_KEY_CHARS], public_key[WN_KEY_CHARS], lines[1024];
    size_t n = 0;
    wn_status rc = make_key(dir, WN_KEY_SERVER, "server", NULL, server, err);

    n += (size_t)snprintf(lines, sizeof(lines), "# role, public key, name: who may connect to the server\n");
    for (size_t i = 0; rc == WN_OK && i < sizeof(roles) / sizeof(roles[0]); i++) {
        const char *name = wn_key_role_name(roles[i]);
        rc = make_key(dir, roles[i], name, server, public_key, err);
        n += (size_t)snprintf(lines + n, sizeof(lines) - n, "%s %s %s\n", name, public_key, name);
    }
    return rc == WN_OK ? authorize(dir, true, lines, err) : rc;
}

static void remove_keys(const char *dir)
{
    char path[PATH_BYTES];

    for (int i = 0; i < WN_KEY_ROLES; i++) {
        snprintf(path, sizeof(path), "%.1024s/%s.key", dir, wn_key_role_name((wn_key_role)i));
        unlink(path);
    }
}

/* A folder that is there keeps its mode (it may be a home), and will do if nobody else can put files into it. */
static wn_status fill_old(const char *dir, struct wn_err *err)
{
    char path[PATH_BYTES];
    struct stat st;
    wn_status rc;

    if (stat(dir, &st) != 0) return wn_fail(err, WN_EIO, "%s: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return wn_fail(err, WN_EIO, "%s: %s", dir, strerror(ENOTDIR));
    if (st.st_uid != geteuid() || (st.st_mode & 022) != 0)
        return wn_fail(err, WN_EAUTH, "%s: others may write there: name a new folder, or one of yours of mode 0700",
                       dir);
    for (int i = 0; i < WN_KEY_ROLES; i++) { /* all or nothing */
        snprintf(path, sizeof(path), "%.1024s/%s.key", dir, wn_key_role_name((wn_key_role)i));
        if (access(path, F_OK) == 0) return wn_fail(err, WN_EIO, "%s is there already: nothing was written", path);
    }
    if ((rc = fill(dir, err)) != WN_OK) remove_keys(dir); /* all of them are ours */
    return rc;
}

static void clear(const char *dir)
{
    char path[PATH_BYTES];

    remove_keys(dir);
    snprintf(path, sizeof(path), "%.1024s/authorized", dir);
    unlink(path);
    rmdir(dir);
}

/* Filled aside and renamed, so that the folder has all its files from the start: of two batch jobs that begin at once
 * one makes the keys, and the other finds them whole. */
static wn_status make_service(const char *dir, struct wn_err *err)
{
    char aside[PATH_BYTES];
    size_t n = strlen(dir);
    wn_status rc;

    if (access(dir, F_OK) == 0) return fill_old(dir, err);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (n > 1024) return wn_fail(err, WN_EINVAL, "%.80s...: too long", dir);
    snprintf(aside, sizeof(aside), "%.*s.XXXXXX", (int)n, dir);
    if (!mkdtemp(aside)) return wn_fail(err, WN_EIO, "%s: %s", dir, strerror(errno));
    if ((rc = fill(aside, err)) == WN_OK && rename(aside, dir) != 0)
        rc = errno == EEXIST || errno == ENOTEMPTY
                 ? wn_fail(err, WN_EIO, "%s is there already: nothing was written", dir)
                 : wn_fail(err, WN_EIO, "%s: %s", dir, strerror(errno));
    if (rc != WN_OK) clear(aside);
    return rc;
}

static wn_status make_client(const char *dir, const char *name, struct wn_err *err)
{
    char public_key[WN_KEY_CHARS], line[WN_KEY_CHARS + WN_KEY_NAME_LEN + 16], path[PATH_BYTES];
    struct wn_key *server = NULL;
    wn_status rc;

    if (!wn_key_name_valid(name, strlen(name)))
        return wn_fail(err, WN_EINVAL, "'%.70s' is not a name: 1 to 64 of letters, digits, '.', '_', '-'", name);
    if ((rc = wn_key_open_role(&server, dir, WN_KEY_SERVER, err)) != WN_OK) return rc;
    rc = make_key(dir, WN_KEY_CLIENT, name, server->public_key, public_key, err);
    wn_key_close(server);
    if (rc != WN_OK) return rc;
    snprintf(line, sizeof(line), "client %s %s\n", public_key, name);
    if ((rc = authorize(dir, false, line, err)) == WN_OK) return rc;
    snprintf(path, sizeof(path), "%.1024s/%s.key", dir, name); /* of no use: the server does not know it */
    unlink(path);
    return rc;
}

int cmd_keygen(int argc, char **argv)
{
    static const char usage[] = "Usage: winnow keygen DIR [--client NAME]\n"
                                "Makes the keys of a server, its workers, an admin and a client. Start the server\n"
                                "with --keys DIR; give a client its file alone, and it gets in with --key FILE.";
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    const struct rlimit none = {0, 0};
    const char *dir = NULL, *client = NULL;
    struct wn_err err = {0};
    wn_status rc;

    for (;;) {
        int option = cli_next(&args);
        if (option == CLI_END) break;
        if (option == CLI_EXIT) return CLI_OK;
        if (option == CLI_PLAIN && dir) fprintf(stderr, "winnow: unexpected argument '%.60s'\n", args.value);
        if ((option == CLI_PLAIN && dir) || option == CLI_BAD) return CLI_USAGE;
        if (option == CLI_PLAIN) dir = args.value;
        else client = args.value;
    }
    if (!dir || !dir[0]) {
        fprintf(stderr, "winnow: keygen wants a folder\n");
        return CLI_USAGE;
    }
    setrlimit(RLIMIT_CORE, &none);
    rc = client ? make_client(dir, client, &err) : make_service(dir, &err);
    if (rc != WN_OK) {
        fprintf(stderr, "winnow: %s\n", err.text);
        return rc == WN_EINVAL ? CLI_USAGE : CLI_FAILED;
    }
    if (client) printf("made %s/%s.key; a server that runs knows it after its next start\n", dir, client);
    else printf("made server.key, worker.key, admin.key, client.key and authorized in %s\n", dir);
    return CLI_OK;
}
