#!/usr/bin/env bash
# bench_link.sh WINNOWD: `winnow bench link` verifies and times every size, on threads and on processes.
set -euo pipefail
for how in "local 3" "mpi 2"; do
    read -r link ranks <<<"$how"
    out=$("$1" bench-link -tp "$ranks" --link "$link" --bytes-max 64K)
    rows=$(grep -cE "^[^,]+,[^,]+,$link,$ranks,(ping|allreduce),[0-9]+,[0-9]+(,[0-9]+\.[0-9]+){3}(,[0-9]+){2}\$" <<<"$out")
    [ "$rows" -eq 10 ] || { echo "$how: $rows rows of 10:"; echo "$out"; exit 1; }
    # an all-reduce of n ranks carries 2(n-1)/n of its message on each wire
    awk -F, -v n="$ranks" '$5 == "allreduce" { want = $11 * 2 * (n - 1) / n; if ($12 < 0.99 * want - 1 || $12 > 1.01 * want + 1) exit 1 }' \
        <<<"$out" || { echo "$how: busbw is not 2(n-1)/n of algbw"; echo "$out"; exit 1; }
done
if out=$("$1" bench-link 2>&1); then echo "one rank was not refused"; exit 1; fi
grep -q -- "-tp 2" <<<"$out"
