#!/usr/bin/env bash
# scripts/device_checks.sh - everything that needs a GPU, in one call of less than eight minutes.
#
#   scripts/device_checks.sh pack          here: builds the programs for sm_90 and gathers them with the libraries that
#                                          they need into .device/pack.tar.gz (ignored by git, and to
#                                          be carried along with the checkout)
#   scripts/device_checks.sh gather BUILD  here: the same of programs that are in BUILD already (tests/cudasim/rehearse.sh:
#                                          all of run and links on a simulated GPU)
#   scripts/device_checks.sh run OUT       on the machine with the GPU: runs the checks; OUT gets summary.txt, machine.txt,
#                                          log.txt (all that the steps print) and the tables, *.csv
#   scripts/device_checks.sh links OUT     the same for what ranks say to each other: NCCL between two and four ranks that
#                                          share the GPU as hosts would share a network (NCCL_HOSTID), services on them, a
#                                          rank killed, bench link, and the 13B shape cut in two; less than eight minutes
#   scripts/device_checks.sh dry-run       here: says what run and links would do, and whether all that they need is there
#   scripts/device_checks.sh keep OUT      here, with what came back: the tables go to tests/bench/results
#
# The machine with the GPU needs a driver and cuBLASLt, and no network. It runs what was packed; if that does not start
# there, the kernels and their tests are built from this checkout with its own nvcc and gcc (cmocka is packed), and
# what needs more libraries is left out and said so. Each step has a time limit, and the next runs whatever became of it
# while there is time: all of it ends after DEADLINE seconds. The last lines are a summary; the exit code is the number of
# steps that failed or did not get their turn.
set -uo pipefail
cd "$(dirname "$0")/.."
programs=(test_backend_cuda test_golden test_vision test_tiny_llava test_encoder_device test_prune_golden_device
    test_prune_random_device random_model bench_gpu bench_load bench_gpu_ranks test_link_device test_serve winnowd winnow)
TREE_MAX=64 # MiB that travel: tracked files and .device
packed=$PWD/build/packed
SLACK=${SLACK:-1} # how many times as long steps may take: rehearsals
DEADLINE=$((470 * SLACK))
CONFIG=tests/golden/config/llava-1.5-13b.json

pack() {
    local jobs; jobs=$(nproc)
    cmake -G Ninja -S . -B build/device -DCMAKE_BUILD_TYPE=Release -DWN_CUDA=ON -DWN_CUDA_ARCHITECTURES=90 \
        -DCMAKE_C_COMPILER_LAUNCHER="$(command -v ccache || true)" >/dev/null || return
    ninja -C build/device -j "$jobs" "${programs[@]}" || return
    gather build/device
}

gather() { # BUILD
    set -e
    rm -rf .device "$packed"
    mkdir -p .device "$packed"/{bin,lib,include}
    local p file
    for p in "${programs[@]}"; do
        file=$(find -L "$1" -type f -name "$p" -perm -u+x | head -1)
        [ -n "$file" ] || { echo "$1 has no $p" >&2; return 1; }
        strip -o "$packed/bin/$p" "$file"
        pack_libs "$file"
    done
    pack_mpi
    cp -L /usr/include/cmocka*.h "$packed/include/"
    { git rev-parse --short HEAD || echo none; } >"$packed/commit" 2>/dev/null
    tar -czf .device/pack.tar.gz -C "$packed" .
    local tree
    tree=$({ git ls-files -z 2>/dev/null || true; find .device -type f -print0; } | xargs -0 stat -c %s |
        awk '{ n += $1 } END { print int(n / 2 ^ 20) + 1 }')
    echo "$(du -h .device/pack.tar.gz), with tracked files $tree MiB"
    [ "$tree" -le "$TREE_MAX" ] || { echo "more than $TREE_MAX MiB: it will not travel" >&2; return 1; }
}

# What was packed, where this is not the machine that packed it.
unpack() {
    rm -rf "$packed"
    mkdir -p "$packed"
    tar -xzf .device/pack.tar.gz -C "$packed"
}

# All shared libraries of these files but the C library's and the driver's: those are the machine's own.
pack_libs() { # FILE...
    ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libcuda|ld-linux[^/]*)\.so' |
        xargs -r cp -nL -t "$packed/lib"
}

