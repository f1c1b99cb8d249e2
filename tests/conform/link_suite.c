/* tests/conform/link_suite.c - see link_suite.h. */
#include "tests/conform/link_parts.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "transport/coll.h"

#define LONG_US 60000000 /* the machine may be slow; nothing here waits that long */

struct suite {
    struct wn_link *link;
    struct wn_comm all;
    int rank, size;
    size_t huge_bytes;
    const char *name;
    int bad; /* failed checks of the case */
};

static int64_t soon(void)
{
    return wn_deadline_in_us(LONG_US);
}

static struct wn_route route(int peer, uint32_t tag)
{
    return (struct wn_route){.peer = peer, .tag = tag, .kind = WN_TRAFFIC_ACTIVATION};
}

static void sleep_us(long us)
{
    struct timespec ts = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    nanosleep(&ts, NULL);
}

/* Bytes that tell which message they are of and where they lie in it. */
static void fill(unsigned char *p, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t v = link_mix(seed + i);
        memcpy(p + i, &v, bytes - i < 8 ? bytes - i : 8);
    }
}

static bool filled(const unsigned char *p, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t v = link_mix(seed + i);
        if (memcmp(p + i, &v, bytes - i < 8 ? bytes - i : 8) != 0) return false;
    }
    return true;
}

static void *need(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    WN_ASSERT(p);
    return p;
}

/* Every rank sends 200 numbered messages to every other, alternating between two tags; they are received tag by tag. */
static void case_order(struct suite *s)
{
    enum { N = 200 };
    uint32_t *out = need((size_t)s->size * N * sizeof(*out));

    for (int i = 0; i < N; i++) {
        for (int peer = 0; peer < s->size; peer++) {
            wn_op op = WN_OP_NONE;
            uint32_t *word = &out[peer * N + i];
            *word = (uint32_t)(s->rank * 1000 + i);
            if (peer == s->rank) continue;
            CHECK_OK(s, wn_link_send(s->link, route(peer, i % 2 ? 7 : 3), word, sizeof(*word), &op));
            CHECK_OK(s, wn_link_wait(s->link, op, NULL, soon())); /* small: needs no receiver */
        }
    }
    for (int odd = 1; odd >= 0; odd--) {
        for (int peer = 0; peer < s->size; peer++) {
            for (int i = odd; peer != s->rank && i < N; i += 2) {
                uint32_t word = 0;
                CHECK_OK(s, wn_link_recv_now(s->link, route(peer, odd ? 7 : 3), &word, sizeof(word), soon()));
                CHECK(s, word == (uint32_t)(peer * 1000 + i));
            }
        }
    }
    free(out);
}

/* Rank 0 to rank 1 and back, each size both with the receive posted before the send and after it. */
static void case_sizes(struct suite *s)
{
    const size_t sizes[] = {0, 1, 3, 4095, 65535, 65536, 65537, 1000003, (size_t)5 << 20, s->huge_bytes};
    int peer = 1 - s->rank;
    unsigned char *out, *in;

    if (s->rank > 1) return;
    out = need(s->huge_bytes);
    in = need(s->huge_bytes);
    for (size_t i = 0; s->size > 1 && i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (int early = 0; early < 2; early++) {
            wn_op send = WN_OP_NONE, recv = WN_OP_NONE;
            size_t got = 99, bytes = sizes[i];
            uint64_t seed = i * 64 + early * 2;
            fill(out, bytes, (seed + s->rank) << 32);
            if (early) CHECK_OK(s, wn_link_recv(s->link, route(peer, 1), bytes ? in : NULL, bytes, &recv));
            CHECK_OK(s, wn_link_send(s->link, route(peer, 1), bytes ? out : NULL, bytes, &send));
            if (!early) CHECK_OK(s, wn_link_recv(s->link, route(peer, 1), bytes ? in : NULL, bytes, &recv));
            CHECK_OK(s, wn_link_wait(s->link, recv, &got, soon()));
            CHECK(s, got == bytes);
            CHECK_OK(s, wn_link_wait(s->link, send, &got, soon()));
            CHECK(s, got == bytes);
            CHECK(s, filled(in, bytes, (seed + peer) << 32));
        }
    }
    free(in);
    free(out);
}

