/* client/console.h - a Status as people read it (`winnow status`, `winnow top`) and as Prometheus does.
 * Owns: nothing. Threads: any. */
#ifndef WN_CLIENT_CONSOLE_H
#define WN_CLIENT_CONSOLE_H

#include <stdio.h>

#include "proto/codec.h"

/* A table of the service. With an earlier Status, `seconds` older, figures that count are shown as rates. */
void console_status(FILE *f, const char *endpoint, const Wn__Status *now, const Wn__Status *before, double seconds);

/* Prometheus text format: vLLM's names under our prefix, with its colon (the one thing that `promtool check metrics`
 * does not like), and ours for links, ranks, pruning and replays. */
void console_metrics(FILE *f, const Wn__Status *st);

/* Bytes that roles have sent, by kind, all workers and the scheduler together. */
void console_bytes(const Wn__Status *st, Wn__LinkBytes *sum);

#endif
