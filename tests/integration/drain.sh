#!/usr/bin/env bash
# tests/integration/drain.sh WINNOW - `winnow drain`: an admin ends a real service. A job that runs is finished, the
# service ends with 0, and none of its processes is left. A client's key is refused.
set -euo pipefail
winnow=$1
dir=$(mktemp -d)
service=
trap '[ -z "$service" ] || kill -KILL $service 2>/dev/null; rm -rf "$dir"' EXIT
fail() { echo "drain: $*" >&2; exit 1; }
soon() { for _ in $(seq 300); do eval "$1" && return; sleep 0.1; done; fail "$2"; }

"$winnow" keygen "$dir/keys" >/dev/null
"$winnow" serve models/tiny-llava --port 0 --log-level info --run-dir "$dir/run" --keys "$dir/keys" >"$dir/out" 2>"$dir/err" &
service=$!
soon 'grep -q "ready at" "$dir/out"' "the service does not start"
WINNOW_ENDPOINT=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/out")
export WINNOW_ENDPOINT WINNOW_KEY=$dir/keys/admin.key

"$winnow" ask --ignore-eos --max-tokens 400 "Tell me a story." >"$dir/answer" &
job=$!
soon '"$winnow" status --json | grep -q "\"running\": 1"' "the job does not run"
"$winnow" drain --key "$dir/keys/client.key" 2>"$dir/refused" && fail "a client's key ended the service"
grep -q "a client key may not send Drain" "$dir/refused" || fail "$(cat "$dir/refused")"
"$winnow" status --wait 1 >/dev/null || fail "the service is not ready after a client's drain"
"$winnow" drain --wait >"$dir/drain" || fail "drain failed"
grep -q "^draining: 1 jobs have" "$dir/drain" || fail "it said: $(cat "$dir/drain")"
wait $job || fail "the job was not finished"
pid=$service service=
wait "$pid" || fail "the service ended with $?"
pgrep -f -- "--run-dir=$dir/run" && fail "these are left"
[ "$(grep -c "started, process" "$dir/err")" = 3 ] || fail "a worker was started again at the end"
echo "drained: $(head -c 40 "$dir/answer")..."
