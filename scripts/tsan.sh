#!/usr/bin/env bash
# scripts/tsan.sh - the threaded parts under ThreadSanitizer: the tests whose threads share something, and whole
# services with keys and a journal, of one rank and of two. Fails if anything was reported; reports stay in
# build/tsan/reports. Tests of short leases are not among them: all is ten times slower here. 5 to 10 minutes on two
# cores; CI does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(test_ring test_log test_traffic test_endpoint test_endpoint_wire test_journal test_preprocess test_threadpool
    test_tokenizer test_plan test_plan_links test_link test_front test_client test_scheduler test_scheduler_clients
    test_access test_vision_link)
cmake --preset tsan >/dev/null
cmake --build --preset tsan -j "$(nproc)" --target winnow winnowd winnow_shared "${tests[@]}" -- --quiet
build=$PWD/build/tsan
rm -rf "$build/reports" && mkdir -p "$build/reports"

# One OpenMP thread: the barriers of libgomp, which was not built with the sanitizer, would be races to it.
export OMP_NUM_THREADS=1 TSAN_OPTIONS="exitcode=66 suppressions=$PWD/tests/tsan.supp log_path=$build/reports/report"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failed=0
ctest --test-dir "$build" -R "^($(IFS='|' && echo "${tests[*]}"))$" --output-on-failure --no-tests=error || failed=1

serve() { # FLAG...
    local dir at pid i
    dir=$(mktemp -d)
    "$build/bin/winnow" keygen "$dir/keys" >/dev/null
    "$build/bin/winnow" serve models/tiny-llava --port 0 --keys "$dir/keys" --journal "$dir/journal" --lease-ms 20000 \
        --log-level error "$@" >"$dir/out" &
    pid=$!
    for i in $(seq 600); do grep -q 'ready at' "$dir/out" && break; sleep 0.1; done
    at=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/out")
    export WINNOW_KEY=$dir/keys/admin.key
    for i in 1 2 3; do
        "$build/bin/winnow" ask --endpoint "$at" --image models/tiny-llava/demo.jpg "Describe the picture." >"$dir/$i" &
    done
    "$build/bin/winnow" ask --endpoint "$at" --image models/tiny-llava/demo.jpg "Describe the picture." >"$dir/0" || failed=1
    for i in $(jobs -p); do [ "$i" = $pid ] || wait "$i" || failed=1; done
    cmp "$dir/0" "$dir/1" && cmp "$dir/0" "$dir/2" && cmp "$dir/0" "$dir/3" || failed=1
    "$build/bin/winnow" status --endpoint "$at" >/dev/null || failed=1
    kill -TERM $pid
    wait $pid || failed=1
    rm -rf "$dir"
    echo "a service with $*: served"
}
serve -tp 1
serve -tp 2

if compgen -G "$build/reports/report.*" >/dev/null; then
    cat "$build"/reports/report.*
    failed=1
fi
[ $failed = 0 ] && echo "ThreadSanitizer: clean"
exit $failed
