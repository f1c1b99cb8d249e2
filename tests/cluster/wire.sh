#!/usr/bin/env bash
# tests/cluster/wire.sh DIR BIN [PICTURES] - our counters equal the kernel's, to 2 %, on every link and by kind. One host
# encodes, two hold a rank each: first a stage each, then half of every tensor each. So every link has an interface for
# itself: features come in at n2 (nothing else that is large does), and all that the ranks send each other goes through n3.
#
# Interfaces: a frame carries 66 bytes that are not ours: 14 Ethernet, 20 IP, 20 TCP, 12 TCP time stamps. Offloads are off,
# so that frames and packets are the same. Kinds: the kernel counts each socket's bytes too, and a socket carries one kind:
# features (and their headers); rows from stage to stage, behind the step records that announce them; sums of the tensor
# ranks, with scores. What else is there is within the 2 %: ZeroMQ's and Open MPI's headers, keys, acknowledgements,
# heartbeats, Slurm.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-10}
. tests/cluster/lib.sh
fresh "$2"
export WINNOW_KEY=$HOME/.winnow/keys/admin.key # only an admin is told of ranks
$cluster up "$dir/box" --hosts 3 --share "$dir" || exit $?

ask_some() { # FROM TO: distinct pictures, so that no cache spares a transfer
    for i in $(seq "$1" "$2"); do
        IFS=$'\t' read -r image text < <(question $((i * 5 - 4)))
        winnow ask --endpoint "slurm:$job" --image "tests/eval/$image" "$text" --json >>"$dir/usage" || fail "answer $i"
    done
}
usage_of() { grep -o "\"$1\": *[0-9]*" "$dir/usage" | awk -F: '{ s += $2 } END { print s + 0 }'; }

# The kernel's bytes of n2's sockets by link: "features" from the vision worker, "ranks" to and from the other rank.
sockets() {
    { on n2 ss -tlnHp | sed 's/^/listen /'; on n2 ss -tinHOp state established; } | awk '
        function figure(name) { return match($0, " " name ":[0-9]+") ? substr($0, RSTART + length(name) + 2) + 0 : 0 }
        !/"winnowd"/ { next }
        $1 == "listen" { port = $5; sub(/.*:/, "", port); listening[port] = 1; next }
        {
            here = $3; sub(/.*:/, "", here)
            there = $4; sub(/:.*/, "", there); sub(/.*\./, "", there)
            sent[there, here] += figure("bytes_sent") - figure("bytes_retrans")
            received[there, here] += figure("bytes_received")
            if (there == 11 && here in listening) features = here
        }
        END {
            for (k in sent) {
                split(k, of, SUBSEP)
                if (of[1] == 13 && of[2] != features) { s += sent[k]; r += received[k] }
            }
            print received[11, features] + 0, s + 0, r + 0
        }'
}
# What the ranks have sent each other: activation, allreduce, logits, embedding, control and tokens. Heartbeats bring it.
ranks_sent() {
    sleep 3
    winnow status --endpoint "slurm:$job" --json | tr -d '\n' | sed 's/.*"name": "replica-0"//' |
        grep -o '"sent_bytes": {[^}]*}' | tr -d '"{},' | awk '{
            for (i = 1; i < NF; i++) v[$i] = $(i + 1)
            print v["activation:"] + 0, v["allreduce:"] + 0, v["logits:"] + 0, v["embedding:"] + 0, v["control:"] + v["tokens:"]
        }'
}
minus() { paste -d' ' <(xargs -n1 <<<"$1") <(xargs -n1 <<<"$2") | awk '{ print $1 - $2 }' | xargs; }

# Bytes through a host's interface, less what frames add.
through() { # HOST COLUMN: 2 received, 4 sent
    awk -v h="$1" -v c="$2" '$1 == h { if (FNR == NR) { b = $c; p = $(c + 1) } else print $c - b - 66 * ($(c + 1) - p) }' \
        "$dir/before" "$dir/after"
}
check() { # WHAT OURS KERNEL
    awk -v w="$1" -v o="$2" -v k="$3" 'BEGIN { d = o ? (k - o) / o * 100 : 100
        printf "%s: we count %d bytes, the kernel %d (%+.2f %%)\n", w, o, k, d; exit d < -2 || d > 2 }' ||
        { cat "$dir/before" "$dir/after"; fail "$1"; }
}
# Asks N questions between two looks at all counters.
measure() { # N
    ask_some 1 1 # connections are made
    : >"$dir/usage"
    local ranks kernel
    ranks=$(ranks_sent)
    kernel=$(sockets)
    $cluster counters "$dir/box" >"$dir/before"
    ask_some 2 $(($1 + 1))
    $cluster counters "$dir/box" >"$dir/after"
    read -r features to_n3 from_n3 < <(minus "$(sockets)" "$kernel")
    read -r activation allreduce logits embedding control < <(minus "$(ranks_sent)" "$ranks")
}

serve -tp 1 -pp 2
measure "$n"
check "features into n2" "$(usage_of embedding)" "$(through n2 2)"
check "between the stages" $((activation + control)) $(($(through n3 2) + $(through n3 4)))
check "embedding, its socket" "$(usage_of embedding)" "$features"
check "activation with $control bytes of control, its socket" $((activation + control)) "$to_n3"
[ $((allreduce + logits + embedding)) -eq 0 ] || fail "one tensor rank has nobody to sum with"

winnow drain --wait --endpoint "slurm:$job" || fail "drain"
wait_for 60 "end of job $job" gone "$job"
serve -tp 2 -pp 1
measure $(((n + 1) / 2))
all=$((allreduce + logits + embedding + control))
check "between the tensor ranks" $all $(($(through n3 2) + $(through n3 4)))
check "allreduce ($allreduce) with logits, features, control, its socket" $all $((to_n3 + from_n3))
[ $((allreduce * 10)) -gt $((all * 9)) ] || fail "sums are the most of what tensor ranks send"
[ "$activation" -eq 0 ] || fail "one stage has no next one"
echo passed