# mpirun and the plugins of Open MPI and PMIx; the machine with the GPU may have none.
pack_mpi() {
    local libs=/usr/lib/x86_64-linux-gnu
    local mpi=$packed/mpi
    mkdir -p "$mpi/bin" "$mpi/pmix"
    cp -L "$(command -v mpirun)" "$mpi/bin/mpirun"
    cp -rL "$libs/openmpi/lib/openmpi3" "$mpi/plugins"
    cp -rL /usr/share/openmpi "$mpi/share"
    cp -rL "$libs"/pmix2/lib/pmix/* "$mpi/pmix/"
    cp -rL "$libs"/pmix2/share/pmix "$mpi/pmix-share" 2>/dev/null || true
    pack_libs "$mpi/bin/mpirun" "$mpi"/plugins/*.so "$mpi"/pmix/*.so
}

use_mpi() {
    local mpi=$packed/mpi
    export PATH="$mpi/bin:$PATH" OPAL_PKGLIBDIR="$mpi/plugins" OPAL_PKGDATADIR="$mpi/share" OPAL_SYSCONFDIR="$mpi/share"
    export PMIX_PKGLIBDIR="$mpi/pmix" PMIX_PKGDATADIR="$mpi/pmix-share" OMPI_MCA_mca_base_component_path="$mpi/plugins"
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
}

# Kernels, CPU backends and the conformance suite with nothing but gcc, nvcc and cmocka.
build_there() {
    local dir=$1 flags="-O2 -std=gnu17 -D_GNU_SOURCE -I. -I$packed/include -ffp-contract=off -fno-strict-aliasing" f
    mkdir -p "$dir"
    local objects=()
    for f in shard/cuda/*.cu; do
        nvcc -O3 -std=c++17 -fmad=false -arch=sm_90 -I. -c "$f" -o "$dir/$(basename "$f").o" &
        objects+=("$dir/$(basename "$f").o")
    done
    wait
    for f in base/{status,log,hostmem,progress}.c shard/backend.c shard/cpu/*.c shard/cuda/*.c shard/sample.c \
        tests/conform/{test_backend_cuda,backend_suite*,backend_double}.c pruning/dots.c; do
        [ "$f" != shard/cpu/avx2.c ] || continue # what runs on every processor is enough to compare with
        # shellcheck disable=SC2086
        gcc $flags -fopenmp -DWN_HAVE_CUDA -DWN_CUDA_HAVE_CUBLASLT -I"$cuda/include" -c "$f" -o "$dir/${f//\//_}.o" || return 1
        objects+=("$dir/${f//\//_}.o")
    done
    gcc -fopenmp "${objects[@]}" -o "$dir/test_backend_cuda" "$packed"/lib/libcmocka.so* -L"$cuda/lib64" -lcudart_static \
        -lstdc++ -lm -ldl -lrt -lpthread
}

summary=()
failed=0
dry='' total=0

# Every word of a command that names a file of ours must be there (programs: built here, when this is a dry run).
needs() {
    local word
    for word in "$@"; do
        case $word in
        "$packed"/bin/* | tests/* | scripts/*)
            [ -e "$word" ] || { echo "        missing: $word"; failed=$((failed + 1)); } ;;
        esac
    done
}

# The folder with the most room: a checkpoint of 26 GB goes there.
roomy() {
    local folder
    for folder in /dev/shm /tmp; do
        echo "$(df --output=avail "$folder" 2>/dev/null | tail -1) $folder"
    done | sort -rn | awk 'NR == 1 { print $2 }'
}

# What a step says of its failure: the first line that names an error, or the last one.
why() {
    local said
    said=$(grep -vE 'errorcode|MPI_ABORT|NCCL INFO' "$1" | grep -m1 -iE 'error|failed:|cuda:|nccl:|mismatch|no such file|bug:')
    echo "${said:-$(tail -1 "$1")}" | cut -c1-160
}

# step NAME SECONDS command...: output to $logs/NAME.txt and, when the step is over, to OUT/log.txt
step() {
    local name=$1 limit=$(($2 * SLACK)) rc start=$SECONDS left=$((DEADLINE - SECONDS))
    shift 2
    if [ -n "$dry" ]; then
        total=$((total + limit))
        printf '%4d s  %-12s %s\n' "$limit" "$name" "$*"
        needs "$@"
        return
    fi
    [ "$left" -ge 5 ] || { summary+=("NO TIME  $name"); failed=$((failed + 1)); tell; return; }
    [ "$limit" -le "$left" ] || limit=$left
    timeout -k 5 "$limit" "$@" >"$logs/$name.txt" 2>&1
    rc=$?
    case $rc in
    0) summary+=("ok       $name, $((SECONDS - start)) s") ;;
    77) summary+=("skipped  $name: $(grep -m1 skipped "$logs/$name.txt")") ;;
    124 | 137) summary+=("TIMEOUT  $name after $limit s: $(tail -1 "$logs/$name.txt" | cut -c1-160)") failed=$((failed + 1)) ;;
    *) summary+=("FAILED   $name ($rc), $((SECONDS - start)) s: $(why "$logs/$name.txt")") failed=$((failed + 1)) ;;
    esac
    [ "$rc" -eq 0 ] || sweep
    tell
    {
        echo "==== ${summary[-1]}"
        tail -c 400000 "$logs/$name.txt"
    } >>"$out/log.txt"
}

# So far, should this script be ended from outside.
tell() { printf '%s\n' "${summary[@]}" >"$out/summary.txt"; }

# Ranks whose mpirun was ended may be left, and spin on the GPU.
sweep() {
    local p
    for p in /proc/[0-9]*; do
        case $(readlink "$p/exe") in "$packed"/*) kill -9 "${p#/proc/}" ;; esac
    done 2>/dev/null
}

# Few files come back from there, and none larger than 16 MiB, so what steps print is gathered in one.
open_logs() {
    mkdir -p "$out"
    unpack >"$out/log.txt" 2>&1
    logs=$(mktemp -d /tmp/winnow-device-XXXXXX)
}

# The folder of a library: where CUDA is, or in a Python package.
folder_of() { # PATTERN
    local found
    found=$(for d in "$cuda/lib64" "$cuda/lib" "$cuda"/targets/*/lib /usr/lib/x86_64-linux-gnu; do
        compgen -G "$d/$1" >/dev/null && echo "$d"
    done | head -1)
    [ -n "$found" ] || found=$(python3 -c 'import nvidia, glob, sys; print(next(glob.iglob(list(nvidia.__path__)[0] + "/*/lib/" + sys.argv[1])).rsplit("/", 1)[0])' "$1" 2>/dev/null)
    echo "$found"
}

