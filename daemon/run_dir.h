/* daemon/run_dir.h - the folders of a running service: its sockets, and what Open MPI keeps for each replica.
 *
 * There are two, one for files and one for shared memory (pages in a disk's file would be written to it). Each has a
 * file `owner` that the service's process holds locked for as long as it lives, however it ends. So the next service
 * of the same user on the same machine knows which folders nobody has any more, and removes them; nothing else is
 * touched. A folder that the user has named stays, cleared of ours.
 *
 * Owns:    the folders that it has made, and both locks, from open to close.
 * Threads: one. The locks end with the process that has opened, not with one that it starts.
 * Fails:   WN_EBUSY: another service has the folder; WN_EIO. */
#ifndef WN_DAEMON_RUN_DIR_H
#define WN_DAEMON_RUN_DIR_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define WN_RUN_PATH 512

struct wn_run_folder {
    char path[WN_RUN_PATH]; /* "": there is none */
    int lock, dir;
    bool named;             /* by the user */
};

struct wn_run_dir {
    struct wn_run_folder files, memory;
};

/* named: a folder that is there or can be made; "": a new one under `base`. memory_base (/dev/shm) may be missing, or
 * have less than memory_bytes free, as in containers: then shared memory is in files. What dead services have left
 * under both is removed first. */
WN_NODISCARD wn_status wn_run_dir_open(struct wn_run_dir *d, const char *named, const char *base,
                                       const char *memory_base, size_t memory_bytes, struct wn_err *err);

/* Shared memory alone, for a process that no launcher of ours has given a place on its machine: a folder for it, and in
 * it `memory`, a path of WN_RUN_PATH bytes for this part; "" where it cannot be had. What the dead have left is removed
 * first. */
void wn_run_dir_open_memory(struct wn_run_dir *d, const char *memory_base, size_t memory_bytes, const char *part,
                            char memory[WN_RUN_PATH]);

/* Is the folder for files still where it was made? */
bool wn_run_dir_there(const struct wn_run_dir *d);

/* A place for one part of the service ("replica-0") in each of the two, as paths of WN_RUN_PATH bytes; "" where none
 * could be made. Without a folder for shared memory both are the same. */
void wn_run_dir_part(const struct wn_run_dir *d, const char *part, char files[WN_RUN_PATH], char memory[WN_RUN_PATH]);

/* The part's processes have ended: removes those places, and its sockets. */
void wn_run_dir_part_ended(const struct wn_run_dir *d, const char *part);

void wn_run_dir_close(struct wn_run_dir *d); /* safe on a zeroed struct */

#endif
