#!/usr/bin/env bash
# tests/cudasim/rehearse.sh [--whole] BUILD [run | links]... - what scripts/device_checks.sh does on the machine with the
# GPU, all of it, on a simulated one: the packed programs of BUILD, an unpacked checkout that nothing was built in, and a
# machine with a shell, a C library and no network. So what the script forgets, misspells or misreads shows here.
#
# As root the machine is a folder of its own (chroot); else it is this one with an empty environment. The model has
# LLaVA-1.5-13B's file and a narrow shape. Stand-ins: nvidia-smi, nvcc, compute-sanitizer, MPS, Transformers' table.
# --whole: no program is cut short. Exit codes: 0, 1, 77 skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
whole=
[ "$1" != --whole ] || { whole=1; shift; }
build=$(readlink -f "$1")
shift
[ $# -gt 0 ] || set -- run links
command -v mpirun strip >/dev/null || { echo "skipped: no mpirun or no strip here"; exit 77; }
box=$(mktemp -d /tmp/winnow-rehearsal-XXXXXX)
trap 'rm -rf "$box"' EXIT
root=$box/root tree=$box/root/work/tree
mkdir -p "$tree" "$box/programs" "$root"/{bin,lib64,lib/x86_64-linux-gnu,etc,proc,sys,dev,tmp,root,opt/stand-in,out}
chmod 1777 "$root/tmp"
ln -s . "$root/usr"

# ---- what travels ----

{ git ls-files -zco --exclude-standard 2>/dev/null || find . -path './build*' -prune -o -path ./.git -prune -o -type f -print0; } |
    tar --null -T - -cf - 2>/dev/null | tar -xf - -C "$tree" || true
sed -i -e 's/: 5120,/: 32,/; s/: 13824,/: 64,/; s/: 40,/: 4,/; s/_layers": 4,/_layers": 2,/; s/: 32064/: 1024/; s/: 1024,/: 32,/' \
    -e 's/: 336,/: 56,/; s/: 4096,$/: 1024,/; s/: 16,/: 4,/; s/: 24,/: 3,/' "$tree/tests/golden/config/llava-1.5-13b.json"
simulated() {
    case $1 in
    test_backend_cuda) echo test_backend_cudasim ;;
    *_device) echo "${1%_device}_cudasim" ;;
    test_golden | test_vision | bench_gpu | bench_gpu_ranks | bench_load | winnowd) echo "$1_cudasim" ;;
    *) echo "$1" ;;
    esac
}
for p in $(sed -n '/^programs=(/,/)/p' scripts/device_checks.sh | tr -d '()' | sed 's/^programs=//'); do
    file=$(find "$build" -type f -name "$(simulated "$p")" -perm -u+x | head -1)
    [ -n "$file" ] || { echo "$build has no $(simulated "$p")"; exit 1; }
    ln -s "$file" "$box/programs/$p"
