/* tests/one_seq.h - the room of a stage that runs one sequence at a time, of `rows` rows at most: for the initialiser
 * of its struct wn_stage_opts. */
#ifndef WN_TESTS_ONE_SEQ_H
#define WN_TESTS_ONE_SEQ_H

#define ONE_SEQ(rows, page)                                                                                          \
    .pages = (rows) / (page), .page_tokens = (page), .rows_max = (rows), .seqs_max = 1, .wanted_max = 1, .slots = 1

#endif
