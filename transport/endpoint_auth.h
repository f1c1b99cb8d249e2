/* transport/endpoint_auth.h - decides which clients' keys may connect (ZeroMQ's ZAP). Internal to transport/.
 *
 * Owns:    one thread for each wn_net, from create to destroy, and a list of keys for each domain (an endpoint).
 * Threads: allow, stranger and forget from any thread.
 * Fails:   WN_EINVAL for what is not a key, WN_ELIMIT, WN_EIO when the thread or its socket cannot be had. A failure
 *          while running refuses the client. */
#ifndef WN_TRANSPORT_ENDPOINT_AUTH_H
#define WN_TRANSPORT_ENDPOINT_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define WN_AUTH_DOMAIN_CHARS 24

struct wn_auth;
struct wn_stranger;

WN_NODISCARD wn_status wn_auth_create(struct wn_auth **out, void *zmq_context, struct wn_err *err);
void wn_auth_destroy(struct wn_auth *auth); /* NULL is fine; after the endpoints, before the context */

/* Makes a domain (its number, never 0) into which only these keys (Z85 text, copied) are let. */
WN_NODISCARD wn_status wn_auth_allow(struct wn_auth *auth, const char *const *keys, size_t keys_n, unsigned *domain,
                                     struct wn_err *err);
void wn_auth_forget(struct wn_auth *auth, unsigned domain);

/* Who was turned away from the domain since the last call, one at a time; of many the last few. false: nobody. */
bool wn_auth_stranger(struct wn_auth *auth, unsigned domain, struct wn_stranger *out);
void wn_auth_domain_name(unsigned domain, char name[WN_AUTH_DOMAIN_CHARS]);

#endif
