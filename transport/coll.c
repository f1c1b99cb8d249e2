/* transport/coll.c - see coll.h. */
#include "transport/coll.h"

#include <stdlib.h>
#include <string.h>

#include "transport/link_impl.h"

/* Above this an all-reduce among 2^k members halves its message at each step instead of sending it whole. */
#define HALVING_BYTES ((size_t)64 << 10)

static bool is_power_of_two(int n)
{
    return (n & (n - 1)) == 0;
}

static int lowest_bit(int i)
{
    return i & -i;
}

static bool halves(int n, size_t count)
{
    return is_power_of_two(n) && count * sizeof(float) > HALVING_BYTES;
}

static struct wn_route route_to(const struct wn_comm *comm, int member, uint32_t tag, wn_traffic kind)
{
    return (struct wn_route){.peer = comm->ranks[member], .tag = tag, .kind = kind};
}

static wn_status comm_check(struct wn_link *link, const struct wn_comm *comm)
{
    if (link->broken) return link->error.code;
    if (comm->n < 1 || comm->n > link->size || comm->me < 0 || comm->me >= comm->n ||
        comm->ranks[comm->me] != link->rank) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: rank %d is not member %d of a comm of %d", link->ops->name,
                       link->rank, comm->me, comm->n);
    }
    return WN_OK;
}

/* A collective that failed may have left operations in flight, with the scratch memory too: the next ones must not
 * touch it. */
static wn_status ended(struct wn_link *link, wn_status rc)
{
    if (rc != WN_OK) link->broken = true;
    return rc;
}

static wn_status scratch_grow(struct wn_link *link, size_t bytes)
{
    size_t want = (bytes + 4095) & ~(size_t)4095;
    void *p;

    if (bytes <= link->scratch_bytes) return WN_OK;
    p = aligned_alloc(64, want);
    if (!p) return wn_fail(&link->error, WN_ENOMEM, "%s link: %zu bytes to sum in", link->ops->name, want);
    free(link->scratch);
    link->scratch = p;
    link->scratch_bytes = want;
    return WN_OK;
}

/* One message each way with one member, or with two: `to` gets out, `in` comes from `from`. */
struct exchange {
    int to, from;
    uint32_t tag;
    wn_traffic kind;
    const void *out;
    size_t out_bytes;
    void *in;
    size_t in_bytes;
};

static wn_status swap(struct wn_link *link, const struct wn_comm *comm, const struct exchange *x,
                      int64_t deadline_us)
{
    struct wn_route from = route_to(comm, x->from, x->tag, x->kind);
    wn_op in = WN_OP_NONE, out = WN_OP_NONE;
    wn_status rc = wn_link_recv(link, from, x->in, x->in_bytes, &in);

    if (rc == WN_OK) {
        rc = wn_link_send(link, route_to(comm, x->to, x->tag, x->kind), x->out, x->out_bytes, &out);
    }
    if (rc == WN_OK) rc = wn_link_wait_exact(link, in, from, x->in_bytes, deadline_us);
    if (rc == WN_OK) rc = wn_link_wait(link, out, NULL, deadline_us);
    return rc;
}

static void add_to(float *restrict sum, const float *restrict more, size_t count)
{
    for (size_t i = 0; i < count; i++) sum[i] += more[i];
}

/* At step s the members that differ in bit s swap all they have: both hold the same node of the tree afterwards, since
 * a + b and b + a have the same bits. */
static wn_status sum_doubling(struct wn_link *link, const struct wn_comm *comm, float *data, size_t count,
                              int64_t deadline_us)
{
    float *other = link->scratch;

    for (int s = 1; s < comm->n; s <<= 1) {
        struct exchange x = {.to = comm->me ^ s, .from = comm->me ^ s, .tag = WN_TAG_SUM, .kind = WN_TRAFFIC_ALLREDUCE,
                             .out = data, .out_bytes = count * sizeof(float),
                             .in = other, .in_bytes = count * sizeof(float)};
        wn_status rc = swap(link, comm, &x, deadline_us);
        if (rc != WN_OK) return rc;
        add_to(data, other, count);
    }
    return WN_OK;
}

