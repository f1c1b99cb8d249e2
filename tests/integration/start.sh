#!/usr/bin/env bash
# tests/integration/start.sh WINNOWD - a service that waits for one of its parts says for which; one whose streams are
# closed, or whose terminal goes away, serves and drains like any other.
set -uo pipefail
winnowd=$1
winnow=$(dirname "$winnowd")/winnow
dir=$(mktemp -d)
passed=0 failed=0
pid=
cleanup() {
    [ -n "$pid" ] && kill "$pid" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

holds() { # WHAT COMMAND...: the command is true
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $what"; fi
}
within() { # SECONDS COMMAND...: the command becomes true
    local tries=$(($1 * 20))
    shift
    for _ in $(seq $tries); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done
    return 1
}
part() { pgrep -f -- "winnowd $1 .*--run-dir=$dir/run( |\$)"; }

# a replica that takes its time: its mpirun does
mkdir "$dir/bin"
printf '#!/bin/sh\nwhile [ ! -e "%s/go" ]; do sleep 0.05; done\nexec %s "$@"\n' "$dir" "$(command -v mpirun)" \
    >"$dir/bin/mpirun"
chmod +x "$dir/bin/mpirun"
PATH=$dir/bin:$PATH "$winnowd" serve models/tiny-llava -tp 2 --port 0 --run-dir "$dir/run" >"$dir/out" 2>"$dir/err" &
pid=$!
holds "what it waits for is said" within 20 grep -q "not ready after .* s: .*replica" "$dir/err"
holds "it is not ready" test ! -s "$dir/out"
touch "$dir/go"
holds "it is ready then" within 20 grep -q 'ready at' "$dir/out"
kill -HUP $pid
wait $pid
holds "a terminal that goes away drains it" [ $? -eq 0 ]

"$winnowd" serve models/tiny-llava --port 0 --run-dir "$dir/run" <&- >&- 2>&- &
pid=$!
within 20 part scheduler
port=$(tr '\0' '\n' <"/proc/$(part scheduler | head -1)/cmdline" | sed -n 's/^--port=//p' | tail -1)
holds "closed streams: it answers" "$winnow" ask --endpoint "tcp://127.0.0.1:$port" --max-tokens 3 "Hello"
kill -TERM $pid
wait $pid
holds "closed streams: it ends well" [ $? -eq 0 ]
pid=

# Ctrl-C before all are there: who was not has heard nothing, and is not waited for
rm -f "$dir/go"
PATH=$dir/bin:$PATH "$winnowd" serve models/tiny-llava -tp 2 --port 0 --run-dir "$dir/run" >/dev/null 2>&1 &
pid=$!
within 20 part vision
kill -INT $pid
holds "an interrupted start ends soon" within 2 sh -c "! kill -0 $pid"
wait $pid
pid=

# a run folder that somebody removes: said, and the service ends
"$winnowd" serve models/tiny-llava --port 0 --run-dir "$dir/run" >"$dir/out" 2>"$dir/err" &
pid=$!
within 20 grep -q 'ready at' "$dir/out"
rm -rf "$dir/run"
holds "a removed run folder is said" within 10 grep -q "the run folder $dir/run was removed" "$dir/err"
wait $pid
holds "a removed run folder is a failure" [ $? -eq 1 ]
pid=

# what killed processes leave: an mpirun its files and shared memory, a supervisor its run folder
serve() { # leaves pid, memory: its folder in shared memory
    "$winnowd" serve models/tiny-llava -tp 2 --port 0 --log-level info >"$dir/out" 2>"$dir/err" &
    pid=$!
    holds "it is ready ($1)" within 20 grep -q 'ready at' "$dir/out"
    memory=$(dirname "$(grep -l "^process $pid on " /dev/shm/winnow-??????/owner)")
}
export XDG_RUNTIME_DIR=$dir/xdg
mkdir "$XDG_RUNTIME_DIR"
serve first
segments=$(ls "$memory/replica-0" | wc -l)
holds "Open MPI's shared memory is in its folder" test "$segments" -gt 0
files=$(echo "$XDG_RUNTIME_DIR"/winnow-*)
pkill -KILL -P $pid -x mpirun
holds "a killed mpirun starts again" within 20 eval '[ "$(grep -c "replica-0 on .* is there" "$dir/err")" = 2 ]'
holds "it has left no shared memory" test "$(ls "$memory/replica-0" | wc -l)" -eq "$segments"
holds "it has left no files" test "$(ls "$files/replica-0"/ompi.* | wc -l)" -eq 1
holds "it has left no socket" test "$(ls "$files"/replica-0-*.sock | wc -l)" -eq 1
kill -KILL $pid
wait $pid 2>/dev/null
was="$files $memory"
holds "a killed supervisor takes all along" within 20 sh -c "! pgrep -f -- '--run-dir=$files( |\$)'"
serve second
for folder in $was; do holds "the next service removes $folder" test ! -e "$folder"; done
kill -TERM $pid
wait $pid
pid=
holds "nothing is left" test -z "$(ls "$XDG_RUNTIME_DIR")"
holds "no shared memory is left" test ! -e "$memory"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
