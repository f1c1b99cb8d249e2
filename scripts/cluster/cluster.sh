#!/usr/bin/env bash
# scripts/cluster/cluster.sh - a cluster in a box: hosts as namespaces of one machine, on a bridge, under a real Slurm.
#   cluster.sh up DIR [--hosts 3] [--cpus 4] [--rate 1gbit] [--delay 1ms] [--share FOLDER]...
#   cluster.sh run DIR HOST COMMAND...     HOST is head (where users log in) or n1, n2, ...
#   cluster.sh shape DIR RATE [DELAY]      RATE "none": as fast as the machine
#   cluster.sh counters DIR                host rx_bytes rx_packets tx_bytes tx_packets, as the kernel counts them
#   cluster.sh off DIR HOST | on DIR HOST  pull the plug of a host; start it again
#   cluster.sh address DIR                 of the machine outside, as the hosts see it
#   cluster.sh down DIR                    ends everything that `up` started; logs stay in DIR
# Exit codes: 0 done, 1 failed, 2 usage, 77 this machine cannot (not root, no namespaces, no Slurm).
set -uo pipefail

self=$(readlink -f "$0")
say() { echo "cluster: $*" >&2; }
die() { say "$@"; exit 1; }
skip() { say "$@"; exit 77; }
usage() { sed -n '3,10s/^# *//p' "$self" >&2; exit 2; }

# ---- what this machine can do ----

check_machine() {
    [ "$(id -u)" -eq 0 ] || skip "needs root, to make namespaces"
    for tool in unshare nsenter ip tc ethtool slurmctld slurmd srun sbatch munged; do
        command -v $tool >/dev/null || skip "needs $tool: scripts/setup.sh test installs it"
    done
    unshare --mount --net --uts --pid --fork --mount-proc true 2>/dev/null ||
        skip "the kernel allows no namespaces here (in a container: --privileged)"
}

# ---- one host: the first process of its namespaces ----