/* A part of the message: elements [first, end). */
struct span {
    size_t first, end;
};

/* The half of a span that a member keeps at step s, and the half that its partner keeps. */
static struct span span_half(struct span whole, int member, int s)
{
    size_t middle = whole.first + (whole.end - whole.first) / 2;
    return member & s ? (struct span){middle, whole.end} : (struct span){whole.first, middle};
}

/* The same tree with each element summed by one member only: at step s each keeps one half of what it holds and hands
 * the other to its partner; then the halves go back the way they came. */
static wn_status sum_halving(struct wn_link *link, const struct wn_comm *comm, float *data, size_t count,
                             int64_t deadline_us)
{
    struct span held[16]; /* before step 0, 1, ...: WN_LINK_RANKS_MAX is 2^10 */
    struct span own = {0, count};
    int steps = 0;
    wn_status rc;

    for (int s = 1; s < comm->n; s <<= 1, steps++) {
        struct span give = span_half(own, comm->me ^ s, s);
        held[steps] = own;
        own = span_half(own, comm->me, s);
        struct exchange x = {.to = comm->me ^ s, .from = comm->me ^ s, .tag = WN_TAG_SUM, .kind = WN_TRAFFIC_ALLREDUCE,
                             .out = data + give.first, .out_bytes = (give.end - give.first) * sizeof(float),
                             .in = link->scratch, .in_bytes = (own.end - own.first) * sizeof(float)};
        if ((rc = swap(link, comm, &x, deadline_us)) != WN_OK) return rc;
        add_to(data + own.first, link->scratch, own.end - own.first);
    }
    while (steps-- > 0) {
        int s = 1 << steps;
        struct span theirs = span_half(held[steps], comm->me ^ s, s);
        struct exchange x = {.to = comm->me ^ s, .from = comm->me ^ s, .tag = WN_TAG_SUM, .kind = WN_TRAFFIC_ALLREDUCE,
                             .out = data + own.first, .out_bytes = (own.end - own.first) * sizeof(float),
                             .in = data + theirs.first, .in_bytes = (theirs.end - theirs.first) * sizeof(float)};
        if ((rc = swap(link, comm, &x, deadline_us)) != WN_OK) return rc;
        own = held[steps];
    }
    return WN_OK;
}

/* Any number of members: the tree's nodes are summed by their first member, up to member 0, which tells all. */
static wn_status sum_tree(struct wn_link *link, const struct wn_comm *comm, float *data, size_t count,
                          int64_t deadline_us)
{
    size_t bytes = count * sizeof(float);
    wn_status rc;

    for (int s = 1; s < comm->n; s <<= 1) {
        if (comm->me & s) {
            struct wn_route up = route_to(comm, comm->me - s, WN_TAG_SUM, WN_TRAFFIC_ALLREDUCE);
            if ((rc = wn_link_send_now(link, up, data, bytes, deadline_us)) != WN_OK) return rc;
            break;
        }
        if (comm->me + s < comm->n) {
            struct wn_route from = route_to(comm, comm->me + s, WN_TAG_SUM, WN_TRAFFIC_ALLREDUCE);
            if ((rc = wn_link_recv_now(link, from, link->scratch, bytes, deadline_us)) != WN_OK) return rc;
            add_to(data, link->scratch, count);
        }
    }
    return wn_coll_broadcast(link, comm, 0, WN_TRAFFIC_ALLREDUCE, data, bytes, deadline_us);
}

