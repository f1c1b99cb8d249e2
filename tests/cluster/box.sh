#!/usr/bin/env bash
# tests/cluster/box.sh DIR - two clusters side by side: Slurm runs tasks on their hosts, hosts are apart from each other,
# a host whose plug is pulled comes back, and `down` leaves nothing.
set -uo pipefail
cluster=scripts/cluster/cluster.sh dir=$1
fail() { echo "FAILED: $*"; exit 1; }
rm -rf "$dir" && mkdir -p "$dir" && dir=$(readlink -f "$dir") || exit 1
trap '$cluster down "$dir/a" 2>/dev/null; $cluster down "$dir/b" 2>/dev/null' EXIT

$cluster up "$dir/a" --hosts 2 --rate 1gbit || exit $?
$cluster up "$dir/b" --hosts 1 || exit $?
a="$cluster run $dir/a" b="$cluster run $dir/b"

[ "$($a head srun -N2 hostname | sort | xargs)" = "n1 n2" ] || fail "srun on two hosts"
[ "$($b head srun -N1 hostname)" = n1 ] || fail "srun in the second cluster"

$a n1 touch /tmp/mine "$dir/a/ours"
$a n2 test ! -e /tmp/mine || fail "two hosts share /tmp"
$a n2 test -e "$dir/a/ours" || fail "a shared folder is not shared"
$a n1 test "$($a n1 hostname)" = n1 || fail "host name"
[ "$(hostname)" != n1 ] || fail "this machine was renamed"

$a n1 ping -qc1 -W5 n2 >/dev/null || fail "n1 does not reach n2"
ping -qc1 -W5 "$($a n1 getent hosts n1 | cut -d' ' -f1)" >/dev/null || fail "this machine does not reach n1"
$a n1 ping -qc1 -W1 "$($b n1 getent hosts n1 | cut -d' ' -f1)" >/dev/null 2>&1 && fail "clusters reach each other"
$a n1 tc qdisc show dev eth0 | grep -q 'tbf .*rate 1Gbit' || fail "the rate is not limited"
$cluster shape "$dir/a" none
$a n1 tc qdisc show dev eth0 | grep -q tbf && fail "the rate is still limited"
[ "$($cluster counters "$dir/a" | wc -l)" -eq 3 ] || fail "counters"

$cluster off "$dir/a" n2
$a n2 true 2>/dev/null && fail "a host without power runs commands"
$cluster on "$dir/a" n2 && [ "$($a n2 hostname)" = n2 ] || fail "a host does not come back"

# Aborted runs: the folder is gone, or its hosts are. Links that are not ours stay as they are.
ip link add wn1h99 type bridge || fail "a link of somebody else"
trap 'ip link del wn1h99; $cluster down "$dir/a" 2>/dev/null; $cluster down "$dir/b" 2>/dev/null' EXIT
net=$(sed 's/net=\([0-9]*\).*/\1/' "$dir/b/cluster")
mv "$dir/b" "$dir/lost" && $cluster up "$dir/b" --hosts 1 2>"$dir/up.log" || { cat "$dir/up.log"; fail "up after a lost folder"; }
grep -q "wn$net is left of" "$dir/up.log" || fail "nobody saw the links of a lost cluster"
pkill -KILL -f "^unshare .*_host $dir/b " || fail "no hosts to end"
$cluster up "$dir/b" --hosts 1 || fail "up over the remains of a cluster"
[ "$($b n1 hostname)" = n1 ] || fail "a cluster over remains"
ip link show wn1h99 >/dev/null || fail "a link of somebody else is gone"

nets=$(cat "$dir"/[ab]/cluster "$dir/lost/cluster" | sed 's/net=\([0-9]*\).*/\1/')
$cluster down "$dir/a"
$cluster down "$dir/b"
! pgrep -f "_host $dir" >/dev/null || fail "a process is left"
! pgrep -f "(munged|slurmctld|slurmd|slurmstepd).*$dir" >/dev/null || fail "a daemon is left"
! grep -q " $dir/" /proc/mounts || fail "a mount is left"
for net in $nets; do
    [ ! -e "/sys/class/net/wn$net" ] && ! compgen -G "/sys/class/net/wn${net}h1?" >/dev/null || fail "a link is left"
done
$a n1 true 2>/dev/null && fail "a cluster that is down runs commands"
echo passed
