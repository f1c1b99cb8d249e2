/* shard/image_decode.c - see image.h. One section for each format; the C libraries report failures
 * by longjmp, which never leaves the section: all state that a jump must not lose is in a struct
 * outside the frame that jumps. */
#include "shard/image.h"

#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>
#include <png.h>
#include <webp/decode.h>

#define TEXT_MAX 256
#define JPEG_SCANS                                                                                 \
    100 /* each scan walks the whole picture: more of them is an attack, not a photograph */

/* What a decoder is given, and where the pixels go. */
struct decode {
    const uint8_t *data; /* borrowed */
    size_t bytes;
    const struct wn_image_limits *limits; /* borrowed */
    struct wn_image img; /* being made; rgb is NULL until the header has been checked */
    struct wn_err *err;
};

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

/* 33554432 -> "33,554,432" */
static const char *grouped(uint64_t n, char text[32])
{
    char *p = text + 31;
    int digits = 0;

    *p = '\0';
    do {
        if (digits && digits % 3 == 0) *--p = ',';
        *--p = (char)('0' + n % 10);
        n /= 10;
        digits++;
    } while (n);
    return p;
}

static wn_status check_size(const struct decode *d, const char *format, uint64_t width,
                            uint64_t height)
{
    const struct wn_image_limits *lim = d->limits;
    char num[32];

    if (!width || !height)
        return wn_fail(d->err, WN_EFORMAT, "image: %s of %" PRIu64 "x%" PRIu64 " pixels", format,
                       width, height);
    if (width > lim->side_max || height > lim->side_max)
        return wn_fail(d->err, WN_ELIMIT,
                       "image: %s %" PRIu64 "x%" PRIu64 " exceeds %s pixels a side", format, width,
                       height, grouped(lim->side_max, num));
    if (width * height > lim->pixels_max) /* both are at most 32 bits wide here */
        return wn_fail(d->err, WN_ELIMIT, "image: %s %" PRIu64 "x%" PRIu64 " exceeds %s pixels",
                       format, width, height, grouped(lim->pixels_max, num));
    return WN_OK;
}

/* Checks the header's size and only then allocates. */
static wn_status make_pixels(struct decode *d, const char *format, uint64_t width, uint64_t height)
{
    wn_status rc = check_size(d, format, width, height);

    if (rc != WN_OK) return rc;
    if (width * height > SIZE_MAX / 3)
        return wn_fail(d->err, WN_ENOMEM, "image: %s of %" PRIu64 " pixels", format,
                       width * height);
    d->img.rgb = calloc((size_t)(width * height), 3);
    if (!d->img.rgb)
        return wn_fail(d->err, WN_ENOMEM, "image: %s of %" PRIu64 " pixels", format,
                       width * height);
    d->img.width = (uint32_t)width;
    d->img.height = (uint32_t)height;
    return WN_OK;
}

static uint8_t *row_at(const struct decode *d, uint32_t y)
{
    return d->img.rgb + (size_t)y * d->img.width * 3;
}

/* ---- JPEG ---- */

struct jpeg_job {
    struct jpeg_error_mgr mgr; /* first: libjpeg hands it back as cinfo->err */
    struct jpeg_decompress_struct cinfo;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
    struct decode *d;
    wn_status rc; /* what the work returned, if it returned */
};

_Noreturn static void jpeg_fail(j_common_ptr cinfo)
{
    struct jpeg_job *job = (struct jpeg_job *)(void *)cinfo->err;

    if (!job->text[0]) (*cinfo->err->format_message)(cinfo, job->text);
    longjmp(job->jump, 1);
}

/* Data that ends early makes libjpeg invent the rest and warn; an invented picture is no answer. */
static void jpeg_message(j_common_ptr cinfo, int level)
{
    struct jpeg_job *job = (struct jpeg_job *)(void *)cinfo->err;
    int code = cinfo->err->msg_code;

    if (level >= 0 || (code != JWRN_JPEG_EOF && code != JWRN_HIT_MARKER)) return;
    snprintf(job->text, sizeof(job->text), "the data ends too early");
    jpeg_fail(cinfo);
}

