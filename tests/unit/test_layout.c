/* tests/unit/test_layout.c - Slurm's node lists, and which node runs what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/layout.h"

static void expands(const char *text, const char *want)
{
    struct wn_nodelist l;
    struct wn_err err = {0};
    char got[512] = "";
    size_t n = 0;

    if (wn_nodelist_expand(&l, text, &err) != WN_OK) fail_msg("%s: %s", text, err.text);
    for (size_t i = 0; i < l.n; i++)
        n += (size_t)snprintf(got + n, sizeof(got) - n, "%s%s", i ? " " : "", l.names[i]);
    assert_string_equal(got, want);
    wn_nodelist_fini(&l);
}

static void refuses(const char *text, wn_status want, const char *words)
{
    struct wn_nodelist l;
    struct wn_err err = {0};

    assert_int_equal(wn_nodelist_expand(&l, text, &err), want);
    assert_null(l.names);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
}

/* As a large job's list is: racks of nodes, holes in them, other kinds of hosts behind. */
static void hundreds(void)
{
    struct wn_nodelist l;
    struct wn_err err = {0};

    assert_int_equal(wn_nodelist_expand(&l, "r[01-16]c[1-2]n[00-15],big[0001-0480,0512],login", &err), WN_OK);
    assert_int_equal(l.n, 512 + 481 + 1);
    assert_string_equal(l.names[0], "r01c1n00");
    assert_string_equal(l.names[511], "r16c2n15");
    assert_string_equal(l.names[992], "big0512");
    assert_int_equal(wn_nodelist_find(&l, "login"), 993);
    wn_nodelist_fini(&l);
}

static void node_lists(void **state)
{
    (void)state;
    expands("n1", "n1");
    expands("n[1-3]", "n1 n2 n3");
    expands("n[1,3-4],gpu-a.site", "n1 n3 n4 gpu-a.site");
    expands("n[08-11]", "n08 n09 n10 n11");
    expands("n[1-2]-ib", "n1-ib n2-ib");
    expands("r[0-1]n[1-2]x", "r0n1x r0n2x r1n1x r1n2x");
    expands("b,a,b", "b a b");
    expands("node[001-004,007],gpu-[1-2]", "node001 node002 node003 node004 node007 gpu-1 gpu-2");
    expands("n[9-10,098-101]", "n9 n10 n098 n099 n100 n101");
    hundreds();
    refuses("", WN_EFORMAT, "a name is missing at character 1");
    refuses("n1,", WN_EFORMAT, "a name is missing at character 4");
    refuses("n[1-3", WN_EFORMAT, "']' is missing");
    refuses("n[]", WN_EFORMAT, "digits");
    refuses("n[3-1]", WN_EFORMAT, "backwards");
    refuses("n[1-2;3]", WN_EFORMAT, "',' or ']' is wanted at character 6");
    refuses("n[1-]", WN_EFORMAT, "digits");
    refuses("n 1", WN_EFORMAT, "no host name has at character 2");
    refuses("n]1", WN_EFORMAT, "no host name has");
    refuses("n[0-4096]", WN_ELIMIT, "more than 4096");
    refuses("n[0-99]m[0-99]", WN_ELIMIT, "more than 4096");
    refuses("n[1][1][1][1][1]", WN_EFORMAT, "too many brackets");
    refuses("n[1-9999999999]", WN_EFORMAT, "digits");
    refuses("abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcd", WN_ELIMIT, "too long");
}

static void counts(void **state)
{
    struct wn_err err = {0};
    uint32_t n = 0;

    (void)state;
    assert_int_equal(wn_nodelist_count("4", 0, &n, &err), WN_OK);
    assert_int_equal(n, 4);
    assert_int_equal(wn_nodelist_count("2(x3),7,1(x2)", 2, &n, &err), WN_OK);
    assert_int_equal(n, 2);
    assert_int_equal(wn_nodelist_count("2(x3),7,1(x2)", 3, &n, &err), WN_OK);
    assert_int_equal(n, 7);
    assert_int_equal(wn_nodelist_count("2(x3),7,1(x2)", 5, &n, &err), WN_OK);
    assert_int_equal(n, 1);
    assert_int_equal(wn_nodelist_count("2(x3)", 3, &n, &err), WN_EFORMAT);
    assert_int_equal(wn_nodelist_count("2(x3", 0, &n, &err), WN_EFORMAT);
    assert_int_equal(wn_nodelist_count("x", 0, &n, &err), WN_EFORMAT);
}

/* "vision | ranks" of the automatic layout. */
static void lays_out(uint32_t nodes, uint32_t vision, uint32_t replicas, uint32_t stages, uint32_t tensors,
                     const char *want)
{
    const struct wn_layout_ask ask = {vision, replicas, stages, tensors};
    struct wn_layout l = {0};
    struct wn_err err = {0};
    char got[512];
    int n = 0;

    assert_int_equal(wn_layout_auto(&l, &ask, nodes, &err), WN_OK);
    for (uint32_t i = 0; i < vision; i++) n += snprintf(got + n, sizeof(got) - (size_t)n, "%u ", l.vision[i]);
    n += snprintf(got + n, sizeof(got) - (size_t)n, "|");
    for (uint32_t i = 0; i < replicas * stages * tensors; i++)
        n += snprintf(got + n, sizeof(got) - (size_t)n, " %u", l.rank[i]);
    assert_string_equal(got, want);
    wn_layout_fini(&l);
}

