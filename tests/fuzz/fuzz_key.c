/* tests/fuzz/fuzz_key.c - key files and lists of keys. The first byte chooses: even, a key file; odd, a list. */
#include <stdint.h>
#include <string.h>

#include "daemon/access.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data + 1;
    struct wn_err err = {0};

    if (size == 0) return 0;
    if (data[0] % 2 == 0) {
        struct wn_key *key = NULL;
        if (wn_key_create(&key, &err) != WN_OK) return 0;
        if (wn_key_parse(key, "fuzz.key", text, size - 1, &err) == WN_OK) {
            WN_ASSERT(wn_key_name_valid(key->name, strlen(key->name)));
            WN_ASSERT(wn_key_text_valid(key->secret_key, strlen(key->secret_key)));
            WN_ASSERT((unsigned)key->role < WN_KEY_ROLES);
        } else {
            WN_ASSERT(err.text[0]);
        }
        wn_key_close(key);
    } else {
        struct wn_access a = {0};
        if (wn_access_parse(&a, "authorized", text, size - 1, &err) == WN_OK) {
            for (size_t i = 0; i < a.n; i++) WN_ASSERT(wn_access_find(&a, a.entries[i].key) == &a.entries[i]);
        } else {
            WN_ASSERT(err.text[0]);
        }
        wn_access_fini(&a);
    }
    return 0;
}
