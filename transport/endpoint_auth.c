/* transport/endpoint_auth.c - see endpoint_auth.h. ZAP is ZeroMQ RFC 27. */
#include "transport/endpoint_auth.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/endpoint.h"

#define DOMAINS_MAX 32
#define KEYS_MAX    4096
#define KEY_BYTES   32
#define FIELDS      7 /* of a request: version, id, domain, address, identity, mechanism, key */
#define FIELD_BYTES 256
#define STRANGERS   8 /* of a domain, until they are asked for */

struct domain {
    unsigned number; /* 0: free */
    size_t keys_n;
    unsigned char (*keys)[KEY_BYTES];
    struct wn_stranger strangers[STRANGERS]; /* a ring */
    unsigned came, told;                     /* so many came; up to that one they were told of */
};

struct wn_auth {
    void *socket;    /* the thread's, once it runs */
    void *stop, *stopped; /* a pair of sockets: a byte ends the thread */
    pthread_t thread;
    int64_t noted_us;     /* of the thread: when a refusal was last written down, and how many were not since */
    unsigned silent_n;
    pthread_mutex_t lock; /* of what follows */
    unsigned last;
    struct domain domains[DOMAINS_MAX];
};

struct field {
    size_t bytes;
    unsigned char data[FIELD_BYTES];
};

void wn_auth_domain_name(unsigned domain, char name[WN_AUTH_DOMAIN_CHARS])
{
    snprintf(name, WN_AUTH_DOMAIN_CHARS, "winnow-%u", domain);
}

static bool field_is(const struct field *f, const char *text)
{
    return f->bytes == strlen(text) && memcmp(f->data, text, f->bytes) == 0;
}

/* Takes a whole request; false if it does not look like one. */
static bool request_recv(void *socket, struct field fields[FIELDS])
{
    int n = 0, more = 1;
    bool good = true;

    while (more) {
        size_t size = sizeof(more);
        struct field scrap, *f = n < FIELDS ? &fields[n] : &scrap;
        int bytes = zmq_recv(socket, f->data, sizeof(f->data), 0);
        if (bytes < 0) return false;
        good = good && (size_t)bytes <= sizeof(f->data);
        f->bytes = (size_t)bytes;
        n++;
        if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) != 0) return false;
    }
    return good && n == FIELDS && field_is(&fields[0], "1.0");
}

static bool allowed(struct wn_auth *auth, const struct field fields[FIELDS])
{
    bool found = false;

    if (!field_is(&fields[5], "CURVE") || fields[6].bytes != KEY_BYTES) return false;
    pthread_mutex_lock(&auth->lock);
    for (int i = 0; i < DOMAINS_MAX && !found; i++) {
        struct domain *d = &auth->domains[i];
        char name[WN_AUTH_DOMAIN_CHARS];
        wn_auth_domain_name(d->number, name);
        if (d->number == 0 || !field_is(&fields[2], name)) continue;
        for (size_t k = 0; k < d->keys_n && !found; k++) found = memcmp(d->keys[k], fields[6].data, KEY_BYTES) == 0;
    }
    pthread_mutex_unlock(&auth->lock);
    return found;
}

/* Keeps who it was, for wn_auth_stranger. */
static void keep_stranger(struct wn_auth *auth, const struct field fields[FIELDS])
{
    struct wn_stranger one = {0};

    if (!field_is(&fields[5], "CURVE") || fields[6].bytes != KEY_BYTES) return;
    if (!zmq_z85_encode(one.key, fields[6].data, KEY_BYTES)) return;
    snprintf(one.address, sizeof(one.address), "%.*s", (int)fields[3].bytes, (const char *)fields[3].data);
    pthread_mutex_lock(&auth->lock);
    for (int i = 0; i < DOMAINS_MAX; i++) {
        struct domain *d = &auth->domains[i];
        char name[WN_AUTH_DOMAIN_CHARS];
        wn_auth_domain_name(d->number, name);
        if (d->number != 0 && field_is(&fields[2], name)) d->strangers[d->came++ % STRANGERS] = one;
    }
    pthread_mutex_unlock(&auth->lock);
}

bool wn_auth_stranger(struct wn_auth *auth, unsigned domain, struct wn_stranger *out)
{
    bool found = false;

    pthread_mutex_lock(&auth->lock);
    for (int i = 0; i < DOMAINS_MAX && !found; i++) {
        struct domain *d = &auth->domains[i];
        if (d->number != domain || d->told == d->came) continue;
        if (d->came - d->told > STRANGERS) d->told = d->came - STRANGERS;
        *out = d->strangers[d->told++ % STRANGERS];
        found = true;
    }
    pthread_mutex_unlock(&auth->lock);
    return found;
}

/* At most one record a second: whoever is turned away may try again at once. */
static void note_refusal(struct wn_auth *auth, const struct field *from)
{
    const int64_t now = wn_now_us();

    auth->silent_n++;
    if (auth->noted_us && now - auth->noted_us < 1000000) return;
    wn_warn("auth", "turned away %.*s: its key is not in the list (and %u others before)", (int)from->bytes,
            (const char *)from->data, auth->silent_n - 1);
    auth->noted_us = now;
    auth->silent_n = 0;
}

