#!/usr/bin/env bash
# tests/integration/strange_worker.sh BIN - a vision worker of another checkpoint comes to a service whose replica does not
# (its mpirun sleeps): `winnow status` names it and says why in all its forms, the worker's log says it once, and `winnow
# serve`, which waits, says it with what is missing.
set -uo pipefail
bin=$1 dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; cat "$dir"/*.log; exit 1; }

mkdir "$dir/bin" "$dir/other"
printf '#!/bin/sh\nexec sleep 60\n' >"$dir/bin/mpirun" && chmod +x "$dir/bin/mpirun"
ln -s "$PWD"/models/tiny-llava/* "$dir/other" && rm "$dir/other/config.json"
{ cat models/tiny-llava/config.json && echo; } >"$dir/other/config.json"

PATH=$dir/bin:$PATH "$bin/winnow" serve models/tiny-llava -pp 2 --port 0 --run-dir "$dir/run" >"$dir/serve.log" 2>&1 &
pids+=($!)
scheduler() { pgrep -P "${pids[0]}" -f 'winnowd scheduler'; }
status() { "$bin/winnow" status --endpoint "tcp://127.0.0.1:$port" "$@"; }
for _ in $(seq 100); do scheduler >/dev/null && break; sleep 0.05; done
port=$(tr '\0' '\n' <"/proc/$(scheduler)/cmdline" | sed -n 's/^--port=//p' | tail -1)
for _ in $(seq 100); do grep -q 'vision-0 .* up ' <<<"$(status 2>/dev/null)" && break; sleep 0.05; done
"$bin/winnowd" vision "$dir/other" --run-dir "$dir/run" --name vision-9 >"$dir/worker.log" 2>&1 &
pids+=($!)
for _ in $(seq 300); do grep -q '; turned away: vision-9' "$dir/serve.log" && break; sleep 0.1; done # after 5, 10, 20 s
grep -q 'not ready after .*: 0 of 1 replicas are connected; turned away: vision-9: vision-9 serves model .* they do not mix' \
    "$dir/serve.log" || fail "what the service waits for"
for _ in $(seq 100); do grep -q refuses "$dir/worker.log" && break; sleep 0.05; done
[ "$(grep -c 'refuses this worker: vision-9 serves model' "$dir/worker.log")" = 1 ] || fail "the worker's log"

said() { grep -q "$1" <<<"$2" || fail "no '$1' in $2"; } # PATTERN TEXT
said '^  vision  vision-9  .*TURNED AWAY for .* times, .* ago: vision-9 serves model' "$(status)"
said '"turned_away": \[{"role": "vision", "name": "vision-9"' "$(status --json)"
said '^winnow:workers_turned_away{.*} 1$' "$(status --metrics)"
kill -TERM "${pids[1]}" && wait "${pids[1]}" || fail "the worker's exit code"
echo passed
