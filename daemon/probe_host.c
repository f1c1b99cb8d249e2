/* daemon/probe_host.c - what a probe says about its host: versions, memory, interface, pictures a second, the journal's
 * folder; and the kernel's byte counters. See probe.h. */
#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <zmq.h>
/* jpeglib.h wants stdio.h before it */
#include <jpeglib.h>

#include "base/hostmem.h"
#include "daemon/probe.h"
#include "daemon/roles.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"
#include "winnow_version.h"

#define PICTURE_W  640 /* as most photographs of data sets are */
#define PICTURE_H  480
#define DECODE_US  150000ll
#define LINE_BYTES 512

/* ---- the host ---- */

static void mpi_version(char *out, size_t size)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int n = 0;

    if (MPI_Get_library_version(text, &n) != MPI_SUCCESS) text[0] = '\0';
    snprintf(out, size, "%.*s", (int)strcspn(text, ",\n"), text);
}

void wn_probe_say_host(struct wn_probe *p)
{
    struct wn_hostmem memory = {0};
    char winnow[64], mpi[128], zmq[32];
    int major, minor, patch;
    struct utsname u = {0};

    uname(&u);
    (void)!wn_hostmem(&memory, NULL);
    zmq_version(&major, &minor, &patch);
    snprintf(winnow, sizeof(winnow), "%s (%s)", WN_VERSION, WN_COMMIT);
    snprintf(zmq, sizeof(zmq), "%d.%d.%d", major, minor, patch);
    mpi_version(mpi, sizeof(mpi));
    wn_probe_say(p, "host",
                 json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:i}", "interface", p->net.name, "address",
                           p->net.address, "winnow", winnow, "mpi", mpi, "zmq", zmq, "kernel", u.release,
                           "memory_free", (json_int_t)memory.free_bytes, "cpus", (int)sysconf(_SC_NPROCESSORS_ONLN)));
}

/* ---- the journal's folder ---- */

/* The folder, or as long as nobody has made it the one that it will be made in. */
static bool existing(const char *path, char out[WN_PATH_LEN], struct stat *st)
{
    char *slash;

    snprintf(out, WN_PATH_LEN, "%s", path);
    while (stat(out, st) != 0) {
        if (errno != ENOENT || strcmp(out, ".") == 0) return false;
        if ((slash = strrchr(out, '/'))) slash[slash == out] = '\0';
        else snprintf(out, WN_PATH_LEN, ".");
    }
    return true;
}

void wn_probe_say_journal(struct wn_probe *p)
{
    const char *journal = p->cfg.journal;
    char at[WN_PATH_LEN];
    struct statvfs fs;
    struct stat st;
    uint64_t free_bytes;
    bool there;

    if (!journal[0]) return;
    there = existing(journal, at, &st);
    if (there && !S_ISDIR(st.st_mode)) {
        wn_probe_wrong(p, "--journal %s: %s is not a folder", journal, at);
        return;
    }
    if (!there || access(at, W_OK | X_OK) != 0 || statvfs(at, &fs) != 0) {
        wn_probe_wrong(p, "--journal %s: %s", journal, strerror(errno));
        return;
    }
    free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    wn_probe_say(p, "journal", json_pack("{s:s, s:I}", "path", journal, "free", (json_int_t)free_bytes));
    if (free_bytes < p->cfg.max_request_bytes)
        wn_probe_wrong(p, "--journal %s: %.1f MB are free, and one job may bring %.1f MB (--max-request-bytes)",
                       journal, (double)free_bytes * 1e-6, (double)p->cfg.max_request_bytes * 1e-6);
}

/* ---- pictures a second ---- */

