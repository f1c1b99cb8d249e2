#!/bin/sh
# link_mpi_lost.sh MODE SECONDS CODE[,CODE] COMMAND...: ranks of which one is lost must all end within SECONDS, with exit
# code CODE, or one of them where mpirun and the others may both see it first. COMMAND is mpirun with its options and
# the test program; if that says "gone at T", the seconds count from there.
mode=$1 seconds=$2 want=$3
shift 3
start=$(date +%s)
said=$(mktemp)
timeout -k 5 $((seconds + 30)) "$@" mpi "$mode" >"$said" 2>&1
got=$?
end=$(date +%s)
cat "$said"
gone=$(sed -n 's/^gone at //p' "$said" | head -1)
rm -f "$said"
took=$((end - ${gone:-$start}))
echo "lost rank ($mode): exit code $got after $took s"
[ "$took" -le "$seconds" ] || { echo "that is too long (at most $seconds s)"; exit 1; }
case ",$want," in *",$got,"*) ;; *) exit 1 ;; esac
