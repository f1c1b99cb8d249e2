#!/usr/bin/env bash
# scripts/cluster/bench_wire.sh DIR MODEL [BENCH OPTION]... [-- SERVE OPTION]... - what the network costs a request:
# `winnow bench wire` at 1 Gb/s, 10 Gb/s and as fast as this machine goes, on a cluster in a box of three hosts, one that
# encodes pictures and two with a stage each. DIR gets logs and must be new; `winnow` is the one on PATH. Needs root.
#   BENCH OPTIONs are those of `winnow bench wire`, beside --shape and --endpoint.
#   SERVE OPTIONs are those of `winnow serve`; -tp 1 -pp 2 if there are none.
# Exit codes: 0 done, 1 failed, 2 usage, 77 this machine cannot.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# *//p' "$0" >&2; exit 2; }
here=$(dirname "$(readlink -f "$0")")
model=$(readlink -f "$2") bench=() serve=()
[ -z "$(ls -A "$1" 2>/dev/null)" ] || { echo "bench_wire: $1 is not empty: name a folder that is new" >&2; exit 2; }
mkdir -p "$1/home" && dir=$(readlink -f "$1") || exit 1
shift 2
while [ $# -gt 0 ] && [ "$1" != -- ]; do bench+=("$1"); shift; done
[ $# -eq 0 ] || shift
serve=("$@")
[ ${#serve[@]} -gt 0 ] || serve=(-tp 1 -pp 2)
cluster=$here/cluster.sh
export HOME=$dir/home # where a Slurm service leaves its address and keys
export WINNOW_KEY=$HOME/.winnow/keys/admin.key # made by the batch file: workers and ranks are for admins to see

trap '"$cluster" down "$dir/box" 2>/dev/null' EXIT
"$cluster" up "$dir/box" --hosts 3 --share "$dir" --share "$model" --share "$(dirname "$(command -v winnow)")" || exit $?
job=$("$cluster" run "$dir/box" head sbatch --parsable -o "$dir/service.log" "$here/../slurm/serve.sbatch" "$model" \
    --lease-ms 60000 --log-level info "${serve[@]}") || exit 1
for _ in $(seq 1200); do
    [ -e "$HOME/.winnow/slurm/$job" ] && break
    [ -n "$("$cluster" run "$dir/box" head squeue -h -j "$job" -o %T)" ] || break # it ended: its log says why
    sleep 0.25
done
[ -e "$HOME/.winnow/slurm/$job" ] || { tail -30 "$dir/service.log" >&2; exit 1; }
winnow bench wire --endpoint "slurm:$job" --rates none,10gbit,1gbit "${bench[@]}" --shape "'$cluster' shape '$dir/box'"
code=$?
winnow status --endpoint "slurm:$job" >"$dir/status"
exit $code
