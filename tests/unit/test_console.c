/* tests/unit/test_console.c - a service's state as table and as Prometheus text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "client/conn.h"
#include "client/console.h"

/* A replica of two ranks and a lost vision worker. */
struct service {
    Wn__RankInfo rank[2], *rank_list[2];
    Wn__LinkBytes sent, own;
    Wn__Heartbeat beat, sight;
    Wn__WorkerStatus worker[2], *worker_list[2];
    Wn__TurnedAway away, *away_list[1];
    Wn__Status st;
};

static void build(struct service *s)
{
    memset(s, 0, sizeof(*s));
    for (uint32_t i = 0; i < 2; i++) {
        s->rank[i] = (Wn__RankInfo)WN__RANK_INFO__INIT;
        s->rank[i].rank = i;
        s->rank[i].host = "node1";
        s->rank[i].pid = 40 + i;
        s->rank[i].last_seen_ms = 100 * i;
        s->rank[i].rss_bytes = 3 << 20;
        s->rank[i].stalled_ms = 2500 * (1 - i);
        s->rank[i].load_bytes = 6000;
        s->rank[i].load_us = 1500000;
        s->rank_list[i] = &s->rank[i];
        s->worker[i] = (Wn__WorkerStatus)WN__WORKER_STATUS__INIT;
        s->worker_list[i] = &s->worker[i];
    }
    s->sent = s->own = (Wn__LinkBytes)WN__LINK_BYTES__INIT;
    s->sent.activation = 10000;
    s->own.control = 77;
    s->beat = (Wn__Heartbeat)WN__HEARTBEAT__INIT;
    s->beat.running = 3;
    s->beat.pages = 200;
    s->beat.pages_used = 50;
    s->beat.steps = 1000;
    s->beat.sent = &s->sent;
    s->beat.ranks = s->rank_list;
    s->beat.n_ranks = 2;
    s->worker[0].role = WN__ROLE__ROLE_LEADER;
    s->worker[0].name = "replica-0";
    s->worker[0].host = "node1";
    s->worker[0].up = true;
    s->worker[0].last_seen_ms = 300;
    s->worker[0].heartbeat = &s->beat;
    s->worker[1].role = WN__ROLE__ROLE_VISION;
    s->worker[1].name = "vision \"0\"\n";
    s->worker[1].host = "node2";
    s->worker[1].build = "0.0 (x)";
    s->worker[1].last_seen_ms = 4500;
    s->sight = (Wn__Heartbeat)WN__HEARTBEAT__INIT;
    s->sight.images = 12;
    s->sight.cache_hits = 5;
    s->sight.encodes = 2;
    s->worker[1].heartbeat = &s->sight;
    s->st = (Wn__Status)WN__STATUS__INIT;
    s->st.model = "m";
    s->st.version = "9.8";
    s->st.uptime_ms = 12500;
    s->st.prompt_tokens = 4321;
    s->st.clients = 6;
    s->st.not_ready_because = "0 of 1 vision workers are connected";
    s->st.queued = 2;
    s->st.queue_max = 1024;
    s->st.queue_wait_ms = 1500;
    s->st.generated_tokens = 500;
    s->st.image_tokens = 64;
    s->st.image_tokens_before_pruning = 576;
    s->st.replayed = 4;
    s->st.sent = &s->own;
    s->st.workers = s->worker_list;
    s->st.n_workers = 2;
    s->away = (Wn__TurnedAway)WN__TURNED_AWAY__INIT;
    s->away.role = WN__ROLE__ROLE_VISION;
    s->away.name = "vision-9";
    s->away.host = "node9";
    s->away.why = "another \"model\"";
    s->away.since_ms = 12000;
    s->away.last_ms = 400;
    s->away.times = 24;
    s->away_list[0] = &s->away;
    s->st.turned_away = s->away_list;
    s->st.n_turned_away = 1;
    s->st.turned_away_total = 31;
}