/* A buffer that is larger than the message is fine, one that is smaller is an error, and the link goes on. */
static void case_room(struct suite *s)
{
    static const size_t sizes[] = {100, 200000};
    unsigned char *data = need(400000);

    for (int i = 0; s->size > 1 && s->rank < 2 && i < 2; i++) {
        size_t bytes = sizes[i], got = 0;
        wn_op op = WN_OP_NONE;
        if (s->rank == 0) {
            fill(data, bytes, 5);
            for (int k = 0; k < 4; k++) CHECK_OK(s, wn_link_send_now(s->link, route(1, 2), data, bytes, soon()));
            continue;
        }
        CHECK_OK(s, wn_link_recv(s->link, route(0, 2), data, 2 * bytes, &op));
        CHECK_OK(s, wn_link_wait(s->link, op, &got, soon()));
        CHECK(s, got == bytes && filled(data, bytes, 5));
        data[bytes - 1] = 1;
        CHECK_OK(s, wn_link_recv(s->link, route(0, 2), data, bytes - 1, &op));
        CHECK(s, wn_link_wait(s->link, op, &got, soon()) == WN_EPROTO);
        CHECK(s, data[bytes - 1] == 1); /* nothing is written behind the room that was given */
        CHECK(s, wn_link_recv_now(s->link, route(0, 2), data, bytes + 1, soon()) == WN_EPROTO);
        CHECK_OK(s, wn_link_recv_now(s->link, route(0, 2), data, bytes, soon()));
        CHECK(s, filled(data, bytes, 5));
    }
    free(data);
}

/* All send a lot to all, without waiting, before anybody receives. */
static void case_flood(struct suite *s)
{
    enum { N = 40 };
    size_t bytes = 200001;
    int peers = s->size - 1, n = 0;
    unsigned char *out = need(bytes), *in = need((size_t)peers * N * bytes);
    wn_op *ops = need((size_t)peers * N * 2 * sizeof(*ops));

    fill(out, bytes, s->rank);
    for (int i = 0; i < N; i++) {
        for (int peer = 0; peer < s->size; peer++) {
            if (peer != s->rank) CHECK_OK(s, wn_link_send(s->link, route(peer, 9), out, bytes, &ops[n++]));
        }
    }
    for (int i = 0; i < N; i++) {
        for (int peer = 0; peer < s->size; peer++) {
            if (peer == s->rank) continue;
            CHECK_OK(s, wn_link_recv(s->link, route(peer, 9), in + (size_t)(n - peers * N) * bytes, bytes, &ops[n]));
            n++;
        }
    }
    for (int i = 0; i < n; i++) CHECK_OK(s, wn_link_wait(s->link, ops[i], NULL, soon()));
    for (int i = 0, k = 0; i < N; i++) {
        for (int peer = 0; peer < s->size; peer++) {
            if (peer == s->rank) continue;
            CHECK(s, filled(in + (size_t)k++ * bytes, bytes, peer));
        }
    }
    free(ops);
    free(in);
    free(out);
}

/* A wait ends when its deadline passes, not before and not much later; the operation lives on. A peer that is silent
 * looks like this, too. */
static void case_deadline(struct suite *s)
{
    uint32_t word = 0;
    wn_op op = WN_OP_NONE;
    bool done = true;

    if (s->size < 2 || s->rank > 1) return;
    if (s->rank == 0) {
        int64_t start = wn_now_us(), waited;
        CHECK_OK(s, wn_link_recv(s->link, route(1, 4), &word, sizeof(word), &op));
        CHECK_OK(s, wn_link_test(s->link, op, &done, NULL));
        CHECK(s, !done);
        CHECK(s, wn_link_wait(s->link, op, NULL, start + 50000) == WN_ETIME);
        waited = wn_now_us() - start;
        CHECK(s, waited >= 50000 && waited < 50000 + 200000);
        CHECK(s, strstr(wn_link_error(s->link)->text, "rank 1") != NULL);
        start = wn_now_us();
        CHECK(s, wn_link_wait(s->link, op, NULL, start - 5) == WN_ETIME);
        CHECK(s, wn_now_us() - start < 100000);
        CHECK_OK(s, wn_link_send_now(s->link, route(1, 4), &word, sizeof(word), soon()));
        CHECK_OK(s, wn_link_wait(s->link, op, NULL, soon()));
        CHECK(s, word == 77);
    } else {
        CHECK_OK(s, wn_link_recv_now(s->link, route(0, 4), &word, sizeof(word), soon()));
        word = 77;
        CHECK_OK(s, wn_link_send_now(s->link, route(0, 4), &word, sizeof(word), soon()));
    }
}

