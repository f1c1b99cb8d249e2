#!/usr/bin/env bash
# tests/integration/scheduler_dies.sh WINNOW - a real service whose scheduler is stopped and killed, as those see it who
# look at it: `winnow status` says so and comes back, `winnow top` goes on when the scheduler is back, and SIGTERM while
# there is none ends the service at once.
set -euo pipefail
winnow=$1
dir=$(mktemp -d)
service= top=
trap 'kill -KILL $service $top 2>/dev/null || true; rm -rf "$dir"' EXIT
fail() { echo "scheduler_dies: $*" >&2; exit 1; }
soon() { for _ in $(seq 300); do eval "$1" && return; sleep 0.1; done; fail "$2"; }
scheduler() { pgrep -f -- "winnowd? scheduler .*--run-dir=$dir/run" || true; }

"$winnow" serve models/tiny-llava --port 0 --vision-workers 0 --lease-ms 10000 --run-dir "$dir/run" >"$dir/out" 2>"$dir/err" &
service=$!
soon 'grep -q "ready at" "$dir/out"' "the service does not start"
WINNOW_ENDPOINT=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/out")
export WINNOW_ENDPOINT

"$winnow" top --interval 0.1 >"$dir/top" 2>&1 &
top=$!
soon 'grep -q ": ready" "$dir/top"' "top shows nothing"
kill -STOP "$(scheduler)"
SECONDS=0
"$winnow" status 2>"$dir/stopped" && fail "a stopped scheduler has answered"
grep -q "the server at $WINNOW_ENDPOINT does not answer" "$dir/stopped" || fail "it said: $(cat "$dir/stopped")"
[ $SECONDS -lt 9 ] || fail "status took $SECONDS s"
kill -KILL "$(scheduler)"
soon '"$winnow" status >/dev/null 2>&1 && "$winnow" status --wait 1 >/dev/null 2>&1' "the service does not come back"
: >"$dir/top"
soon 'grep -q ": ready" "$dir/top"' "top does not go on"
kill -TERM $top
wait $top || fail "top ended with $?"
top=

kill -KILL "$(scheduler)"
kill -TERM $service
SECONDS=0
pid=$service service=
wait "$pid" || fail "the service ended with $?"
[ $SECONDS -lt 15 ] || fail "the service took $SECONDS s to end without its scheduler"
pgrep -f -- "--run-dir=$dir/run" && fail "these are left"
echo "scheduler_dies: passed"
