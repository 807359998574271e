#!/bin/bash
# tests/kill_ranks_test.sh DROVER SOURCE_DIR [TRIALS] : under `drover launch` random ranks are killed, 50 times (make soak: 200),
# under four layouts: in each phase of a step, in a collective, inside a save, and at random moments. A run is killed again and
# again, is back in training each time without help, and its last checkpoint has the same bytes as that of an undisturbed run.
drover=$1 source=$2 trials=${3:-50}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
model="model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, \
head_dim: 8, intermediate_size: 24, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 32}"
steps=100
settings=("$model" "data=$work/text/*.c" "dataset.cache=$work/cache" "tokenizer.path=$work/tokenizer" train.batch=8 train.micro_batch=4
  train.seq=64 train.precision=f32 train.val_every=0 train.val_batches=0 log.tensorboard=false train.steps=$steps checkpoint.every=2)
layouts=("parallel.fsdp=2" "parallel.pp=2" "parallel.dp=2" "parallel.tp=2")
phases=(data forward save backward comm update inside)
inside=(reserve:2:kill@0 write:1:kill@1 fsync:7:kill@0 fsync:2:kill@1 rename:2:kill@0) # of the file system, by ranks that write a checkpoint

launch() { # launch NAME SETTINGS... : in this shell's place when it is a background job
  local name=$1
  shift
  exec "$drover" launch "name=$name" "dir=$work/$name" "${settings[@]}" "$@" --backoff=0.001 --max-restarts=50 >"$work/out" 2>"$work/err"
}
hashes() { (cd "$work/$1/ckpt/step-$(printf %08d "${2:-$steps}")" && sha256sum model*.safetensors optimizer*.safetensors); }
ranks() { # processes of a run that are ranks, not their starter
  local p
  for p in $(pgrep -f -- "train name=$1 "); do
    [ "$(readlink "/proc/$p/exe")" = "$(readlink -f "$drover")" ] && echo "$p"
  done
}
killed() { grep -c 'the ranks failed (exit 137, signal 9' "$work/err"; }
fail() { echo "$1"; tail -5 "$work/err"; exit 1; }
same() { # same NAME LAYOUT WHAT
  [ "$(hashes "calm-$2")" = "$(hashes "$1")" ] || fail "$3: other weights"
  [ -z "$(ranks "$1")" ] || fail "$3: ranks were left behind"
  rm -rf "${work:?}/$1"
}

# chain N : N faults, one a start. Three failures of one step with nothing new saved are the end of a run (launch_test.c), so every third
# at least is later than those of the other kinds can be.
chain() {
  local i phase rank text=''
  for ((i = 0; i < $1; i++)); do
    phase=${phases[(offset + i) % ${#phases[@]}]} rank=$((RANDOM % 2))
    case $phase in
      data) text+="train.data:$((RANDOM % 3 + 1)):kill@$rank;" ;;
      save) text+="train.save:1:kill@$rank;" ;;
      comm) text+="comm:$((RANDOM % 20 + 1)):kill@$rank;" ;;
      inside) text+="${inside[RANDOM % ${#inside[@]}]};" ;;
      *) text+="train.$phase:$((RANDOM % 4 + 9)):kill@$rank;" ;; # twice a step in a pipeline
    esac
  done
  offset=$((offset + $1))
  faults=${text%;}
}

# hunt LAYOUT N : N kills from outside, each a random moment after both ranks are there
hunt() {
  local run i try victims last=''
  (launch "hunted" "$1") &
  run=$!
  for ((i = 0; i < $2; i++)); do
    victims=()
    for ((try = 0; try < 500; try++)); do
      mapfile -t victims < <(ranks hunted)
      [ "${#victims[@]}" = 2 ] && [ "${victims[*]}" != "$last" ] && break
      sleep 0.02
    done
    [ "${#victims[@]}" = 2 ] || break # the run is at its end
    last="${victims[*]}"
    sleep "0.$((RANDOM % 5))"
    kill -9 "${victims[RANDOM % 2]}" 2>/dev/null
  done
  wait $run
}

mkdir "$work/text" && cp "$source"/src/graph/*.c "$work/text" # its own: the sources may be edited meanwhile
"$drover" tokenizer train "$work/text" --vocab-size 320 --out "$work/tokenizer" >/dev/null 2>&1 || fail "no tokenizer"
for layout in "${layouts[@]}"; do
  (launch "calm-$layout" "$layout") || fail "the undisturbed run failed: $layout"
done

total=0 offset=0 moments=0
for ((round = 0; total < trials; round++)); do
  layout=${layouts[round % ${#layouts[@]}]}
  n=$((trials - total < 11 ? trials - total : 11))
  chain $n
  (FAULT=$faults launch chained "$layout") || fail "FAULT='$faults' ($layout): not back in training"
  [ "$(killed)" = $n ] || fail "FAULT='$faults' ($layout): $(killed) kills, not $n"
  same chained "$layout" "FAULT='$faults' ($layout)"
  total=$((total + n))
  [ "$trials" -le 50 ] || echo "$total: $layout, $faults: the same bytes"
  [ $total -lt "$trials" ] || break
  n=$((trials - total < 2 ? trials - total : 2))
  hunt "$layout" $n || fail "killed at random moments ($layout): not back in training"
  moments=$((moments + $(killed)))
  total=$((total + $(killed)))
  same hunted "$layout" "killed at random moments ($layout)"
done
[ "$trials" -lt 30 ] || [ $moments -gt 0 ] || fail "nobody was killed at a random moment"

# with copies in memory and no checkpoint yet, the ranks are back from the copies
mkdir "$work/memory"
(launch "short" "${layouts[0]}" train.steps=12 checkpoint.every=0) || fail "the short run failed"
(FAULT=train.update:6:kill@1 launch remembered "${layouts[0]}" train.steps=12 checkpoint.every=0 checkpoint.memory_every=2 "checkpoint.memory_dir=$work/memory") ||
  fail "copies in memory: not back in training"
grep -q 'resuming after step 4 from copies in memory' "$work/err" || fail "not from copies in memory: $(grep -i resum "$work/err")"
[ "$(hashes short 12)" = "$(hashes remembered 12)" ] || fail "from copies in memory: other weights"
[ -z "$(ls "$work/memory")" ] || fail "copies in memory were left behind"

[ "$(find /dev/shm -maxdepth 1 -name 'drover-launch.*' -user "$(id -u)" -mmin -60 | wc -l)" = 0 ] || echo "note: status directories in /dev/shm"
echo "$total kills, $moments of them at random moments: the same bytes each time"