static char *print(const Wn__Status *now, const Wn__Status *before, double seconds)
{
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);

    if (seconds >= 0) console_status(f, "tcp://x:1", now, before, seconds);
    else console_metrics(f, now);
    fclose(f);
    return text;
}

static void has(const char *text, const char *words)
{
    if (!strstr(text, words)) fail_msg("'%s' is not in\n%s", words, text);
}

static void table(void **state)
{
    struct service now, before;
    char *text;

    (void)state;
    build(&now);
    text = print(&now.st, NULL, 0);
    has(text, "not ready: 0 of 1 vision workers");
    has(text, "model m, version 9.8, up for 12.5 s\n");
    has(text, "4321 of prompts; 11.1 % of visual tokens kept\n");
    has(text, ", 6 clients");
    has(text, "2 queued of at most 1024 (the first for 1.5 s)");
    has(text, "4 replayed");
    has(text, "tokens: 500 generated");
    has(text, "11.1 % of visual tokens kept");
    has(text, "activation 9.8 KiB");
    has(text, "control 77 B");
    has(text, "50 of 200 KV pages (25 %)");
    has(text, "rank 0       node1            pid 40       seen 0.3 s ago, STALLED for 2.5 s, 3.0 MiB");
    has(text, "rank 1       node1            pid 41       seen 0.4 s ago, 3.0 MiB");
    has(text, "LOST seen 4.5 s ago, OF BUILD 0.0 (x), 0 running, 0 waiting, 12 images so far, 5 of them known, "
              "3.5 an encode\n");
    has(text, "vision  vision-9     node9            TURNED AWAY for 12.0 s, 24 times, 0.4 s ago: another \"model\"\n");
    free(text);
    build(&before); /* two seconds ago */
    before.st.generated_tokens = 300;
    before.sent.activation = 8000;
    text = print(&now.st, &before.st, 2);
    has(text, "tokens each second: 100 generated");
    has(text, "activation 1000 B");
    free(text);
    before.st.generated_tokens = 900; /* it was started again in between */
    text = print(&now.st, &before.st, 2);
    has(text, "tokens each second: 0 generated");
    free(text);
}

/* Each line is a comment or a sample of the family that was announced last. */
static void metrics(void **state)
{
    struct service now;
    char *text, *line, *rest, family[64] = "";
    int samples = 0;

    (void)state;
    build(&now);
    text = print(&now.st, NULL, -1);
    has(text, "winnow:ready{model_name=\"m\"} 0\n");
    has(text, "winnow:prompt_tokens_total{model_name=\"m\"} 4321\n");
    has(text, "winnow:workers_turned_away{model_name=\"m\"} 1\n");
    has(text, "winnow:workers_turned_away_total{model_name=\"m\"} 31\n");
    has(text, "winnow:encodes_total{model_name=\"m\",role=\"vision\",name=\"vision \\\"0\\\"\\n\"} 2\n");
    has(text, "winnow:image_cache_hits_total{model_name=\"m\",role=\"vision\",name=\"vision \\\"0\\\"\\n\"} 5\n");
    has(text, "winnow:num_clients{model_name=\"m\"} 6\n");
    has(text, "winnow:rank_up{model_name=\"m\",replica=\"replica-0\",rank=\"0\"} 1\n");
    has(text, "winnow:queue_wait_seconds{model_name=\"m\"} 1.5\n");
    has(text, "winnow:kv_cache_usage_perc{model_name=\"m\",role=\"replica\",name=\"replica-0\"} 0.25\n");
    has(text, "winnow:rank_last_seen_seconds{model_name=\"m\",replica=\"replica-0\",rank=\"1\"} 0.4\n");
    has(text, "winnow:rank_stalled_seconds{model_name=\"m\",replica=\"replica-0\",rank=\"0\"} 2.5\n");
    has(text, "winnow:rank_load_bytes{model_name=\"m\",replica=\"replica-0\",rank=\"1\"} 6000\n");
    has(text, "winnow:rank_load_seconds{model_name=\"m\",replica=\"replica-0\",rank=\"1\"} 1.5\n");
    has(text, "winnow:worker_up{model_name=\"m\",role=\"vision\",name=\"vision \\\"0\\\"\\n\"} 0\n");
    has(text, "winnow:link_bytes_total{model_name=\"m\",src=\"replica-0\",kind=\"activation\"} 10000\n");
    has(text, "winnow:link_bytes_total{model_name=\"m\",src=\"scheduler\",kind=\"control\"} 77\n");
    has(text, "winnow:image_tokens_total{model_name=\"m\",stage=\"kept\"} 64\n");
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (sscanf(line, "# TYPE %63s", family) == 1 || line[0] == '#') continue;
        if (strncmp(line, family, strlen(family)) != 0 || line[strlen(family)] != '{')
            fail_msg("'%s' is not of %s", line, family);
        samples++;
    }
    assert_true(samples > 30);
    free(text);
}