run() {
    out=$1
    [ -n "$dry" ] || open_logs
    cuda=${CUDA_HOME:-/usr/local/cuda}
    local lt; lt=$(folder_of 'libcublasLt.so.1[23]')
    local theirs=${LD_LIBRARY_PATH:-} # Python keeps to the machine's own libraries
    export LD_LIBRARY_PATH="$packed/lib${lt:+:$lt}${theirs:+:$theirs}"
    export OMP_NUM_THREADS=8 PATH="$PATH:$cuda/bin:$cuda/compute-sanitizer"
    local bin=$packed/bin scratch
    scratch=$(roomy)/winnow-bench
    [ -n "$dry" ] && { steps; return; }
    {
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
        nvcc --version | tail -1
        echo "cuBLASLt: ${lt:-not found}"
        echo "packed at $(cat "$packed/commit" 2>/dev/null)"
    } >"$out/machine.txt" 2>&1
    timeout -k 5 60 "$bin/test_backend_cuda" refusals >"$logs/start.txt" 2>&1
    local started=$?
    if [ $started -eq 77 ]; then # nothing would run, and 26 GB would be written for it
        { cat "$out/machine.txt" && grep skipped "$logs/start.txt" && echo "nothing was checked"; } | tee "$out/summary.txt"
        return 1
    fi
    if [ $started -ge 126 ] || grep -q 'version .* not found' "$logs/start.txt"; then # a library is missing, or of another age
        bin=/tmp/winnow-device
        LD_LIBRARY_PATH=$theirs build_there "$bin" >>"$out/log.txt" 2>&1
        summary+=("note     the packed programs do not start here ($(tail -1 "$logs/start.txt" | cut -c1-100)): built on the spot")
    fi
    steps
    grep -E '^[a-z]+,' "$logs/bench.txt" >"$out/bench.csv" 2>/dev/null
    local set
    for set in int8 overlap; do
        grep -E '^(prefill|decode),' "$logs/$set.txt" 2>/dev/null | sed "s/^/${set}_/" >"$out/$set.csv"
    done
    grep -E '^(#|commit,|[0-9a-f]{12}(-dirty)?,cuda,)' "$logs/load.txt" >"$out/load.csv" 2>/dev/null
    cat "$logs"/{transformers,compiled}.txt 2>/dev/null | grep -E '^hf_[a-z_]+,' >"$out/transformers.csv"
    {
        cat "$out/machine.txt"
        printf '%s\n' "${summary[@]}"
        cat "$out"/{bench,int8,load,overlap,transformers}.csv 2>/dev/null
        echo "$SECONDS s in all, $failed failed"
    } | tee "$out/summary.txt"
    return "$failed"
}

