#!/bin/sh
# tests/integration/library_names.sh LIBRARY - a static library's names are ours: winnow_*, or wn_* inside of it, so that
# it can be linked into any program.
set -eu
names=$(nm -g --defined-only "$1" | awk 'NF == 3 { print $3 }' | sort -u)
echo "$names" | grep -qx winnow_submit || { echo "no winnow_submit in $1"; exit 1; }
if echo "$names" | grep -v '^w\(n\|innow\)_'; then
    echo "these names of $1 are not ours alone"
    exit 1
fi
