#!/usr/bin/env bash
# tests/integration/python.sh BIN LIB LAYOUT - client/python/winnow.py against a service of the real model: the structures
# are those of winnow.h, and python.py asks. Skipped where there is no python3: nothing else of Winnow needs one.
set -uo pipefail
bin=$1 lib=$2 layout=$3
command -v python3 >/dev/null && python3 -c 'import ctypes' 2>/dev/null || { echo "skipped: no python3 with ctypes"; exit 77; }
dir=$(mktemp -d)
service=
trap '[ -z "$service" ] || kill "$service" 2>/dev/null; wait; rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

"$bin/winnow" serve models/tiny-llava --port 0 --max-num-seqs 4 >"$dir/service" 2>"$dir/errors" &
service=$!
for _ in $(seq 300); do grep -q 'ready at' "$dir/service" && break; sleep 0.1; done
at=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/service")
[ -n "$at" ] || { cat "$dir/errors"; fail "no service"; }
"$layout" >"$dir/layout" || fail "layout"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=client/python LD_LIBRARY_PATH=$lib \
    python3 -W error tests/integration/python.py "$dir/layout" "$at" models/tiny-llava/demo.jpg || fail "python.py"
kill -TERM $service && wait $service || fail "the service's exit code"
service=
echo passed
