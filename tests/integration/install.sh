#!/usr/bin/env bash
# tests/integration/install.sh BUILD - installed as a site does: the tree works where it was moved to, a stranger's program
# compiles with pkg-config alone and asks a service that the installed programs run, no file knows where it was built,
# and pages, completion and examples are what the programs understand.
set -uo pipefail
build=$(readlink -f "$1") source=$PWD
dir=$(mktemp -d /tmp/winnow-install-XXXXXX)
service=
trap '[ -z "$service" ] || kill "$service" 2>/dev/null; wait; rm -rf "$dir"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

cmake --install "$build" --prefix "$dir/first" >"$dir/log" 2>&1 || { cat "$dir/log"; fail "install"; }
grep -q "^ExecStart=$dir/first/bin/winnow serve " "$dir/first/share/winnow/winnow.service" || fail "the unit's prefix"
[ ! -x /usr/bin/systemd-analyze ] || ! systemd-analyze verify "$dir/first/share/winnow/winnow.service" 2>&1 |
    grep -i 'winnow.service:.*\(unknown\|invalid\|failed to parse\)' || fail "the unit"
mv "$dir/first" "$dir/moved" && cd "$dir/moved" || exit 1
share=share/winnow

found=$(grep -rlaF -e "$build" -e "$source/" .)
[ -z "$found" ] || fail "these know where they were built: $found"
for f in bin/winnow bin/winnowd include/winnow.h lib*/libwinnow.a lib*/libwinnow.so $share/winnow.yaml $share/demo.jpg \
    $share/slurm/serve.sbatch $share/slurm/caption-folder.sbatch share/man/man8/winnowd.8; do
    [ -e $f ] || fail "no $f in $(find . -type f | sort | xargs)"
done
lib=$(readlink -f lib*/) version=$(sed -n 's/^project(winnow VERSION \([0-9.]*\).*/\1/p' "$source/CMakeLists.txt")
grep -q 'SONAME.*libwinnow\.so\.0' <<<"$(readelf -d "$lib/libwinnow.so")" || fail "the library's name"
grep -q "^winnow $version " <<<"$(bin/winnow --version)" || fail "the version"

# winnow finds its winnowd; the example finds the library.
env PATH=/usr/bin:/bin bin/winnow serve "$source/models/tiny-llava" --port 0 >"$dir/service" 2>"$dir/errors" &
service=$!
export PKG_CONFIG_PATH=$lib/pkgconfig
cc $share/example.c $(pkg-config --cflags --libs winnow) -o "$dir/example" || fail "the example with pkg-config alone"
cc $share/example.c $(pkg-config --cflags winnow) "$lib/libwinnow.a" \
    $(pkg-config --static --libs winnow | tr ' ' '\n' | grep -v winnow) -o "$dir/static" || fail "the static library"
for _ in $(seq 300); do grep -q 'ready at' "$dir/service" && break; sleep 0.1; done
at=$(sed -n 's/.*ready at \([^ ]*\).*/\1/p' "$dir/service")
[ -n "$at" ] || { cat "$dir/errors"; fail "no service"; }
for program in example static; do
    LD_LIBRARY_PATH=$lib "$dir/$program" "$at" $share/demo.jpg "What does the text say?" >"$dir/$program.out" ||
        fail "$program: $(cat "$dir/$program.out")"
done
cmp "$dir/example.out" "$dir/static.out" && [ -s "$dir/example.out" ] || fail "answers"
kill -TERM $service && wait $service || fail "the service's exit code"
service=

bin/winnow serve "$source/models/tiny-llava" --config $share/winnow.yaml --check-config || fail "the example's options"
for option in $(bin/winnow serve --help | grep -oE -- '--[a-z-]+' | sort -u); do
    grep -qF -- "${option//-/\\-}" share/man/man1/winnow.1 || fail "$option is not in the manual"
done
if command -v groff >/dev/null; then
    for page in man1/winnow.1 man8/winnowd.8; do
        said=$(groff -man -Tutf8 -ww share/man/$page 2>&1 >"$dir/page") && [ -z "$said" ] || fail "$page: $said"
    done
fi
complete_words() { # WORD...: what completion offers for the last one
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _winnow winnow "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[*]}"' \
        sh share/bash-completion/completions/winnow "$@"
}
[ "$(complete_words winnow st)" = status ] || fail "completion of a command: $(complete_words winnow st)"
[ "$(complete_words winnow ask --ima)" = --image ] || fail "completion of an option: $(complete_words winnow ask --ima)"
[ "$(complete_words winnow bench w)" = wire ] || fail "completion of a benchmark"
grep -qw -- --tensor-parallel-size <<<"$(complete_words winnow serve MODEL --tens)" || fail "completion of an option of winnowd's"
if command -v tclsh >/dev/null; then
    echo 'proc module-whatis x {}; proc prepend-path {name value} {puts "$name $value"}
        set ModulesCurrentModulefile [lindex $argv 0]; source [lindex $argv 0]' >"$dir/module.tcl"
    grep -qx "PATH $dir/moved/bin" <<<"$(tclsh "$dir/module.tcl" $share/modulefiles/winnow/"$version")" || fail "the module file"
fi
echo passed