steps() {
    step conform 80 "$bin/test_backend_cuda"
    export WINNOW_CUDA_KERNELS=exact
    step golden 40 "$bin/test_golden"
    step vision 30 "$bin/test_vision"
    unset WINNOW_CUDA_KERNELS
    step encoder 20 "$bin/test_encoder_device"
    step prune_golden 20 "$bin/test_prune_golden_device"
    step prune_random 40 "$bin/test_prune_random_device"
    WN_TEST_BACKEND=cuda step tiny_llava 40 "$bin/test_tiny_llava" 20
    [ -n "$dry" ] || mkdir -p "$scratch"
    step write_13b 90 "$bin/random_model" "$CONFIG" "$scratch"
    step bench 100 "$bin/bench_gpu" "$scratch"
    step int8 40 "$bin/bench_gpu" "$scratch" cuda int8
    # a checkpoint's way from a disk, not from /dev/shm: the page cache cold and warm, beside the disk's own rate
    step write_load 20 "$bin/random_model" "$CONFIG" /tmp/winnow-load --layers 4
    step load 60 "$bin/bench_load" /tmp/winnow-load cuda
    [ -n "$dry" ] || rm -rf /tmp/winnow-load
    # the same steps with launches that begin early, which is off until this has shown that it is right, and faster
    WN_TEST_BACKEND=cuda WINNOW_CUDA_OVERLAP=1 step tiny_overlap 30 "$bin/test_tiny_llava" 5
    WINNOW_CUDA_OVERLAP=1 step overlap 50 "$bin/bench_gpu" "$scratch" cuda steps
    [ -n "$dry" ] || rm -rf "$scratch"
    step transformers 70 env LD_LIBRARY_PATH="$theirs" python3 scripts/golden/hf_bench.py "$CONFIG"
    sanitize memcheck 40 'attn_paged_close'
    sanitize memcheck 20 'row_*_bits'
    sanitize racecheck 20 'weight_types'
    sanitize racecheck 20 'matmul_slices'
    sanitize racecheck 20 'pick_seeds'
    sanitize racecheck 20 'row_*_bits'
    local most=$((DEADLINE - SECONDS - 30)) # to start, and to make the model
    [ "$most" -lt 110 ] || most=110
    step compiled 140 env LD_LIBRARY_PATH="$theirs" python3 scripts/golden/hf_bench.py "$CONFIG" compiled "$most"
}

sanitize() { # TOOL SECONDS TESTS
    step "$1_${3%%_*}" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 "$bin/test_backend_cuda" "$3"
}

