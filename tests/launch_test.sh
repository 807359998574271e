#!/bin/bash
# tests/launch_test.sh DROVER SOURCE_DIR : what a supervised run survives, says and refuses, with real ranks. Hosts are pretended.
drover=$1 source=$2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
steps=16 failed=0 checks=0
settings=("model={model_type: llama, vocab_size: 256, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, \
intermediate_size: 64}" "data=[{synthetic: uniform}]" train.batch=12 train.seq=64 train.precision=f32 train.val_every=0 train.val_batches=0
  log.tensorboard=false train.steps=$steps checkpoint.every=4 parallel.deadline=60)

launch() { # launch NAME WORDS... : in the place of this shell
  local name=$1
  shift
  exec env ${only_path:+"$only_path"} "$drover" launch "name=$name" "dir=$work/$name" "${settings[@]}" --backoff=0.1 "$@" >"$work/out" 2>"$work/err"
}
expect() { # expect CODE PATTERN WORDS... : of a launch; each pattern line once in what it says
  local code=$1 pattern=$2 got
  shift 2
  checks=$((checks + 1))
  (launch "$@")
  got=$?
  [ $got = "$code" ] && [ "$(grep -cE -- "$pattern" "$work/err")" = 1 ] && return
  echo "FAIL: $* gave $got, not $code with one line of '$pattern':"
  cat "$work/err"
  failed=1
}
good() { # good WORDS... : a launch that ends well
  (launch "$@") && return
  echo "FAIL: $1 failed:"
  cat "$work/err"
  failed=1
}
same() { # same A B : the last checkpoints have the same bytes
  local name
  checks=$((checks + 1))
  for name in "$1" "$2"; do (cd "$work/$name/ckpt/step-000000$steps" && sha256sum model*.safetensors optimizer*.safetensors) >"$work/hash-$name"; done
  cmp -s "$work/hash-$1" "$work/hash-$2" && [ -s "$work/hash-$1" ] || { echo "FAIL: $1 and $2 end with other bytes"; cat "$work/err"; failed=1; }
}
ranks() {
  local p
  for p in $(pgrep -f -- "train name=$1 "); do [ "$(readlink "/proc/$p/exe")" = "$(readlink -f "$drover")" ] && echo "$p"; done
}

# ---- what is refused before anything starts
refuse() { # refuse CODE PATTERN WORDS...
  expect "$@"
  [ ! -e "$work/$3/metrics.jsonl" ] || { echo "FAIL: $3 was started"; failed=1; }
}
refuse 3 'layout of the run file is for 2 ranks, and 3 are to be started' wrong-n -n 3 parallel.dp=2
refuse 3 'train.batch 12 is shared by dp x fsdp x ep = 8 ranks' uneven parallel.dp=8
refuse 3 'train.batch 12 is shared by dp x fsdp x ep = 24 ranks' many parallel.dp=24
refuse 3 '4 ranks do not fit 3 slots' slots -n 4 --hosts a:2,b:1
refuse 3 '1 of 2 hosts is gone \(b\): 4 ranks do not fit the 2 slots' gone -n 4 --hosts a:2,b:2 --probe 'test %h = a'
refuse 2 "did you mean train.batch" misspelt train.bach=4
refuse 2 'more than the 2 ranks' least parallel.dp=2 --min-ranks 3
mkdir "$work/empty" && only_path="PATH=$work/empty" refuse 1 'mpirun is not in PATH' no-mpirun parallel.dp=2
"$drover" launch "dir=$work/dry" "${settings[@]}" -n 2 --dry-run 2>/dev/null | grep -q '^mpirun .*-n 2 .*drover train .* parallel.dp=2 ' || { echo "FAIL: --dry-run"; failed=1; }
"$drover" launch "dir=$work/dry" "${settings[@]}" -n 4 --slurm --tasks-per-node 2 --dry-run 2>/dev/null | grep -q '^#SBATCH --nodes=2$' || { echo "FAIL: --slurm --dry-run"; failed=1; }

# ---- what is wrong before the ranks have met is said by one of them
checks=$((checks + 1))
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n 3 --oversubscribe "$drover" train "${settings[@]}" train.bach=4 2>"$work/err" &&
  { echo "FAIL: three ranks with a wrong setting end well"; failed=1; }
[ "$(grep -c 'did you mean train.batch' "$work/err")" = 1 ] || { echo "FAIL: not one line of three ranks:"; cat "$work/err"; failed=1; }

# ---- a rank on another host hangs: named within a second of the deadline, by one line, and the run goes on
good calm parallel.dp=3
export DROVER_TEST_HOSTS=1
FAULT=train.forward:6:stop@2 expect 0 "^drover: .* waited 2\.[0-9] s on rank [01]; not arrived: rank 2 on node1 \(pid [0-9]+, stopped by a signal; in forward of step 6; last: left .*\)" \
  stopped parallel.dp=3 --hosts node0:1,node1:2 --probe true parallel.deadline=2
same calm stopped

