/* shard/jsonfile.h - small JSON files of a checkpoint: read under a limit, then parsed.
 *
 * Owns:    nothing; the caller owns what comes out.   Threads: any.
 * Fails:   WN_ENOENT (no such file), WN_ELIMIT (larger than allowed), WN_EFORMAT (not a JSON
 *          object), WN_EIO. */
#ifndef WN_SHARD_JSONFILE_H
#define WN_SHARD_JSONFILE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

#define WN_PATH_MAX 4096

/* Writes "dir/name" to out; WN_ELIMIT if it does not fit. */
WN_NODISCARD wn_status wn_path_join(char out[WN_PATH_MAX], const char *dir, const char *name,
                                    struct wn_err *err);

/* Opens a regular file for reading. *out is the caller's to close. */
WN_NODISCARD wn_status wn_file_open(int *out, off_t *bytes, const char *path, struct wn_err *err);

/* Reads the whole regular file, at most `max` bytes. *data is owned by the caller: free(). */
WN_NODISCARD wn_status wn_file_read(char **data, size_t *len, const char *path, size_t max,
                                    struct wn_err *err);

/* Parses bytes as one JSON object without duplicate keys; `what` names them in errors. *out is
 * owned: json_decref(). */
WN_NODISCARD wn_status wn_json_parse(json_t **out, const char *what, const char *data, size_t len,
                                     struct wn_err *err);

#endif
