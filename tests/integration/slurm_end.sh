#!/usr/bin/env bash
# tests/integration/slurm_end.sh WINNOWD - a service in a Slurm job whose time runs out: it is found by the job's number,
# says that the job was queued again, drains before the end, leaves with 0, and its address is gone. Slurm itself is not
# needed: what a job knows of it is in its environment.
set -uo pipefail
winnowd=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; cat "$dir/log"; exit 1; }

export HOME=$dir SLURM_JOB_ID=7 SLURM_JOB_NODELIST=$(hostname) SLURM_RESTART_COUNT=2
export SLURM_JOB_END_TIME=$(($(date +%s) + 8)) # shorter than the margin: half of it is for work
"$winnowd" serve models/tiny-llava --launcher local --port 0 --journal "$dir/journal" --shutdown-timeout 5 \
    --log-level info >"$dir/log" 2>&1 &
service=$!
for _ in $(seq 100); do [ -e "$dir/.winnow/slurm/7" ] && break; sleep 0.05; done
[ "$(stat -c %a "$dir/.winnow/slurm/7")" = 600 ] || fail "the job's file"
grep -q '^endpoint: tcp://' "$dir/.winnow/slurm/7" || fail "the address in the job's file"
wait $service || fail "exit code $?"
[ "$(date +%s)" -lt "$SLURM_JOB_END_TIME" ] || fail "the job was over before the service was"
grep -q 'the time of job 7 is nearly over' "$dir/log" || fail "no word about the time"
grep -q "this is its run 3, with the journal in $dir/journal" "$dir/log" || fail "no word about the runs before"
[ ! -e "$dir/.winnow/slurm/7" ] || fail "the job's file is left"
echo passed
