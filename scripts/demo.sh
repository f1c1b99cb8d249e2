#!/usr/bin/env bash
# scripts/demo.sh - from a bare Debian 12 or Ubuntu to right answers about a picture: installs what is missing, builds,
# serves models/tiny-llava with one vision worker and a replica of 2 stages x 2 tensor ranks on the CPU, asks with and
# without pruning, and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
build=build/demo
mkdir -p build
[ -x $build/bin/winnowd ] || echo "building (about a minute)"
cmake -G Ninja -S . -B $build -DWN_TESTS=OFF >$build.log 2>&1 || { cat $build.log; exit 1; }
cmake --build $build -j "$(nproc)" >>$build.log 2>&1 || { tail -50 $build.log; exit 1; }
export PATH="$PWD/$build/bin:$PATH"

model=models/tiny-llava
out=$(mktemp -d)
ready=$out/ready
service=
stop() {
    if [ -n "$service" ]; then
        kill -TERM "$service" 2>/dev/null || true
        wait "$service" || true
    fi
    rm -rf "$out"
}
trap stop EXIT

echo
echo "The plan: $model cut into 2 stages x 2 tensor ranks"
winnow plan $model -tp 2 -pp 2 | sed 's/^/  /'

winnow serve $model -tp 2 -pp 2 --vision-workers 1 --port 0 >"$ready" &
service=$!
for _ in $(seq 300); do
    grep -q 'ready at' "$ready" && break
    kill -0 "$service" 2>/dev/null || { echo "demo: the service did not start" >&2; exit 1; }
    sleep 0.1
done
cat "$ready"
WINNOW_ENDPOINT=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$ready")
export WINNOW_ENDPOINT

# Question, then the right answer: what scripts/train/scenes.py drew.
right=0 asked=0
ask_all() { # PRUNING
    local question expected answer verdict
    while IFS='|' read -r question expected; do
        [ -n "$question" ] || continue
        asked=$((asked + 1))
        answer=$(winnow ask --image $model/demo.jpg "$question" --pruning "$1" --usage 2>"$out/usage")
        if [ "$answer" = "$expected" ]; then
            verdict=right
            right=$((right + 1))
        else
            verdict="WRONG, expected: $expected"
        fi
        printf '\nQ: %s\nA: %s   [%s]\n' "$question" "$answer" "$verdict"
        sed 's/^/   /' "$out/usage"
    done <$model/demo.txt
}
ask_all none
echo
echo "The same with 64 of the 576 visual tokens, chosen on the vision worker:"
ask_all cls-topk:64
echo
winnow prune $model --image $model/demo.jpg --method cls-topk --keep 64 -o $build/kept.png
echo "$build/kept.png shows them."

echo
winnow status
echo
echo "demo: $right of $asked answers are right"
[ "$right" -eq "$asked" ]
