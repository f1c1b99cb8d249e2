#!/usr/bin/env bash
# tests/cluster/serve.sh DIR BIN [BATCH] - the shipped sbatch file on three hosts under a real Slurm: one host encodes
# images, two hold a stage each. From outside the job: 20 answers like those of a local service; then a batch in whose
# middle a rank is killed and the job is cancelled and queued again, finished exactly once.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-120}
. tests/cluster/lib.sh
fresh "$2"
$cluster up "$dir/box" --hosts 3 --share "$dir" || exit $?

winnow serve $model --port 0 --lease-ms 30000 >"$dir/local" 2>"$dir/local.log" &
local_service=$!
serve -tp 1 -pp 2 --log-level info
wait_for 120 "local service" grep -q 'ready at' "$dir/local"
near=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/local")
[ "$(stat -c %a "$HOME/.winnow/slurm/$job")" = 600 ] || fail "others can read the job's file"
[ "$(grep -A2 "^winnow: job $job, run 1: scheduler on n1 at 10\.213\.[0-9.]*, interface eth0" "$dir/service.log" | sed -n '2,$s/^winnow: *//p' | xargs)" = \
    "vision: n1 replica: n2 n3" ] || fail "placement"
[ "$(grep -c 'interface eth0 (10.213.*): features; Open MPI.s TCP eth0, NCCL.s sockets =eth0' "$dir/service.log")" -eq 2 ] &&
    grep -q 'interface eth0 (10.213.*) towards the scheduler' "$dir/service.log" || fail "interfaces"

for i in $(seq 20); do
    IFS=$'\t' read -r image text < <(question "$i")
    winnow ask --endpoint "$near" --image "tests/eval/$image" "$text" >>"$dir/near" || fail "local answer $i"
    winnow ask --endpoint "slurm:$job" --image "tests/eval/$image" "$text" >>"$dir/far" || fail "answer $i"
done
cmp "$dir/near" "$dir/far" || fail "the answers of three hosts are not those of one"
echo "20 answers are equal"

batch_of "$n" >"$dir/in.jsonl"
winnow run-batch --endpoint "$near" -i "$dir/in.jsonl" -o "$dir/near.jsonl" 2>"$dir/near.batch.log" || fail "local batch"
winnow run-batch --endpoint "slurm:$job" --concurrency 4 -i "$dir/in.jsonl" -o "$dir/far.jsonl" 2>"$dir/batch.log" &
batch=$!
wait_for 120 "first answers" lines_of "$dir/far.jsonl" 5
on n3 pkill -KILL -f '^[^ ]*winnowd shard' || fail "no rank on n3"
wait_for 180 "answers after a rank was killed" lines_of "$dir/far.jsonl" $((n / 3))
for node in n2 n3; do # the segments of the ranks that were killed have gone
    segments=$(on $node find /dev/shm -name 'vader_segment.*' | wc -l)
    [ "$(on $node ls /dev/shm | grep -c '^winnow-')" -eq 1 ] && [ "$segments" -le 1 ] ||
        fail "left in shared memory of $node: $(on $node find /dev/shm)"
done
grep -q 'replica-0 ended with exit code' "$dir/service.log" || fail "nobody saw the rank die"
lines_of "$dir/far.jsonl" "$n" && fail "the batch was too short to be cancelled in its middle"
on head scancel "$job"
wait_for 60 "end of job $job" gone "$job"
on head scontrol requeue "$job" || fail "requeue"
wait $batch || { cat "$dir/batch.log"; fail "the batch"; }
[ "$(of_job "$job" Restarts)" = 1 ] || fail "no restart"
grep -q 'with the journal in' "$dir/service.log" || fail "the journal was not resumed"
[ "$(answers_of "$dir/far.jsonl" | cut -d' ' -f1 | uniq | wc -l)" = "$n" ] && [ "$(wc -l <"$dir/far.jsonl")" = "$n" ] ||
    fail "not every request was finished exactly once"
cmp <(answers_of "$dir/near.jsonl") <(answers_of "$dir/far.jsonl") || fail "answers of the batch"
echo "$n requests finished once, through a killed rank and a requeue"

on head scancel --batch --signal=USR1 "$job"
wait_for 60 "drained job" in_state "$job" COMPLETED
[ ! -e "$HOME/.winnow/slurm/$job" ] || fail "the job's file is left"
echo passed