# The tables with commit and machine before them, as in the other files there; those of `links` as they came.
keep() {
    local out=$1 name machine commit rows=()
    name=$(sed -n 2p "$out/machine.txt" | cut -d, -f1 | tr 'A-Z' 'a-z' | sed 's/nvidia//; s/[^a-z0-9]\+/-/g; s/^-//; s/-$//')
    commit=$(sed -n 's/.*packed at //p' "$out/machine.txt")
    machine=$(sed -n 2p "$out/machine.txt")
    if [ -n "$name" ] && [ -s "$out/bench.csv" ]; then
        rows+=("tests/bench/results/$name.csv")
        {
            echo "# scripts/device_checks.sh run: $machine"
            echo "# LLaVA-1.5-13B's shapes, random weights; floor_us: bytes or operations at the rates of copy and matmul"
            echo "commit,machine,what,shape,p50_us,min_us,floor_us,ratio,tflops,gbytes_s"
            grep -hvE '^what,' "$out"/{bench,int8,overlap,transformers}.csv |
                awk -F, -v OFS=, -v first="$commit,$name" '{ $8 = $8; print first, $0 }'
        } >"${rows[-1]}"
    fi
    if [ -n "$name" ] && [ -s "$out/load.csv" ]; then
        rows+=("tests/bench/results/$name-load.csv")
        { echo "# scripts/device_checks.sh run: $machine"; cat "$out/load.csv"; } >"${rows[-1]}"
    fi
    for table in links ranks; do
        [ -n "$name" ] && [ -s "$out/$table.csv" ] || continue
        rows+=("tests/bench/results/$name-$table.csv")
        { echo "# scripts/device_checks.sh links, at $commit: ranks that share one $machine"; cat "$out/$table.csv"; } \
            >"${rows[-1]}"
    done
    [ "${#rows[@]}" -gt 0 ] || { echo "$out: no table of a GPU" >&2; return 1; }
    printf '%s\n' "${rows[@]}"
}

# What ranks say to each other: everything runs on one card, so times are those of processes that share it.
links() {
    out=$1
    cuda=${CUDA_HOME:-/usr/local/cuda}
    local bin=$packed/bin nccl lt folder
    local run="mpirun --oversubscribe --bind-to none --mca plm isolated --mca btl self,vader"
    run+=" --mca btl_vader_single_copy_mechanism none -np"
    folder=$(roomy)/winnow-bench
    [ -n "$dry" ] && { link_steps; return; }
    open_logs
    nccl=$(folder_of libnccl.so.2)
    lt=$(folder_of 'libcublasLt.so.1[23]')
    [ -n "$nccl" ] && export WINNOW_NCCL=$nccl/libnccl.so.2
    {
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
        echo "NCCL: ${nccl:-not found}; cuBLASLt: ${lt:-not found}; packed at $(cat "$packed/commit" 2>/dev/null)"
        df -h /dev/shm /tmp
        free -g
        ip -brief address
    } >"$out/machine.txt" 2>&1
    export LD_LIBRARY_PATH="$packed/lib${lt:+:$lt}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export WINNOW_LOG_LEVEL=info OMP_NUM_THREADS=4 NCCL_SOCKET_IFNAME=lo NCCL_DEBUG=WARN
    use_mpi
    timeout -k 5 60 "$bin/test_backend_cuda" refusals >"$logs/start.txt" 2>&1
    case $? in
    0) ;;
    77) { cat "$out/machine.txt" "$logs/start.txt" && echo "nothing was checked"; } | tee "$out/summary.txt"; return 1 ;;
    *) summary+=("note     test_backend_cuda: $(tail -1 "$logs/start.txt" | cut -c1-160)") ;;
    esac
    mkdir -p "$folder"
    link_steps
    rm -rf "$folder"
    tail -qc 100000 "$logs"/nccl-*.txt >"$out/nccl.txt" 2>/dev/null
    link_tables
    {
        cat "$out/machine.txt"
        printf '%s\n' "${summary[@]}"
        cat "$out/links.csv" "$out/ranks.csv"
        echo "$SECONDS s in all, $failed failed"
    } 2>/dev/null | tee "$out/summary.txt"
    return "$failed"
}

# bench link's rows, and those of the shape that was cut in two, with the name of the step that made them.
link_tables() {
    local name
    {
        grep -h '^commit,' "$logs"/bench_*.txt | head -1 | sed 's/^/step,/'
        for name in bench_nccl bench_mpi bench_fast bench_blocking bench_mps; do
            grep -hE '^[^,]*,[^,]*,(mpi|nccl|nccl-fast),' "$logs/$name.txt" | sed "s/^/$name,/"
        done
    } >"$out/links.csv" 2>/dev/null
    {
        echo "step,ranks,layout,prefill_us,decode_us,alone_prefill_us,alone_decode_us,off,same_logits"
        echo "step,bytes,kind,from,to,sent,plan,,"
        for name in "$logs"/13b_*.txt; do
            grep -hE '^(ranks|bytes),' "$name" | sed "s/^/$(basename "$name" .txt),/"
        done
    } >"$out/ranks.csv" 2>/dev/null
}

