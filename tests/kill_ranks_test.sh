#!/bin/bash
# tests/kill_ranks_test.sh DROVER SOURCE_DIR [TRIALS] : under `drover launch` a random rank is killed in each phase of a step, inside
# a save, and at a random moment. Each time the run is back in training without help, and its last checkpoint has the same bytes as that of an
# undisturbed run. With TRIALS (make soak: 200) so many, under several layouts.
drover=$1 source=$2 trials=${3:-8}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
model="model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, \
head_dim: 8, intermediate_size: 24, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 32}"
steps=12
settings=("$model" "data=$source/src/graph/*.c" "dataset.cache=$work/cache" "tokenizer.path=$work/tokenizer" train.batch=8 train.micro_batch=4
  train.seq=64 train.precision=f32 train.val_every=0 train.val_batches=0 log.tensorboard=false train.steps=$steps checkpoint.every=3)
layouts=("parallel.fsdp=2" "parallel.pp=2" "parallel.dp=2" "parallel.tp=2")
[ "$trials" -gt 10 ] || layouts=("${layouts[0]}")
phases=(data forward backward update save comm inside moment)
most=($steps $steps $steps $steps 4 100 1 1) # calls of each fault point that a run surely makes
inside=(reserve:2:kill@0 write:1:kill@1 fsync:7:kill@0 fsync:2:kill@1 rename:2:kill@0) # of the file system, by ranks that write a checkpoint

launch() { # launch NAME LAYOUT... : in this shell's place when it is a background job
  local name=$1
  shift
  exec "$drover" launch "name=$name" "dir=$work/$name" "${settings[@]}" "$@" --backoff=0.1 >"$work/out" 2>"$work/err"
}
hashes() { (cd "$work/$1/ckpt/step-000000$steps" && sha256sum model*.safetensors optimizer*.safetensors); }
ranks() { # processes of a run that are ranks, not their starter
  local p
  for p in $(pgrep -f -- "train name=$1 "); do
    [ "$(readlink "/proc/$p/exe")" = "$(readlink -f "$drover")" ] && echo "$p"
  done
}
fail() { echo "$1"; tail -5 "$work/err"; exit 1; }

"$drover" tokenizer train "$source/src/graph" --vocab-size 320 --out "$work/tokenizer" >/dev/null 2>&1 || fail "no tokenizer"
for layout in "${layouts[@]}"; do
  (launch "calm-$layout" "$layout") || fail "the undisturbed run failed: $layout"
done

for ((trial = 0; trial < trials; trial++)); do
  layout=${layouts[trial / ${#phases[@]} % ${#layouts[@]}]} phase=${phases[trial % ${#phases[@]}]}
  n=$((RANDOM % most[trial % ${#phases[@]}] + 1)) rank=$((RANDOM % 2)) name=hunted-$trial
  fault=train.$phase:$n:kill@$rank
  [ "$phase" = comm ] && fault=comm:$n:kill@$rank
  [ "$phase" = inside ] && fault=${inside[RANDOM % ${#inside[@]}]}
  what="$fault ($layout)"
  if [ "$phase" = moment ]; then
    (launch $name "$layout") &
    run=$!
    victims=()
    for ((try = 0; try < 200 && ${#victims[@]} < 2; try++)); do
      sleep 0.02
      mapfile -t victims < <(ranks $name)
    done
    sleep "0.$((RANDOM % 7))"
    kill -9 "${victims[rank]}" 2>/dev/null
    wait $run || fail "$what: not back in training"
  else
    (FAULT=$fault launch $name "$layout") || fail "$what: not back in training"
    grep -q 'the ranks failed (exit 137, signal 9' "$work/err" || fail "$what: nobody was killed"
  fi
  [ "$(hashes "calm-$layout")" = "$(hashes $name)" ] || fail "$what: other weights"
  [ -z "$(ranks $name)" ] || fail "$what: ranks were left behind"
  rm -rf "${work:?}/$name"
  [ "$trials" -le 10 ] || echo "trial $((trial + 1)): $what: the same bytes"
done
# with copies in memory and no checkpoint yet, the ranks are back from the copies
mkdir "$work/memory"
(FAULT=train.update:6:kill@1 launch remembered "${layouts[0]}" checkpoint.every=0 checkpoint.memory_every=2 "checkpoint.memory_dir=$work/memory") ||
  fail "copies in memory: not back in training"
grep -q 'resuming after step 4 from copies in memory' "$work/err" || fail "not from copies in memory: $(grep -i resum "$work/err")"
[ "$(hashes "calm-${layouts[0]}")" = "$(hashes remembered)" ] || fail "from copies in memory: other weights"
[ -z "$(ls "$work/memory")" ] || fail "copies in memory were left behind"

[ "$(find /dev/shm -maxdepth 1 -name 'drover-launch.*' -user "$(id -u)" -mmin -60 | wc -l)" = 0 ] || echo "note: status directories in /dev/shm"
echo "$trials kills, the same bytes each time"