# ---- a rank that is lost while the first one sets up the text
FAULT=comm_stall:1@2 expect 0 "^drover: .*in 'set-up', waited 2\.[0-9] s on rank [01]; not arrived: rank 2 on node1 \(pid [0-9]+; in set-up" \
  early parallel.dp=3 --hosts node0:1,node1:2 --probe true parallel.deadline=2
same calm early
FAULT=comm_stall:1@0 expect 0 "^drover: .*in 'set-up', waited 2\.[0-9] s on rank [12]; not arrived: rank 0 on node0 \(pid [0-9]+; in set-up" \
  first parallel.dp=3 --hosts node0:1,node1:2 --probe true parallel.deadline=2
same calm first

# ---- a host goes: the others go on with the same batch, and say how
loss() { grep "\"step\": $steps," "$work/$1/metrics.jsonl" | sed -nE 's/.*"loss": ([^,]+).*/\1/p' | tail -1; }
FAULT=train.update:7:kill@3 expect 0 \
  'warning: 1 of 2 hosts is gone \(node1\): 2 of 4 ranks go on, dp 4 -> 2, 2 micro-batches of 3 instead of 1 of 3; the batch stays 12$' \
  shrunk parallel.dp=4 --hosts node0:2,node1:2 --probe "test %h = node0 || test ! -s $work/shrunk/metrics.jsonl"
echo "$(loss calm) $(loss shrunk)" | awk '{d = $1 / $2 - 1; exit !(NF == 2 && d < 1e-5 && d > -1e-5)}' ||
  { echo "FAIL: the smaller layout has loss $(loss shrunk), the undisturbed run $(loss calm)"; failed=1; }

# ---- a bit turns over in a replica: named by the majority, nothing saved over the good checkpoint, and the run goes on
FAULT=train.flip:7@1 expect 0 '^drover: .*after step 8 rank 1 on node0 holds other bits of .* than 2 ranks' flipped parallel.dp=3 --hosts node0:2,node1:1 --probe true
same calm flipped

# ---- what is compared is the same to the bit under every layout; two copies that differ have no majority
moe="model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, \
head_dim: 8, intermediate_size: 24, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 32}"
threads() { # threads NAME LAYOUT... : ranks as threads of one process
  local name=$1
  shift
  "$drover" train "name=$name" "dir=$work/$name" "${settings[@]}" "$moe" train.batch=8 train.seq=32 train.steps=3 train.balance=bias train.check_replicas=1 \
    checkpoint.every=0 "$@" >/dev/null 2>"$work/err"
}
for layout in dp=2 tp=2 tp=4 cp=2 ep=2 pp=2,dp=2 dp=2,fsdp=2 dp=2,tp=2,cp=2 ep=2,tp=2 ep=2,cp=2 ep=2,fsdp=2; do
  checks=$((checks + 1))
  # shellcheck disable=SC2046,SC2086 # one word an axis
  threads "same-$layout" $(printf 'parallel.%s ' ${layout//,/ }) ||
    { echo "FAIL: $layout: $(tail -1 "$work/err")"; failed=1; }
done
FAULT=train.flip:2@1 threads torn parallel.dp=2 && { echo "FAIL: two copies differ, and nobody minds"; failed=1; }
grep -qE 'rank [01]: after step 2 the copies of .* differ on rank 0 on .*, rank 1 on .*, and none has the majority' "$work/err" ||
  { echo "FAIL: the line of two copies:"; cat "$work/err"; failed=1; }

# ---- a slow rank is named with figures while the run goes on (of 1.3 times: make soak, slow_test); it must be so for two seconds
FAULT=train.crawl:1+@1 expect 0 '^drover: rank 1 on node0 is slow: it computes [0-9.e-]+ s a step,.* its peers' slow parallel.dp=2 --hosts node0:2 --probe true \
  train.steps=64 train.seq=512 checkpoint.every=0

# ---- a signal to one rank: all stop at the same step with a checkpoint, exit 75, and the same command goes on
(FAULT=train.forward:4:stop@1 launch signalled parallel.dp=3 --hosts node0:2,node1:1 --probe true) &
run=$!
stopped= # the rank waits there for its signal
for ((try = 0; try < 1000; try++)); do
  sleep 0.02
  for p in $(ranks signalled); do [ "$(sed 's/.*) //' "/proc/$p/stat" 2>/dev/null | cut -c1)" = T ] && stopped=$p; done
  [ -n "$stopped" ] && break
done
kill -USR1 "$stopped"
kill -CONT "$stopped"
wait $run
code=$?
[ $code = 75 ] && grep -q '"interrupted"' "$work/signalled/metrics.jsonl" || { echo "FAIL: after SIGUSR1 to a rank exit $code, not 75"; cat "$work/err"; failed=1; }
good signalled parallel.dp=3 --hosts node0:2,node1:1 --probe true
same calm signalled
[ -z "$(ranks signalled)" ] || { echo "FAIL: ranks are left"; failed=1; }
echo "$checks checks, failed: $failed"
exit $failed
