/* tests/fuzz/make_envelope_corpus.c - writes corpus/envelope: real messages of every kind, and damaged ones.
 *     make_envelope_corpus tests/fuzz/corpus/envelope */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/codec.h"
#include "tests/scratch.h"

static const char *folder;
static char job_id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

static void write_file(const char *name, const void *data, size_t bytes)
{
    if (scratch_write(folder, name, data, bytes)) return;
    fprintf(stderr, "cannot write %s/%s\n", folder, name);
    abort();
}

/* The message as name, its first half as name-cut, and with a byte changed as name-bent. */
static void emit(const char *name, Wn__Envelope__BodyCase kind, const void *body, bool damage)
{
    struct wn_err err = {0};
    uint8_t *data;
    size_t bytes;
    char other[64];

    if (wn_codec_pack_body(&data, &bytes, kind, body, &err) != WN_OK) {
        fprintf(stderr, "%s: %s\n", name, err.text);
        abort();
    }
    write_file(name, data, bytes);
    if (damage) {
        snprintf(other, sizeof(other), "%s-cut", name);
        write_file(other, data, bytes / 2);
        data[bytes / 3] ^= 0x55;
        snprintf(other, sizeof(other), "%s-bent", name);
        write_file(other, data, bytes);
    }
    free(data);
}

static Wn__JobRef the_job(uint32_t attempt)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;

    ref.job_id = job_id;
    ref.attempt = attempt;
    return ref;
}

static void client_messages(void)
{
    Wn__JobRef ref = the_job(0);
    Wn__Sampling sampling = WN__SAMPLING__INIT;
    Wn__Pruning pruning = WN__PRUNING__INIT;
    Wn__Submit submit = WN__SUBMIT__INIT;
    Wn__Attach attach = WN__ATTACH__INIT;
    Wn__Cancel cancel = WN__CANCEL__INIT;
    Wn__StatusRequest request = WN__STATUS_REQUEST__INIT;
    char *stop[] = {"\n\n", "USER:"};
    uint64_t images[] = {1000, 70000};

    sampling.max_tokens = 64;
    sampling.temperature = 0.7f;
    sampling.top_p = 0.9f;
    sampling.stop = stop;
    sampling.n_stop = 2;
    pruning.method = "none";
    pruning.keep = 64;
    submit.idempotency_key = "key-1";
    submit.prompt = "What is this? \xe2\x82\xac";
    submit.image_bytes = images;
    submit.n_image_bytes = 2;
    submit.sampling = &sampling;
    submit.pruning = &pruning;
    submit.client_tag = "1";
    emit("submit", WN__ENVELOPE__BODY_SUBMIT, &submit, true);
    attach.job_id = job_id;
    emit("attach", WN__ENVELOPE__BODY_ATTACH, &attach, false);
    cancel.job = &ref;
    emit("cancel", WN__ENVELOPE__BODY_CANCEL, &cancel, true);
    emit("status-request", WN__ENVELOPE__BODY_STATUS_REQUEST, &request, false);
}

static void answers(void)
{
    Wn__JobRef ref = the_job(2);
    Wn__Tokens tokens = WN__TOKENS__INIT;
    Wn__LinkBytes link = WN__LINK_BYTES__INIT;
    Wn__Usage usage = WN__USAGE__INIT;
    Wn__Done done = WN__DONE__INIT;
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;
    Wn__WorkerStatus worker = WN__WORKER_STATUS__INIT, *workers[] = {&worker, &worker};
    Wn__Status status = WN__STATUS__INIT;
    uint32_t ids[] = {1, 300, 70000};

    tokens.job = &ref;
    tokens.ids = ids;
    tokens.n_ids = 3;
    tokens.text = "a red dot";
    emit("tokens", WN__ENVELOPE__BODY_TOKENS, &tokens, true);
    link.allreduce = 123456789;
    usage.bytes_on_wire = &link;
    usage.decode_us = 99;
    done.job = &ref;
    done.reason = WN__FINISH_REASON__FINISH_LENGTH;
    done.usage = &usage;
    done.text = "a red dot";
    emit("done", WN__ENVELOPE__BODY_DONE, &done, true);
    beat.sent = &link;
    worker.role = WN__ROLE__ROLE_VISION;
    worker.name = "vision-0";
    worker.heartbeat = &beat;
    status.workers = workers;
    status.n_workers = 2;
    status.not_ready_because = "0 of 1 replicas are connected";
    emit("status", WN__ENVELOPE__BODY_STATUS, &status, true);
}

