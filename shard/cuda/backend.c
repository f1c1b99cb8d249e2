#include "shard/cuda/cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/cuda/cuda.h"

static wn_status choose_kernels(wn_cuda_kernels *out, struct wn_err *err)
{
    static const char *const names[] = {"plain", "exact", "fast"};
    const char *wish = getenv("WINNOW_CUDA_KERNELS");

    *out = WN_CUDA_FAST;
    if (!wish || !*wish) return WN_OK;
    for (int i = 0; i < 3; i++) {
        if (strcmp(wish, names[i]) != 0) continue;
        *out = (wn_cuda_kernels)i;
        return WN_OK;
    }
    return wn_fail(err, WN_EINVAL, "WINNOW_CUDA_KERNELS=%s is unknown; there are: plain, exact, fast", wish);
}

static wn_status cuda_devices(int *n, struct wn_err *err)
{
    cudaError_t code = cudaGetDeviceCount(n);

    if (code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver || (code == cudaSuccess && *n == 0)) {
        (void)cudaGetLastError();
        return wn_fail(err, WN_EUNSUPP, "cuda: this machine has no usable NVIDIA GPU (%s)", cudaGetErrorString(code));
    }
    return wn_cuda_check(code, "devices", err);
}

wn_status wn_cuda_info(struct wn_cuda_info *out, int device, struct wn_err *err)
{
    struct cudaDeviceProp p;
    size_t left = 0, total = 0;
    int n = 0;
    wn_status rc = cuda_devices(&n, err);

    if (rc != WN_OK) return rc;
    if (device < 0 || device >= n)
        return wn_fail(err, WN_EINVAL, "cuda: device %d: this machine has devices 0 to %d", device, n - 1);
    if ((rc = wn_cuda_check(cudaSetDevice(device), "device", err)) != WN_OK) return rc;
    if ((rc = wn_cuda_check(cudaGetDeviceProperties(&p, device), "device", err)) != WN_OK) return rc;
    if ((rc = wn_cuda_check(cudaMemGetInfo(&left, &total), "device memory", err)) != WN_OK) return rc;
    *out = (struct wn_cuda_info){.major = p.major,
                                 .minor = p.minor,
                                 .processors = p.multiProcessorCount,
                                 .free_bytes = left,
                                 .total_bytes = total};
    snprintf(out->name, sizeof(out->name), "%.63s", p.name);
    if (p.major < 8)
        return wn_fail(err, WN_EUNSUPP, "cuda: device %d (%s) has compute capability %d.%d, 8.0 is needed", device,
                       out->name, p.major, p.minor);
    return WN_OK;
}

#ifndef WN_CUDA_ARCHITECTURES
#define WN_CUDA_ARCHITECTURES "others"
#endif

/* Without, the first operation would fail, and with a worse sentence. */
static wn_status check_code(const struct wn_cuda_info *info, int device, struct wn_err *err)
{
    const cudaError_t code = (cudaError_t)wn_cuda_has_code();

    if (code == cudaSuccess) return WN_OK;
    (void)cudaGetLastError();
    return wn_fail(err, WN_EUNSUPP,
                   "cuda: device %d (%s) has compute capability %d.%d, and this build has kernels for %s (%s): "
                   "-DWN_CUDA_ARCHITECTURES=%d%d",
                   device, info->name, info->major, info->minor, WN_CUDA_ARCHITECTURES, cudaGetErrorString(code),
                   info->major, info->minor);
}

static void cuda_close(struct wn_backend *be)
{
    struct wn_cuda *c = (struct wn_cuda *)be;

    if (c->uploaded_bytes > 0)
        wn_debug("cuda", "weights: %.2f GB at %.2f GB/s", (double)c->uploaded_bytes * 1e-9,
                 (double)c->uploaded_bytes * 1e-3 / (double)(c->upload_us ? c->upload_us : 1));
    wn_cuda_lt_close(c->lt);
    wn_cuda_memory_close(c);
    free(c);
}