/* A program reads it again: JSON, whatever characters names have. */
static void json(void **state)
{
    struct service now;
    Wn__StageLoad stage[2] = {WN__STAGE_LOAD__INIT, WN__STAGE_LOAD__INIT}, *stages[2] = {&stage[0], &stage[1]};
    const json_t *workers, *replica, *rank, *away;
    char *text;
    json_t *root;

    (void)state;
    build(&now);
    stage[1].busy_us = 70;
    stage[1].link_us = 30;
    now.beat.stages = stages;
    now.beat.n_stages = 2;
    assert_non_null(text = wn_status_json(&now.st));
    assert_non_null(root = json_loads(text, 0, NULL));
    free(text);
    assert_true(json_is_false(json_object_get(root, "ready")));
    assert_string_equal(json_string_value(json_object_get(root, "model")), "m");
    assert_int_equal(json_integer_value(json_object_get(root, "prompt_tokens")), 4321);
    assert_int_equal(json_integer_value(json_object_get(root, "clients")), 6);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "sent_bytes"), "control")), 77);
    workers = json_object_get(root, "workers");
    assert_int_equal(json_array_size(workers), 2);
    replica = json_array_get(workers, 0);
    assert_string_equal(json_string_value(json_object_get(replica, "role")), "replica");
    assert_true(json_is_true(json_object_get(replica, "up")));
    assert_int_equal(json_integer_value(json_object_get(replica, "kv_pages")), 200);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(replica, "sent_bytes"), "activation")), 10000);
    assert_int_equal(json_array_size(json_object_get(replica, "ranks")), 2);
    rank = json_array_get(json_object_get(replica, "ranks"), 0);
    assert_int_equal(json_integer_value(json_object_get(rank, "pid")), 40);
    assert_int_equal(json_integer_value(json_object_get(rank, "stalled_ms")), 2500);
    assert_int_equal(json_integer_value(json_object_get(rank, "load_bytes")), 6000);
    assert_int_equal(json_integer_value(json_object_get(rank, "load_us")), 1500000);
    assert_int_equal(json_array_size(json_object_get(replica, "stages")), 2);
    assert_int_equal(
        json_integer_value(json_object_get(json_array_get(json_object_get(replica, "stages"), 1), "link_us")), 30);
    assert_string_equal(json_string_value(json_object_get(json_array_get(workers, 1), "role")), "vision");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(workers, 1), "encodes")), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(workers, 1), "name")), "vision \"0\"\n");
    assert_string_equal(json_string_value(json_object_get(json_array_get(workers, 1), "build")), "0.0 (x)");
    assert_null(json_object_get(replica, "build"));
    assert_int_equal(json_integer_value(json_object_get(root, "turned_away_total")), 31);
    assert_int_equal(json_array_size(json_object_get(root, "turned_away")), 1);
    away = json_array_get(json_object_get(root, "turned_away"), 0);
    assert_string_equal(json_string_value(json_object_get(away, "name")), "vision-9");
    assert_string_equal(json_string_value(json_object_get(away, "why")), "another \"model\"");
    assert_int_equal(json_integer_value(json_object_get(away, "last_ms")), 400);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(table), cmocka_unit_test(metrics), cmocka_unit_test(json)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
