#!/usr/bin/env bash
# tests/cluster/caption.sh DIR BIN [PICTURES [long]] - the shipped array of jobs that captions a folder, on three hosts
# under a real Slurm: a task that is cancelled in its middle and queued again goes on, and every picture has been
# answered exactly once; a task that is submitted again by itself has nothing to do. long: another task is told that its
# time is nearly over, and queues itself again.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-40} long=${4:-}
. tests/cluster/lib.sh
fresh "$2"
mkdir "$dir/pictures"
for f in $(find tests/eval/images -name '*.jpg' | sort | head -n "$n"); do cp "$f" "$dir/pictures/" || fail "pictures"; done
mv "$dir/pictures/000.jpg" "$dir/a.jpg" && ln -s "$dir/a.jpg" "$dir/pictures/a \"quoted\" \\ name.jpg"
cp "$dir/a.jpg" "$dir/pictures/"$'a name of\ntwo lines.jpg' # cannot be told from two names: left out
$cluster up "$dir/box" --hosts 3 --share "$dir" || exit $?

array=$(QUESTION='How many "things" are there?' on head sbatch --parsable --array=0-1 -o "$dir/captions-%a.log" \
    scripts/slurm/caption-folder.sbatch "$PWD/$model" "$dir/pictures" "$dir/out" -pp 2 --log-level info) || fail "sbatch"
show() { tail -n 20 "$dir"/captions-*.log; fail "$@"; }

wait_for 120 "answers of task 0" lines_of "$dir/out/0.jsonl" 4
lines_of "$dir/out/0.jsonl" $((n / 2)) && show "task 0 was too quick to be cancelled in its middle"
on head scancel "${array}_0"
wait_for 60 "end of task 0" in_state "${array}_0" CANCELLED
on head scontrol requeue "${array}_0" || show "requeue"
if [ -n "$long" ]; then
    wait_for 120 "answers of task 1" lines_of "$dir/out/1.jsonl" 3
    on head scancel --batch --signal=USR1 "${array}_1"
fi
complete() { in_state "${array}_0" COMPLETED && in_state "${array}_1" COMPLETED; }
wait_for 240 "end of both tasks" complete

[ "$(of_job "${array}_0" Restarts)" = 1 ] || show "task 0 was not queued again"
[ -z "$long" ] || [ "$(of_job "${array}_1" Restarts)" = 1 ] || show "task 1 did not queue itself again"
again=$(on head sbatch --parsable --array=1 -o "$dir/again.log" scripts/slurm/caption-folder.sbatch "$PWD/$model" \
    "$dir/pictures" "$dir/out" -pp 2) || fail "sbatch"
wait_for 60 "end of the task by itself" in_state "${again}_1" COMPLETED
on head env SLURM_JOB_ID=1 SLURM_ARRAY_TASK_COUNT=3 bash scripts/slurm/caption-folder.sbatch "$model" "$dir/pictures" "$dir/out" \
    >"$dir/more.log" 2>&1
[ $? -eq 2 ] && grep -q 'was begun by 2 tasks' "$dir/more.log" || { cat "$dir/more.log"; show "more tasks than at first"; }
ids() { sed -E 's/.*"custom_id": ?"(([^"\\]|\\.)*)".*/\1/' "$@" | sort; }
[ "$(cat "$dir"/out/*.jsonl | wc -l)" = "$n" ] && [ "$(ids "$dir"/out/*.jsonl | uniq | wc -l)" = "$n" ] ||
    show "not every picture exactly once"
cmp <(ids "$dir"/out/*.in) <(ids "$dir"/out/*.jsonl) || show "not these pictures"
grep -L '"status_code": *200' "$dir"/out/*.jsonl | grep . && show "an answer failed"
grep -q 'with the journal in' "$dir/captions-0.log" || show "the journal was not resumed"
[ -z "$(ls "$HOME/.winnow/slurm" 2>/dev/null)" ] || show "a job's file is left"
echo "$n pictures were captioned once, through a requeue"
echo passed
