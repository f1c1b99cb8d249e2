/* daemon/vision_worker.c - the role `winnowd vision`: pictures in, pruned visual tokens out.
 *
 * The front thread owns the sockets; this thread decodes, encodes and prunes. An order waits in a bounded
 * queue; its features wait for the leader's credit, one image each, and are gone from here as soon as they are
 * sent. The order stays until the leader has taken them: when the connection is lost before, they are made again.
 * A leader that gives no credit holds half of the places at most, and one that cannot be reached none. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/sha256.h"
#include "daemon/pruning_ask.h"
#include "daemon/roles.h"
#include "daemon/vision_list.h"
#include "daemon/worker.h"
#include "winnow_version.h"

#define CREDIT_MAX     64         /* images on their way to one leader, whatever it says */
#define CREDIT_WAIT_US 60000000ll /* for a leader that says nothing; one that is slow is waited for */
#define IDLE_WAIT_US   500000ll   /* a look at the drain flag, at least this often */
#define STOP_FLUSH_MS  200        /* for the last messages to leave */

struct leader {
    char address[WN_ADDRESS_MAX]; /* "": free */
    uint32_t credit;
    bool met; /* it has answered on this connection */
    int64_t used_us, lost_us; /* lost_us: since when its connection is lost; 0: it is not */
};

struct vision_worker {
    struct wn_config cfg;
    struct wn_model model;
    char model_id[WN_MODEL_ID_LEN];
    wn_dtype dtype;
    struct wn_encoder *encoder;
    struct wn_front *front;
    struct wn_key *key; /* NULL: plain text */
    struct leader leaders[WN_FRONT_LEADERS_MAX];
    struct wn_vision_list queue, outbox;
    struct wn_vision_list sent; /* without their features */
    bool draining;
};

static volatile sig_atomic_t drain_asked;

static void on_signal(int sig)
{
    (void)sig;
    drain_asked = 1;
}

/* Takes the sent image that this is about; NULL: there is none. */
static struct wn_vision_work *take_sent(struct vision_worker *v, const char *leader, const Wn__FeaturesAck *ack)
{
    for (struct wn_vision_work **at = &v->sent.first; *at; at = &(*at)->next)
        if ((*at)->e->image == ack->image && wn_jobref_equal((*at)->e->job, ack->job) &&
            strcmp((*at)->e->leader_endpoint, leader) == 0)
            return wn_vision_list_take(&v->sent, at);
    return NULL;
}

/* What was sent is not wanted any more; its credit comes back all the same. job NULL: all. */
static void cancel_sent(struct vision_worker *v, const Wn__JobRef *job)
{
    for (struct wn_vision_work *w = v->sent.first; w; w = w->next)
        if (!job || wn_jobref_equal(w->e->job, job)) w->cancelled = true;
}

static void fail_work(struct vision_worker *v, struct wn_vision_work *w, const struct wn_err *err,
                      bool retriable)
{
    wn_info("vision", "%s image %u: %s", w->e->job->job_id, w->e->image, err->text);
    wn_front_send_error(v->front, &w->order->party, w->e->job, err, retriable);
    wn_vision_work_free(w);
}

/* ---- leaders and their credit ---- */

static struct leader *find_leader(struct vision_worker *v, const char *address)
{
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++)
        if (strcmp(v->leaders[i].address, address) == 0) return &v->leaders[i];
    return NULL;
}

static const char *worker_name(const struct vision_worker *v)
{
    return v->cfg.name[0] ? v->cfg.name : "vision-0";
}

/* Says who we are; the answer is credit. */
static void greet(struct vision_worker *v, const char *address)
{
    Wn__FeaturesHello hello = WN__FEATURES_HELLO__INIT;
    struct wn_party to = {.side = WN_SIDE_LEADER};

    snprintf(to.address, sizeof(to.address), "%s", address);
    hello.name = (char *)(uintptr_t)worker_name(v);
    hello.model_id = v->model_id;
    wn_front_send(v->front, &to, WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, WN_TRAFFIC_CONTROL, NULL, 0, NULL, NULL);
}

/* Takes what was sent to a leader out of the list: to be made and sent once more, or (lost) to be told as lost. */
static void end_sent(struct vision_worker *v, const char *address, const struct wn_err *lost)
{
    for (struct wn_vision_work **at = &v->sent.first; *at;) {
        struct wn_vision_work *w = *at;
        if (strcmp(w->e->leader_endpoint, address) != 0) {
            at = &w->next;
            continue;
        }
        wn_vision_list_take(&v->sent, at);
        if (w->cancelled) {
            wn_vision_work_free(w);
            continue;
        }
        if (lost) {
            fail_work(v, w, lost, true);
            continue;
        }
        wn_encode_item_fini(&w->item);
        w->item = (struct wn_encode_item){0};
        wn_vision_list_put(&v->queue, w);
    }
}

