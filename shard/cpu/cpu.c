/* shard/cpu/cpu.c - the "cpu" backend: which instruction set to use, and its scratch memory. */
#include "shard/cpu/cpu.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "shard/cpu/memory.h"

/* Best first. */
static const struct wn_cpu_isa *const isas[] = {
#ifdef WN_CPU_HAVE_AVX2
    &wn_cpu_isa_avx2,
#endif
    &wn_cpu_isa_portable,
};

#define ISAS (sizeof(isas) / sizeof(isas[0]))

/* The instruction set that WINNOW_CPU_ISA names, or the best that this processor has. */
static wn_status choose_isa(const struct wn_cpu_isa **out, struct wn_err *err)
{
    const char *wish = getenv("WINNOW_CPU_ISA");
    char known[128] = "";
    size_t used = 0;

    for (size_t i = 0; i < ISAS; i++) {
        bool named = wish && strcmp(wish, isas[i]->name) == 0;
        if ((named || !wish || !*wish) && isas[i]->available()) {
            *out = isas[i];
            return WN_OK;
        }
        if (named) return wn_fail(err, WN_EUNSUPP, "WINNOW_CPU_ISA=%s: this processor does not have it", wish);
        if (used < sizeof(known))
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", isas[i]->name);
    }
    return wn_fail(err, WN_EINVAL, "WINNOW_CPU_ISA=%s is unknown; there are: %s", wish ? wish : "", known);
}

static wn_status cpu_open(struct wn_backend **out, int device, struct wn_err *err)
{
    const struct wn_cpu_isa *isa = NULL;
    struct wn_cpu *cpu;
    wn_status rc;

    if (device != 0) return wn_fail(err, WN_EINVAL, "cpu: device %d: there is only device 0", device);
    rc = choose_isa(&isa, err);
    if (rc != WN_OK) return rc;
    cpu = calloc(1, sizeof(*cpu));
    if (!cpu) return wn_fail(err, WN_ENOMEM, "cpu: backend handle");
    cpu->base.ops = &wn_backend_cpu;
    cpu->isa = isa;
    wn_info("cpu", "kernels: %s, threads: %d", isa->name, wn_cpu_threads());
    *out = &cpu->base;
    return WN_OK;
}

static void cpu_close(struct wn_backend *be)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    free(cpu->scratch);
    free(cpu->rope);
    free(cpu);
}

void *wn_cpu_scratch(struct wn_cpu *cpu, size_t bytes)
{
    if (bytes > cpu->scratch_bytes) {
        void *p = wn_cpu_alloc(bytes);
        if (!p) {
            (void)wn_fail(NULL, WN_ENOMEM, "cpu: %zu bytes of scratch", bytes);
            return NULL;
        }
        free(cpu->scratch);
        cpu->scratch = p;
        cpu->scratch_bytes = bytes;
    }
    return cpu->scratch;
}

int wn_cpu_threads(void)
{
    return omp_get_max_threads();
}

int wn_cpu_thread(void)
{
    return omp_get_thread_num();
}

const struct wn_backend_ops wn_backend_cpu = {
    .name = "cpu",
    .rows_min = 32,
    .open = cpu_open,
    .close = cpu_close,
    .memory = wn_cpu_memory,
    .buf_alloc = wn_cpu_buf_alloc,
    .buf_free = wn_cpu_buf_free,
    .upload = wn_cpu_upload,
    .download = wn_cpu_download,
    .weight_create = wn_cpu_weight_create,
    .weight_i8 = wn_cpu_weight_i8,
    .weight_rows = wn_cpu_weight_rows,
    .weight_i8_rows = wn_cpu_weight_i8_rows,
    .weight_destroy = wn_cpu_weight_destroy,
    .matmul = wn_cpu_matmul,
    .matmuls = wn_cpu_matmuls,
    .norm = wn_cpu_norm,
    .rope = wn_cpu_rope,
    .kv_write = wn_cpu_kv_write,
    .attn_paged = wn_cpu_attn_paged,
    .attn_full = wn_cpu_attn_full,
    .add = wn_cpu_add,
    .silu_mul = wn_cpu_silu_mul,
    .gather_rows = wn_cpu_gather_rows,
    .convert = wn_cpu_convert,
    .sync = wn_cpu_sync,
    .add_norm = wn_cpu_add_norm,
    .rope_kv = wn_cpu_rope_kv,
};
