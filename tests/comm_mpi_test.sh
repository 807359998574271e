#!/bin/bash
# tests/comm_mpi_test.sh MPIRUN COMM_MPI_TEST : worlds of processes that are lost. In each scenario the last of three ranks
# goes wrong; the others must say so in one line each, all the same, soon, and mpirun must end with their exit code and leave
# no process and no file behind.
mpirun=$1 program=$2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
failed=0
complain() { echo "$scenario: $1"; cat "$work/err"; failed=1; }

# scenario NAME PATTERN WHO [hosts | DIRECTORY] : WHO is an extended pattern of the ranks that must say PATTERN
scenario() {
  scenario="$1 $4"
  local start=$SECONDS ls_before said
  ls_before=$(ls /dev/shm | grep -c '^drover-comm\.')
  # shellcheck disable=SC2086 # the last is a word or nothing
  timeout 60 "$mpirun" -n 3 --oversubscribe "$program" $1 $4 >"$work/out" 2>"$work/err"
  local code=$?
  [ "$code" = 42 ] || complain "exit code $code, not 42"
  [ $((SECONDS - start)) -lt 30 ] || complain "took $((SECONDS - start)) s"
  said=$(grep -cE "^rank [$3]: $2" "$work/err")
  [ "$said" -ge 1 ] || complain "no rank of [$3] says '$2'"
  [ "$(grep -E "^rank [$3]: " "$work/err" | sed 's/^rank [0-9]: //; s/ waited [0-9.]* s on rank [0-9]//; s/, [0-9.]* s ago//' | sort -u | wc -l)" = 1 ] ||
    complain "the ranks do not say the same"
  [ "$(ls /dev/shm | grep -c '^drover-comm\.')" -le "$ls_before" ] || complain "a status file is left in /dev/shm"
  pgrep -g "$(ps -o pgid= $$ | tr -d ' ')" -f "$program $1" >/dev/null && sleep 2 &&
    pgrep -g "$(ps -o pgid= $$ | tr -d ' ')" -f "$program $1" | xargs -r ps -o stat= -p | grep -qv '^Z' && complain "a process is left"
}

late="tp: #2, all_reduce of 4 f32 \(sum\) in 'second', waited [1-9]\.[0-9] s on rank [01]; not arrived: rank 2 on "
left="in forward of step 3; last: left all_reduce #1 of tp in 'first', [0-9.]+ s ago"
scenario stop "$late.* \(pid [0-9]+, stopped by a signal; $left" 01
scenario late "$late.* \(pid [0-9]+[a-z ,]*; $left" 01
# on other hosts: a rank of the same host tells of it, or it does itself, or what its host told another one before
DROVER_TEST_HOSTS=node0:1,node1:2 scenario stop "${late}node1 \(pid [0-9]+, stopped by a signal; $left" 01
scenario late "${late}node2 \(pid [0-9]+; $left" 01 hosts
scenario stop "${late}node2 \(pid [0-9]+; $left" 01 hosts
# who only waits for another is not named, on one host and on three
chain="high: #1, all_reduce of 4 f32 \(sum\) in 'second', waited [1-9]\.[0-9] s on rank 1; not arrived: rank 2 on "
scenario chain "$chain.*stopped by a signal" 01
scenario chain "${chain}node2 " 01 hosts
scenario late "$late" 01 "$work" # with a supervisor's directory the status file stays, and tells what each rank did
[ "$(head -c 8 "$work"/drover-comm.*)" = drvcomm2 ] && grep -q second "$work"/drover-comm.* && grep -q first "$work"/drover-comm.* ||
  complain "no status file for the supervisor"
scenario abort 'rank 2 on .* gave up: the roof is on fire' 01
scenario abort 'rank 2 on node2 gave up: the roof is on fire' 01 hosts
scenario mismatch "tp: collective #2 differs: rank [01] calls all_reduce of 4 f32 \(sum\) in 'second', rank 2 calls all_gather of 12 f32 in 'other'" 012
exit $failed