/* The leader knows nothing of the old connection's credit, and may not have got what was sent. If it answers, that is
 * sent again; if it does not, the scheduler hears of it, which may still have the leader where we do not. */
static void lose_link(struct vision_worker *v, struct leader *l)
{
    WN_LOG(v->draining ? WN_LOG_INFO : WN_LOG_WARN, "vision", "the connection to %s was lost", l->address);
    l->credit = 0;
    l->met = false;
    l->lost_us = wn_now_us();
    greet(v, l->address);
}

static void take_credit(struct vision_worker *v, struct leader *l, uint32_t images)
{
    l->credit = images < CREDIT_MAX ? images : CREDIT_MAX; /* the first word of a connection: nothing is on its way */
    l->met = true;
    if (l->lost_us) end_sent(v, l->address, NULL);
    l->lost_us = 0;
}

static void fail_list(struct vision_worker *v, struct wn_vision_list *l, const char *leader, const struct wn_err *err)
{
    for (struct wn_vision_work **at = &l->first; *at;) {
        if (strcmp((*at)->e->leader_endpoint, leader) == 0) fail_work(v, wn_vision_list_take(l, at), err, true);
        else at = &(*at)->next;
    }
}

/* Gives up all that is for a leader, and forgets it. The scheduler may ask another worker, or choose another leader. */
static void leave_leader(struct vision_worker *v, struct leader *l, const char *why)
{
    struct wn_err err = {0};

    wn_fail(&err, WN_EPEER, "leader at %s %s", l->address, why);
    fail_list(v, &v->queue, l->address, &err);
    fail_list(v, &v->outbox, l->address, &err);
    end_sent(v, l->address, &err);
    *l = (struct leader){0};
}

/* The leader's entry; a new one is greeted. */
static struct leader *meet_leader(struct vision_worker *v, const char *address)
{
    struct leader *l = find_leader(v, address), *place = &v->leaders[0];

    if (!l) {
        for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++)
            if (v->leaders[i].used_us < place->used_us) place = &v->leaders[i];
        l = place;
        if (l->address[0]) leave_leader(v, l, "made room for others");
        memcpy(l->address, address, strlen(address) + 1);
        greet(v, address);
    }
    l->used_us = wn_now_us();
    return l;
}

/* Images that this leader has not taken. */
static uint32_t held_for(const struct vision_worker *v, const char *leader)
{
    return wn_vision_list_count(&v->queue, leader) + wn_vision_list_count(&v->outbox, leader);
}

/* ---- inbound ---- */

static void take_order(struct vision_worker *v, struct wn_front_msg *m)
{
    const Wn__Encode *e = m->env->encode;
    struct wn_vision_work *w = calloc(1, sizeof(*w));
    struct wn_err err = {0};

    if (!w) { /* the scheduler need not wait for its time limit */
        wn_fail(&err, WN_ENOMEM, "an order to encode");
        wn_front_send_error(v->front, &m->party, e->job, &err, true);
        wn_front_msg_free(m);
        return;
    }
    w->order = m;
    w->e = e;
    if (v->draining || v->queue.n + v->outbox.n >= v->cfg.vision_queue * 2) {
        wn_fail(&err, WN_EBUSY,
                v->draining ? "the vision worker is leaving" : "the vision worker's queue is full");
        fail_work(v, w, &err, true);
    } else if (!m->payload) {
        wn_fail(&err, WN_EPROTO, "an order without an image");
        fail_work(v, w, &err, false);
    } else if (!e->leader_endpoint[0] || strlen(e->leader_endpoint) >= WN_ADDRESS_MAX) {
        wn_fail(&err, WN_EPROTO, "an order without the address of a leader");
        fail_work(v, w, &err, false);
    } else if (held_for(v, e->leader_endpoint) >= v->cfg.vision_queue) {
        wn_fail(&err, WN_EBUSY, "%s has not taken the images that it has here", e->leader_name);
        fail_work(v, w, &err, true);
    } else {
        meet_leader(v, e->leader_endpoint);
        wn_vision_list_put(&v->queue, w);
    }
}

/* BUSY: the leader would take them later. NOENT: its order came too late, or never will; the scheduler knows which.
 * Other codes end the job, and the leader says so itself. */
