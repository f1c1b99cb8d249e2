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
lose_n3_in_batch "$n"
batch_done
grep -q 'replica-0 has lost node n3: its ranks there start again on n4' "$dir/service.log" || fail "not on the spare node"
[ "$(of_job "$job" Restarts)" = 0 ] && in_state "$job" RUNNING || fail "the job was queued again"
each_once "$n"
echo "the batch took $SECONDS s"
winnow drain --wait --endpoint "slurm:$job" --key "$HOME/.winnow/keys/admin.key" || fail "drain"
wait_for 60 "end of job $job" in_state "$job" COMPLETED
echo passed