/* A receive that is taken back leaves its memory and the messages that come later alone. */
static void case_withdraw(struct suite *s)
{
    uint32_t word = 0, other = 0;
    wn_op op;

    if (s->size < 2 || s->rank > 1) return;
    CHECK_OK(s, wn_link_withdraw(s->link, WN_OP_NONE, soon()));
    if (s->rank == 1) {
        CHECK_OK(s, wn_link_recv(s->link, route(0, 20), &word, sizeof(word), &op));
        CHECK_OK(s, wn_link_withdraw(s->link, op, soon()));
        CHECK_OK(s, wn_link_send_now(s->link, route(0, 21), NULL, 0, soon()));
        CHECK_OK(s, wn_link_recv_now(s->link, route(0, 20), &other, sizeof(other), soon()));
        CHECK(s, word == 0 && other == 9);
    } else {
        word = 9;
        CHECK_OK(s, wn_link_recv_now(s->link, route(1, 21), NULL, 0, soon()));
        CHECK_OK(s, wn_link_send_now(s->link, route(1, 20), &word, sizeof(word), soon()));
    }
}

/* A look now and then, on both sides, moves a large message: nobody has to wait for it. */
static void case_drive(struct suite *s)
{
    unsigned char *data = need(s->huge_bytes);
    wn_op op = WN_OP_NONE;
    bool done = s->size < 2 || s->rank > 1;

    if (!done && s->rank == 0) {
        fill(data, s->huge_bytes, 5);
        CHECK_OK(s, wn_link_send(s->link, route(1, 24), data, s->huge_bytes, &op));
    } else if (!done) {
        CHECK_OK(s, wn_link_recv(s->link, route(0, 24), data, s->huge_bytes, &op));
    }
    for (int64_t end = soon(); !done && wn_now_us() < end;) {
        sleep_us(1000);
        if (wn_link_test(s->link, op, &done, NULL) != WN_OK) break;
    }
    CHECK(s, done && (s->rank != 1 || filled(data, s->huge_bytes, 5)));
    free(data);
}

#define PAUSE_US 600000

/* Receives an empty message, the next step's say, that comes after PAUSE_US: the core is left to others meanwhile. Who
 * polls uses all of that time, or half of it where two share a core. */
static void check_sleeps(struct suite *s, struct wn_route from, const char *what)
{
    struct timespec before, after;
    int64_t used_us;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK_OK(s, wn_link_recv_now(s->link, from, NULL, 0, soon()));
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    used_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    CHECK(s, used_us < PAUSE_US / 3);
    if (getenv("WN_TEST_VERBOSE")) printf("%s: %lld us of processor time\n", what, (long long)used_us);
}

/* What is large and not waited for keeps no other wait awake: a receive that is posted, a send that has arrived. */
static void case_posted(struct suite *s)
{
    const size_t bytes = 1 << 20;
    unsigned char *data = need(bytes);
    wn_op op;

    if (s->size > 1 && s->rank == 0) {
        sleep_us(PAUSE_US);
        fill(data, bytes, 3);
        CHECK_OK(s, wn_link_send_now(s->link, route(1, 23), NULL, 0, soon()));
        CHECK_OK(s, wn_link_send(s->link, route(1, 22), data, bytes, &op));
        check_sleeps(s, route(1, 25), "sent");
        CHECK_OK(s, wn_link_wait(s->link, op, NULL, soon()));
    } else if (s->rank == 1) {
        CHECK_OK(s, wn_link_recv(s->link, route(0, 22), data, bytes, &op));
        check_sleeps(s, route(0, 23), "posted");
        CHECK_OK(s, wn_link_wait(s->link, op, NULL, soon()));
        CHECK(s, filled(data, bytes, 3));
        sleep_us(PAUSE_US);
        CHECK_OK(s, wn_link_send_now(s->link, route(0, 25), NULL, 0, soon()));
    }
    free(data);
}

