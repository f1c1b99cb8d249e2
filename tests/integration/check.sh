#!/usr/bin/env bash
# tests/integration/check.sh WINNOWD - `winnow check` on this machine: what is measured when all is well, and that each
# thing that is wrong is named, with the host, and ends it with 1.
set -uo pipefail
winnowd=$1
model=models/tiny-llava
dir=$(mktemp -d)
host=$(hostname)
passed=0 failed=0
trap 'rm -rf "$dir"' EXIT

# run CODE WORDS... -- ARGUMENT...: ends with CODE and says each of WORDS
run() {
    local code=$1 got words=()
    shift
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    timeout 120 "$winnowd" check --port 0 "$@" >"$dir/out" 2>"$dir/err" </dev/null
    got=$?
    for w in "${words[@]}"; do
        grep -qF -- "$w" "$dir/out" || { echo "FAILED: '$w' is not in the output of: $*"; got=-1; }
    done
    if [ "$got" -eq "$code" ]; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "FAILED: $*: $got, expected exit code $code"
    cat "$dir/out" "$dir/err"
}
lines() { grep -cF -- "$1" "$dir/out"; } # WORDS

run 0 "nothing is wrong" "client - scheduler" "vision-0 - replica-0" "replica-0 rank 0 - rank 2" "replica-0 stage 1" \
    "Open MPI, shared memory" "pictures/s" "journal $dir on $host: " -- $model -tp 2 -pp 2 --journal "$dir"
[ "$(lines 'all-reduce')" -eq 6 ] && [ "$(lines 'control')" -eq 5 ] || { failed=$((failed + 1)); echo "FAILED: lines"; }
run 0 '"ok": true' '"bytes_per_s"' '"wrong": []' -- $model --json --vision-workers 2
run 1 "$host" "memory: " " would fit" -- tests/golden/config/llava-1.5-13b.json
run 1 "$host: $dir/nowhere: no such checkpoint folder" -- "$dir/nowhere"
run 1 "$host (scheduler): --journal /proc/version/x: Not a directory" -- $model --journal /proc/version/x
run 1 "$host (scheduler): --journal README.md/x: Not a directory" -- $model --journal README.md/x
run 1 "$host (scheduler): --journal README.md: README.md is not a folder" -- $model --journal README.md

"$(dirname "$winnowd")/winnow" keygen "$dir/keys" >/dev/null || failed=$((failed + 1))
run 0 "keys $dir/keys: in order" -- $model -pp 2 --keys "$dir/keys"
chmod 644 "$dir/keys/worker.key"
run 1 "$host: key file $dir/keys/worker.key may be read" -- $model --keys "$dir/keys"

mkdir "$dir/model"
for f in $model/*; do ln -s "$PWD/$f" "$dir/model/"; done
rm "$dir/model/model-00002-of-00002.safetensors"
run 1 "$host (vision-0)" "model-00002-of-00002.safetensors" -- "$dir/model"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
