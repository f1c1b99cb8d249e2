/* tests/fuzz/fuzz_batch.c - a line of a batch file, with its data URLs; files and other URLs are not followed. */
#include <stdint.h>
#include <stdlib.h>
#include <strings.h>

#include "client/batch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct batch_request r;
    struct wn_err err = {0};
    const wn_status rc = batch_line_parse(&r, (const char *)data, size, &err);

    WN_ASSERT(rc == WN_OK || err.text[0]);
    WN_ASSERT(rc != WN_OK || (r.custom_id && r.chat.prompt && r.chat.request.images_n <= WN_IMAGES_MAX &&
                              r.chat.request.stop_n <= WN_STOP_MAX));
    for (size_t i = 0; rc == WN_OK && i < r.chat.request.images_n; i++) {
        uint8_t *image;
        size_t n;
        if (strncasecmp(r.chat.image_url[i], "data:", 5) != 0) continue;
        if (chat_image_read(r.chat.image_url[i], NULL, 4096, &image, &n, NULL) == WN_OK)
            WN_ASSERT(n > 0 && n <= 4096);
        free(image);
    }
    batch_request_fini(&r);
    return 0;
}
