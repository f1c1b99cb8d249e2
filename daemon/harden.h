/* daemon/harden.h - what a process of the service gives up and takes at its start. Threads: main, before others start.
 *
 * Every process: new privileges by exec. With keys also core dumps, and, but for ranks that read each other's memory
 * (MPI moves large messages that way), being traced or read by other processes of the same user: ZeroMQ keeps copies
 * of the keys that are not ours to lock.
 *
 * There is no seccomp filter. The vision worker, which decodes strangers' pictures, has threads of OpenMP, of ZeroMQ
 * and of the front in the process that decodes, and allocates with mmap; a filter that lets all of them live would
 * still have sockets, files and threads in it and so would keep out little. What keeps a picture in its place is that
 * its process holds no journal, opens no file and no address that a client named, has limits on bytes, pixels and rows
 * before it allocates, and is replaced when it dies. */
#ifndef WN_DAEMON_HARDEN_H
#define WN_DAEMON_HARDEN_H

#include <stdbool.h>

#include "base/status.h"

/* keys: this process holds some. read_by_peers: others of its user must be able to read its memory. */
void wn_harden(bool keys, bool read_by_peers);

/* Takes as many open files as the user may have, for each client is one: ZeroMQ ends a process that runs out of them at
 * the wrong time. WN_ELIMIT: too few even for a start. */
WN_NODISCARD wn_status wn_raise_files(struct wn_err *err);

#endif