# /tmp, /run and /dev/shm are the host's own: PMIx, ZeroMQ and Open MPI keep sockets and segments there under names that
# two hosts may share. Folders under them that all hosts must see are moved back into place.
host_main() { # DIR NAME
    local dir=$1 name=$2 kept=() i=0 folder
    hostname "$name"
    mount -t tmpfs tmpfs /mnt
    while read -r folder; do
        case "$folder/" in
        /tmp/* | /run/* | /mnt/*)
            mkdir "/mnt/$i" && mount --bind "$folder" "/mnt/$i" && kept+=("$folder") && i=$((i + 1)) ;;
        esac
    done <"$dir/etc/shared"
    mount --bind "$dir/etc" /etc/slurm && mount --bind "$dir/etc/hosts" /etc/hosts || exit 1
    for folder in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $folder || exit 1; done
    for i in "${!kept[@]}"; do
        mkdir -p "${kept[$i]}" && mount --move "/mnt/$i" "${kept[$i]}" || exit 1
    done
    mkdir -m 755 /run/munge
    touch "$dir/$name/mounted"
    trap : TERM INT
    while :; do sleep 3600 & wait; done # reaps what its children leave behind
}

# Process ids out here: of the `unshare` that holds a host, and of the host's first process.
holder_pid() { # NAME
    local pid
    pid=$(cat "$dir/$1/pid" 2>/dev/null) || return 1
    grep -qsF "$dir" "/proc/$pid/cmdline" && echo "$pid" # else it ended, and the number is another's
}
host_pid() { # NAME
    local pid
    pid=$(holder_pid "$1") && pgrep -P "$pid"
}

enter() { # NAME COMMAND...
    local pid
    pid=$(host_pid "$1") || { say "host $1 of $dir is not up"; return 1; }
    shift
    # Network, mounts, host name and processes, but not /sys: Slurm wants to see /sys/fs/cgroup.
    nsenter -t "$pid" -n -m -u -p sh -c 'cd "$1" && shift && exec "$@"' sh "$PWD" "$@"
}

host_start() { # NAME NUMBER
    local name=$1 i=$2 pid link=wn${net}h$2 host_dir=$dir/$1
    mkdir -p "$host_dir"
    rm -f "$host_dir/mounted"
    setsid unshare --mount --net --uts --pid --fork --kill-child --mount-proc \
        bash "$self" _host "$dir" "$name" </dev/null >>"$host_dir/host.log" 2>&1 &
    echo $! >"$host_dir/pid"
    disown
    for _ in $(seq 200); do [ -e "$host_dir/mounted" ] && break; sleep 0.05; done
    pid=$(host_pid "$name") && [ -e "$host_dir/mounted" ] || { cat "$host_dir/host.log" >&2; return 1; }
    link_drop "$link" "$dir" # of a host that was switched off: the kernel takes its time
    ip link add "$link" type veth peer name eth0 netns "$pid" && link_mark "$link" || return 1
    ip link set "$link" master "wn$net" up
    # One frame a packet, as on a wire, so that counters count what a network card would send.
    ethtool -K "$link" tso off gso off gro off >/dev/null 2>&1
    enter "$name" sh -c 'ip link set lo up && ip addr add "$1" dev eth0 && ip link set eth0 up &&
        ethtool -K eth0 tso off gso off gro off >/dev/null 2>&1' sh "10.213.$net.$i/24" || return 1
    shape_host "$name" "$i"
    # -p of nsenter forks, so these daemons become children of the host's first process when they detach.
    enter "$name" munged --force --num-threads=2 --key-file="$dir/etc/munge.key" --log-file="$host_dir/munged.log" \
        --pid-file=/run/munge/munged.pid --seed-file=/run/munge/munged.seed --socket=/run/munge/munge.socket.2 \
        </dev/null >>"$host_dir/host.log" 2>&1 || { cat "$host_dir/host.log" >&2; return 1; }
    if [ "$name" = head ]; then
        enter head slurmctld -L "$host_dir/slurmctld.log" </dev/null >>"$host_dir/host.log" 2>&1
    else
        enter "$name" slurmd -L "$host_dir/slurmd.log" </dev/null >>"$host_dir/host.log" 2>&1
    fi || { tail -20 "$host_dir"/*.log >&2; return 1; }
}

host_stop() { # NAME; as if the plug were pulled
    local pid
    if pid=$(holder_pid "$1"); then
        kill -KILL "$pid" # --kill-child: the first process goes, and with it all others
        while [ -e "/proc/$pid" ]; do sleep 0.02; done
    fi
    rm -f "$dir/$1/pid"
}

# Both directions of a host's cable. tbf limits the rate, netem adds delay (where the kernel has it).
shape_host() { # NAME NUMBER
    local name=$1 link=wn${net}h$2 shape=()
    tc qdisc del dev "$link" root 2>/dev/null
    enter "$name" tc qdisc del dev eth0 root 2>/dev/null
    [ "$rate" != none ] || [ "$delay" != none ] || return 0
    if [ "$delay" != none ]; then
        shape=(netem delay "$delay")
        [ "$rate" = none ] || shape+=(rate "$rate")
    else
        shape=(tbf rate "$rate" burst 256kb latency 100ms)
    fi
    tc qdisc add dev "$link" root "${shape[@]}" && enter "$name" tc qdisc add dev eth0 root "${shape[@]}" ||
        { say "the kernel has no ${shape[0]} shaping"; return 1; }
}

# ---- links, and what an aborted run left of them ----

# A link of ours has our name and, as its alias, the folder of its cluster: others are never touched.
mark="winnow cluster "
link_mark() { ip link set "$1" alias "$mark$dir"; } # LINK
link_owner() { # LINK: prints the folder of its cluster
    local alias
    read -r alias 2>/dev/null <"/sys/class/net/$1/ifalias" && [ "${alias#"$mark"}" != "$alias" ] && echo "${alias#"$mark"}"
}
link_drop() { # LINK FOLDER: if it belongs to that folder's cluster
    [ "$(link_owner "$1")" != "$2" ] || ip link del "$1" 2>/dev/null
    return 0
}

# Is anything of the cluster in that folder alive? An aborted run leaves hosts whose folder may be gone already.
holders_of() { # FOLDER
    local pid
    for pid in $(pgrep -x unshare); do
        tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "_host $1 " && echo "$pid"
    done
}

# Links whose cluster's folder knows of no cluster, and the hosts that keep them.
drop_stale() {
    local path link owner pid
    for path in /sys/class/net/wn*; do
        link=${path##*/}
        [[ $link =~ ^wn[0-9]+(h[0-9]+)?$ ]] && owner=$(link_owner "$link") && [ ! -e "$owner/cluster" ] || continue
        say "$link is left of a cluster in $owner that was not ended; it is removed"
        for pid in $(holders_of "$owner"); do kill -KILL "$pid"; done
        link_drop "$link" "$owner"
    done
}

# ---- the whole ----

