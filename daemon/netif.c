/* daemon/netif.c - see netif.h. */
#include "daemon/netif.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISCARD_PORT 9

static wn_status resolve(struct sockaddr_in *out, const char *host, struct wn_err *err)
{
    const struct addrinfo want = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    const int rc = getaddrinfo(host, NULL, &want, &found);

    if (rc != 0) return wn_fail(err, WN_ENOENT, "host %s: %s", host, gai_strerror(rc));
    memcpy(out, found->ai_addr, sizeof(*out));
    freeaddrinfo(found);
    return WN_OK;
}

wn_status wn_netif_resolve(char out[WN_NETIF_ADDRESS_LEN], const char *host, struct wn_err *err)
{
    struct sockaddr_in a = {0};
    wn_status rc = resolve(&a, host, err);

    if (rc == WN_OK) inet_ntop(AF_INET, &a.sin_addr, out, WN_NETIF_ADDRESS_LEN);
    return rc;
}

/* The address that this host would send from: a datagram socket that is connected picks its route. */
static wn_status source_towards(struct in_addr *out, const char *host, struct wn_err *err)
{
    struct sockaddr_in a = {0};
    socklen_t len = sizeof(a);
    wn_status rc = resolve(&a, host, err);
    int fd;

    if (rc != WN_OK) return rc;
    a.sin_port = htons(DISCARD_PORT);
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) != 0)
        rc = wn_fail(err, WN_EIO, "no way to host %s: %s", host, strerror(errno));
    if (fd >= 0) close(fd);
    *out = a.sin_addr;
    return rc;
}

wn_status wn_netif_choose(struct wn_netif *out, const char *name, const char *host, struct wn_err *err)
{
    struct ifaddrs *all = NULL;
    struct in_addr source = {0};
    const char *down = NULL;
    wn_status rc = name[0] ? WN_OK : source_towards(&source, host, err);

    if (rc != WN_OK) return rc;
    if (getifaddrs(&all) != 0) return wn_fail(err, WN_EIO, "interfaces of this host: %s", strerror(errno));
    rc = WN_ENOENT;
    for (const struct ifaddrs *i = all; i && rc != WN_OK; i = i->ifa_next) {
        struct sockaddr_in a;
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        memcpy(&a, i->ifa_addr, sizeof(a));
        if (name[0] ? strcmp(name, i->ifa_name) != 0 : a.sin_addr.s_addr != source.s_addr) continue;
        down = !(i->ifa_flags & IFF_UP) ? "is down" : !(i->ifa_flags & IFF_RUNNING) ? "has no link" : NULL;
        snprintf(out->name, sizeof(out->name), "%s", i->ifa_name);
        inet_ntop(AF_INET, &a.sin_addr, out->address, sizeof(out->address));
        rc = WN_OK;
    }
    freeifaddrs(all);
    if (rc == WN_OK && down) return wn_fail(err, WN_EIO, "interface %s of this host %s", out->name, down);
    if (rc != WN_OK && name[0]) wn_fail(err, rc, "this host has no interface %s with an IPv4 address", name);
    if (rc != WN_OK && !name[0]) wn_fail(err, rc, "no interface of this host has the address that leads to %s", host);
    return rc;
}

uint32_t wn_netif_mtu(const char *name)
{
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r = {0};
    bool known;

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    known = fd >= 0 && ioctl(fd, SIOCGIFMTU, &r) == 0 && r.ifr_mtu > 0;
    if (fd >= 0) close(fd);
    return known ? (uint32_t)r.ifr_mtu : 0;
}
