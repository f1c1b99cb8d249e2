#!/usr/bin/env bash
# tests/cluster/wire.sh DIR BIN [PICTURES] - our counters equal the kernel's, to 2 %. One host encodes, two hold a stage
# each, so that every link has an interface for itself: features come in at n2 (nothing else that is large does), and all
# that the two ranks send each other goes through n3.
#
# A frame carries 66 bytes that are not ours: 14 Ethernet, 20 IP, 20 TCP, 12 TCP time stamps. Offloads are off, so that
# frames and packets are the same. What else is there is within the 2 %: ZeroMQ's and Open MPI's headers, acknowledgements,
# heartbeats, Slurm.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-10}
. tests/cluster/lib.sh
fresh "$2"
$cluster up "$dir/box" --hosts 3 --share "$dir" || exit $?
job=$(on head sbatch --parsable -o "$dir/service.log" scripts/slurm/serve.sbatch "$PWD/$model" -tp 1 -pp 2 \
    --lease-ms 30000) || fail "sbatch"
wait_for 180 "service of job $job" test -e "$HOME/.winnow/slurm/$job"

answers=0
ask_some() { # FROM TO: distinct pictures, so that no cache spares a transfer
    for i in $(seq "$1" "$2"); do
        IFS=$'\t' read -r image text < <(question $((i * 5 - 4)))
        winnow ask --endpoint "slurm:$job" --image "tests/eval/$image" "$text" --json >>"$dir/usage" || fail "answer $i"
    done
}
sum() { grep -o "\"$1\": *[0-9]*" "$dir/usage" | awk -F: '{ s += $2 } END { print s + 0 }'; }

# What the ranks have sent each other so far, in any kind; heartbeats bring it.
ranks_sent() {
    sleep 3
    winnow status --key "$HOME/.winnow/keys/admin.key" --endpoint "slurm:$job" --json | tr -d '\n' | sed 's/.*"name": "replica-0"//' |
        grep -o '"sent_bytes": {[^}]*}' | grep -o ': [0-9]*' |
        awk '{ s += $2 } END { print s + 0 }'
}

ask_some 1 1 # connections are made
: >"$dir/usage"
sent=$(ranks_sent)
$cluster counters "$dir/box" >"$dir/before"
ask_some 2 $((n + 1))
$cluster counters "$dir/box" >"$dir/after"
sent=$(($(ranks_sent) - sent))

# Bytes through a host's interface, less what frames add.
through() { # HOST COLUMN: 2 received, 4 sent
    awk -v h="$1" -v c="$2" '$1 == h { if (FNR == NR) { b = $c; p = $(c + 1) } else print $c - b - 66 * ($(c + 1) - p) }' \
        "$dir/before" "$dir/after"
}
check() { # WHAT OURS KERNEL
    awk -v w="$1" -v o="$2" -v k="$3" 'BEGIN { d = (k - o) / o * 100
        printf "%s: we count %d bytes, the kernel %d (%+.2f %%)\n", w, o, k, d; exit d < -2 || d > 2 }' ||
        { cat "$dir/before" "$dir/after"; fail "$1"; }
}
check "features into n2" "$(sum embedding)" "$(through n2 2)"
check "between the ranks" "$sent" $(($(through n3 2) + $(through n3 4)))
echo passed
