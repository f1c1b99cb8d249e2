#!/usr/bin/env bash
# tests/cluster/check.sh DIR BIN - `winnow check` inside a Slurm job on three hosts: which interface each link uses, and
# what is wrong on a host is named with that host: an interface that is not there or is down, a checkpoint or a program
# that is not there, another winnow, too little memory, a port that does not answer, packets that are too large. The job
# asks Slurm for tasks and cores that are none of our steps' business.
set -uo pipefail
dir=$(readlink -m "$1")
. tests/cluster/lib.sh
fresh "$2"
$cluster up "$dir/box" --hosts 3 --share "$dir" || exit $?

# Each host has a /tmp of its own. What is wrong later:
for h in n1 n2; do on $h ln -s "$PWD/$model" /tmp/model; done
on n1 sh -c 'ip link add wnx0 type bridge && ip addr add 10.214.0.1/24 dev wnx0 && ip link set wnx0 up' || fail "interface"
on n3 sh -c 'ip link add wnx0 type bridge && ip addr add 10.214.0.3/24 dev wnx0' || fail "interface that is down"
for h in n1 n2; do on $h ln -s "$(command -v winnowd)" /tmp/winnowd; done
commit=$(winnowd --version | sed -n '1s/.*(commit \([0-9a-z]*\).*/\1/p') # its letters in the program become others
LC_ALL=C sed "s/$commit/$(tr '[:alnum:]' 0 <<<"$commit")/g" "$(command -v winnowd)" >"$dir/other" && chmod +x "$dir/other"
cat >"$dir/step" <<END
#!/bin/sh
[ "\$(hostname)" != n3 ] || exec "$dir/other" "\$@"
exec "$(command -v winnowd)" "\$@"
END
cat >"$dir/prolog" <<END
#!/bin/sh
echo "idle ranks yield: \$OMPI_MCA_mpi_yield_when_idle" >>"$dir/env"
[ "\$(hostname)" != n1 ] || sleep 7
exec "$(command -v winnowd)" "\$@"
END
chmod +x "$dir/step" "$dir/prolog"

winnow keygen "$dir/keys" >/dev/null || fail "keys"
cat >"$dir/job" <<END
#!/bin/bash
export PATH=$PATH HOME=$HOME WINNOW_KEYS=$dir/keys
export SRUN_CPUS_PER_TASK=2 SLURM_TRES_PER_TASK=cpu=2 SLURM_LABELIO=1
try() { # NAME ARGUMENT...
    local name=\$1
    shift
    winnow check --port 0 -pp 2 "\$@" >"$dir/\$name" 2>&1
    echo "exit code \$?" >>"$dir/\$name"
}
try good "$PWD/$model" --journal "$dir"
try late "$PWD/$model" --step-program "$dir/prolog" # n1 is slow to start: nothing is wrong
try model /tmp/model
try program "$PWD/$model" --step-program /tmp/winnowd
try memory "$PWD/$model" --kv-pages 8000000
try interface "$PWD/$model" --interface wnx0
try version "$PWD/$model" --step-program "$dir/step"
touch "$dir/block"
while [ -e "$dir/block" ]; do sleep 0.1; done
try port "$PWD/$model"
touch "$dir/block"
while [ -e "$dir/block" ]; do sleep 0.1; done
try mtu "$PWD/$model"
END
job=$(on head sbatch --parsable -N3 --exclusive --ntasks-per-node=2 --cpus-per-task=2 --mem-per-cpu=100 -m cyclic \
    --export=NONE -o "$dir/service.log" "$dir/job") || fail "sbatch"

wait_for 180 "end of the first checks" test -e "$dir/block"
# n2 holds stage 0 and n3 stage 1: from n2 no connection to n3 beyond Slurm's own ports is made any more.
rule="to $(on n2 getent hosts n3 | cut -d' ' -f1) ipproto tcp dport 7000-65000 blackhole"
on n2 ip rule add $rule || fail "rule"
rm "$dir/block"
wait_for 120 "end of the check with a rule" test -e "$dir/block"
on n2 ip rule del $rule
for h in n2 n3; do on $h ip link set eth0 mtu 9000; done # and the bridge between them carries 1,500
rm "$dir/block"
wait_for 120 "end of the job" in_state "$job" COMPLETED

expect() { # NAME WORDS...
    local name=$1
    shift
    for w in "$@"; do grep -qF -- "$w" "$dir/$name" || { cat "$dir/$name"; fail "$name: '$w'"; }; done
}
expect good "nothing is wrong" "launcher slurm" "Open MPI, TCP, eth0" "vision-0 - replica-0" "ZeroMQ, TCP, eth0" "n2 - n3" \
    "exit code 0"
expect late "nothing is wrong" "exit code 0"
[ "$(sort -u "$dir/env")" = "idle ranks yield: 1" ] || fail "the environment of job steps"
expect model "n3 (replica-0): /tmp/model: no such checkpoint folder" "exit code 1"
expect interface "n2 (replica-0): this host has no interface wnx0" "n3 (replica-0): interface wnx0 of this host is down" \
    "exit code 1"
expect program "replica-0: ended with exit code" "n3 (replica-0): one of its ranks said nothing" "exit code 1"
expect memory "n2 (replica-0): memory: rank 0 needs" "n3 (replica-0): memory: rank 1 needs" "exit code 1"
if grep -q 'over MPI nothing came' "$dir/mtu"; then # it was Slurm's own exchange, when ranks start, that was cut
    expect mtu "rank 0 on n2" "the MTU of an interface more than the network carries" "exit code 1"
else
    expect mtu "n2 (replica-0): mpi link: rank 0" "does the network carry packets of 9000 bytes, the MTU of eth0" "exit code 1"
fi
expect version "n3 (replica-0): winnow is 0.1.0 (0000000" "on n1" "exit code 1"
expect port "n2 (replica-0): replica-0 rank 1 on n3: tcp://10.213." "by interface eth0" "exit code 1"
expect good "keys $dir/keys: in order"
grep -qF "wrong:" "$dir/good" && fail "good"
[ "$(grep -c '^  n' "$dir/version")" -eq 1 ] || { cat "$dir/version"; fail "one thing is wrong"; }
cat "$dir/good"
echo passed
