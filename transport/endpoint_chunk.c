/* transport/endpoint_chunk.c - see endpoint_chunk.h. */
#include "transport/endpoint_chunk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/chunk.h"

/* A frame that travels in pieces, none of them a copy. */
struct whole {
    atomic_size_t pieces; /* that ZeroMQ holds, and one while they are made */
    zmq_msg_t msg;
};

static void piece_free(void *data, void *hint)
{
    struct whole *w = hint;

    (void)data;
    if (atomic_fetch_sub(&w->pieces, 1) != 1) return;
    zmq_msg_close(&w->msg);
    free(w);
}

static int send_end(void *socket, int flags)
{
    zmq_msg_t empty;
    int rc;

    zmq_msg_init(&empty);
    rc = zmq_msg_send(&empty, socket, flags);
    if (rc < 0) zmq_msg_close(&empty);
    return rc;
}

/* Bytes [at, at + n) of the whole. */
static int send_piece(void *socket, struct whole *w, size_t at, size_t n, int flags)
{
    zmq_msg_t piece;
    int rc;

    if (zmq_msg_init_data(&piece, (uint8_t *)zmq_msg_data(&w->msg) + at, n, piece_free, w) != 0) return -1;
    atomic_fetch_add(&w->pieces, 1);
    rc = zmq_msg_send(&piece, socket, flags);
    if (rc < 0) zmq_msg_close(&piece);
    return rc;
}

int wn_chunk_send(void *socket, zmq_msg_t *frame, int flags)
{
    const size_t bytes = zmq_msg_size(frame);
    struct whole *w;
    int rc = 0;

    if (bytes < WN_CHUNK_BYTES) return zmq_msg_send(frame, socket, flags);
    if (!(w = malloc(sizeof(*w)))) {
        (void)send_end(socket, flags);
        errno = ENOMEM;
        return -1;
    }
    atomic_init(&w->pieces, 1);
    zmq_msg_init(&w->msg);
    zmq_msg_move(&w->msg, frame);
    for (size_t at = 0; at < bytes && rc >= 0; at += WN_CHUNK_BYTES) {
        const size_t left = bytes - at, n = left < WN_CHUNK_BYTES ? left : WN_CHUNK_BYTES;
        rc = send_piece(socket, w, at, n, n < WN_CHUNK_BYTES ? flags : flags | ZMQ_SNDMORE);
    }
    if (rc < 0 || bytes % WN_CHUNK_BYTES == 0) {
        const int end = send_end(socket, flags);
        if (rc >= 0) rc = end;
    }
    piece_free(NULL, w);
    return rc;
}

static void free_bytes(void *data, void *hint)
{
    (void)hint;
    free(data);
}

/* Appends a piece to what is there; room grows twofold. */
static bool append(uint8_t **data, size_t *room, size_t at, zmq_msg_t *piece)
{
    const size_t n = zmq_msg_size(piece);

    if (at + n > *room) {
        const size_t more = 2 * (at + n);
        uint8_t *p = realloc(*data, more);
        if (!p) return false;
        *data = p;
        *room = more;
    }
    memcpy(*data + at, zmq_msg_data(piece), n);
    return true;
}

wn_status wn_chunk_join(void *socket, zmq_msg_t *frame, size_t max, bool *more)
{
    uint8_t *data = NULL, *fitting;
    size_t bytes = zmq_msg_size(frame), room = 0, n = bytes;
    wn_status rc = bytes > max ? WN_EPROTO : WN_OK;

    while (rc == WN_OK && n == WN_CHUNK_BYTES) {
        zmq_msg_t piece;
        if (!*more) rc = WN_EPROTO;
        zmq_msg_init(&piece);
        if (rc == WN_OK && zmq_msg_recv(&piece, socket, ZMQ_DONTWAIT) < 0) rc = WN_EPROTO; /* they arrive together */
        n = zmq_msg_size(&piece);
        if (rc == WN_OK) *more = zmq_msg_more(&piece) != 0;
        if (rc == WN_OK && (n > WN_CHUNK_BYTES || n > max - bytes)) rc = WN_EPROTO;
        if (rc == WN_OK && n > 0 && !data && !append(&data, &room, 0, frame)) rc = WN_ENOMEM;
        if (rc == WN_OK && n > 0 && !append(&data, &room, bytes, &piece)) rc = WN_ENOMEM;
        zmq_msg_close(&piece);
        if (rc == WN_OK) bytes += n;
    }
    if (rc == WN_OK && data) {
        fitting = realloc(data, bytes);
        if (fitting) data = fitting;
        zmq_msg_close(frame);
        if (zmq_msg_init_data(frame, data, bytes, free_bytes, NULL) == 0) return WN_OK;
        zmq_msg_init(frame);
        rc = WN_ENOMEM;
    }
    free(data);
    return rc;
}
