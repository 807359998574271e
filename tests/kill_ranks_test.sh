#!/bin/bash
# tests/kill_ranks_test.sh MPIRUN DROVER SOURCE_DIR [KILLS] : a rank of a run under mpirun is killed, at random moments and inside
# calls of a save, again and again; the same command goes on each time, and the last checkpoint has the same bytes as that of an undisturbed run.
mpirun=$1 drover=$2 source=$3 kills=${4:-3}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
model="model={model_type: llama4_text, vocab_size: 320, hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 4, \
head_dim: 8, intermediate_size: 48, intermediate_size_mlp: 96, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 32}"
settings=("$model" "data=$source/src/graph/*.c" "dataset.cache=$work/cache" "tokenizer.path=$work/tokenizer" train.batch=8 train.seq=64
  train.precision=f32 train.val_every=0 train.val_batches=0 log.tensorboard=false train.steps=60 checkpoint.every=7 parallel.fsdp=2)

extra=()
start() { # start NAME [FAULT0 FAULT1] : two ranks, in the background, each with its fault
  local command=("$drover" train "name=$1" "dir=$work/$1" "${settings[@]}" "${extra[@]}")
  "$mpirun" --oversubscribe -n 1 env "FAULT=$2" "${command[@]}" : -n 1 env "FAULT=$3" "${command[@]}" >"$work/out" 2>"$work/err" &
}
hashes() { (cd "$work/$1/ckpt/step-00000060" && sha256sum ./*.safetensors); }

"$drover" tokenizer train "$source/src/graph" --vocab-size 320 --out "$work/tokenizer" >/dev/null 2>&1 || { echo "no tokenizer"; exit 1; }
start calm
wait $! || { echo "the undisturbed run failed: $(tail -3 "$work/err")"; exit 1; }

done_kills=0 tries=0
while [ $((tries += 1)) -le $((kills + 20)) ]; do
  start hunted
  run=$!
  if [ "$done_kills" -lt "$kills" ]; then
    sleep "0.$((RANDOM % 9 + 1))"
    ranks=($(pgrep -f -- "dir=$work/hunted" | while read -r p; do [ "$(readlink "/proc/$p/exe")" = "$(readlink -f "$drover")" ] && echo "$p"; done))
    [ "${#ranks[@]}" -gt 0 ] && kill -9 "${ranks[RANDOM % ${#ranks[@]}]}" 2>/dev/null && done_kills=$((done_kills + 1))
  fi
  wait "$run" && [ "$done_kills" -ge "$kills" ] && break
done
[ "$(hashes calm)" = "$(hashes hunted)" ] || { echo "after $done_kills kills other weights: $(tail -3 "$work/err")"; exit 1; }

# the same, each time killed inside a call of a save: the first rank's, or the other's
inside=0
for faults in "reserve:2:kill " " write:1:kill" "fsync:7:kill " " fsync:2:kill" "rename:2:kill "; do
  start saving "${faults% *}" "${faults#* }"
  wait $! || inside=$((inside + 1))
done
start saving
wait $! || { echo "after $inside kills inside a save: $(tail -3 "$work/err")"; exit 1; }
[ "$(hashes calm)" = "$(hashes saving)" ] || { echo "after $inside kills inside a save other weights"; exit 1; }

# with copies in memory and no checkpoint a run goes on from the copies
mkdir "$work/memory"
extra=(checkpoint.every=0 checkpoint.memory_every=2 "checkpoint.memory_dir=$work/memory")
start remembered "" comm:1500:kill
wait $! && { echo "a killed rank was not missed"; exit 1; }
[ -e "$work/remembered/ckpt/latest" ] && { echo "there is a checkpoint already"; exit 1; }
start remembered
wait $! || { echo "from copies in memory: $(tail -3 "$work/err")"; exit 1; }
grep -q "resuming after step [1-9][0-9]* from copies in memory" "$work/err" || { echo "not from copies in memory: $(grep -i resum "$work/err")"; exit 1; }
[ "$(hashes calm)" = "$(hashes remembered)" ] || { echo "from copies in memory: other weights"; exit 1; }
[ -z "$(ls "$work/memory")" ] || { echo "copies in memory were left behind"; exit 1; }
left=$(pgrep -f -- "dir=$work/" | wc -l)
[ "$left" = 0 ] || { echo "$left processes were left behind"; exit 1; }
echo "$done_kills kills, $tries starts, $inside kills inside a save, the same bytes"
[ "$done_kills" -ge "$kills" ] && [ "$inside" = 5 ]