static void jpeg_scan(j_common_ptr cinfo)
{
    struct jpeg_job *job = (struct jpeg_job *)(void *)cinfo->err;

    if (job->cinfo.input_scan_number <= JPEG_SCANS) return;
    snprintf(job->text, sizeof(job->text), "more than %d scans", JPEG_SCANS);
    jpeg_fail(cinfo);
}

/* x * y / 255, rounded, for 0..255 */
static unsigned mul255(unsigned x, unsigned y)
{
    unsigned t = x * y + 128;
    return ((t >> 8) + t) >> 8;
}

/* Inverted CMYK as it is in the file, so each byte is already "how much light this ink lets
 * through". */
static void cmyk_to_rgb(uint8_t *rgb, const uint8_t *cmyk, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++, rgb += 3, cmyk += 4) {
        unsigned white = cmyk[3];
        for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)(white - mul255(255u - cmyk[c], white));
    }
}

static void jpeg_work(struct jpeg_job *job)
{
    struct jpeg_decompress_struct *c = &job->cinfo;
    struct decode *d = job->d;
    JSAMPARRAY cmyk = NULL;

    jpeg_create_decompress(c);
    c->progress = &job->progress;
    /* progressive files keep all coefficients: up to 4 components of 2 bytes, plus padding */
    c->mem->max_memory_to_use =
        d->limits->pixels_max < LONG_MAX / 32 ? (16l << 20) + (long)d->limits->pixels_max * 16 : 0;
    jpeg_mem_src(c, d->data, (unsigned long)d->bytes);
    jpeg_read_header(c, TRUE);
    if (c->num_components != 1 && c->num_components != 3 && c->num_components != 4) {
        job->rc = wn_fail(d->err, WN_EUNSUPP, "image: JPEG of %d components", c->num_components);
        return;
    }
    job->rc = make_pixels(d, "JPEG", c->image_width, c->image_height);
    if (job->rc != WN_OK) return;
    c->out_color_space = c->num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(c);
    if (c->output_width != d->img.width || c->output_height != d->img.height) {
        job->rc = wn_fail(d->err, WN_EFORMAT, "image: JPEG: the size changed after the header");
        return;
    }
    if (c->num_components == 4)
        cmyk = c->mem->alloc_sarray((j_common_ptr)c, JPOOL_IMAGE, c->output_width * 4, 1);
    while (c->output_scanline < c->output_height) {
        uint8_t *row = row_at(d, c->output_scanline);
        if (jpeg_read_scanlines(c, cmyk ? cmyk : &row, 1) != 1) {
            job->rc = wn_fail(d->err, WN_EFORMAT, "image: JPEG: no more rows");
            return;
        }
        if (cmyk) cmyk_to_rgb(row, cmyk[0], d->img.width);
    }
    jpeg_finish_decompress(c); /* reads on to the end marker: a file without one is truncated */
}

static wn_status jpeg_decode(struct decode *d)
{
    struct jpeg_job job = {.d = d, .rc = WN_OK};

    job.cinfo.err = jpeg_std_error(&job.mgr);
    job.mgr.error_exit = jpeg_fail;
    job.mgr.emit_message = jpeg_message;
    job.progress.progress_monitor = jpeg_scan;
    if (setjmp(job.jump) == 0)
        jpeg_work(&job);
    else
        job.rc = wn_fail(d->err, WN_EFORMAT, "image: JPEG: %s", job.text);
    jpeg_destroy_decompress(&job.cinfo);
    return job.rc;
}

/* ---- PNG ---- */

struct png_job {
    png_structp png;
    png_infop info;
    size_t at; /* bytes read so far */
    char text[TEXT_MAX];
    struct decode *d;
    wn_status rc;
};

_Noreturn static void png_fail(png_structp png, png_const_charp text)
{
    struct png_job *job = png_get_error_ptr(png);

    snprintf(job->text, sizeof(job->text), "%s", text);
    png_longjmp(png, 1);
}