static wn_status cuda_open(struct wn_backend **out, int device, struct wn_err *err)
{
    static const char *const names[] = {"plain", "exact", "fast"};
    struct wn_cuda *c = NULL;
    struct wn_cuda_info info;
    wn_cuda_kernels kernels;
    wn_status rc;

    if ((rc = choose_kernels(&kernels, err)) != WN_OK) return rc;
    if ((rc = wn_cuda_info(&info, device, err)) != WN_OK) return rc;
    if ((rc = check_code(&info, device, err)) != WN_OK) return rc;
    c = calloc(1, sizeof(*c));
    if (!c) return wn_fail(err, WN_ENOMEM, "cuda: backend handle");
    c->base.ops = &wn_backend_cuda;
    c->device = device;
    c->kernels = kernels;
    if ((rc = wn_cuda_memory_open(c, err)) != WN_OK) goto out;
    if (info.major < 9) c->queue.overlap = false; /* such devices have no word for it */
    if (kernels == WN_CUDA_FAST) {
        struct wn_err why = {0};
        rc = wn_cuda_lt_open(&c->lt, &why);
        if (rc == WN_EUNSUPP) {
            wn_warn("cuda", "%s: steps of many rows run on our own kernels, which are slower", why.text);
        } else if (rc != WN_OK) {
            rc = wn_fail(err, rc, "%s", why.text);
            goto out;
        }
    }
    wn_info("cuda", "device %d: %s, %.1f of %.1f GB free, kernels: %s%s", device, info.name,
            (double)info.free_bytes * 1e-9, (double)info.total_bytes * 1e-9, names[kernels],
            c->lt ? " with cuBLASLt" : "");
    *out = &c->base;
    return WN_OK;
out:
    cuda_close(&c->base);
    return rc;
}

void wn_cuda_load_rate(const struct wn_backend *be, uint64_t *bytes, uint64_t *us)
{
    const struct wn_cuda *c = (const struct wn_cuda *)be;

    *bytes = c->uploaded_bytes;
    *us = c->upload_us;
}

static void *cuda_queue(struct wn_backend *be)
{
    (void)!wn_cuda_flush((struct wn_cuda *)be); /* what fails there fails again at the next wait */
    return ((struct wn_cuda *)be)->stream;
}

const struct wn_backend_ops wn_backend_cuda = {
    .name = "cuda",
    .device_memory = true,
    .open = cuda_open,
    .close = cuda_close,
    .memory = wn_cuda_memory,
    .buf_alloc = wn_cuda_buf_alloc,
    .buf_free = wn_cuda_buf_free,
    .pin = wn_cuda_pin,
    .unpin = wn_cuda_unpin,
    .upload = wn_cuda_upload,
    .download = wn_cuda_download,
    .weight_create = wn_cuda_weight_create,
    .weight_i8 = wn_cuda_weight_i8,
    .weight_rows = wn_cuda_weight_rows,
    .weight_i8_rows = wn_cuda_weight_rows,
    .weight_destroy = wn_cuda_weight_destroy,
    .matmul = wn_cuda_matmul,
    .matmuls = wn_cuda_matmuls,
    .norm = wn_cuda_norm,
    .rope = wn_cuda_rope,
    .add_norm = wn_cuda_add_norm,
    .rope_kv = wn_cuda_rope_kv,
    .kv_write = wn_cuda_kv_write,
    .attn_paged = wn_cuda_attn_paged,
    .attn_full = wn_cuda_attn_full,
    .add = wn_cuda_add,
    .silu_mul = wn_cuda_silu_mul,
    .gather_rows = wn_cuda_gather_rows,
    .convert = wn_cuda_convert,
    .pick = wn_cuda_pick,
    .row_dots = wn_cuda_row_dots,
    .row_sums = wn_cuda_row_sums,
    .sync = wn_cuda_sync,
    .step_begin = wn_cuda_step_begin,
    .step_end = wn_cuda_step_end,
    .step_alike = wn_cuda_step_alike,
    .devices = cuda_devices,
    .queue = cuda_queue,
    .sum_parts = wn_cuda_sum_parts,
};