/* Waiting for the next step leaves the core to others. */
static void case_idle(struct suite *s)
{
    if (s->size < 2 || s->rank > 1) return;
    if (s->rank == 0) {
        sleep_us(PAUSE_US);
        CHECK_OK(s, wn_link_send_now(s->link, route(1, 6), NULL, 0, soon()));
    } else {
        check_sleeps(s, route(0, 6), "idle");
    }
}

static void case_test(struct suite *s)
{
    uint32_t word = 5;
    wn_op op = WN_OP_NONE;
    bool done = false;
    size_t got = 0;
    int peer = 1 - s->rank;

    if (s->size < 2 || s->rank > 1) return;
    CHECK_OK(s, wn_link_test(s->link, WN_OP_NONE, &done, NULL));
    CHECK(s, done);
    CHECK_OK(s, wn_link_recv(s->link, route(peer, 5), &word, sizeof(word), &op));
    CHECK_OK(s, wn_link_send_now(s->link, route(peer, 5), "abc", 3, soon()));
    for (int64_t end = soon(); wn_now_us() < end;) {
        wn_status rc = wn_link_test(s->link, op, &done, &got);
        CHECK_OK(s, rc);
        if (rc != WN_OK || done) break;
    }
    CHECK(s, done && got == 3 && memcmp(&word, "abc", 3) == 0);
}

/* What makes no sense is refused with the right code, and at most WN_LINK_OPS_MAX operations are in flight. */
static void case_refusals(struct suite *s)
{
    wn_op op = 1, *ops;
    char byte = 0;
    int peer = s->rank ^ 1;

    CHECK(s, wn_link_send(s->link, route(s->rank, 1), &byte, 1, &op) == WN_EINVAL && op == WN_OP_NONE);
    CHECK(s, wn_link_send(s->link, route(s->size, 1), &byte, 1, &op) == WN_EINVAL);
    CHECK(s, wn_link_recv(s->link, route(-1, 1), &byte, 1, &op) == WN_EINVAL);
    if (peer >= s->size) return;
    CHECK(s, wn_link_recv(s->link, route(peer, 1), NULL, 1, &op) == WN_EINVAL);
    CHECK(s, wn_link_recv(s->link, route(peer, 5000), &byte, 1, &op) == WN_EINVAL);
    CHECK(s, wn_link_send(s->link, route(peer, 1), &byte, WN_LINK_BYTES_MAX + 1, &op) == WN_ELIMIT);
    if (s->rank % 2 == 1) { /* feeds the even rank below it */
        for (int i = 0; i < WN_LINK_OPS_MAX; i++) {
            CHECK_OK(s, wn_link_send_now(s->link, route(peer, 11), NULL, 0, soon()));
        }
        return;
    }
    ops = need(WN_LINK_OPS_MAX * sizeof(*ops));
    for (int i = 0; i < WN_LINK_OPS_MAX; i++) {
        CHECK_OK(s, wn_link_recv(s->link, route(peer, 11), NULL, 0, &ops[i]));
    }
    CHECK(s, wn_link_recv(s->link, route(peer, 11), NULL, 0, &op) == WN_EBUSY && op == WN_OP_NONE);
    CHECK(s, wn_link_send(s->link, route(peer, 11), NULL, 0, &op) == WN_EBUSY && op == WN_OP_NONE);
    for (int i = 0; i < WN_LINK_OPS_MAX; i++) CHECK_OK(s, wn_link_wait(s->link, ops[i], NULL, soon()));
    free(ops);
}

