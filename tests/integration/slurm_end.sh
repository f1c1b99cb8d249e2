#!/usr/bin/env bash
# tests/integration/slurm_end.sh WINNOWD - a service in a Slurm job that was queued again and whose time runs out: it
# forgets the address of the run before, waits until that has let go of the journal, is found by the job's number, sees
# that the job was given more time, drains before the end, leaves with 0, and its address is gone. Slurm itself is not
# needed: what a job knows of it is in its environment, and in the answer of `squeue`.
set -uo pipefail
winnowd=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; cat "$dir/log"; exit 1; }

now=$(date +%s)
mkdir -p "$dir/bin" "$dir/journal" "$dir/.winnow/slurm"
printf '#!/bin/sh\n[ "$SLURM_TIME_FORMAT $*" = "%%s --noheader --jobs 7 --format=%%e" ] && echo %d\n' $((now + 14)) >"$dir/bin/squeue"
chmod +x "$dir/bin/squeue"
export PATH=$dir/bin:$PATH HOME=$dir SLURM_JOB_ID=7 SLURM_JOB_NODELIST=$(hostname) SLURM_RESTART_COUNT=2
export SLURM_JOB_END_TIME=$((now + 8)) # shorter than the margin: half of it is for work
echo "endpoint: tcp://127.0.0.1:1" >"$dir/.winnow/slurm/7"
flock "$dir/journal/lock" sleep 3 &
sleep 0.1
"$winnowd" serve models/tiny-llava --launcher local --port 0 --journal "$dir/journal" --shutdown-timeout 5 \
    --log-level info >"$dir/log" 2>&1 &
service=$!
sleep 1.5
[ ! -e "$dir/.winnow/slurm/7" ] || fail "the address of a run that is over is left"
for _ in $(seq 100); do [ -e "$dir/.winnow/slurm/7" ] && break; sleep 0.05; done
[ "$(stat -c %a "$dir/.winnow/slurm/7")" = 600 ] || fail "the job's file"
grep -q '^endpoint: tcp://' "$dir/.winnow/slurm/7" || fail "the address in the job's file"
grep -q "^only on: $(hostname)" "$dir/.winnow/slurm/7" || fail "loopback, and the job's file does not say where"
wait $service || fail "exit code $?"
ended=$(date +%s)
[ "$ended" -lt $((now + 14)) ] || fail "the job was over before the service was"
[ "$ended" -ge $((now + 7)) ] || fail "the service did not use the time that the job was given"
grep -q "journal $dir/journal is in use by .*waiting" "$dir/log" || fail "no word about the journal's lock"
grep -q 'job 7 has been given more time' "$dir/log" || fail "no word about more time"
grep -q 'the time of job 7 is nearly over' "$dir/log" || fail "no word about the time"
grep -q "this is its run 3, with the journal in $dir/journal" "$dir/log" || fail "no word about the runs before"
[ ! -e "$dir/.winnow/slurm/7" ] || fail "the job's file is left"
echo passed