wn_status wn_coll_allreduce_f32(struct wn_link *link, const struct wn_comm *comm, float *data, size_t count,
                                int64_t deadline_us)
{
    wn_status rc = comm_check(link, comm);

    if (rc != WN_OK || comm->n == 1 || count == 0) return rc;
    if (count > WN_LINK_BYTES_MAX / sizeof(float)) {
        return wn_fail(&link->error, WN_ELIMIT, "%s link: an all-reduce of %zu floats", link->ops->name, count);
    }
    if ((rc = scratch_grow(link, count * sizeof(float))) != WN_OK) return rc;
    if (halves(comm->n, count)) return ended(link, sum_halving(link, comm, data, count, deadline_us));
    if (is_power_of_two(comm->n)) return ended(link, sum_doubling(link, comm, data, count, deadline_us));
    return ended(link, sum_tree(link, comm, data, count, deadline_us));
}

uint64_t wn_coll_allreduce_bytes(int n, int from, int to, size_t count)
{
    struct span own = {0, count};
    int s = from ^ to;

    if (n < 2 || from == to || count == 0) return 0;
    if (!is_power_of_two(n)) {
        uint64_t up = from > 0 && to == from - lowest_bit(from) ? (uint64_t)count * sizeof(float) : 0;
        return up + wn_coll_broadcast_bytes(n, 0, from, to, count * sizeof(float));
    }
    if (!is_power_of_two(s)) return 0; /* not partners at any step */
    /* when halving: one half of what both hold before step s goes there, and the other comes back later */
    for (int step = 1; step < s && halves(n, count); step <<= 1) own = span_half(own, from, step);
    return (uint64_t)(own.end - own.first) * sizeof(float);
}

/* Binomial tree, members numbered from the root: r hears from r without its lowest bit. */
wn_status wn_coll_broadcast(struct wn_link *link, const struct wn_comm *comm, int root, wn_traffic kind, void *data,
                            size_t bytes, int64_t deadline_us)
{
    wn_status rc = comm_check(link, comm);
    wn_op sends[16];
    int sends_n = 0, place, below = 1;

    if (rc != WN_OK || comm->n == 1) return rc;
    if (root < 0 || root >= comm->n) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: broadcast from member %d of %d", link->ops->name, root,
                       comm->n);
    }
    place = (comm->me - root + comm->n) % comm->n;
    if (place > 0) {
        int from = (place - lowest_bit(place) + root) % comm->n;
        rc = wn_link_recv_now(link, route_to(comm, from, WN_TAG_SPREAD, kind), data, bytes, deadline_us);
        if (rc != WN_OK) return ended(link, rc);
        below = lowest_bit(place);
    } else {
        while (below < comm->n) below <<= 1;
    }
    for (int s = below >> 1; s > 0; s >>= 1) {
        if (place + s >= comm->n) continue;
        int to = (place + s + root) % comm->n;
        rc = wn_link_send(link, route_to(comm, to, WN_TAG_SPREAD, kind), data, bytes, &sends[sends_n++]);
        if (rc != WN_OK) return ended(link, rc);
    }
    for (int i = 0; i < sends_n; i++) {
        if ((rc = wn_link_wait(link, sends[i], NULL, deadline_us)) != WN_OK) return ended(link, rc);
    }
    return WN_OK;
}

uint64_t wn_coll_broadcast_bytes(int n, int root, int from, int to, size_t bytes)
{
    int parent = (from - root + n) % n, child = (to - root + n) % n;
    return child > 0 && child - lowest_bit(child) == parent ? bytes : 0;
}

