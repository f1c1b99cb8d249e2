#!/bin/sh
# link_mpi_lost.sh MODE SECONDS CODE COMMAND...: three ranks of which one is lost must all end within SECONDS, with
# exit code CODE. COMMAND is mpirun with its options and the test program.
mode=$1 seconds=$2 want=$3
shift 3
start=$(date +%s)
timeout -k 5 $((seconds + 30)) "$@" mpi "$mode"
got=$?
took=$(($(date +%s) - start))
echo "lost rank ($mode): exit code $got after $took s"
[ "$took" -le "$seconds" ] || { echo "that is too long (at most $seconds s)"; exit 1; }
[ "$got" -eq "$want" ]