static void png_quiet(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void png_take(png_structp png, png_bytep out, size_t n)
{
    struct png_job *job = png_get_io_ptr(png);

    if (n > job->d->bytes - job->at) png_error(png, "the data ends too early");
    memcpy(out, job->d->data + job->at, n);
    job->at += n;
}

/* Widens rows that were read as one index or one 16-bit grey a pixel, in place and from the right. */
static void png_widen(struct decode *d, const png_color *palette, int colors)
{
    for (uint32_t y = 0; y < d->img.height; y++) {
        uint8_t *row = row_at(d, y);
        for (size_t x = d->img.width; x-- > 0;) {
            uint8_t *px = row + x * 3;
            if (palette) {
                uint8_t i = row[x];
                px[2] = i < colors ? palette[i].blue : 0; /* an index past the palette is black */
                px[1] = i < colors ? palette[i].green : 0;
                px[0] = i < colors ? palette[i].red : 0;
            } else {
                uint8_t v =
                    row[x * 2] ? 255 : row[x * 2 + 1]; /* clipped, not scaled: see image.h */
                px[0] = px[1] = px[2] = v;
            }
        }
    }
}

static void png_work(struct png_job *job)
{
    static const png_byte skip[] = "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iCCP\0iTXt\0oFFs\0pCAL\0pHYs\0"
                                   "sBIT\0sCAL\0sPLT\0sRGB\0sTER\0tEXt\0tIME\0tRNS\0zTXt";
    struct decode *d = job->d;
    png_structp png = job->png;
    png_colorp palette = NULL;
    png_uint_32 width = 0, height = 0;
    int depth = 0, type = 0, colors = 0, passes;
    size_t pixel_bytes = 3;

    png_set_read_fn(png, job, png_take);
    png_set_user_limits(png, d->limits->side_max, d->limits->side_max);
    png_set_chunk_malloc_max(png, 1 << 20);
    /* none of these changes a pixel here, and some of them unpack compressed text */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, skip, (int)(sizeof(skip) / 5));
    png_read_info(png, job->info);
    png_get_IHDR(png, job->info, &width, &height, &depth, &type, NULL, NULL, NULL);
    job->rc = make_pixels(d, "PNG", width, height);
    if (job->rc != WN_OK) return;

    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_set_packing(png);
        png_set_check_for_invalid_index(png, 0);
        pixel_bytes = 1;
    } else if (type == PNG_COLOR_TYPE_GRAY && depth == 16) {
        pixel_bytes = 2;
    } else {
        if (depth < 8) png_set_expand_gray_1_2_4_to_8(png);
        if (depth == 16) png_set_strip_16(png);
        if (type & PNG_COLOR_MASK_ALPHA) png_set_strip_alpha(png);
        if (!(type & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
    }
    passes = png_set_interlace_handling(png);
    png_read_update_info(png, job->info);
    if (png_get_rowbytes(png, job->info) != (size_t)width * pixel_bytes)
        png_error(png, "odd row size");
    for (int pass = 0; pass < passes; pass++)
        for (png_uint_32 y = 0; y < height; y++) png_read_row(png, row_at(d, y), NULL);
    png_read_end(png, NULL);
    if (type == PNG_COLOR_TYPE_PALETTE && !png_get_PLTE(png, job->info, &palette, &colors))
        png_error(png, "no palette");
    if (pixel_bytes < 3) png_widen(d, palette, colors);
}

static wn_status png_decode(struct decode *d)
{
    struct png_job job = {.d = d, .rc = WN_OK};

    /* the header is at a fixed place: look at the size before libpng looks at anything */
    if (d->bytes < 33 || be32(d->data + 8) != 13 || memcmp(d->data + 12, "IHDR", 4) != 0)
        return wn_fail(d->err, WN_EFORMAT, "image: PNG without a header chunk");
    job.rc = check_size(d, "PNG", be32(d->data + 16), be32(d->data + 20));
    if (job.rc != WN_OK) return job.rc;
    job.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &job, png_fail, png_quiet);
    job.info = job.png ? png_create_info_struct(job.png) : NULL;
    if (!job.info)
        job.rc = wn_fail(d->err, WN_ENOMEM, "image: PNG reader");
    else if (setjmp(png_jmpbuf(job.png)) == 0)
        png_work(&job);
    else
        job.rc = wn_fail(d->err, WN_EFORMAT, "image: PNG: %s", job.text);
    png_destroy_read_struct(&job.png, &job.info, NULL);
    return job.rc;
}

/* ---- WebP ---- */

static const char *webp_reason(VP8StatusCode code)
{
    switch (code) {
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
        return "the data ends too early";
    case VP8_STATUS_OUT_OF_MEMORY:
        return "out of memory";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return "unsupported feature";
    default:
        return "damaged data";
    }
}

