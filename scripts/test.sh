#!/usr/bin/env bash
# scripts/test.sh - installs what is missing, builds, runs every test. Ends with ctest's summary.
#   WN_TEST_QUICK=1 scripts/test.sh     without the sanitizer builds
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test

jobs=$(nproc)
run_ctest() { ctest --test-dir "$1" -j "$jobs" --output-on-failure --no-tests=error "${@:2}"; }

if [ "${WN_TEST_QUICK:-0}" != 1 ]; then
    # Address and undefined-behaviour sanitizers over everything that runs in one process.
    cmake --preset asan >build-asan.log 2>&1 || { cat build-asan.log; exit 1; }
    rm -f build-asan.log
    cmake --build --preset asan -j "$jobs" -- --quiet
    ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 run_ctest build/asan -L 'unit|conform|fuzz' -LE mpi
fi

cmake --preset release
cmake --build --preset release -j "$jobs" -- --quiet
run_ctest build/release
