# wn_target(NAME SOURCES ... DEPS ...)     one static library for each folder
# wn_program(NAME SOURCES ... DEPS ...)    an executable
# wn_test(NAME SOURCES ... DEPS ... [RANKS n] [TIMEOUT s] [ARGS ...] [LABELS ...])
#     a test program, registered with ctest; with RANKS it runs under mpirun with that many processes

add_library(wn_flags INTERFACE)
target_include_directories(wn_flags INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_compile_options(wn_flags INTERFACE
    -Wall -Wextra -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes -Werror
    $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation> # text that is cut on purpose
    -fno-math-errno -ffp-contract=off -fno-strict-aliasing
    -fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=) # what is installed does not say where it was built
target_compile_definitions(wn_flags INTERFACE _GNU_SOURCE)
if(WN_SANITIZE)
    target_compile_options(wn_flags INTERFACE -fsanitize=${WN_SANITIZE} -fno-omit-frame-pointer
                           -fno-sanitize-recover=all)
    target_link_options(wn_flags INTERFACE -fsanitize=${WN_SANITIZE})
endif()
if(WN_FUZZ)
    target_compile_options(wn_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

function(wn_target name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_library(${name} STATIC ${A_SOURCES})
    target_link_libraries(${name} PUBLIC wn_flags ${A_DEPS})
endfunction()

function(wn_program name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE wn_flags ${A_DEPS})
endfunction()

function(wn_test name)
    cmake_parse_arguments(A "" "RANKS;TIMEOUT" "SOURCES;DEPS;ARGS;LABELS" ${ARGN})
    if(A_SOURCES)
        add_executable(${name} ${A_SOURCES})
        target_link_libraries(${name} PRIVATE wn_flags ${A_DEPS} wn_cmocka)
    endif()
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME) # unit, conform, ...
    list(APPEND A_LABELS ${folder})
    if(A_RANKS)
        list(APPEND A_LABELS mpi)
    endif()
    list(REMOVE_DUPLICATES A_LABELS)
    set(test ${name})
    set(command ${name} ${A_ARGS})
    if(A_RANKS)
        set(test ${name}_np${A_RANKS})
        set(command ${WN_MPIRUN} -np ${A_RANKS} $<TARGET_FILE:${name}> ${A_ARGS})
    endif()
    add_test(NAME ${test} COMMAND ${command} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${test} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}"
        ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1")
    if(A_RANKS) # what MPI itself leaks has deep stacks through libraries without frame pointers
        set_property(TEST ${test} APPEND PROPERTY ENVIRONMENT "ASAN_OPTIONS=fast_unwind_on_malloc=0"
            "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
        set_tests_properties(${test} PROPERTIES RUN_SERIAL ON)
    endif()
endfunction()

# winnow_version.h with the commit: link wn_version to include it
add_custom_target(wn_version_header BYPRODUCTS ${CMAKE_BINARY_DIR}/winnow_version.h
    COMMAND ${CMAKE_COMMAND} -DSRC=${CMAKE_SOURCE_DIR} -DOUT=${CMAKE_BINARY_DIR}/winnow_version.h
        -DVERSION=${PROJECT_VERSION} -P ${CMAKE_SOURCE_DIR}/cmake/version.cmake VERBATIM)
add_library(wn_version INTERFACE)
add_dependencies(wn_version wn_version_header)
