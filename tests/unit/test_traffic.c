/* Byte meters, and the byte counts that collectives promise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/traffic.h"
#include "transport/coll.h"

static void test_meter(void **state)
{
    struct wn_traffic_meter meter = {0};
    struct wn_traffic_table table = {0};

    (void)state;
    wn_traffic_sent(&meter, WN_TRAFFIC_LOGITS, 10);
    wn_traffic_sent(&meter, WN_TRAFFIC_LOGITS, 0);
    wn_traffic_received(&meter, WN_TRAFFIC_IMAGE, (uint64_t)5 << 32);
    wn_traffic_snapshot(&meter, &table);
    assert_int_equal(table.of[WN_TRAFFIC_LOGITS].sent_bytes, 10);
    assert_int_equal(table.of[WN_TRAFFIC_LOGITS].sent_messages, 2);
    assert_int_equal(table.of[WN_TRAFFIC_LOGITS].received_messages, 0);
    wn_traffic_snapshot(&meter, &table); /* adds */
    assert_int_equal(table.of[WN_TRAFFIC_LOGITS].sent_bytes, 20);
    assert_int_equal(table.of[WN_TRAFFIC_LOGITS].sent_messages, 4);
    assert_int_equal(table.of[WN_TRAFFIC_IMAGE].received_bytes, (uint64_t)10 << 32);
    assert_int_equal(table.of[WN_TRAFFIC_IMAGE].received_messages, 2);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = 0; i < WN_TRAFFIC_N; i++) {
        assert_string_not_equal(wn_traffic_name((wn_traffic)i), "?");
        for (int k = 0; k < i; k++) {
            assert_string_not_equal(wn_traffic_name((wn_traffic)i), wn_traffic_name((wn_traffic)k));
        }
    }
    assert_string_equal(wn_traffic_name(WN_TRAFFIC_N), "?");
    assert_string_equal(wn_traffic_name(WN_TRAFFIC_EMBEDDING), "embedding");
}

/* Totals that can be told without knowing how it is done. */
static void test_predictions(void **state)
{
    (void)state;
    for (int n = 1; n <= 9; n++) {
        for (size_t count = 0; count < 70000; count += 23333) {
            uint64_t all = 0, spread = 0;
            for (int from = 0; from < n; from++) {
                for (int to = 0; to < n; to++) {
                    all += wn_coll_allreduce_bytes(n, from, to, count);
                    spread += wn_coll_broadcast_bytes(n, n / 2, from, to, count);
                    if (from == to) assert_int_equal(wn_coll_allreduce_bytes(n, from, to, count), 0);
                }
            }
            assert_int_equal(spread, (uint64_t)(n - 1) * count); /* each but the root hears it once */
            if ((n & (n - 1)) != 0 || count > 16384) {           /* the least that n members must say in all */
                assert_int_equal(all, 2 * (uint64_t)(n - 1) * count * sizeof(float));
            } else {
                assert_true(all >= 2 * (uint64_t)(n - 1) * count * sizeof(float) || n == 1);
            }
        }
    }
    assert_int_equal(wn_coll_allreduce_bytes(4, 0, 3, 100), 0);
    assert_int_equal(wn_coll_allreduce_bytes(4, 0, 2, 100), 400);
}

static void test_open_errors(void **state)
{
    struct wn_link *link = NULL;
    struct wn_local_hub *hub = NULL;
    struct wn_err err = {0};
    struct wn_group group = {.rank = 2, .size = 2};

    (void)state;
    assert_int_equal(wn_link_open(&link, "pigeon", &group, &err), WN_ENOENT);
    assert_string_equal(err.text, "there is no link 'pigeon' (known: local, mpi)");
    assert_int_equal(wn_link_open(&link, "local", &group, &err), WN_EINVAL); /* no hub */
    assert_int_equal(wn_local_hub_create(&hub, 0, &err), WN_EINVAL);
    assert_int_equal(wn_local_hub_create(&hub, WN_LINK_RANKS_MAX + 1, &err), WN_EINVAL);
    assert_int_equal(wn_local_hub_create(&hub, 2, &err), WN_OK);
    group.hub = hub;
    assert_int_equal(wn_link_open(&link, "local", &group, &err), WN_EINVAL); /* rank 2 of 2 */
    group.rank = 1;
    assert_int_equal(wn_link_open(&link, "local", &group, &err), WN_OK);
    struct wn_link *twice = NULL;
    assert_int_equal(wn_link_open(&twice, "local", &group, &err), WN_EBUSY);
    assert_null(twice);
    wn_link_close(link);
    wn_link_close(NULL);
    wn_local_hub_destroy(hub);
    wn_local_hub_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meter),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_predictions),
        cmocka_unit_test(test_open_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
