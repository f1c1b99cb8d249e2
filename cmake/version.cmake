# Run at every build: writes winnow_version.h, and touches it only if the commit has changed.
execute_process(COMMAND git -C ${SRC} describe --always --dirty --abbrev=12 --exclude=* OUTPUT_VARIABLE WN_COMMIT
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT WN_COMMIT)
    set(WN_COMMIT "unknown")
endif()
configure_file(${SRC}/cmake/winnow_version.h.in ${OUT} @ONLY)
