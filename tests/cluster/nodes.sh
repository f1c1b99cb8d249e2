#!/usr/bin/env bash
# tests/cluster/nodes.sh DIR BIN - which nodes of a Slurm job a service uses. A job of one node, whose own name is loopback
# there (as Debian sets it up), is reached from outside all the same; it is the shipped one for containers, with an srun
# that takes pyxis's flags off. A layout file decides, and a wrong one is refused. A node that is lost in the middle of a
# batch: the service notices within the lease, and once Slurm has given the node up it runs on another one, and every
# request has been finished exactly once.
set -uo pipefail
dir=$(readlink -m "$1") n=${3:-60}
. tests/cluster/lib.sh
fresh "$2"
$cluster up "$dir/box" --hosts 4 --share "$dir" || exit $?

ask() {
    local image text
    IFS=$'\t' read -r image text < <(question 1)
    winnow ask --endpoint "slurm:$job" --image "tests/eval/$image" "$text" || fail "no answer"
}
drained() {
    winnow drain --wait --endpoint "slurm:$job" --key "$HOME/.winnow/keys/admin.key" || fail "drain"
    wait_for 60 "end of job $job" in_state "$job" COMPLETED
}
places() { sed -n 's/^winnow:   //p' "$dir/service.log" | xargs; }

sed 's/^10\.213.* n1$/127.0.1.1 n1/' "$dir/box/etc/hosts" >"$dir/hosts"
on n1 mount --bind "$dir/hosts" /etc/hosts || fail "hosts"
mkdir "$dir/bin"
cat >"$dir/bin/srun" <<END
#!/bin/bash
args=()
for a; do case "\$a" in --container-* | --no-container-*) echo "\$a" >>"$dir/pyxis" ;; *) args+=("\$a") ;; esac; done
exec "$(command -v srun)" "\${args[@]}"
END
chmod +x "$dir/bin/srun"
asked=(--nodes=1 --nodelist=n1) shipped=scripts/slurm/serve-pyxis.sbatch
PATH=$dir/bin:$PATH IMAGE=/shared/winnow.sqsh STEP_PROGRAM=$(command -v winnowd) serve
shipped=scripts/slurm/serve.sbatch
[ "$(sort "$dir/pyxis" | uniq -c | xargs)" = "3 --container-image=/shared/winnow.sqsh 3 --container-mounts=$PWD/$model:$PWD/$model:ro,$(
    )$HOME/.winnow/journal-$job:$HOME/.winnow/journal-$job,$HOME/.winnow/keys:$HOME/.winnow/keys:ro 3 --no-container-mount-home" ] ||
    { cat "$dir/pyxis"; fail "what pyxis is told"; }
grep -q '^endpoint: tcp://10\.213\.' "$HOME/.winnow/slurm/$job" || fail "an address that only n1 can reach"
answer=$(ask)
drained
on n1 umount /etc/hosts

printf 'vision: n3\nreplica: n2 %%0 # backwards\n' >"$dir/layout"
asked=(--nodelist=n[1-3] --open-mode=truncate)
serve -pp 2 --layout "$dir/layout"
[ "$(places)" = "vision: n3 replica: n2 n1" ] || fail "the layout"
[ "$(ask)" = "$answer" ] || fail "the layout changes an answer"
drained
printf 'vision: n3\nreplica: n2 n4\n' >"$dir/layout"
job=$(on head sbatch --parsable "${asked[@]}" -o "$dir/service.log" scripts/slurm/serve.sbatch "$PWD/$model" -pp 2 \
    --layout "$dir/layout") || fail "sbatch"
wait_for 60 "end of job $job" in_state "$job" FAILED
grep -q "layout:2: the allocation of 3 nodes has no node 'n4'" "$dir/service.log" || fail "what is wrong with the layout"

serve -pp 2 --lease-ms 3000 --log-level info
lose_n3_in_batch "$n"
on head scontrol update jobid="$job" reqnodelist= || fail "the job wants n3 again" # that was this test's wish
batch_done
[ "$(of_job "$job" Restarts)" = 1 ] || fail "no restart"
[ "$(places)" = "vision: n1 replica: n2 n4" ] || fail "not on other nodes: $(places)"
each_once "$n"
drained
[ -z "$(ls "$HOME/.winnow/slurm")" ] || fail "a job's file is left"
echo passed
