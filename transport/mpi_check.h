/* transport/mpi_check.h - MPI's return codes become ours here and nowhere else. Internal to transport/.
 * MPI_ERRORS_RETURN is set on every communicator that is used, so that codes do return.
 * Threads: the one that may call MPI. */
#ifndef WN_TRANSPORT_MPI_CHECK_H
#define WN_TRANSPORT_MPI_CHECK_H

#include <mpi.h>

#include "base/status.h"

/* Without a text: for polls. */
static inline wn_status wn_mpi_status(int code)
{
    int class = MPI_ERR_UNKNOWN;

    if (code == MPI_SUCCESS) return WN_OK;
    if (MPI_Error_class(code, &class) != MPI_SUCCESS) class = MPI_ERR_UNKNOWN;
    switch (class) {
    case MPI_ERR_TRUNCATE: return WN_EPROTO;
    case MPI_ERR_NO_MEM: return WN_ENOMEM;
    case MPI_ERR_RANK:
    case MPI_ERR_TAG:
    case MPI_ERR_COUNT:
    case MPI_ERR_BUFFER:
    case MPI_ERR_ARG: return WN_EINVAL;
    default: return WN_EPEER; /* what is left means that the group does not hold together */
    }
}

static inline wn_status wn_mpi_check(struct wn_err *err, int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;

    if (code == MPI_SUCCESS) return WN_OK;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) text[0] = '\0';
    return wn_fail(err, wn_mpi_status(code), "%s: %s", what, text[0] ? text : "unknown MPI error");
}

#endif
