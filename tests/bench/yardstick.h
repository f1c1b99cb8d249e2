/* tests/bench/yardstick.h - what this machine can do, measured in the same run as what is compared with it, and the
 * clock for both. */
#ifndef WN_BENCH_YARDSTICK_H
#define WN_BENCH_YARDSTICK_H

/* One thread alone (OMP_NUM_THREADS=1) is timed by what it used of its core: fair beside other work, too. */
double yardstick_now_us(void);

/* All threads sum floats [n]; the best of about a second is the read bandwidth. */
void yardstick_read(const float *p, unsigned long n);

/* Multiply-adds in registers on all threads: returns how many operations (two each), or 0 where there is no way. */
double yardstick_fma(void);

#endif
