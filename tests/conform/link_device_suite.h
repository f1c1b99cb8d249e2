/* tests/conform/link_device_suite.h - what a link with a device must do; see test_link_device.c for where it runs.
 *
 * Each rank of the group (a thread or a process) calls it with its own link and its own open backend.
 * Threads: no global state. Fails: prints each failed check with rank, file and line, and goes on. */
#ifndef WN_TESTS_LINK_DEVICE_SUITE_H
#define WN_TESTS_LINK_DEVICE_SUITE_H

#include "shard/backend.h"
#include "tests/conform/link_suite.h"
#include "transport/nccl.h"

/* Attaches several layouts of the ranks in turn and runs the cases on each. The last case cancels the link. */
struct link_suite_result link_device_suite_run(struct wn_link *link, struct wn_backend *be, int device);

/* Options of an attachment: the ranks in `group` order sum, rows go from prev to next. For other tests. */
struct wn_nccl_opts link_device_opts(struct wn_backend *be, int device, const struct wn_comm *group, int prev,
                                     int next);

#endif