static void answer(struct wn_auth *auth)
{
    struct field fields[FIELDS];
    char key[WN_CURVE_KEY_CHARS] = "";
    bool good = request_recv(auth->socket, fields);
    bool yes = good && allowed(auth, fields) && zmq_z85_encode(key, fields[6].data, KEY_BYTES);
    const char *code = yes ? "200" : "400";

    if (!yes && good) keep_stranger(auth, fields);
    if (!yes && good) note_refusal(auth, &fields[3]);
    if (!good) fields[1].bytes = 0; /* REP must answer what it was asked, even nonsense */
    zmq_send(auth->socket, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(auth->socket, fields[1].data, fields[1].bytes, ZMQ_SNDMORE);
    zmq_send(auth->socket, code, 3, ZMQ_SNDMORE);
    zmq_send(auth->socket, yes ? "OK" : "no", 2, ZMQ_SNDMORE);
    zmq_send(auth->socket, key, strlen(key), ZMQ_SNDMORE); /* "User-Id": comes back with each message */
    zmq_send(auth->socket, "", 0, 0);
}

static void *auth_main(void *arg)
{
    struct wn_auth *auth = arg;
    zmq_pollitem_t items[] = {{.socket = auth->socket, .events = ZMQ_POLLIN},
                              {.socket = auth->stopped, .events = ZMQ_POLLIN}};

    while (true) {
        if (zmq_poll(items, 2, -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (items[0].revents & ZMQ_POLLIN) answer(auth);
        if (items[1].revents & ZMQ_POLLIN) break;
    }
    zmq_close(auth->socket);
    zmq_close(auth->stopped);
    return NULL;
}

wn_status wn_auth_create(struct wn_auth **out, void *zmq_context, struct wn_err *err)
{
    struct wn_auth *auth = calloc(1, sizeof(*auth));
    bool lock = false;
    int linger = 0;
    wn_status rc = WN_OK;

    if (!auth) return wn_fail(err, WN_ENOMEM, "client keys");
    lock = pthread_mutex_init(&auth->lock, NULL) == 0;
    auth->socket = zmq_socket(zmq_context, ZMQ_REP);
    auth->stop = zmq_socket(zmq_context, ZMQ_PAIR);
    auth->stopped = zmq_socket(zmq_context, ZMQ_PAIR);
    if (!lock || !auth->socket || !auth->stop || !auth->stopped ||
        zmq_setsockopt(auth->socket, ZMQ_LINGER, &linger, sizeof(linger)) != 0 ||
        zmq_bind(auth->socket, "inproc://zeromq.zap.01") != 0 ||
        zmq_bind(auth->stop, "inproc://wn-auth-stop") != 0 ||
        zmq_connect(auth->stopped, "inproc://wn-auth-stop") != 0) {
        rc = wn_fail(err, WN_EIO, "client keys: %s", zmq_strerror(errno));
        goto out;
    }
    /* the two sockets move to the thread: creating it is the memory barrier that ZeroMQ asks for */
    if ((errno = pthread_create(&auth->thread, NULL, auth_main, auth)) != 0) {
        rc = wn_fail(err, WN_EIO, "client keys: thread: %s", strerror(errno));
        goto out;
    }
    *out = auth;
    auth = NULL;
out:
    if (auth) {
        if (auth->socket) zmq_close(auth->socket);
        if (auth->stop) zmq_close(auth->stop);
        if (auth->stopped) zmq_close(auth->stopped);
        if (lock) pthread_mutex_destroy(&auth->lock);
    }
    free(auth);
    return rc;
}

void wn_auth_destroy(struct wn_auth *auth)
{
    if (!auth) return;
    zmq_send(auth->stop, "", 1, 0);
    pthread_join(auth->thread, NULL);
    zmq_close(auth->stop);
    for (int i = 0; i < DOMAINS_MAX; i++) free(auth->domains[i].keys);
    pthread_mutex_destroy(&auth->lock);
    free(auth);
}

wn_status wn_auth_allow(struct wn_auth *auth, const char *const *keys, size_t keys_n, unsigned *domain,
                        struct wn_err *err)
{
    unsigned char(*list)[KEY_BYTES] = NULL;
    struct domain *place = NULL;
    wn_status rc = WN_OK;

    if (keys_n > KEYS_MAX) return wn_fail(err, WN_ELIMIT, "%zu client keys (at most %d)", keys_n, KEYS_MAX);
    list = calloc(keys_n ? keys_n : 1, KEY_BYTES);
    if (!list) return wn_fail(err, WN_ENOMEM, "%zu client keys", keys_n);
    for (size_t i = 0; i < keys_n; i++) {
        if (strlen(keys[i]) != 40 || !zmq_z85_decode(list[i], keys[i])) {
            rc = wn_fail(err, WN_EINVAL, "client key %zu is not a key (40 characters of Z85)", i);
            goto out;
        }
    }
    pthread_mutex_lock(&auth->lock);
    for (int i = 0; i < DOMAINS_MAX && !place; i++) {
        if (auth->domains[i].number == 0) place = &auth->domains[i];
    }
    if (place) {
        *place = (struct domain){.number = ++auth->last, .keys_n = keys_n, .keys = list};
        *domain = place->number;
        list = NULL;
    } else {
        rc = wn_fail(err, WN_ELIMIT, "%d endpoints with client keys", DOMAINS_MAX);
    }
    pthread_mutex_unlock(&auth->lock);
out:
    free(list);
    return rc;
}

void wn_auth_forget(struct wn_auth *auth, unsigned domain)
{
    pthread_mutex_lock(&auth->lock);
    for (int i = 0; i < DOMAINS_MAX; i++) {
        if (auth->domains[i].number != domain) continue;
        free(auth->domains[i].keys);
        auth->domains[i] = (struct domain){0};
    }
    pthread_mutex_unlock(&auth->lock);
}
