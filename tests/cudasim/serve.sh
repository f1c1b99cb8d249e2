#!/usr/bin/env bash
# tests/cudasim/serve.sh WINNOWD WINNOW NCCL: a service of two stages of two ranks that share one simulated GPU, over the
# simulated NCCL. It answers, a rank is killed while it answers, and the answer is the same, from ranks started again.
set -euo pipefail
winnowd=$1 winnow=$2
export WINNOW_NCCL=$3 WINNOW_BACKEND=cuda:0 WINNOW_VISION_BACKEND=cpu WINNOW_LINK=nccl WINNOW_CUDA_KERNELS=plain
dir=$(mktemp -d)
service=
trap '[ -z "$service" ] || kill -KILL $service 2>/dev/null; rm -rf "$dir"' EXIT
fail() { echo "serve: $*" >&2; tail -30 "$dir/err" >&2; exit 1; }
soon() { for _ in $(seq 300); do eval "$1" && return; sleep 0.1; done; fail "$2"; }
ranks() { pgrep -f -- "^$winnowd shard .*--run-dir=$dir/run"; }
ask() { "$winnow" ask --ignore-eos --max-tokens "$1" --image tests/eval/images/000.jpg --pruning cls-topk:2 "What is this?"; }

# small steps and jobs, and time to start again: the warm-up makes the largest ones, on a slow device
small="--max-num-batched-tokens 8 --max-num-seqs 2 --max-model-len 96 --no-worker-timeout 60000"
# shellcheck disable=SC2086
"$winnowd" serve models/tiny-llava -tp 2 -pp 2 $small --port 0 --log-level info --run-dir "$dir/run" \
    >"$dir/out" 2>"$dir/err" &
service=$!
soon 'grep -q "ready at" "$dir/out"' "the service does not start"
WINNOW_ENDPOINT=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/out")
export WINNOW_ENDPOINT
ask 8 >"$dir/first" || fail "no answer"
[ "$(grep -c 'nccl: NCCL .*NCCL_HOSTID=' "$dir/err")" = 4 ] || fail "not four ranks on NCCL"
ask 8 >"$dir/second" &
job=$!
soon '"$winnow" status --json | grep -q "\"running\": 1"' "the job does not run"
kill -KILL "$(ranks | tail -1)"
wait $job || fail "the job was lost"
cmp "$dir/first" "$dir/second" || fail "another answer: $(cat "$dir/second")"
[ "$(grep -c 'nccl: NCCL .*NCCL_HOSTID=' "$dir/err")" = 8 ] || fail "the ranks were not started again"
kill -TERM $service
pid=$service service=
wait "$pid" || fail "the service ended with $?"
echo "answered: $(head -c 60 "$dir/first")"
