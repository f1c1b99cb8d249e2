/* tests/unit/test_sha256.c - base/sha256 against FIPS 180-4's examples and libsodium: both kinds of rounds, every
 * length around a block, any cut. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"

static void test_examples(void **state)
{
    static const char two_blocks[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    static const uint8_t of_abc[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
                                     0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
                                     0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    static const uint8_t of_two[] = {0x24, 0x8d, 0x6a, 0x61, 0xd2, 0x06, 0x38, 0xb8, 0xe5, 0xc0, 0x26,
                                     0x93, 0x0c, 0x3e, 0x60, 0x39, 0xa3, 0x3c, 0xe4, 0x59, 0x64, 0xff,
                                     0x21, 0x67, 0xf6, 0xec, 0xed, 0xd4, 0x19, 0xdb, 0x06, 0xc1};
    uint8_t out[WN_SHA256_BYTES];
    (void)state;
    wn_sha256(out, "abc", 3);
    assert_memory_equal(out, of_abc, sizeof(out));
    wn_sha256(out, two_blocks, strlen(two_blocks));
    assert_memory_equal(out, of_two, sizeof(out));
}

static void test_any_length_and_cut(void **state)
{
    uint8_t data[700], want[WN_SHA256_BYTES], got[WN_SHA256_BYTES];
    (void)state;
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (uint8_t)(i * 131 + 7);
    for (size_t n = 0; n <= sizeof(data); n++) {
        crypto_hash_sha256(want, data, n);
        wn_sha256(got, data, n);
        assert_memory_equal(got, want, sizeof(want));
        for (size_t step = 1; step <= 130; step += 43) {
            struct wn_sha256 s;
            wn_sha256_init(&s);
            for (size_t at = 0; at < n; at += step) wn_sha256_update(&s, data + at, n - at < step ? n - at : step);
            wn_sha256_final(&s, got);
            assert_memory_equal(got, want, sizeof(want));
        }
    }
}

static void test_portable(void **state)
{
    wn_sha256_force_portable(); /* last: there is no way back */
    test_examples(state);
    test_any_length_and_cut(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_examples), cmocka_unit_test(test_any_length_and_cut),
                                       cmocka_unit_test(test_portable)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
