# tests/cluster/lib.sh - what the tests on a cluster in a box share: a cluster in $dir, a home and winnow on PATH.
cluster=scripts/cluster/cluster.sh
model=models/tiny-llava
questions=tests/eval/questions.jsonl
asked=() shipped=scripts/slurm/serve.sbatch
export HOME=$dir/home

fail() { echo "FAILED: $*"; [ ! -e "$dir/service.log" ] || tail -30 "$dir/service.log"; exit 1; }
on() { $cluster run "$dir/box" "$@"; } # HOST COMMAND...

fresh() { # BIN
    rm -rf "$dir" && mkdir -p "$dir/home" || exit 1
    PATH=$(readlink -f "$1"):$PATH
    trap '$cluster down "$dir/box" 2>/dev/null; [ -z "${local_service:-}" ] || kill -TERM "$local_service" 2>/dev/null' EXIT
}

wait_for() { # SECONDS WHAT COMMAND...
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $until ] || fail "no $what"
        sleep 0.1
    done
}

# A service of the shipped batch file, ready: $job is its number; asked=(...): more for sbatch; shipped: another file.
serve() { # OPTION...
    job=$(on head sbatch --parsable "${asked[@]}" -o "$dir/service.log" "$shipped" "$PWD/$model" \
        --lease-ms 30000 "$@") || fail "sbatch"
    ready_or_gone() { [ -e "$HOME/.winnow/slurm/$job" ] || gone "$job"; }
    wait_for 180 "service of job $job" ready_or_gone
    [ -e "$HOME/.winnow/slurm/$job" ] || fail "the service did not start"
}

# What Slurm says of a job, in a word.
of_job() { on head scontrol show job "$1" | sed -n "s/.*$2=\([A-Z0-9]*\).*/\1/p"; } # JOB JobState|Restarts
in_state() { [ "$(of_job "$1" JobState)" = "$2" ]; } # JOB STATE
gone() { [ -z "$(on head squeue -h -j "$1" -o %T)" ]; } # JOB

# Line N of the questions as "image<tab>question".
question() { sed -nE "$1s/.*\"image\": \"([^\"]*)\", .*\"question\": \"([^\"]*)\".*/\1\t\2/p" $questions; }

# A batch file of the first N questions, with their ids.
batch_of() { # N
    head -n "$1" $questions | sed -E 's|.*"id": "([^"]*)", "image": "([^"]*)", .*"question": "([^"]*)".*|{"custom_id": "\1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "'"$PWD"'/tests/eval/\2"}}, {"type": "text", "text": "\3"}]}]}}|'
}
# "id answer" of a batch's output, sorted.
answers_of() { sed -E 's/.*"custom_id": ?"([^"]*)".*"content": ?"([^"]*)".*/\1 \2/' "$1" | sort; }

lines_of() { [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; } # FILE AT_LEAST

# A batch of N questions begins, and node n3 is lost in its middle: the service notices within 3 s, and Slurm gives the
# node up. $batch is the client's process.
lose_n3_in_batch() { # N
    batch_of "$1" >"$dir/in.jsonl"
    winnow run-batch --endpoint "slurm:$job" --concurrency 4 -i "$dir/in.jsonl" -o "$dir/out.jsonl" 2>"$dir/batch.log" &
    batch=$!
    wait_for 120 "first answers" lines_of "$dir/out.jsonl" 5
    $cluster off "$dir/box" n3
    lines_of "$dir/out.jsonl" "$1" && fail "the batch was too short for a node to be lost in its middle"
    wait_for 20 "word about the lost node" grep -q 'nothing heard from rank 1 for 3000 ms' "$dir/service.log"
    on head scontrol update nodename=n3 state=down reason=lost || fail "scontrol" # as Slurm does after SlurmdTimeout
}

batch_done() { wait "$batch" || { cat "$dir/batch.log"; fail "the batch"; }; }

each_once() { # N
    [ "$(answers_of "$dir/out.jsonl" | cut -d' ' -f1 | uniq | wc -l)" = "$1" ] && lines_of "$dir/out.jsonl" "$1" &&
        ! lines_of "$dir/out.jsonl" $(($1 + 1)) || fail "not every request was finished exactly once"
}
