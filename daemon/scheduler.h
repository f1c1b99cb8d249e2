/* daemon/scheduler.h - takes jobs from clients, hands them to vision workers and leaders, and passes the answers on.
 *
 * Owns:    two ZeroMQ endpoints (clients, workers), the job table and the worker table.
 * Threads: open, run and close in one thread; everything happens in one poll loop and no handler blocks.
 * Fails:   open: WN_EIO or WN_EINVAL with the address that could not be had. What clients and workers send cannot make
 *          run fail: it is answered with Error or dropped.
 *
 * Rules. A job is in the table before it is accepted; a full table answers Busy. A job goes to the least loaded leader
 * with a free slot, its images to vision workers by content (the same image to the same worker while that one has a
 * free slot). A worker that says nothing for --lease-ms is lost: jobs that depend on it go back to the queue with the
 * tokens they have, at most --max-attempts times; the last try of a job whose leaders have died is made alone. A job
 * that finds no worker connected for --no-worker-timeout fails.
 * Queued jobs go round-robin over their clients (accounts.h); a client is a key, and without keys a connection. One
 * that brings more than --max-job-rate, or has more jobs here than --max-queue-share and --max-jobs-per-client allow,
 * is answered Busy.
 * A slow client is not waited for: each follower has its own place in the answer and catches up. */
#ifndef WN_DAEMON_SCHEDULER_H
#define WN_DAEMON_SCHEDULER_H

#include "daemon/config.h"

struct wn_scheduler;

/* Binds tcp://HOST:PORT for clients and `workers` (ipc:// or tcp://) for workers. cfg is copied. */
WN_NODISCARD wn_status wn_scheduler_open(struct wn_scheduler **out, const struct wn_config *cfg, const char *workers,
                                         struct wn_err *err);

/* Serves until stop_fd becomes readable (a signalfd, eventfd or pipe; it is not read), or an admin says Drain. Then it
 * takes nothing new, waits for running jobs up to --shutdown-timeout or as long as the admin says, fails what is left,
 * and returns when clients and workers have been told, a second later at most. */
WN_NODISCARD wn_status wn_scheduler_run(struct wn_scheduler *s, int stop_fd, struct wn_err *err);

void wn_scheduler_close(struct wn_scheduler *s); /* NULL is fine */

/* The addresses with the ports that were chosen; valid until close. */
const char *wn_scheduler_client_address(const struct wn_scheduler *s);
const char *wn_scheduler_worker_address(const struct wn_scheduler *s);

#endif
