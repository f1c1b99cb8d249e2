/* tests/fuzz/fuzz_layout.c - Slurm's node lists and counts, and layout files: a first line is the node list. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct wn_layout_ask ask = {.vision_workers = 2, .replicas = 2, .stages = 2, .tensors = 2};
    char *text = calloc(1, size + 1), *file;
    struct wn_nodelist nodes = {0};
    struct wn_layout l = {0};
    struct wn_err err = {0};
    uint32_t count;

    if (!text) return 0;
    memcpy(text, data, size);
    file = text + strcspn(text, "\n");
    if (*file) *file++ = '\0';
    (void)!wn_nodelist_count(text, size % 5, &count, &err);
    if (wn_nodelist_expand(&nodes, text, &err) == WN_OK) {
        WN_ASSERT(nodes.n > 0 && nodes.n <= WN_NODES_MAX);
        for (size_t i = 0; i < nodes.n; i++) WN_ASSERT(nodes.names[i][0] && strlen(nodes.names[i]) < WN_NODE_NAME_LEN);
        if (wn_layout_parse(&l, &ask, &nodes, "layout", file, &err) == WN_OK) {
            for (int i = 0; i < 2; i++) WN_ASSERT(l.vision[i] < nodes.n);
            for (int i = 0; i < 8; i++) WN_ASSERT(l.rank[i] < nodes.n);
        }
        wn_layout_fini(&l);
    }
    wn_nodelist_fini(&nodes);
    free(text);
    return 0;
}
