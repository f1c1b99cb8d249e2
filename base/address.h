/* base/address.h - which addresses other machines can reach. Pure. */
#ifndef WN_BASE_ADDRESS_H
#define WN_BASE_ADDRESS_H

#include <stdbool.h>
#include <string.h>

/* "127.0.0.1:5599", "localhost", "lo:*": this machine only. A name is not resolved: it counts as reachable. */
static inline bool wn_host_is_local(const char *host)
{
    static const char *const names[] = {"localhost", "lo"};
    const size_t n = strcspn(host, ":");

    for (int i = 0; i < 2; i++)
        if (strlen(names[i]) == n && strncmp(host, names[i], n) == 0) return true;
    return strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") == n;
}

/* "tcp://HOST:PORT", "ipc://PATH", "inproc://NAME". */
static inline bool wn_address_is_local(const char *address)
{
    if (strncmp(address, "tcp://", 6) == 0) return wn_host_is_local(address + 6);
    return strncmp(address, "ipc://", 6) == 0 || strncmp(address, "inproc://", 9) == 0;
}

#endif