/* Each rank sends 3 + peer messages of 10 * (rank + 1) bytes of logits to each peer. */
static void case_traffic(struct suite *s)
{
    struct wn_traffic_table before[16] = {0}, total = {0}, sum = {0};
    unsigned char out[256] = {0}, in[256];

    for (int peer = 0; peer < s->size; peer++) wn_link_traffic(s->link, peer, &before[peer]);
    for (int peer = 0; peer < s->size; peer++) {
        struct wn_route to = {.peer = peer, .tag = 1, .kind = WN_TRAFFIC_LOGITS};
        for (int i = 0; peer != s->rank && i < 3 + peer; i++) {
            CHECK_OK(s, wn_link_send_now(s->link, to, out, 10 * ((size_t)s->rank + 1), soon()));
        }
    }
    for (int peer = 0; peer < s->size; peer++) {
        struct wn_route from = {.peer = peer, .tag = 1, .kind = WN_TRAFFIC_LOGITS};
        for (int i = 0; peer != s->rank && i < 3 + s->rank; i++) {
            CHECK_OK(s, wn_link_recv_now(s->link, from, in, 10 * ((size_t)peer + 1), soon()));
        }
    }
    for (int peer = 0; peer < s->size; peer++) {
        struct wn_traffic_table now = {0};
        struct wn_traffic_count *n = &now.of[WN_TRAFFIC_LOGITS], *b = &before[peer].of[WN_TRAFFIC_LOGITS];
        int sent = peer == s->rank ? 0 : 3 + peer, received = peer == s->rank ? 0 : 3 + s->rank;
        wn_link_traffic(s->link, peer, &now);
        CHECK(s, n->sent_messages - b->sent_messages == (uint64_t)sent);
        CHECK(s, n->sent_bytes - b->sent_bytes == (uint64_t)(sent * 10 * (s->rank + 1)));
        CHECK(s, n->received_messages - b->received_messages == (uint64_t)received);
        CHECK(s, n->received_bytes - b->received_bytes == (uint64_t)(received * 10 * (peer + 1)));
        n->sent_bytes = b->sent_bytes, n->received_bytes = b->received_bytes;
        n->sent_messages = b->sent_messages, n->received_messages = b->received_messages;
        CHECK(s, memcmp(&now, &before[peer], sizeof(now)) == 0); /* other kinds: untouched */
        wn_link_traffic(s->link, peer, &sum);
    }
    wn_link_traffic(s->link, -1, &total);
    CHECK(s, memcmp(&total, &sum, sizeof(sum)) == 0);
}

static void check_allreduce(struct suite *s, const struct wn_comm *comm, size_t count, uint64_t seed)
{
    float *data = need((count + 1) * sizeof(*data));
    struct wn_traffic_table before[16] = {0};

    for (int i = 0; i < comm->n; i++) wn_link_traffic(s->link, comm->ranks[i], &before[i]);
    for (size_t i = 0; i < count; i++) data[i] = link_element(s->rank, i, seed);
    data[count] = 12345.0f;
    CHECK_OK(s, wn_coll_allreduce_f32(s->link, comm, data, count, soon()));
    for (size_t i = 0; i < count; i++) {
        const float want = link_sum(comm->ranks, comm->n, i, seed);
        CHECK(s, memcmp(&want, &data[i], sizeof(want)) == 0);
    }
    CHECK(s, data[count] == 12345.0f);
    for (int i = 0; i < comm->n; i++) {
        struct wn_traffic_table now = {0};
        wn_link_traffic(s->link, comm->ranks[i], &now);
        struct wn_traffic_count *n = &now.of[WN_TRAFFIC_ALLREDUCE], *b = &before[i].of[WN_TRAFFIC_ALLREDUCE];
        CHECK(s, n->sent_bytes - b->sent_bytes == wn_coll_allreduce_bytes(comm->n, comm->me, i, count));
        CHECK(s, n->received_bytes - b->received_bytes == wn_coll_allreduce_bytes(comm->n, i, comm->me, count));
    }
    free(data);
}

/* Calls check for every sub-group of up to four of the first ranks that this rank is in, in rank order and turned. */
static void each_comm(struct suite *s, void (*check)(struct suite *s, const struct wn_comm *comm))
{
    int n = s->size < 4 ? s->size : 4;

    for (int set = 1; set < 1 << n; set++) {
        for (int turn = 0; turn < 2; turn++) {
            int ranks[4] = {0}, k = 0, me = -1;
            for (int i = 0; i < n; i++) {
                int rank = turn ? n - 1 - i : i;
                if (!(set & 1 << rank)) continue;
                if (rank == s->rank) me = k;
                ranks[k++] = rank;
            }
            struct wn_comm comm = {.ranks = ranks, .n = k, .me = me};
            if (me >= 0) check(s, &comm);
        }
    }
}

static void check_sums(struct suite *s, const struct wn_comm *comm)
{
    static const size_t counts[] = {0, 1, 7, 1000, 16384, 16385, 50001};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) check_allreduce(s, comm, counts[i], 17 * i + 3);
}