static wn_status webp_decode(struct decode *d)
{
    WebPDecoderConfig cfg;
    VP8StatusCode code;
    wn_status rc;

    if (d->bytes < 20 || (uint64_t)le32(d->data + 4) + 8 > d->bytes)
        return wn_fail(d->err, WN_EFORMAT, "image: WebP: the data ends too early");
    if (!WebPInitDecoderConfig(&cfg))
        return wn_fail(d->err, WN_EUNSUPP, "image: WebP library mismatch");
    code = WebPGetFeatures(d->data, d->bytes, &cfg.input);
    if (code != VP8_STATUS_OK)
        return wn_fail(d->err, WN_EFORMAT, "image: WebP: %s", webp_reason(code));
    if (cfg.input.has_animation)
        return wn_fail(d->err, WN_EUNSUPP, "image: animated WebP is not supported");
    rc = make_pixels(d, "WebP", (uint64_t)cfg.input.width, (uint64_t)cfg.input.height);
    if (rc != WN_OK) return rc;
    cfg.output.colorspace = MODE_RGB;
    cfg.output.is_external_memory = 1;
    cfg.output.u.RGBA.rgba = d->img.rgb;
    cfg.output.u.RGBA.stride = cfg.input.width * 3;
    cfg.output.u.RGBA.size = (size_t)d->img.width * d->img.height * 3;
    code = WebPDecode(d->data, d->bytes, &cfg);
    WebPFreeDecBuffer(&cfg.output);
    if (code == VP8_STATUS_OUT_OF_MEMORY) return wn_fail(d->err, WN_ENOMEM, "image: WebP decoder");
    if (code != VP8_STATUS_OK)
        return wn_fail(d->err, WN_EFORMAT, "image: WebP: %s", webp_reason(code));
    return WN_OK;
}

/* ---- all ---- */

/* What people send instead, by its first bytes; "": not known. */
static const char *other_format(const uint8_t *data, size_t bytes)
{
    static const struct {
        const char *magic;
        size_t at, n;
        const char *name;
    } others[] = {{"GIF8", 0, 4, ", but GIF"},       {"BM", 0, 2, ", but BMP"},         {"II*\0", 0, 4, ", but TIFF"},
                  {"MM\0*", 0, 4, ", but TIFF"},     {"ftypavi", 4, 7, ", but AVIF"},   {"ftyphei", 4, 7, ", but HEIC"},
                  {"ftypmif1", 4, 8, ", but HEIF"},  {"\xff\x0a", 0, 2, ", but JPEG XL"}, {"%PDF", 0, 4, ", but PDF"}};

    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (bytes >= others[i].at + others[i].n && memcmp(data + others[i].at, others[i].magic, others[i].n) == 0)
            return others[i].name;
    return "";
}

wn_status wn_image_decode(struct wn_image *out, const void *data, size_t bytes,
                          const struct wn_image_limits *limits, struct wn_err *err)
{
    struct decode d = {.data = data, .bytes = bytes, .limits = limits, .err = err};
    char num[32];
    wn_status rc;

    WN_ASSERT(limits && (data || !bytes));
    if (!bytes) return wn_fail(err, WN_EFORMAT, "image: no bytes");
    if (bytes > limits->bytes_max)
        return wn_fail(err, WN_ELIMIT, "image: a file of %zu bytes exceeds %s bytes", bytes,
                       grouped(limits->bytes_max, num));
    if (bytes >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0)
        rc = jpeg_decode(&d);
    else if (bytes >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0)
        rc = png_decode(&d);
    else if (bytes >= 12 && memcmp(data, "RIFF", 4) == 0 &&
             memcmp((const char *)data + 8, "WEBP", 4) == 0)
        rc = webp_decode(&d);
    else
        rc = wn_fail(err, WN_EUNSUPP, "image: neither JPEG nor PNG nor WebP%s", other_format(data, bytes));
    if (rc == WN_OK)
        *out = d.img;
    else
        wn_image_fini(&d.img);
    return rc;
}

void wn_image_fini(struct wn_image *img)
{
    if (!img) return;
    free(img->rgb);
    memset(img, 0, sizeof(*img));
}
