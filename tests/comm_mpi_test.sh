#!/bin/bash
# tests/comm_mpi_test.sh MPIRUN COMM_MPI_TEST : worlds of processes that are lost. In each scenario the last of three ranks
# goes wrong; the others must say so in one line each, all the same, soon, and mpirun must end with their exit code and leave
# no process and no file behind.
mpirun=$1 program=$2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
export SYNC_DIR=$work/sync
failed=0
complain() { complaints+="$scenario: $1"$'\n'; }

# judge PATTERN WHO CODE SECONDS FILES_BEFORE : of what is in $work/err
judge() {
  local said
  [ "$3" = 42 ] || complain "exit code $3, not 42"
  [ "$4" -lt 60 ] || complain "took $4 s"
  said=$(grep -cE "^rank [$2]: $1" "$work/err")
  [ "$said" -ge 1 ] || complain "no rank of [$2] says '$1'"
  [ "$(grep -E "^rank [$2]: " "$work/err" | sed 's/^rank [0-9]: //; s/ waited [0-9.]* s on rank [0-9]//; s/, [0-9.]* s ago//' | sort -u | wc -l)" = 1 ] ||
    complain "the ranks do not say the same"
  [ "$(ls /dev/shm | grep -c '^drover-comm\.')" -le "$5" ] || complain "a status file is left in /dev/shm"
}
processes() { pgrep -g "$(ps -o pgid= $$ | tr -d ' ')" -f "$program $1" | xargs -r ps -o stat= -p | grep -v '^Z'; }

# scenario NAME PATTERN WHO [hosts | DIRECTORY] : WHO is an extended pattern of the ranks that must say PATTERN. What has a deadline cannot
# be judged where ranks that wanted to run were not let: it is done again.
scenario() {
  local try start before
  scenario="$1 $4"
  for ((try = 0; try < 20; try++)); do
    start=$SECONDS complaints=
    rm -rf "$SYNC_DIR" && mkdir "$SYNC_DIR"
    before=$(ls /dev/shm | grep -c '^drover-comm\.')
    # shellcheck disable=SC2086 # the last is a word or nothing
    timeout 120 "$mpirun" -n 3 --oversubscribe "$program" $1 $4 >"$work/out" 2>"$work/err"
    judge "$2" "$3" $? $((SECONDS - start)) "$before"
    [ -z "$(processes "$1")" ] || { sleep 2 && [ -z "$(processes "$1")" ]; } || complain "a process is left"
    [ -n "$complaints" ] || return
    grep -qE '^stalled (0\.[3-9]|[1-9])' "$work/err" || break
  done
  printf %s "$complaints"
  cat "$work/err"
  failed=1
}

late="tp: #2, all_reduce of 4 f32 \(sum\) in 'second', waited [1-9]\.[0-9] s on rank [01]; not arrived: rank 2 on "
left="in forward of step 3; last: left all_reduce #1 of tp in 'first', [0-9.]+ s ago"
scenario stop "$late.* \(pid [0-9]+, stopped by a signal; $left" 01
scenario late "$late.* \(pid [0-9]+[a-z ,]*; $left" 01
scenario behind "tp: #3, all_reduce of 4 f32 \(sum\) in 'third', waited [1-9]\.[0-9] s on rank [01]; not arrived: rank 2 on .*stopped by a signal" 01
# on other hosts: a rank of the same host tells of it, or it does itself, or what its host told another one before
DROVER_TEST_HOSTS=node0:1,node1:2 scenario stop "${late}node1 \(pid [0-9]+, stopped by a signal; $left" 01
scenario late "${late}node2 \(pid [0-9]+; $left" 01 hosts
scenario stop "${late}node2 \(pid [0-9]+; $left" 01 hosts
# who only waits for another is not named, on one host and on three
chain="high: #1, all_reduce of 4 f32 \(sum\) in 'second', waited [12]\.[0-9] s on rank 1; not arrived: rank 2 on "
scenario chain "$chain.*stopped by a signal" 01
scenario chain "${chain}node2 " 01 hosts
scenario late "$late" 01 "$work" # with a supervisor's directory the status file stays, and tells what each rank did
[ "$(head -c 8 "$work"/drover-comm.*)" = drvcomm4 ] && grep -q second "$work"/drover-comm.* && grep -q first "$work"/drover-comm.* ||
  { echo "no status file for the supervisor"; failed=1; }
scenario abort 'rank 2 on .* gave up: the roof is on fire' 01
scenario abort 'rank 2 on node2 gave up: the roof is on fire' 01 hosts
scenario mismatch "tp: collective #2 differs: rank [01] on [^ ]+ calls all_reduce of 4 f32 \(sum\) in 'second', rank 2 on [^ ]+ calls all_gather of 12 f32 in 'other'" 012
exit $failed