static void automatic(void **state)
{
    (void)state;
    lays_out(1, 1, 1, 2, 2, "0 | 0 0 0 0");
    lays_out(3, 1, 1, 2, 1, "0 | 1 2");           /* vision apart, a node a stage */
    lays_out(2, 1, 1, 2, 1, "1 | 0 1");           /* not enough: shared, not with the scheduler */
    lays_out(2, 1, 1, 1, 4, "0 | 1 1 1 1");       /* tensor ranks together */
    lays_out(4, 2, 1, 2, 2, "0 1 | 2 2 3 3");
    lays_out(5, 1, 1, 2, 2, "0 | 1 2 3 4");       /* nodes to spare: tensor ranks apart */
    lays_out(5, 8, 1, 4, 1, "0 0 0 0 0 0 0 0 | 1 2 3 4");
    lays_out(2, 2, 2, 2, 1, "1 0 | 0 0 1 1");     /* a replica a node */
    lays_out(3, 0, 1, 2, 1, "| 0 1");
    lays_out(7, 3, 2, 2, 2, "0 1 2 | 3 3 4 4 5 5 6 6");
}

static void file_refused(const char *text, wn_status want, const char *words)
{
    const struct wn_layout_ask ask = {2, 1, 2, 2};
    struct wn_nodelist nodes;
    struct wn_layout l = {0};
    struct wn_err err = {0};

    assert_int_equal(wn_nodelist_expand(&nodes, "n[1-3]", &err), WN_OK);
    assert_int_equal(wn_layout_parse(&l, &ask, &nodes, "f", text, &err), want);
    if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    assert_null(l.rank);
    wn_nodelist_fini(&nodes);
}

static void files(void **state)
{
    const struct wn_layout_ask ask = {2, 2, 2, 1};
    const uint32_t vision[] = {0, 0}, ranks[] = {1, 2, 1, 1};
    struct wn_nodelist nodes;
    struct wn_layout l = {0};
    struct wn_err err = {0};
    char *text = NULL;
    size_t text_n = 0;
    FILE *f;

    (void)state;
    assert_int_equal(wn_nodelist_expand(&nodes, "n[1-3]", &err), WN_OK);
    assert_int_equal(wn_layout_parse(&l, &ask, &nodes, "f",
                                     "# where\n vision: n1*2\n\nreplica: n2 %2 # two nodes\nreplica: %1*2", &err),
                     WN_OK);
    assert_memory_equal(l.vision, vision, sizeof(vision));
    assert_memory_equal(l.rank, ranks, sizeof(ranks));
    assert_non_null(f = open_memstream(&text, &text_n));
    wn_layout_print(f, "> ", &l, &ask, &nodes);
    fclose(f);
    assert_string_equal(text, "> vision: n1*2\n> replica: n2 n3\n> replica: n2*2\n");
    free(text);
    wn_layout_fini(&l);
    wn_nodelist_fini(&nodes);
    file_refused("vision: n1 n9\nreplica: n1*4", WN_ENOENT, "f:1: the allocation of 3 nodes has no node 'n9'");
    file_refused("vision: n1 %3", WN_ENOENT, "'%3'");
    file_refused("vision: %1x", WN_ENOENT, "'%1x'");
    file_refused("vision: %", WN_ENOENT, "'%'");
    file_refused("vision: n1*10", WN_EINVAL, "f:1: 10 nodes, and there are 2 vision workers");
    file_refused("vision: n1*4097", WN_EFORMAT, "count from 1 to 4096");
    file_refused("vision: abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcd", WN_EFORMAT,
                 "a name is too long");
    file_refused("vision: n1\n", WN_EINVAL, "f:1: 1 nodes, and there are 2 vision workers");
    file_refused("replica: n1*4", WN_EINVAL, "no line 'vision:'");
    file_refused("vision: n1*2", WN_EINVAL, "0 lines 'replica:'");
    file_refused("vision: n1*2\nreplica: n1*4\nreplica: n1*4", WN_EINVAL, "f:3: there are 1 replicas");
    file_refused("vision: n1*0", WN_EFORMAT, "count from 1");
    file_refused("vision: n1*2x", WN_EFORMAT, "count from 1");
    file_refused("scheduler: n1", WN_EFORMAT, "f:1: neither");
}

/* What ran on a lost node goes to the one with the least to do that is there. */
static void spare_nodes(void **state)
{
    const uint32_t load[4] = {2, 1, 1, 0};
    bool lost[4] = {false, false, true, false};

    (void)state;
    assert_int_equal(wn_layout_spare(load, lost, 4), 3);
    lost[3] = true;
    assert_int_equal(wn_layout_spare(load, lost, 4), 1);
    lost[1] = true;
    assert_int_equal(wn_layout_spare(load, lost, 4), 0);
    lost[0] = true;
    assert_int_equal(wn_layout_spare(load, lost, 4), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(node_lists),
        cmocka_unit_test(counts),
        cmocka_unit_test(automatic),
        cmocka_unit_test(files),
        cmocka_unit_test(spare_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
