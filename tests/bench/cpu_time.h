/* tests/bench/cpu_time.h - time on the processors that a service and this program have taken, by what their threads do:
 * a generated token costs more than its forward pass. */
#ifndef WN_BENCH_CPU_TIME_H
#define WN_BENCH_CPU_TIME_H

#include <stdint.h>

enum {
    CPU_CLIENT,    /* this process */
    CPU_SCHEDULER,
    CPU_MESSAGES,  /* of every rank, the threads of the front and of ZeroMQ */
    CPU_COMPUTE,   /* of every rank, the others */
    CPU_VISION,
    CPU_WORKS
};
extern const char *const cpu_work_names[CPU_WORKS];

struct cpu_time {
    double us[CPU_WORKS];
    uint64_t switches[CPU_WORKS]; /* times that a thread was taken off its processor, or waited */
};

/* Of the first replica and vision worker, and of all threads that live; since their start. */
void cpu_time_read(const char *run_dir, struct cpu_time *out);

#endif
