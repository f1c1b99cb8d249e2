/* daemon/access.h - whose keys a scheduler knows, and what each of them may do.
 *
 * DIR/authorized has one key a line, "ROLE PUBLIC-KEY NAME"; '#' starts a comment line. It is read at start. Nobody but
 * its owner may write it.
 *
 *   key      may connect to      may
 *   client   the clients' port   submit; follow and cancel what was submitted with the same key; ask whether the server
 *                                is ready
 *   admin    the clients' port   the same with everybody's jobs; see the workers and what was refused; end the service
 *   worker   both                on the clients' port: ask for the state, no more; on the workers': all that workers do
 *
 * Without keys (NULL below) everybody may do everything: the addresses are then local, or --insecure was said.
 *
 * Owns:    the list and the server's own key, from open to close. Threads: read-only after open.
 * Fails:   as base/key.h says; WN_EFORMAT and WN_ELIMIT with the line. */
#ifndef WN_DAEMON_ACCESS_H
#define WN_DAEMON_ACCESS_H

#include "base/key.h"
#include "proto/codec.h"

#define WN_ACCESS_KEYS_MAX 4096
#define WN_ACCESS_FILE_MAX ((size_t)1 << 20)

struct wn_access_entry {
    char key[WN_KEY_CHARS], name[WN_KEY_NAME_LEN];
    wn_key_role role;
};

struct wn_access {
    struct wn_key *self; /* the server's */
    struct wn_access_entry *entries; /* sorted by key */
    size_t n;
    const char **keys; /* [n] place for wn_access_keys */
};

/* DIR/server.key and DIR/authorized. *out is owned by the caller. */
WN_NODISCARD wn_status wn_access_open(struct wn_access **out, const char *dir, struct wn_err *err);
void wn_access_close(struct wn_access *a); /* NULL is fine */

/* Adds the lines of a file, which `file` names in errors. *a starts zeroed; wn_access_fini frees what it holds. */
WN_NODISCARD wn_status wn_access_parse(struct wn_access *a, const char *file, const char *text, size_t bytes,
                                       struct wn_err *err);
void wn_access_fini(struct wn_access *a);

/* The keys of the roles in the mask 1 << role; valid until the next call. */
const char *const *wn_access_keys(const struct wn_access *a, unsigned roles, size_t *n);

/* NULL: not known. key may be NULL. */
const struct wn_access_entry *wn_access_find(const struct wn_access *a, const char *key);

/* Whether a message of this kind may come from `who` on the clients' port; WN_EAUTH says why not. NULL: no keys. */
WN_NODISCARD wn_status wn_access_check(const struct wn_access_entry *who, Wn__Envelope__BodyCase kind,
                                       struct wn_err *err);

/* Whether `who` may follow and cancel this job. NULL: no keys. */
bool wn_access_owns(const struct wn_access_entry *who, const Wn__Submit *job);

/* Writes the owner into a Submit that was unpacked, over whatever the client wrote there. */
WN_NODISCARD wn_status wn_access_stamp(Wn__Submit *submit, const struct wn_access_entry *who);

#endif