wn_status wn_coll_gather(struct wn_link *link, const struct wn_comm *comm, int root, wn_traffic kind,
                         const void *mine, void *all, const size_t *bytes_of, int64_t deadline_us)
{
    wn_status rc = comm_check(link, comm);
    wn_op recvs[WN_LINK_RANKS_MAX];
    unsigned char *at = all;

    if (rc != WN_OK) return rc;
    if (root < 0 || root >= comm->n) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: gather to member %d of %d", link->ops->name, root, comm->n);
    }
    if (comm->me != root) {
        rc = wn_link_send_now(link, route_to(comm, root, WN_TAG_GATHER, kind), mine, bytes_of[comm->me],
                              deadline_us);
        return ended(link, rc);
    }
    for (int i = 0; i < comm->n; at += bytes_of[i++]) {
        recvs[i] = WN_OP_NONE;
        if (i == root) {
            if (at != mine && bytes_of[i]) memmove(at, mine, bytes_of[i]);
            continue;
        }
        rc = wn_link_recv(link, route_to(comm, i, WN_TAG_GATHER, kind), at, bytes_of[i], &recvs[i]);
        if (rc != WN_OK) return ended(link, rc);
    }
    for (int i = 0; i < comm->n; i++) {
        if (i == root) continue;
        rc = wn_link_wait_exact(link, recvs[i], route_to(comm, i, WN_TAG_GATHER, kind), bytes_of[i], deadline_us);
        if (rc != WN_OK) return ended(link, rc);
    }
    return WN_OK;
}

static unsigned char *part_of(void *all, const size_t *bytes_of, int member)
{
    unsigned char *at = all;
    for (int i = 0; i < member; i++) at += bytes_of[i];
    return at;
}

wn_status wn_coll_allgather(struct wn_link *link, const struct wn_comm *comm, wn_traffic kind, const void *mine,
                            void *all, const size_t *bytes_of, int64_t deadline_us)
{
    wn_status rc = comm_check(link, comm);
    unsigned char *own;

    if (rc != WN_OK) return rc;
    own = part_of(all, bytes_of, comm->me);
    if (own != mine && bytes_of[comm->me]) memmove(own, mine, bytes_of[comm->me]);
    for (int step = 0; step + 1 < comm->n; step++) {
        int give = (comm->me - step + comm->n) % comm->n, take = (give - 1 + comm->n) % comm->n;
        struct exchange x = {.to = (comm->me + 1) % comm->n, .from = (comm->me - 1 + comm->n) % comm->n,
                             .tag = WN_TAG_RING, .kind = kind,
                             .out = part_of(all, bytes_of, give), .out_bytes = bytes_of[give],
                             .in = part_of(all, bytes_of, take), .in_bytes = bytes_of[take]};
        if ((rc = swap(link, comm, &x, deadline_us)) != WN_OK) return ended(link, rc);
    }
    return WN_OK;
}

/* After the round with distance s each member knows the largest of 2s members up to itself; the maximum does not mind
 * that the last round may count some twice. */
wn_status wn_coll_max_status(struct wn_link *link, const struct wn_comm *comm, wn_status mine, wn_status *agreed,
                             int64_t deadline_us)
{
    wn_status rc = comm_check(link, comm);
    uint32_t largest = (uint32_t)mine;
    struct {
        uint32_t said, heard;
    } *words; /* not on the stack: they must outlive a failure */

    if (rc != WN_OK) return rc;
    if ((rc = scratch_grow(link, sizeof(*words))) != WN_OK) return rc;
    words = link->scratch;
    for (int s = 1; s < comm->n; s <<= 1) {
        words->said = largest;
        struct exchange x = {.to = (comm->me + s) % comm->n, .from = (comm->me - s + comm->n) % comm->n,
                             .tag = WN_TAG_STATUS, .kind = WN_TRAFFIC_CONTROL,
                             .out = &words->said, .out_bytes = sizeof(words->said),
                             .in = &words->heard, .in_bytes = sizeof(words->heard)};
        if ((rc = swap(link, comm, &x, deadline_us)) != WN_OK) return ended(link, rc);
        if (words->heard >= WN_STATUS_N) {
            rc = wn_fail(&link->error, WN_EPROTO, "%s link: rank %d says status %u", link->ops->name,
                         comm->ranks[x.from], words->heard);
            return ended(link, rc);
        }
        if (words->heard > largest) largest = words->heard;
    }
    *agreed = (wn_status)largest;
    return WN_OK;
}

wn_status wn_coll_barrier(struct wn_link *link, const struct wn_comm *comm, int64_t deadline_us)
{
    wn_status agreed;
    return wn_coll_max_status(link, comm, WN_OK, &agreed, deadline_us);
}