static void case_allreduce(struct suite *s)
{
    each_comm(s, check_sums);
    check_allreduce(s, &s->all, 1 << 18, 99);
}

static void check_spread(struct suite *s, const struct wn_comm *comm)
{
    static const size_t sizes[] = {0, 1, 333, 300001};
    unsigned char *data = need(sizes[3]);

    for (int root = 0; root < comm->n; root++) {
        for (int i = 0; i < 4; i++) {
            struct wn_traffic_table before = {0}, now = {0};
            uint64_t sent = 0;
            for (int to = 0; to < comm->n; to++) sent += wn_coll_broadcast_bytes(comm->n, root, comm->me, to, sizes[i]);
            wn_link_traffic(s->link, -1, &before);
            memset(data, 0, sizes[3]);
            if (comm->me == root) fill(data, sizes[i], root + 7);
            CHECK_OK(s, wn_coll_broadcast(s->link, comm, root, WN_TRAFFIC_EMBEDDING, data, sizes[i], soon()));
            CHECK(s, filled(data, sizes[i], root + 7));
            wn_link_traffic(s->link, -1, &now);
            CHECK(s, now.of[WN_TRAFFIC_EMBEDDING].sent_bytes - before.of[WN_TRAFFIC_EMBEDDING].sent_bytes == sent);
        }
    }
    free(data);
}

static void case_broadcast(struct suite *s)
{
    each_comm(s, check_spread);
}

/* Parts of different sizes, one of them empty, one large. */
static void check_gathers(struct suite *s, const struct wn_comm *comm)
{
    static const size_t sizes[] = {5, 0, 70001, 1024};
    size_t total = 0;
    unsigned char *all = need(71030), *mine = need(70001);

    for (int i = 0; i < comm->n; i++) total += sizes[i];
    fill(mine, sizes[comm->me], 1000 + comm->me);
    for (int root = -1; root < comm->n; root++) { /* -1: allgather */
        size_t at = 0;
        memset(all, 0, total);
        if (root < 0) {
            CHECK_OK(s, wn_coll_allgather(s->link, comm, WN_TRAFFIC_LOGITS, mine, all, sizes, soon()));
        } else {
            CHECK_OK(s, wn_coll_gather(s->link, comm, root, WN_TRAFFIC_LOGITS, mine, all, sizes, soon()));
        }
        for (int i = 0; (root < 0 || root == comm->me) && i < comm->n; at += sizes[i++]) {
            CHECK(s, filled(all + at, sizes[i], 1000 + i));
        }
    }
    free(mine);
    free(all);
}

static void case_gather(struct suite *s)
{
    each_comm(s, check_gathers);
}

static void check_status(struct suite *s, const struct wn_comm *comm)
{
    wn_status agreed = WN_STATUS_N;

    CHECK_OK(s, wn_coll_max_status(s->link, comm, WN_OK, &agreed, soon()));
    CHECK(s, agreed == WN_OK);
    for (int bad = 0; bad < comm->n; bad++) {
        wn_status mine = comm->me == bad ? WN_EPROTO : comm->me == 0 ? WN_EINVAL : WN_OK;
        CHECK_OK(s, wn_coll_max_status(s->link, comm, mine, &agreed, soon()));
        CHECK(s, agreed == WN_EPROTO);
    }
}

static void case_status(struct suite *s)
{
    each_comm(s, check_status);
}

/* Nobody leaves a barrier before the last one has come to it (all ranks of a test share one clock). */
static void case_barrier(struct suite *s)
{
    const size_t bytes_of[16] = {[0 ... 15] = sizeof(int64_t)};

    for (int late = 0; late < s->size; late++) {
        int64_t came[16] = {0}, now, left;
        if (s->rank == late) sleep_us(20000);
        now = wn_now_us();
        CHECK_OK(s, wn_coll_barrier(s->link, &s->all, soon()));
        left = wn_now_us();
        CHECK_OK(s, wn_coll_allgather(s->link, &s->all, WN_TRAFFIC_CONTROL, &now, came, bytes_of, soon()));
        for (int i = 0; i < s->size; i++) CHECK(s, left >= came[i]);
    }
}