# The first half has one check of everything; the second, the larger groups and what compares times.
link_steps() {
    export WINNOW_CUDA_KERNELS=exact
    step link_np2 50 env NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,ENV,NET NCCL_DEBUG_FILE="${logs:-}/nccl-%p.txt" \
        $run 2 "$bin/test_link_device" mpi
    step golden_np2 40 $run 2 "$bin/test_golden" mpi gpus
    step death 30 tests/conform/link_mpi_lost.sh death 5 3,17 $run 3 "$bin/test_link_device"
    step leave 30 tests/conform/link_mpi_lost.sh leave 5 17 $run 3 "$bin/test_link_device"
    step bench_nccl 45 $run 2 "$bin/winnowd" bench-link --link nccl --backend cuda:0 --bytes-max 5M
    serve 2 1
    # LLaVA-1.5-13B's shapes with random weights, by tensor and by stage: logits, bytes, times
    step write_13b 90 "$bin/random_model" "$CONFIG" "$folder"
    split_13b 1 2 exact
    split_13b 2 1 exact
    # a rank killed under load: nothing is lost
    serve deaths
    step link_np4 70 $run 4 "$bin/test_link_device" mpi
    step golden_np4 60 $run 4 "$bin/test_golden" mpi gpus
    serve 1 2
    serve 2 2
    split_13b 1 2 fast
    split_13b 2 1 fast
    step bench_mpi 25 $run 2 "$bin/winnowd" bench-link --link mpi --bytes-max 5M
    step bench_fast 30 $run 2 "$bin/winnowd" bench-link --link nccl --backend cuda:0 --allreduce fast --bytes-max 5M
    # what a thread for each call costs, and what it costs that processes take turns on the GPU
    step bench_blocking 30 env NCCL_COMM_BLOCKING=1 $run 2 "$bin/winnowd" bench-link --link nccl --backend cuda:0 --bytes-max 5M
    step bench_mps 40 scripts/device_checks.sh mps "${logs:-}" $run 2 "$bin/winnowd" bench-link --link nccl \
        --backend cuda:0 --bytes-max 5M
}

# A service: the vision worker on the CPU, the language model's ranks on the card.
serve() { # TENSORS STAGES | deaths
    local name=serve_$1${2:+x$2} limit=40 what=("$1")
    [ "$1" = deaths ] && limit=110 || what=(answers "$1" "$2" 10)
    step "$name" "$limit" env WN_TEST_WINNOWD="$bin/winnowd" WINNOW_BACKEND=cuda:0 WINNOW_VISION_BACKEND=cpu \
        WINNOW_LINK=nccl "$bin/test_serve" "${what[@]}"
}

split_13b() { # STAGES TENSORS KERNELS
    step "13b_P$1_T$2_$3" 70 env WINNOW_CUDA_KERNELS="$3" $run 2 "$bin/bench_gpu_ranks" "$folder" "$1" "$2"
}

# Ranks compute at the same time, where the machine has MPS. A process beside them, and no setting of the GPU.
mps() { # FOLDER COMMAND...
    local rc
    export CUDA_MPS_PIPE_DIRECTORY=$1/mps CUDA_MPS_LOG_DIRECTORY=$1/mps
    shift
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY"
    nvidia-cuda-mps-control -d || { echo "skipped: no MPS here"; return 77; }
    timeout -k 5 30 "$@"
    rc=$?
    echo quit | timeout 5 nvidia-cuda-mps-control
    [ "$rc" -eq 0 ] || { echo "skipped: MPS does not work here ($rc)"; return 77; }
}

case ${1:-}${2:+ OUT} in
pack) pack ;;
"gather OUT" | "run OUT" | "links OUT" | "keep OUT" | "mps OUT") "$@" ;;
dry-run)
    dry=1
    run /nowhere
    echo "$total s at most, and $DEADLINE s in all; links:"
    total=0
    links /nowhere
    echo "$total s at most, and $DEADLINE s in all; $failed missing"
    [ "$failed" -eq 0 ]
    ;;
*) echo "usage: scripts/device_checks.sh pack | gather BUILD | run OUT | links OUT | dry-run | keep OUT" >&2; exit 2 ;;
esac
