#!/usr/bin/env bash
# tests/integration/refusals.sh WINNOWD - what is refused before a service starts: one clear line, exit code 1 (2: usage).
set -uo pipefail
winnowd=$1
model=models/tiny-llava
dir=$(mktemp -d)
holder= makers=()
passed=0 failed=0
cleanup() {
    [ -n "$holder" ] && kill "$holder" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

# refuse CODE WORDS COMMAND...: the command ends with CODE and says WORDS in a single line
refuse() {
    local code=$1 words=$2 got lines
    shift 2
    timeout 60 "$@" >"$dir/out" 2>"$dir/err" </dev/null
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

copy() { # a checkpoint of links, so that one file can be replaced
    rm -rf "$dir/model"
    mkdir "$dir/model"
    for f in $model/*; do ln -s "$PWD/$f" "$dir/model/"; done
}

refuse 1 "no such checkpoint" "$winnowd" serve "$dir/nowhere"
refuse 2 "--tensor-paralel-size" "$winnowd" serve $model --tensor-paralel-size 2
refuse 2 "--port" "$winnowd" serve $model --port 70000
refuse 1 "tensor" "$winnowd" serve $model -tp 3
refuse 1 "joins GPUs" "$winnowd" serve $model -tp 2 --link nccl
refuse 1 "joins threads" "$winnowd" serve $model -tp 2 --link local
refuse 1 "sharpen" "$winnowd" serve $model --image-pruning-method sharpen
refuse 1 "--layout $dir/layout: everything runs on this machine" "$winnowd" serve $model --layout "$dir/layout"
refuse 1 "--launcher slurm: this is no Slurm job" "$winnowd" serve $model --launcher slurm
refuse 1 "layers" "$winnowd" serve $model -pp 2 --pipeline-layers 0-1,3-5

refuse 1 "backend 'tpu' does not exist" "$winnowd" serve $model --backend tpu
refuse 1 "backend 'tpu' does not exist" "$winnowd" serve $model --vision-backend tpu
refuse 2 "--quantization: 'int4' is none of none|int8" "$winnowd" serve $model --quantization int4
refuse 1 "the model has positions for 2048 tokens" "$winnowd" serve $model --max-model-len 2049
refuse 1 "only 20 open files are allowed" bash -c 'ulimit -n 20; exec "$@"' - "$winnowd" serve $model
refuse 1 "--interface eth99" "$winnowd" serve $model --interface eth99
refuse 1 "--host no.such.host.invalid" "$winnowd" serve $model --host no.such.host.invalid --insecure
refuse 2 "--host: no address is named" "$winnowd" serve $model --host ""

# off loopback only with keys, or by saying so; keys that are not as keygen made them
winnow=$(dirname "$winnowd")/winnow
refuse 2 "--host 0.0.0.0" "$winnowd" serve $model --host 0.0.0.0
refuse 2 "--scheduler-endpoint tcp://192.0.2.1:1" "$winnowd" vision $model --scheduler-endpoint tcp://192.0.2.1:1
refuse 2 "--features-endpoint tcp://*:0" "$winnowd" shard $model --features-endpoint 'tcp://*:0'
refuse 1 "$dir/keys/server.key" "$winnowd" serve $model --keys "$dir/keys"
"$winnow" keygen "$dir/keys" >/dev/null || failed=$((failed + 1))
refuse 1 "nothing was written" "$winnow" keygen "$dir/keys"
for i in 1 2 3 4 5 6; do "$winnow" keygen "$dir/new/" >>"$dir/made" 2>&1 & makers+=($!); done # as batch jobs that start at once
wait "${makers[@]}"
[ "$(grep -c '^made' "$dir/made")" -eq 1 ] && [ "$(grep -c 'nothing was written' "$dir/made")" -eq 5 ] &&
    [ "$(ls "$dir/new" | xargs)" = "admin.key authorized client.key server.key worker.key" ] &&
    [ "$(stat -c %a "$dir/new")" = 700 ] && [ "$(ls -d "$dir"/new*)" = "$dir/new" ] ||
    { failed=$((failed + 1)); echo "FAILED: keys that several make at once"; cat "$dir/made"; }
chmod 640 "$dir/keys/worker.key"
refuse 1 "chmod 600" "$winnowd" serve $model --keys "$dir/keys"
chmod 600 "$dir/keys/worker.key"
cp "$dir/keys/client.key" "$dir/keys/worker.key"
refuse 1 "has the role client, not worker" "$winnowd" serve $model --keys "$dir/keys"
echo "client nonsense x" >>"$dir/keys/authorized"
refuse 1 "authorized:5" "$winnowd" serve $model --keys "$dir/keys"
refuse 1 "no server at" env WINNOW_KEY="$dir/keys/client.key" "$winnow" status --endpoint tcp://127.0.0.1:1
refuse 1 "$dir/none" "$winnow" status --key "$dir/none"

copy
rm "$dir/model/model-00002-of-00002.safetensors"
refuse 1 "model-00002-of-00002.safetensors" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/tokenizer.json"
refuse 1 "tokenizer.json" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/tokenizer.json"
head -c 5000 $model/tokenizer.json >"$dir/model/tokenizer.json"
refuse 1 "tokenizer.json: line" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/preprocessor_config.json"
refuse 1 "preprocessor_config.json" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/preprocessor_config.json"
echo '{}' >"$dir/model/preprocessor_config.json"
refuse 1 "the tower takes 336 x 336" "$winnowd" serve "$dir/model"
rm "$dir"/model/*.safetensors # they are not looked at
refuse 1 "the tower takes 336 x 336" "$winnowd" prune "$dir/model" --image $model/demo.jpg --all
refuse 1 "'sharpen' is not known" "$winnowd" prune "$dir/model" --image "$dir/none" --method sharpen
refuse 1 "$dir/none" "$winnowd" prune "$dir/model" --image "$dir/none" --all
copy
rm "$dir/model/config.json"
sed 's/LlavaForConditionalGeneration/Qwen2VLForConditionalGeneration/' $model/config.json >"$dir/model/config.json"
refuse 1 "Qwen2VLForConditionalGeneration" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/model-00001-of-00002.safetensors"
{ printf '\377\377\377\377\377\377\377\177'; head -c 4096 /dev/zero; } >"$dir/model/model-00001-of-00002.safetensors"
refuse 1 "model-00001-of-00002.safetensors" "$winnowd" serve "$dir/model"
copy
rm "$dir/model/model-00001-of-00002.safetensors"
head -c 100000 $model/model-00001-of-00002.safetensors >"$dir/model/model-00001-of-00002.safetensors"
refuse 1 "model-00001-of-00002.safetensors" "$winnowd" serve "$dir/model"

# a tensor that is missing, of another shape, or of another type, is found in the headers of the files
tensor() { # FROM TO: in the second file and the index; as long
    copy
    rm "$dir/model/model-00002-of-00002.safetensors" "$dir/model/model.safetensors.index.json"
    for f in model-00002-of-00002.safetensors model.safetensors.index.json; do
        LC_ALL=C sed "s/$1/$2/" $model/$f >"$dir/model/$f"
    done
}
tensor 'layers.1.mlp.up_proj' 'layers.1.mlp.up_prox'
refuse 1 "tensor 'language_model.model.layers.1.mlp.up_proj.weight' is in none" "$winnowd" serve "$dir/model" -tp 2
refuse 1 "tensor 'language_model.model.layers.1.mlp.up_proj.weight' is in none" "$winnowd" plan "$dir/model" -pp 2
tensor '\(layers.1.mlp.up_proj[^[]*\)\[768,256\]' '\1[256,768]'
refuse 1 "model-00002-of-00002.safetensors: tensor 'language_model.model.layers.1.mlp.up_proj.weight' is [256, 768]" \
    "$winnowd" serve "$dir/model" -pp 2
tensor '\(layers.1.mlp.up_proj[^:]*:[^:]*:\)"BF16"' '\1"I16" '
refuse 1 "up_proj.weight' has type I16" "$winnowd" serve "$dir/model" -pp 2

# ranks with different weights under the same name, as copies on nodes may have
copy
rm "$dir/model/model-00002-of-00002.safetensors"
{ head -c -200000 $model/model-00002-of-00002.safetensors; head -c 200000 /dev/zero; } \
    >"$dir/model/model-00002-of-00002.safetensors"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mkdir -p "$dir/run"
timeout 60 mpirun --oversubscribe --bind-to none --mca btl self,vader \
    -np 1 "$winnowd" shard $model -tp 2 --run-dir "$dir/run" : \
    -np 1 "$winnowd" shard "$dir/model" -tp 2 --run-dir "$dir/run" >"$dir/out" 2>&1
code=$?
if [ $code -eq 3 ] && grep -q "rank 1 on .* has other files there than rank 0" "$dir/out"; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo "FAILED: ranks of two checkpoints: exit code $code (expected 3)"
    cat "$dir/out"
fi

# a port in use, held by a service of ours, whose host is a name
"$winnowd" serve $model --port 0 --host localhost >"$dir/ready" 2>/dev/null &
holder=$!
for _ in $(seq 300); do grep -q 'ready at' "$dir/ready" && break; sleep 0.1; done
port=$(sed -n 's/.*ready at tcp:\/\/[^:]*:\([0-9]*\).*/\1/p' "$dir/ready")
refuse 1 "tcp://127.0.0.1:$port" "$winnowd" serve $model --port "${port:-1}"
kill -TERM "$holder"
wait "$holder"
code=$?
holder=
if [ "$code" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: SIGTERM: exit code $code"; fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