/* A member that is not in the list, or a root that is none, is refused without a message. */
static void case_comm_refusals(struct suite *s)
{
    const int ranks[] = {s->size};
    struct wn_comm wrong = {.ranks = ranks, .n = 1, .me = 0};
    float x = 1;

    CHECK(s, wn_coll_allreduce_f32(s->link, &wrong, &x, 1, soon()) == WN_EINVAL);
    wrong = s->all;
    wrong.me = s->size;
    CHECK(s, wn_coll_barrier(s->link, &wrong, soon()) == WN_EINVAL);
    if (s->size > 1) {
        CHECK(s, wn_coll_broadcast(s->link, &s->all, s->size, WN_TRAFFIC_CONTROL, &x, sizeof(x), soon()) == WN_EINVAL);
        CHECK(s, wn_coll_gather(s->link, &s->all, -1, WN_TRAFFIC_CONTROL, &x, &x, NULL, soon()) == WN_EINVAL);
    }
}

static void *cancel_later(void *link)
{
    sleep_us(30000);
    wn_link_cancel(link);
    return NULL;
}

/* Another thread ends a wait that would last for ever; the link stays cancelled. */
static void case_cancel(struct suite *s)
{
    pthread_t thread;
    uint32_t word;
    wn_op op = WN_OP_NONE;
    int peer = s->rank == 0 ? 1 : 0;
    int64_t start, waited;
    bool done;

    if (s->size < 2) return;
    CHECK_OK(s, wn_coll_barrier(s->link, &s->all, soon()));
    start = wn_now_us();
    CHECK_OK(s, wn_link_recv(s->link, route(peer, 13), &word, sizeof(word), &op));
    WN_ASSERT(pthread_create(&thread, NULL, cancel_later, s->link) == 0);
    CHECK(s, wn_link_wait(s->link, op, NULL, WN_NEVER) == WN_ECANCEL);
    waited = wn_now_us() - start;
    CHECK(s, waited >= 30000 && waited < 30000 + 200000);
    pthread_join(thread, NULL);
    CHECK(s, wn_link_test(s->link, op, &done, NULL) == WN_ECANCEL);
    CHECK(s, wn_link_send(s->link, route(peer, 13), &word, sizeof(word), &op) == WN_ECANCEL);
    CHECK(s, wn_coll_barrier(s->link, &s->all, soon()) == WN_ECANCEL);
    sleep_us(300000); /* a rank that leaves would end the others' waits, too */
}

static const struct {
    const char *name;
    void (*run)(struct suite *s);
    bool last; /* ends the link: outcomes are not compared any more */
} cases[] = {
    {"order", case_order, false},         {"sizes", case_sizes, false},
    {"room", case_room, false},           {"flood", case_flood, false},
    {"deadline", case_deadline, false},   {"test", case_test, false},
    {"refusals", case_refusals, false},   {"traffic", case_traffic, false},
    {"allreduce", case_allreduce, false}, {"broadcast", case_broadcast, false},
    {"gather", case_gather, false},       {"status", case_status, false},
    {"barrier", case_barrier, false},     {"comm refusals", case_comm_refusals, false},
    {"withdraw", case_withdraw, false},   {"posted", case_posted, false},
    {"drive", case_drive, false},
    {"idle", case_idle, false},
    {"cancel", case_cancel, true},
};

struct link_suite_result link_suite_run(struct wn_link *link, size_t huge_bytes)
{
    struct link_suite_result result = {0};
    int ranks[16];
    struct suite s = {.link = link, .rank = wn_link_rank(link), .size = wn_link_size(link), .huge_bytes = huge_bytes};

    WN_ASSERT(s.size <= 16);
    for (int i = 0; i < s.size; i++) ranks[i] = i;
    s.all = (struct wn_comm){.ranks = ranks, .n = s.size, .me = s.rank};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        wn_status agreed = WN_OK;
        s.name = cases[i].name;
        s.bad = 0;
        cases[i].run(&s);
        agreed = s.bad ? WN_EIO : WN_OK;
        if (!cases[i].last && wn_coll_max_status(link, &s.all, agreed, &agreed, soon()) != WN_OK) {
            fprintf(stderr, "rank %d: %s: %s\n", s.rank, s.name, wn_link_error(link)->text);
            result.failed++;
            return result; /* the group does not hold together */
        }
        if (agreed == WN_OK) {
            result.passed++;
        } else {
            result.failed++;
        }
    }
    return result;
}