static void take_ack(struct vision_worker *v, struct leader *l, const Wn__FeaturesAck *ack)
{
    struct wn_vision_work *w = take_sent(v, l->address, ack);
    struct wn_err err = {0};

    if (!w) return; /* of a connection before this one */
    l->credit++;
    if (ack->code)
        wn_fail(&err, ack->code == WN_EBUSY ? WN_EBUSY : WN_EPEER, "refused by %s: %s", w->e->leader_name, ack->text);
    if ((ack->code == WN_EBUSY || ack->code == WN_ENOENT) && !w->cancelled) {
        fail_work(v, w, &err, true);
        return;
    }
    if (ack->code) wn_info("vision", "%s image %u %s", ack->job->job_id, ack->image, err.text);
    wn_vision_work_free(w);
}

static void take_message(struct vision_worker *v, struct wn_front_msg *m)
{
    const Wn__Envelope *env = m->env;
    struct leader *l = m->party.side == WN_SIDE_LEADER ? find_leader(v, m->party.address) : NULL;

    if (m->lease_lost) {
        wn_vision_list_clear(&v->queue);
        wn_vision_list_clear(&v->outbox);
        cancel_sent(v, NULL);
    } else if (m->link_lost) {
        if (l) lose_link(v, l);
    } else if (m->unreachable) {
        if (l) leave_leader(v, l, "cannot be reached");
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_ENCODE) {
        take_order(v, m);
        return;
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_CANCEL) {
        wn_vision_list_cancel(&v->queue, env->cancel->job);
        wn_vision_list_cancel(&v->outbox, env->cancel->job);
        cancel_sent(v, env->cancel->job);
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_DRAIN) {
        v->draining = true;
    } else if (l && env->body_case == WN__ENVELOPE__BODY_CREDIT) {
        take_credit(v, l, env->credit->images);
    } else if (l && env->body_case == WN__ENVELOPE__BODY_FEATURES_ACK) {
        take_ack(v, l, env->features_ack);
    } else if (env->body_case == WN__ENVELOPE__BODY_ERROR) {
        wn_warn("vision", "%s", env->error->text);
    } else {
        wn_warn("vision", "unexpected %s", wn_codec_body_name(env->body_case));
    }
    wn_front_msg_free(m);
}

/* ---- encode and prune ---- */

/* What the order asks for; the scheduler has put the server's defaults in. */
static wn_status ask_of(const struct vision_worker *v, const Wn__Pruning *p, struct wn_encode_item *item,
                        struct wn_err *err)
{
    static const Wn__Pruning nothing = WN__PRUNING__INIT;
    wn_status rc = wn_pruning_ask(p ? p : &nothing, &item->method, &item->ask, err);

    if (rc != WN_OK) return rc;
    return wn_pruning_limit(item->method, &item->ask, wn_encoder_shape(&v->model).rows, v->cfg.image_tokens_max, err);
}

/* "image: JPEG: no more rows" of which of the request's? */
static void say_which(struct wn_err *err, uint32_t image)
{
    const struct wn_err said = *err;
    const size_t skip = strncmp(said.text, "image: ", 7) == 0 ? 7 : 0;

    wn_fail(err, said.code, "image %u: %s", image + 1, said.text + skip);
}

static void encode_batch(struct vision_worker *v)
{
    struct wn_vision_work *batch[WN_ENCODE_BATCH_MAX];
    struct wn_encode_item items[WN_ENCODE_BATCH_MAX];
    struct wn_front_load *load = wn_front_load(v->front);
    struct wn_err err = {0};
    uint32_t n = 0;
    bool tower = false; /* one of them needs it */

    while (v->queue.first && n < WN_ENCODE_BATCH_MAX) {
        struct wn_vision_work *w = wn_vision_list_take(&v->queue, &v->queue.first);
        w->item.file = w->order->payload;
        w->item.file_bytes = w->order->payload_bytes;
        if (ask_of(v, w->e->pruning, &w->item, &err) != WN_OK) {
            fail_work(v, w, &err, false);
            continue;
        }
        items[n] = w->item;
        batch[n++] = w;
    }
    wn_debug("vision", "%u images in one encode", n);
    wn_encoder_run(v->encoder, items, n);
    for (uint32_t i = 0; i < n; i++) {
        batch[i]->item = items[i];
        if (items[i].rc != WN_OK) {
            say_which(&items[i].err, batch[i]->e->image);
            fail_work(v, batch[i], &items[i].err, items[i].rc == WN_ENOMEM);
            continue;
        }
        batch[i]->until_us = wn_deadline_in_us(CREDIT_WAIT_US);
        atomic_fetch_add(&load->images, 1);
        atomic_fetch_add(&load->cache_hits, items[i].cached);
        tower = tower || !items[i].cached;
        wn_vision_list_put(&v->outbox, batch[i]);
    }
    atomic_fetch_add(&load->encodes, tower);
}

