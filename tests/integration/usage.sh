#!/usr/bin/env bash
# tests/integration/usage.sh WINNOW - what the commands say to a mistake, where no service is needed to see it: the
# exit code (2: usage, 1: the rest) and a single line that names the thing.
set -uo pipefail
winnow=$1
model=models/tiny-llava
dir=$(mktemp -d)
passed=0 failed=0
trap 'rm -rf "$dir"' EXIT
unset WINNOW_ENDPOINT WINNOW_KEY WINNOW_CONFIG

# says CODE WORDS COMMAND...: the command ends with CODE and says WORDS on standard error, in a single line
says() {
    local code=$1 words=$2 got lines
    shift 2
    timeout 20 "$@" >"$dir/out" 2>"$dir/err" </dev/null
    got=$?
    lines=$(grep -c . "$dir/err")
    if [ "$got" -eq "$code" ] && grep -qF -- "$words" "$dir/err" && [ "$lines" -eq 1 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $*: exit code $got (expected $code), '$words' expected in one line of:"
        cat "$dir/err"
    fi
}

# holds WHAT COMMAND...: the command is true
holds() {
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $what"; fi
}

says 2 "unknown command sevre; did you mean serve?" "$winnow" sevre $model
says 2 "unknown command frobnicate; --help lists the commands" "$winnow" frobnicate
says 2 "unknown option --verion" "$winnow" --verion
says 2 "unexpected argument 'x'" "$winnow" collect-env x

# output that is lost is a failure, a reader who has seen enough is none
says 1 "cannot write standard output" bash -c '"$1" --version >/dev/full' - "$winnow"
says 1 "cannot write standard output" bash -c '"$1" plan "$2" >/dev/full' - "$winnow" $model
says 1 "cannot write standard output: File too large" bash -c 'ulimit -f 1; "$1" plan --help >"$2/small"' - \
    "$winnow" "$dir"
says 1 "cannot write standard output: Bad file descriptor" bash -c '"$1" --help >&-' - "$winnow"
holds "a pipe into head" bash -c '"$1" plan "$2" --help | head -1' - "$winnow" $model

# an empty option of a batch file is a mistake, and so is a misspelt variable
says 2 "--config: no file is named" "$winnow" plan $model --config ""
says 0 "WINNOW_MAX_QUEU in the environment is no option" env WINNOW_MAX_QUEU=3 "$winnow" plan $model
says 2 "WINNOW_MAX_QUEUE: 'many'" env WINNOW_MAX_QUEUE=many "$winnow" plan $model

# no model, or none that there is
for command in serve plan check prune; do
    says 2 "no MODEL" "$winnow" $command
done
says 2 "no --image FILE" "$winnow" prune $model
holds "int8 in the plan" bash -c '"$1" plan "$2" --quantization int8 | grep -q "matrices in int8"' - "$winnow" $model
says 1 "pruning method 'sharpen' is not known" "$winnow" plan $model --image-pruning-method sharpen

# roles that are started by hand
winnowd=$(dirname "$winnow")/winnowd
says 2 "neither --run-dir nor --scheduler-endpoint" "$winnowd" scheduler --port 0
says 2 "neither --run-dir nor --scheduler-endpoint" "$winnowd" vision $model
says 2 "no MODEL" "$winnowd" shard --run-dir "$dir"

# a question from standard input
says 1 "cannot read /dev/stdin: it is empty" "$winnow" ask -
says 1 "has a zero character" bash -c 'printf "a\0b" | "$1" ask -' - "$winnow"
says 1 "cannot read /dev/stdin: it is too large" bash -c 'head -c 300000 /dev/zero | "$1" ask -' - "$winnow"
says 1 "no server at tcp://127.0.0.1:1" bash -c 'echo "What?" | "$1" ask - --endpoint tcp://127.0.0.1:1' - "$winnow"

# the gateway, where it is built: who may reach it, and its keys
if "$winnow" --help | grep -q "^  gateway "; then
    says 2 "--host 0.0.0.0 is not on this machine: give --api-key FILE, or say" "$winnow" gateway --host 0.0.0.0
    install -m 600 /dev/null "$dir/keys"
    says 2 "keys: it is empty" "$winnow" gateway --api-key "$dir/keys"
    echo >"$dir/keys"
    says 2 "keys: it has no key" "$winnow" gateway --api-key "$dir/keys"
    printf 'a-key-of-sixteen\nshort\n' >"$dir/keys"
    says 2 "key 2 has fewer than 16 characters" "$winnow" gateway --api-key "$dir/keys"
    chmod 644 "$dir/keys"
    says 2 "others can read it: chmod 600" "$winnow" gateway --api-key "$dir/keys"
    says 1 "cannot listen on 192.0.2.1 port 8000" "$winnow" gateway --host 192.0.2.1 --insecure
fi

# an address that is none
says 1 "with a port from 1 to 65535" "$winnow" status --endpoint tcp://127.0.0.1:5599x

# numbers that ask for nothing
says 2 "--pruning: at least 1" "$winnow" ask --pruning cls-topk:0 "What?"
says 2 "--n: at least 1" "$winnow" ask --n 0 "What?"
says 2 "--max-tokens: at least 1" "$winnow" ask --max-tokens 0 "What?"
says 2 "--temperature: 'nan'" "$winnow" ask --temperature nan "What?"
says 2 "--num-prompts: at least 1" "$winnow" bench serve --dataset-path x --num-prompts 0

# what is written after long work can be written before it
says 1 "cannot write $dir/none/x.csv" "$winnow" eval --csv "$dir/none/x.csv"
says 1 "cannot write $dir: Is a directory" "$winnow" eval --plot "$dir"
says 1 "cannot write $dir/none/x.csv" "$winnow" bench serve --dataset-path tests/eval/questions.jsonl --csv "$dir/none/x.csv"
says 1 "cannot write $dir/none/x.png" "$winnow" bench wire --plot "$dir/none/x.png"

# keys: a folder of somebody else's is left as it is, and half a set is none
mkdir -m 1777 "$dir/shared"
says 1 "others may write there" "$winnow" keygen "$dir/shared"
holds "its mode is what it was" [ "$(stat -c %a "$dir/shared")" = 1777 ]
mkdir -m 755 "$dir/own"
says 1 "$dir/own/authorized" bash -c 'touch "$2/authorized"; "$1" keygen "$2"' - "$winnow" "$dir/own"
holds "no key is left of it" [ -z "$(ls "$dir/own" | grep key)" ]
holds "a folder that is there" bash -c 'rm "$2/authorized"; "$1" keygen "$2"' - "$winnow" "$dir/own"
holds "its mode is what it was, too" [ "$(stat -c %a "$dir/own")" = 755 ]
holds "keys are private" [ "$(stat -c %a "$dir/own/server.key")" = 600 ]

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