static void worker_messages(void)
{
    Wn__JobRef ref = the_job(1), *running[] = {&ref};
    Wn__RankInfo rank = WN__RANK_INFO__INIT, *ranks[] = {&rank, &rank};
    Wn__Hello hello = WN__HELLO__INIT;
    Wn__Welcome welcome = WN__WELCOME__INIT;
    Wn__Kept one = WN__KEPT__INIT, *kept[] = {&one, &one};
    Wn__Generate generate = WN__GENERATE__INIT;
    Wn__Encode encode = WN__ENCODE__INIT;
    Wn__Features features = WN__FEATURES__INIT;
    Wn__Credit credit = WN__CREDIT__INIT;
    uint32_t emitted[200], index[4] = {0, 7, 9, 0xffffffff};
    uint8_t hash[32], flags[4] = {0, 0, 1, 4};

    for (uint32_t i = 0; i < 200; i++) emitted[i] = i * 37;
    memset(hash, 0xab, sizeof(hash));
    hello.role = WN__ROLE__ROLE_LEADER;
    hello.name = "replica-0";
    hello.features_endpoint = "ipc:///tmp/x";
    hello.ranks = ranks;
    hello.n_ranks = 2;
    hello.running = running;
    hello.n_running = 1;
    hello.answering = running;
    hello.n_answering = 1;
    emit("hello", WN__ENVELOPE__BODY_HELLO, &hello, true);
    one.job = &ref;
    one.tokens = 12;
    welcome.worker_id = "replica-0";
    welcome.kept = kept;
    welcome.n_kept = 2;
    emit("welcome", WN__ENVELOPE__BODY_WELCOME, &welcome, true);
    generate.job = &ref;
    generate.prompt = "What is this?";
    generate.emitted = emitted;
    generate.n_emitted = 200;
    emit("generate", WN__ENVELOPE__BODY_GENERATE, &generate, true);
    encode.job = &ref;
    encode.leader_endpoint = "ipc:///tmp/x";
    emit("encode", WN__ENVELOPE__BODY_ENCODE, &encode, false);
    features.job = &ref;
    features.rows = 4;
    features.width = 1024;
    features.index = index;
    features.n_index = 4;
    features.flags = (ProtobufCBinaryData){4, flags};
    features.sha256 = (ProtobufCBinaryData){32, hash};
    emit("features", WN__ENVELOPE__BODY_FEATURES, &features, true);
    credit.images = 4;
    emit("credit", WN__ENVELOPE__BODY_CREDIT, &credit, false);
}

/* Short ones. */
static void small_messages(void)
{
    Wn__JobRef ref = the_job(1);
    Wn__Acknowledge ack = WN__ACKNOWLEDGE__INIT;
    Wn__Accepted accepted = WN__ACCEPTED__INIT;
    Wn__Busy busy = WN__BUSY__INIT;
    Wn__Error error = WN__ERROR__INIT;
    Wn__Encoded encoded = WN__ENCODED__INIT;
    Wn__FeaturesHello hello = WN__FEATURES_HELLO__INIT;
    Wn__FeaturesAck features = WN__FEATURES_ACK__INIT;
    Wn__RankInfo rank = WN__RANK_INFO__INIT, *ranks[] = {&rank};
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;
    Wn__Drain drain = WN__DRAIN__INIT;

    ack.job_id = job_id;
    emit("acknowledge", WN__ENVELOPE__BODY_ACKNOWLEDGE, &ack, true);
    accepted.job_id = job_id;
    accepted.client_tag = "1";
    emit("accepted", WN__ENVELOPE__BODY_ACCEPTED, &accepted, true);
    busy.client_tag = "1";
    busy.reason = "the queue is full";
    emit("busy", WN__ENVELOPE__BODY_BUSY, &busy, true);
    error.job = &ref;
    error.code = 6;
    error.text = "the vision worker is leaving";
    error.retriable = true;
    emit("error", WN__ENVELOPE__BODY_ERROR, &error, true);
    encoded.job = &ref;
    encoded.rows = 64;
    encoded.rows_before = 576;
    emit("encoded", WN__ENVELOPE__BODY_ENCODED, &encoded, true);
    hello.name = "vision-0";
    hello.model_id = "0123";
    emit("features-hello", WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, true);
    features.job = &ref;
    features.code = 5;
    features.text = "no such job";
    emit("features-ack", WN__ENVELOPE__BODY_FEATURES_ACK, &features, true);
    rank.rank = 3;
    rank.pid = 4711;
    beat.ranks = ranks;
    beat.n_ranks = 1;
    emit("heartbeat", WN__ENVELOPE__BODY_HEARTBEAT, &beat, true);
    drain.deadline_ms = 30000;
    drain.jobs = 3;
    emit("drain", WN__ENVELOPE__BODY_DRAIN, &drain, false);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    folder = argv[1];
    client_messages();
    answers();
    worker_messages();
    small_messages();
    write_file("empty", "", 0);
    write_file("version-9", "\x08\x09\x6a\x00", 4);
    write_file("two-bodies", "\x08\x01\x6a\x00\x6a\x00", 6);
    write_file("group", "\x08\x01\x53\x54", 4);
    write_file("length-wraps", "\x08\x01\x52\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 13);
    write_file("long-varint", "\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 13);
    write_file("bad-utf8", "\x08\x01\x52\x04\x12\x02\xc0\x80", 8);
    return 0;
}