/* ---- features out ---- */

static void free_rows(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static size_t features_bytes(const struct vision_worker *v, const struct wn_encode_item *item)
{
    return (size_t)item->rows_n * item->width * wn_dtype_bytes(v->dtype);
}

/* What the picture cost. `waiting`: its features are here still, so that the scheduler does not take us for slow. */
static void tell_encoded(struct vision_worker *v, const struct wn_vision_work *w, bool waiting)
{
    const struct wn_encode_item *item = &w->item;
    Wn__Encoded done = WN__ENCODED__INIT;
    Wn__Pruning in_force = WN__PRUNING__INIT;

    done.job = w->e->job;
    done.image = w->e->image;
    done.rows_before = item->rows_before;
    done.rows = item->rows_n;
    done.preprocess_us = item->preprocess_us;
    done.encode_us = item->encode_us;
    done.prune_us = item->prune_us;
    done.bytes = features_bytes(v, item);
    done.waiting = waiting;
    wn_pruning_in_force(&in_force, item->method, &item->ask, item->rows_before, item->projected);
    if (w->e->pruning) in_force.position = w->e->pruning->position;
    done.pruning = &in_force;
    wn_front_send(v->front, &w->order->party, WN__ENVELOPE__BODY_ENCODED, &done, WN_TRAFFIC_CONTROL, NULL, 0, NULL,
                  NULL);
}

static void send_features(struct vision_worker *v, struct wn_vision_work *w)
{
    struct wn_encode_item *item = &w->item;
    const size_t bytes = features_bytes(v, item);
    uint8_t hash[WN_SHA256_BYTES];
    struct wn_party to = {.side = WN_SIDE_LEADER};
    Wn__Features f = WN__FEATURES__INIT;

    wn_sha256(hash, item->rows, bytes);
    f.job = w->e->job;
    f.image = w->e->image;
    f.method = (char *)(uintptr_t)item->method->name;
    f.space = item->projected ? WN__FEATURE_SPACE__SPACE_PROJECTED : WN__FEATURE_SPACE__SPACE_TOWER;
    f.dtype = (uint32_t)v->dtype;
    f.rows = item->rows_n;
    f.width = item->width;
    f.index = item->index;
    f.n_index = item->rows_n;
    if (!item->plain) f.flags = (ProtobufCBinaryData){.data = item->flags, .len = item->rows_n};
    f.sha256 = (ProtobufCBinaryData){.data = hash, .len = sizeof(hash)};
    f.rows_before = item->rows_before;
    f.preprocess_us = item->preprocess_us;
    f.encode_us = item->encode_us;
    f.prune_us = item->prune_us;
    f.cache_hit = item->cached;
    f.sent_us = (uint64_t)wn_now_us();
    /* before the features, or a short job could be over before the scheduler hears what its image cost */
    tell_encoded(v, w, false);
    memcpy(to.address, w->e->leader_endpoint, strlen(w->e->leader_endpoint) + 1);
    wn_front_send(v->front, &to, WN__ENVELOPE__BODY_FEATURES, &f, WN_TRAFFIC_EMBEDDING, item->rows, bytes, free_rows,
                  NULL);
    atomic_fetch_add(&wn_front_load(v->front)->sent_bytes[WN_TRAFFIC_EMBEDDING], bytes);
    item->rows = NULL; /* moved */
    wn_vision_list_put(&v->sent, w);
}

static void send_outbox(struct vision_worker *v)
{
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        struct leader *l = &v->leaders[i];
        if (l->lost_us && wn_now_us() - l->lost_us >= CREDIT_WAIT_US) leave_leader(v, l, "does not give credit again");
    }
    for (struct wn_vision_work **at = &v->outbox.first; *at;) {
        struct leader *l = find_leader(v, (*at)->e->leader_endpoint); /* there, or it would not have work here */
        struct wn_err err = {0};
        if (l && l->credit > 0) {
            l->credit--;
            l->used_us = wn_now_us();
            send_features(v, wn_vision_list_take(&v->outbox, at));
        } else if (!(l && l->met) && wn_deadline_passed((*at)->until_us)) {
            wn_fail(&err, WN_ETIME, "leader %s took no features for %lld s", (*at)->e->leader_name,
                    CREDIT_WAIT_US / 1000000);
            fail_work(v, wn_vision_list_take(&v->outbox, at), &err, true);
        } else {
            if (!(*at)->told) tell_encoded(v, *at, true);
            (*at)->told = true;
            at = &(*at)->next;
        }
    }
}

