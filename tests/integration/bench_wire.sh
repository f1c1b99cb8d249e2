#!/usr/bin/env bash
# tests/integration/bench_wire.sh BIN - `winnow bench wire` against a real service of two stages: it runs the command that
# shapes the network, finds new pictures new and old ones encoded, its bytes are those of the shapes, and the parts of the
# time to the first token add up.
set -uo pipefail
PATH=$(readlink -f "$1"):$PATH
dir=$(mktemp -d)
service=
trap '[ -z "$service" ] || { kill -TERM "$service" && wait "$service"; }; rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; tail -n 5 "$dir"/*; exit 1; }

winnow serve models/tiny-llava -tp 1 -pp 2 --port 0 >"$dir/out" 2>"$dir/log" &
service=$!
for _ in $(seq 600); do grep -q 'ready at' "$dir/out" && break; sleep 0.1; done
at=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/out")
[ -n "$at" ] || fail "the service is not ready"

winnow bench wire --endpoint "$at" --rates none,1gbit --shape "echo >>'$dir/shaped'" --budgets 64,8 --requests 2 \
    --max-tokens 2 --model tests/golden/config/llava-1.5-7b.json --csv "$dir/csv" --plot "$dir/png" || fail "the run"
[ "$(xargs <"$dir/shaped")" = "none 1gbit" ] || fail "the command that shapes"
[ "$(head -c 4 "$dir/png" | tail -c 3)" = PNG ] || fail "the plot"
awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
    function of(name) { return $at[name] }
    function near(a, b, by) { return a - b <= by && b - a <= by }
    {
        rows++
        known = of("pictures") == "encoded" ? 2 : 0 # tiny-llava: width 256 of the tower and of the decoder, bfloat16
        if (of("answered") != 2 || of("cache_hits") != known) bad = "answers or cache hits"
        if (of("embedding_bytes") != of("kept_tokens") * 512) bad = "bytes of features"
        text = of("activation_bytes") / 512 - of("kept_tokens") # rows of text: the prompt, and one of two new tokens
        if (text < 10 || text > 80) bad = "bytes of activations"
        if (of("image_bytes") <= 0 || of("allreduce_bytes") != 0) bad = "other kinds"
        sum = of("encode_ms") + of("wire_ms") + of("prefill_ms") + of("other_ms")
        if (!near(sum, of("ttft_mean_ms"), 0.01) || of("other_ms") < 0) bad = "parts of the time"
        if (!near(of("transfer_ms") + of("exposed_ms"), of("wire_ms"), 0.01)) bad = "parts of the wire"
        if (of("exposed_ms") <= 0 || (of("pictures") == "new" && of("encode_ms") < 5)) bad = "times"
        if (of("tp2_token_bytes") != 2194048 || of("tp4_token_bytes") <= of("tp2_token_bytes")) bad = "plain tensor parallelism"
        if (bad) { print "row " rows ": " bad; exit 1 }
    }
    END { exit bad || rows != 8 }' "$dir/csv" || { cat "$dir/csv"; fail "the rows"; }
winnow bench wire --endpoint "$at" --requests 1000 2>"$dir/few" && fail "there are not so many pictures"
grep -q 'pictures are needed' "$dir/few" || fail "too few pictures, and it says $(cat "$dir/few")"
winnow bench wire --rates none 2>/dev/null
[ $? -eq 2 ] || fail "--rates without --shape"
echo passed