hosts_all() { echo head; for i in $(seq "$hosts"); do echo "n$i"; done; }
number_of() { [ "$1" = head ] && echo 10 || echo $((10 + ${1#n})); }

save() { printf 'net=%s hosts=%s rate=%s delay=%s\n' "$net" "$hosts" "$rate" "$delay" >"$dir/cluster"; }

load() {
    [ -r "$dir/cluster" ] || die "$dir is no cluster: 'up' makes one"
    local line
    read -r line <"$dir/cluster"
    [[ $line =~ ^net=([0-9]+)\ hosts=([0-9]+)\ rate=([a-z0-9.]+)\ delay=([a-z0-9.]+)$ ]] || die "$dir/cluster is damaged"
    net=${BASH_REMATCH[1]} hosts=${BASH_REMATCH[2]} rate=${BASH_REMATCH[3]} delay=${BASH_REMATCH[4]}
}

write_config() {
    local etc=$dir/etc
    rm -rf "$dir/state" # a new cluster knows no jobs
    mkdir -p "$etc" "$dir/state"
    dd if=/dev/urandom of="$etc/munge.key" bs=1024 count=1 2>/dev/null && chmod 400 "$etc/munge.key"
    { echo "$dir"; pwd; printf '%s\n' "${share[@]}"; } | sort -u >"$etc/shared"
    { echo "127.0.0.1 localhost"; for h in $(hosts_all); do echo "10.213.$net.$(number_of "$h") $h"; done; } >"$etc/hosts"
    cat >"$etc/slurm.conf" <<END
ClusterName=winnow$net
SlurmctldHost=head(10.213.$net.10)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=15
StateSaveLocation=$dir/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
SchedulerParameters=sched_interval=2,bf_interval=1,batch_sched_delay=0
MinJobAge=3600
KillWait=5
MessageTimeout=60
SlurmdTimeout=60
TCPTimeout=10
NodeName=n[1-$hosts] NodeAddr=10.213.$net.[11-$((10 + hosts))] CPUs=$cpus RealMemory=8192 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

# Bridge names are the lock that keeps clusters apart: to make one that exists fails. A bridge is marked when $dir/cluster
# is there: before that it could seem to be stale.
make_bridge() {
    for net in $(seq 1 250); do
        ip -4 -o addr | grep -q " 10\.213\.$net\." && continue
        compgen -G "/sys/class/net/wn${net}h*" >/dev/null && continue # somebody else's
        ip link add "wn$net" type bridge 2>/dev/null || continue
        save && link_mark "wn$net" || return 1
        ip addr add "10.213.$net.254/24" dev "wn$net" && ip link set "wn$net" up && return 0
        return 1
    done
    return 1
}

up() {
    local h
    hosts=3 cpus=4 rate=none delay=none share=()
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || usage
        case "$1" in
        --hosts) hosts=$2 ;;
        --cpus) cpus=$2 ;;
        --rate) rate=$2 ;;
        --delay) delay=$2 ;;
        --share) share+=("$(readlink -f "$2")") ;;
        *) usage ;;
        esac
        shift 2
    done
    [[ $hosts =~ ^[1-9][0-9]?$ && $cpus =~ ^[1-9][0-9]*$ ]] || usage
    check_machine
    if [ -e "$dir/cluster" ]; then
        [ -z "$(holders_of "$dir")" ] || die "$dir has a cluster already: 'down' ends it"
        (load && down)
    fi
    drop_stale
    make_bridge || die "no bridge and network could be had"
    trap 'down; exit 1' INT TERM
    write_config
    for h in $(hosts_all); do
        host_start "$h" "$(number_of "$h")" || { down; die "host $h did not start"; }
    done
    for _ in $(seq 600); do
        [ "$(enter head sinfo -h -t idle -o %D 2>/dev/null)" = "$hosts" ] && { say "$hosts hosts are up in $dir"; return 0; }
        sleep 0.2
    done
    enter head sinfo >&2
    down
    die "Slurm did not come up; its logs are in $dir"
}

down() {
    local h
    for h in $(hosts_all); do
        host_stop "$h"
        link_drop "wn${net}h$(number_of "$h")" "$dir" # now, not when the kernel gets round to it
    done
    link_drop "wn$net" "$dir"
    rm -f "$dir/cluster"
    return 0
}

[ $# -ge 2 ] || usage
verb=$1 dir=$2
shift 2
if [ "$verb" = _host ]; then host_main "$dir" "$@"; exit; fi
[ "$verb" != up ] || mkdir -p "$dir" || exit 1
dir=$(readlink -f "$dir") || exit 1
[ "$verb" = up ] || load
case "$verb" in
up) up "$@" ;;
down) down ;;
run) [ $# -ge 2 ] || usage; enter "$@" ;;
shape)
    [ $# -ge 1 ] || usage
    rate=$1 delay=${2:-none}
    for h in $(hosts_all); do shape_host "$h" "$(number_of "$h")" || exit 1; done
    save ;;
counters)
    for h in $(hosts_all); do
        enter "$h" awk -v h="$h" '/eth0:/ { sub(/.*:/, ""); print h, $1, $2, $9, $10 }' /proc/net/dev
    done ;;
off) [ $# -eq 1 ] || usage; host_stop "$1" ;;
on) [ $# -eq 1 ] || usage; host_start "$1" "$(number_of "$1")" ;;
address) echo "10.213.$net.254" ;;
*) usage ;;
esac