/* ---- the role ---- */

static wn_status open_worker(struct vision_worker *v, struct wn_err *err)
{
    struct wn_encoder_opts eo = {.cfg = &v->cfg, .model = &v->model, .limits = WN_IMAGE_LIMITS_DEFAULT};
    struct wn_weights *weights = NULL;
    wn_status rc = wn_worker_model(&v->cfg, &v->model, v->model_id, err);

    if (rc != WN_OK || (rc = wn_weights_open(&weights, v->cfg.model, err)) != WN_OK) return rc;
    wn_worker_identify(v->model_id, weights);
    wn_weights_close(weights);
    eo.dtype = v->dtype = wn_worker_dtype(&v->cfg, &v->model);
    eo.limits.bytes_max = v->cfg.image_bytes_max;
    eo.limits.pixels_max = v->cfg.image_pixels_max;
    if ((rc = wn_encoder_open(&v->encoder, &eo, err)) != WN_OK) return rc;
    return wn_encoder_warm_up(v->encoder, err);
}

/* Told to leave, and nothing is left to send. */
static bool may_leave(const struct vision_worker *v)
{
    return (v->draining || drain_asked) && !v->queue.first && !v->outbox.first;
}

static void serve(struct vision_worker *v)
{
    while (!may_leave(v)) {
        struct wn_front_load *load = wn_front_load(v->front);
        struct wn_front_msg *m;

        while ((m = wn_front_take(v->front)) != NULL) take_message(v, m);
        send_outbox(v);
        atomic_store(&load->running, v->outbox.n);
        atomic_store(&load->waiting, v->queue.n);
        atomic_store(&load->features, v->sent.n);
        if (v->queue.first && v->outbox.n < v->cfg.vision_queue)
            encode_batch(v);
        else if (!may_leave(v))
            wn_front_wait(v->front, wn_deadline_in_us(IDLE_WAIT_US));
    }
}

static void close_worker(struct vision_worker *v)
{
    wn_vision_list_clear(&v->queue);
    wn_vision_list_clear(&v->outbox);
    wn_vision_list_clear(&v->sent);
    wn_front_stop(v->front, STOP_FLUSH_MS);
    wn_key_close(v->key);
    wn_encoder_close(v->encoder);
}

int wn_role_vision(int argc, char **argv)
{
    struct vision_worker v = {0};
    struct wn_err err = {0};
    char scheduler[WN_ADDRESS_MAX];
    struct wn_netif net;
    struct wn_front_opts fo = {
        .role = WN__ROLE__ROLE_VISION, .build = WN_BUILD, .scheduler = scheduler};
    struct sigaction sa = {.sa_handler = on_signal};
    int code = wn_config_start(&v.cfg, argc, argv, "winnowd vision MODEL [OPTION]...\nEncodes and prunes images.",
                               WN_OPTIONS_SERVICE);
    wn_status rc;

    if (code >= 0) return code;
    if (!wn_role_has_model(&v.cfg) || !wn_role_has_place(&v.cfg)) return 2;
    wn_vision_list_init(&v.queue);
    wn_vision_list_init(&v.outbox);
    wn_vision_list_init(&v.sent);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGUSR1, &sa, NULL); /* srun passes this one on */
    signal(SIGPIPE, SIG_IGN);
    wn_worker_start("vision", &v.cfg, false);
    wn_worker_threads(&v.cfg, 1);
    if ((rc = wn_worker_key(&v.cfg, &v.key, &err)) != WN_OK) goto out;
    if ((rc = open_worker(&v, &err)) != WN_OK) goto out;
    if ((rc = wn_worker_netif(&v.cfg, &net, &err)) != WN_OK) goto out;
    if (net.name[0]) wn_info("vision", "interface %s (%s) towards the scheduler", net.name, net.address);
    wn_role_scheduler_address(&v.cfg, scheduler, sizeof(scheduler));
    fo.name = worker_name(&v);
    fo.model_id = v.model_id;
    fo.slots = v.cfg.vision_queue;
    fo.payload_max = v.cfg.image_bytes_max;
    fo.key = v.key;
    fo.insecure = v.cfg.insecure;
    if ((rc = wn_front_start(&v.front, &fo, &err)) != WN_OK) goto out;
    serve(&v);
out:
    if (rc != WN_OK) wn_error("vision", "%s", err.text);
    close_worker(&v);
    return rc == WN_OK ? 0 : 1;
}
