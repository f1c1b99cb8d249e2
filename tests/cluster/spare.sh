#!/usr/bin/env bash
# tests/cluster/spare.sh DIR BIN [BATCH] - a job that was asked for with a node more than it needs, and with --no-kill: the
# plug of a node is pulled in the middle of a batch. When Slurm has given that node up, its stage starts again on the
# spare one, in the same run of the job, and every request is finished exactly once.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-60}
. tests/cluster/lib.sh
fresh "$2"
$cluster up "$dir/box" --hosts 4 --share "$dir" || exit $?

asked=(--nodes=4 --no-kill)
serve -pp 2 --lease-ms 3000
[ "$(sed -n 's/^winnow:   //p' "$dir/service.log" | xargs)" = "vision: n1 replica: n2 n3" ] || fail "the layout"
batch_of "$n" >"$dir/in.jsonl"
winnow run-batch --endpoint "slurm:$job" --concurrency 4 -i "$dir/in.jsonl" -o "$dir/out.jsonl" 2>"$dir/batch.log" &
batch=$!
wait_for 120 "first answers" lines_of "$dir/out.jsonl" 5
$cluster off "$dir/box" n3
lines_of "$dir/out.jsonl" "$n" && fail "the batch was too short for a node to be lost in its middle"
wait_for 20 "word about the lost node" grep -q 'nothing heard from rank 1 for 3000 ms' "$dir/service.log"
on head scontrol update nodename=n3 state=down reason=lost || fail "scontrol" # as Slurm does after SlurmdTimeout
wait $batch || { cat "$dir/batch.log"; fail "the batch"; }
grep -q 'replica-0 has lost node n3: its ranks there start again on n4' "$dir/service.log" || fail "not on the spare node"
[ "$(of_job "$job" Restarts)" = 0 ] && in_state "$job" RUNNING || fail "the job was queued again"
[ "$(answers_of "$dir/out.jsonl" | cut -d' ' -f1 | uniq | wc -l)" = "$n" ] && lines_of "$dir/out.jsonl" "$n" &&
    ! lines_of "$dir/out.jsonl" $((n + 1)) || fail "not every request was finished exactly once"
echo "the batch took $SECONDS s"
winnow drain --wait --endpoint "slurm:$job" --key "$HOME/.winnow/keys/admin.key" || fail "drain"
wait_for 60 "end of job $job" in_state "$job" COMPLETED
echo passed
