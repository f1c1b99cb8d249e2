/* base/key.h - key files: who a process is, and whom it asks. `winnow keygen` writes them.
 *
 * A key file is text, one "word: value" a line, '#' starts a comment:
 *     role: client          server, worker, client or admin
 *     name: alice           1 to 64 of letters, digits, '.', '_', '-'
 *     public: 40 characters of Z85
 *     secret: 40 characters of Z85
 *     server: 40 characters of Z85, the public key of the server that this key is for
 * Nobody but its owner may read it (mode 0600): others are refused.
 *
 * Owns:    a struct wn_key lies in memory of its own that is locked, guarded, left out of core dumps, and zeroed by
 *          close. Threads: any.
 * Fails:   WN_EIO: the file; WN_EAUTH: others may read it; WN_EFORMAT with the line; WN_ELIMIT. No error text has a
 *          secret in it. */
#ifndef WN_BASE_KEY_H
#define WN_BASE_KEY_H

#include <stdbool.h>

#include "base/status.h"

#define WN_KEY_CHARS    41 /* Z85, final zero included */
#define WN_KEY_NAME_LEN 65
#define WN_KEY_FILE_MAX ((size_t)4096)

typedef enum wn_key_role { WN_KEY_SERVER, WN_KEY_WORKER, WN_KEY_CLIENT, WN_KEY_ADMIN, WN_KEY_ROLES } wn_key_role;

struct wn_key {
    wn_key_role role;
    char name[WN_KEY_NAME_LEN];
    char public_key[WN_KEY_CHARS], secret_key[WN_KEY_CHARS], server_key[WN_KEY_CHARS];
};

/* Reads a key file. *out is owned by the caller. */
WN_NODISCARD wn_status wn_key_open(struct wn_key **out, const char *path, struct wn_err *err);
/* The same, DIR/FILE; refuses a key of another role. */
WN_NODISCARD wn_status wn_key_open_role(struct wn_key **out, const char *dir, wn_key_role role, struct wn_err *err);
/* Makes an empty one, to be filled. */
WN_NODISCARD wn_status wn_key_create(struct wn_key **out, struct wn_err *err);
void wn_key_close(struct wn_key *key); /* NULL is fine */

/* Fills *key from the text of a file; `file` names it in errors. */
WN_NODISCARD wn_status wn_key_parse(struct wn_key *key, const char *file, const char *text, size_t bytes,
                                    struct wn_err *err);

/* Writes a file that must not be there yet, mode 0600, and syncs it. */
WN_NODISCARD wn_status wn_key_write(const struct wn_key *key, const char *path, struct wn_err *err);

const char *wn_key_role_name(wn_key_role role); /* "server", ... */
bool wn_key_role_parse(const char *text, size_t n, wn_key_role *role);
bool wn_key_name_valid(const char *text, size_t n);
bool wn_key_text_valid(const char *text, size_t n); /* 40 characters of Z85 */

#endif