/* A JPEG of slopes and stripes, in memory that the caller frees. */
static void make_picture(unsigned char **out, unsigned long *bytes)
{
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char row[PICTURE_W * 3], *rows[] = {row};

    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, out, bytes);
    jpeg.image_width = PICTURE_W;
    jpeg.image_height = PICTURE_H;
    jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, 90, TRUE);
    jpeg_start_compress(&jpeg, TRUE);
    for (unsigned y = 0; y < PICTURE_H; y++) {
        for (unsigned x = 0; x < PICTURE_W; x++) {
            row[3 * x] = (unsigned char)(x + y);
            row[3 * x + 1] = (unsigned char)(x * y / 64);
            row[3 * x + 2] = (unsigned char)((x ^ y) * 2);
        }
        jpeg_write_scanlines(&jpeg, rows, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
}

/* Decodes and resizes as the vision worker does, on one thread. */
void wn_probe_say_decode(struct wn_probe *p)
{
    struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
    char path[WN_PATH_MAX];
    struct wn_preprocess pp;
    struct wn_err err = {0};
    unsigned char *picture = NULL;
    unsigned long bytes = 0;
    float *pixels = NULL;
    const int64_t began_us = wn_now_us();
    uint32_t n = 0;
    struct stat st;
    wn_status rc = WN_OK;

    if (stat(p->cfg.model, &st) != 0 || !S_ISDIR(st.st_mode)) return; /* only a config.json: no processor */
    limits.bytes_max = p->cfg.image_bytes_max;
    limits.pixels_max = p->cfg.image_pixels_max;
    if ((rc = wn_path_join(path, p->cfg.model, "preprocessor_config.json", &err)) != WN_OK ||
        (rc = wn_preprocess_load(&pp, path, &err)) != WN_OK)
        goto out;
    make_picture(&picture, &bytes);
    pixels = malloc(sizeof(*pixels) * 3 * pp.height * pp.width);
    if (!pixels) rc = wn_fail(&err, WN_ENOMEM, "pixels");
    while (rc == WN_OK && (n < 3 || wn_now_us() - began_us < DECODE_US)) {
        struct wn_image image = {0};
        if ((rc = wn_image_decode(&image, picture, bytes, &limits, &err)) == WN_OK)
            rc = wn_preprocess_run(&pp, &image, pixels, &err);
        wn_image_fini(&image);
        n++;
    }
out:
    if (rc != WN_OK)
        wn_probe_wrong(p, "%s", err.text);
    else
        wn_probe_say(p, "decode",
                     json_pack("{s:f, s:i, s:i}", "images_per_s", n * 1e6 / (double)(wn_now_us() - began_us), "width",
                               PICTURE_W, "height", PICTURE_H));
    free(pixels);
    free(picture);
}

/* ---- the kernel's counters ---- */

/* Lines "  eth0: RX..." of 16 numbers; the ninth is what was sent. */
void wn_probe_tx_read(struct wn_probe_tx *tx)
{
    FILE *f = fopen("/proc/self/net/dev", "r");
    char line[LINE_BYTES];

    tx->n = 0;
    while (f && tx->n < 32 && fgets(line, sizeof(line), f)) {
        const char *name = line + strspn(line, " "), *colon = strchr(name, ':');
        unsigned long long sent;
        if (!colon || (size_t)(colon - name) >= WN_NETIF_NAME_LEN) continue;
        if (sscanf(colon + 1, "%*u %*u %*u %*u %*u %*u %*u %*u %llu", &sent) != 1) continue;
        snprintf(tx->name[tx->n], WN_NETIF_NAME_LEN, "%.*s", (int)(colon - name), name);
        tx->bytes[tx->n++] = sent;
    }
    if (f) fclose(f);
}

void wn_probe_tx_by(const struct wn_probe_tx *before, uint64_t bytes, char out[WN_NETIF_NAME_LEN])
{
    struct wn_probe_tx now;

    wn_probe_tx_read(&now);
    out[0] = '\0';
    for (uint32_t i = 0; i < now.n; i++)
        for (uint32_t j = 0; j < before->n; j++)
            if (strcmp(now.name[i], before->name[j]) == 0 && now.bytes[i] - before->bytes[j] >= bytes / 2)
                memcpy(out, now.name[i], WN_NETIF_NAME_LEN);
}