done
(cd "$tree" && scripts/device_checks.sh gather "$box/programs")
briefly() { # PROGRAM, and on standard input what it does instead; $0.whole is the program
    [ -z "$whole" ] || return 0
    mv "$tree/build/packed/bin/$1" "$tree/build/packed/bin/$1.whole"
    { echo '#!/bin/sh'; cat; } >"$tree/build/packed/bin/$1"
    chmod +x "$tree/build/packed/bin/$1"
}
briefly test_backend_cuda <<<'[ $# -gt 0 ] || set -- "norm*"
exec "$0.whole" "$@"'
briefly test_golden <<<'[ $# -gt 0 ] || set -- gpus
WINNOW_NCCL=${0%/work/tree/*}/opt/torch/site/nvidia/nccl/lib/libnccl.so.2 exec "$0.whole" "$@"'
briefly test_prune_random_device <<<'exec "$0.whole" 41'
briefly test_tiny_llava <<<'WN_TEST_BACKEND=cpu exec "$0.whole" 1'
briefly test_serve <<<'WINNOW_BACKEND=cpu WINNOW_LINK=mpi exec "$0.whole" $1 $2 $3 ${4:+2}'
briefly bench_gpu <<<'WN_BENCH_BRIEF=1 exec "$0.whole" "$@"'
briefly winnowd <<<'[ "$1" != bench-link ] || set -- "$@" --bytes-max 4
exec "$0.whole" "$@"'
tar -czf "$tree/.device/pack.tar.gz" -C "$tree/build/packed" .
rm -rf "$tree/build"

# ---- the machine ----

add_file() { cp -nL "$1" "$root/$2/"; }
add_libs() { # FILE...
    ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | xargs -r cp -nL -t "$root/lib/x86_64-linux-gnu"
}
for tool in bash sh env cat grep sed awk tar gzip sort head tail tr cut date mktemp mkdir rm cp mv ls timeout find xargs df \
    free stat wc readlink sleep tee dirname basename uname id chmod ip; do
    file=$(command -v "$tool") || continue
    add_file "$file" bin
    add_libs "$file"
done
for lib in libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libresolv.so.2; do
    [ ! -e "/lib/x86_64-linux-gnu/$lib" ] || add_file "/lib/x86_64-linux-gnu/$lib" lib/x86_64-linux-gnu
done
add_file /lib64/ld-linux-x86-64.so.2 lib64
echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
stand_in() { # PATH, and on standard input what it says
    mkdir -p "$root/$(dirname "$1")"
    { echo '#!/bin/bash'; cat; } >"$root/$1"
    chmod +x "$root/$1"
}
cuda=$root/local/cuda
stand_in opt/stand-in/nvidia-smi <<<'echo "name, driver_version, memory.total [MiB]"
echo "NVIDIA Simulated 1, 580.159.04, 81559 MiB"'
stand_in opt/stand-in/nvidia-cuda-mps-control <<<'[ "$*" = -d ] || cat'
stand_in local/cuda/bin/nvcc <<<'echo "Cuda compilation tools, release 13.0"'
stand_in local/cuda/compute-sanitizer/compute-sanitizer <<<'[ "$1 $3" = "--tool --error-exitcode" ] || exit 2
shift 4
exec "$@"'
mkdir -p "$cuda/lib64" "$root/opt/torch/site/nvidia/nccl/lib"
cp "$(find "$build" -name libcublasltsim.so | head -1)" "$cuda/lib64/libcublasLt.so.13"
ln -s libcublasLt.so.13 "$cuda/lib64/libcublasLt.so.0" # the simulated CUDA is version 0
cp "$(find "$build" -name libncclsim.so | head -1)" "$root/opt/torch/site/nvidia/nccl/lib/libnccl.so.2"
python=$(command -v /usr/bin/python3 || true)
[ -z "$python" ] || { add_file "$python" bin; add_libs "$python"; }
stand_in opt/torch/python3 <<EOF2
case "\$*" in
*hf_bench.py*compiled*) [ -s "\$2" ] && echo hf_decode_compiled,B1,2.0,1.0; exit ;;
*hf_bench.py*) [ -s "\$2" ] && echo hf_vision,I1,2.0,1.0; exit ;;
esac
[ -n "$python" ] || { echo "\${0%/*}/site/nvidia/nccl/lib"; exit; }
PYTHONPATH="\${0%/*}/site" exec python3.real "\$@"
EOF2
[ -z "$python" ] || mv "$root/bin/python3" "$root/bin/python3.real"

# ---- the calls ----

# In the folder alone; this needs mounts.
inside() {
    unshare -mn --propagation private bash -ec '
        root=$0
        mount --rbind "$root" "$root"
        for d in proc sys dev; do mount --rbind /$d "$root/$d"; done
        mount -t tmpfs tmpfs "$root/dev/shm"
        for d in /usr/lib/python3*; do
            [ -d "$d" ] || continue
            mkdir -p "$root/$d"
            mount --rbind "$d" "$root/$d"
        done
        ip link set lo up
        exec chroot "$root" /bin/env -i SLACK=10 HOME=/root PATH=/opt/torch:/opt/stand-in:/bin /bin/bash -c \
            "cd /work/tree && scripts/device_checks.sh $1 /out/$1"' "$root" "$1"
}
outside() {
    ln -sf "$python" "$root/opt/torch/python3.real"
    env -i SLACK=10 HOME="$root/root" PATH="$root/opt/torch:$root/opt/stand-in:/usr/bin:/bin:/usr/sbin:/sbin" CUDA_HOME="$cuda" \
        bash -c 'cd "$0" && scripts/device_checks.sh "$1" "$2/$1"' "$tree" "$1" "$root/out"
}
fail() { echo "rehearsal of $what: $*"; failed=1; }
columns() { # TABLE, how many
    awk -F, -v n="$2" 'NF != n { exit 1 } END { exit NR < 2 }' "$out/$1" || fail "$1 has not $2 columns, or no row"
}
check_tables() {
    if [ "$what" = run ]; then
        columns bench.csv 8
        columns overlap.csv 8
        [ "$(grep -cE ',cuda,bfloat16,(mapped|read|direct),' "$out/load.csv")" = 5 ] || fail "load.csv has not five rows"
        columns transformers.csv 4
        for row in copy matmul vision prune load prefill decode; do
            grep -q "^$row," "$out/bench.csv" || fail "bench.csv has no row '$row'"
        done
    else
        columns links.csv 13
        columns ranks.csv 9
        for row in nccl nccl-fast mpi; do
            grep -q ",$row,2,allreduce," "$out/links.csv" || fail "links.csv has no row '$row'"
        done
    fi
    (cd "$tree" && scripts/device_checks.sh keep "$out") >"$box/kept" || fail "keep: $(cat "$box/kept")"
    for row in $(cat "$box/kept"); do
        awk -F, '!/^#/ { if (!n) n = NF; if (NF != n) exit 1 } END { exit n < 9 }' "$tree/$row" || fail "$row: columns"
    done
}
failed=0
for what in "$@"; do
    out=$root/out/$what
    inside=outside
    ! unshare -mn true 2>/dev/null || inside=inside
    start=$SECONDS
    "$inside" "$what" >"$box/said" 2>&1 || fail "exit code $?"
    steps=$(cd "$tree" && scripts/device_checks.sh dry-run 2>/dev/null |
        awk -v links=$([ "$what" = run ] || echo 1) '/in all; links:/ { second = 1 } / s  / && second == links { print $3 }')
    for step in $steps; do
        grep -qE "^ok +$step," "$out/summary.txt" || fail "$(grep -E "^[A-Za-z ]+ $step[ :,(]" "$out/summary.txt" || echo "$step: never came")"
    done
    [ "$(find "$out" -type f | wc -l)" -le 8 ] || fail "more files than come back"
    [ -z "$(find "$out" -type f -size +15M)" ] || fail "a file is larger than what comes back"
    [ -z "$(find "$out" -mindepth 1 | sed 's/.*\///' | grep -v '^[A-Za-z0-9._-]*$')" ] || fail "a name with odd letters"
    check_tables
    echo "$what: $(grep -c ^ok "$out/summary.txt") steps, $((SECONDS - start)) s, $inside"
    [ "$failed" = 0 ] || { tail -30 "$box/said"; tail -c 5000 "$out/log.txt"; }
done
exit "$failed"
