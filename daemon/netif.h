/* daemon/netif.h - which interface of this host carries the service: the one that the user names, else the one that
 * leads towards a host. IPv4.
 *
 * Owns:    nothing. Threads: any.
 * Fails:   WN_ENOENT: no such interface, or it has no address, or no such host; WN_EIO: also one that is down. */
#ifndef WN_DAEMON_NETIF_H
#define WN_DAEMON_NETIF_H

#include <stdint.h>

#include "base/status.h"

#define WN_NETIF_NAME_LEN    16
#define WN_NETIF_ADDRESS_LEN 16

struct wn_netif {
    char name[WN_NETIF_NAME_LEN];       /* "eth0" */
    char address[WN_NETIF_ADDRESS_LEN]; /* "10.1.2.3" */
};

/* name "": the interface towards `host` (a name or an address; nothing is sent). */
WN_NODISCARD wn_status wn_netif_choose(struct wn_netif *out, const char *name, const char *host, struct wn_err *err);

/* The largest packet that this host's interface sends; 0: not known. */
uint32_t wn_netif_mtu(const char *name);

/* The address of a host as numbers. */
WN_NODISCARD wn_status wn_netif_resolve(char out[WN_NETIF_ADDRESS_LEN], const char *host, struct wn_err *err);

#endif
