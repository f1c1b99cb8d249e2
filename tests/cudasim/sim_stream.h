/* tests/cudasim/sim_stream.h - what the simulated NCCL and cuBLASLt ask of the simulated device. A program that lets
 * them be opened exports these. */
#ifndef WN_TESTS_CUDASIM_SIM_STREAM_H
#define WN_TESTS_CUDASIM_SIM_STREAM_H

#include <stdbool.h>

#include "tests/cudasim/cuda_runtime_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Queues work: step is called, under the device's lock, until it says that the work is done. */
void sim_stream_push(cudaStream_t st, bool (*step)(void *ctx), void *ctx);
int sim_current_device(void); /* of this thread */
/* Device memory that is registered must not be freed before it is returned: the device's cudaFree ends the program. */
void sim_memory_lend(const void *p);
void sim_memory_return(const void *p);

#ifdef __cplusplus
}
#endif

#endif
