#!/bin/bash
# tests/any_layout_test.sh DROVER SOURCE_DIR [LAYOUTS] : `mpirun -n 4 drover train` of the main job's model and kind of text under layouts
# that a user might write, drawn at random (SEED=), 10 of them (make soak: 200). Each either trains, with the losses of one rank,
# or is refused in one line before the first step.
drover=$1 source=$2 layouts=${3:-10}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
RANDOM=${SEED:=$$}
settings=("data=[{path: \"$work/text/*.h\"}]" "tokenizer.path=$work/tokenizer" "dataset.cache=$work/cache" train.seq=64 train.steps=3 train.warmup=1
  train.val_every=0 train.val_batches=0 checkpoint.every=0 log.tensorboard=false parallel.deadline=60)
pick() { # pick VARIABLE CHOICE... : not in a subshell, which would draw numbers of its own
  local -n into=$1
  shift
  into=${*:RANDOM % $# + 1:1}
}
losses() { sed -nE 's/.*"step": [0-9]+,.*"loss": ([^,]+),.*/\1/p' "$work/$1/metrics.jsonl" | tr '\n' ' '; }

# draw : four ranks shared out over the axes at random, now and then another number; the rest of the settings likewise
draw() {
  local axes=(dp fsdp tp pp cp ep) factor axis value
  declare -A size=()
  for factor in 2 2; do
    pick axis "${axes[@]}"
    size[$axis]=$((${size[$axis]:-1} * factor))
  done
  pick axis "${axes[@]}"
  [ $((RANDOM % 10)) = 0 ] && size[$axis]=3
  words=()
  for axis in "${axes[@]}"; do [ -n "${size[$axis]}" ] && words+=("parallel.$axis=${size[$axis]}"); done
  pick value 1f1b gpipe interleaved zb-h1 zb-v dualpipev
  [ -n "${size[pp]}" ] && words+=("parallel.schedule=$value")
  pick value gather ring
  [ -n "${size[cp]}" ] && words+=("parallel.context=$value")
  pick value true false
  [ -n "${size[tp]}" ] && words+=("parallel.fold_experts=$value")
  pick value 0 1 2
  [ -n "${size[dp]}" ] && words+=("parallel.zero=$value")
  pick value none selective full && words+=("train.recompute=$value")
  pick value true false && words+=("parallel.overlap=$value")
  pick value 1 1 2 4 && words+=("train.micro_batch=$value")
  [ $((RANDOM % 6)) = 0 ] && words+=(train.canonical=true)
  pick precision f32 f32 bf16
  pick batch 8 16 16
  pick model llama4-nano llama4-nano llama3-nano
  # what a run of one rank is to be compared with: a balancing loss is a mean over sequences, of which ranks have fewer
  same=("model=$model" "train.precision=$precision" "train.batch=$batch" train.balance=bias train.router_z_loss=0)
}
run() { # run NAME RANKS SETTINGS...
  local name=$1 n=$2
  shift 2
  timeout 300 mpirun -n "$n" --oversubscribe "$drover" train "name=$name" "dir=$work/$name" "${settings[@]}" "$@" >"$work/out" 2>"$work/err"
}
fail() {
  echo "FAIL (SEED=$SEED): $1"
  grep -a "^drover: " "$work/err" | grep -v "^drover: warning" | head -4
  failed=$((failed + 1))
}

mkdir "$work/text" && cp "$source"/src/base/*.h "$source"/src/graph/*.[ch] "$work/text" && (cd "$work/text" && for f in *.c; do mv "$f" "$f.h"; done)
"$drover" tokenizer train "$work/text" --vocab-size 512 --out "$work/tokenizer" >/dev/null 2>&1 || { echo "no tokenizer"; exit 1; }
failed=0 trained=0 refused=0
for ((i = 0; i < layouts; i++)); do
  draw
  alone=alone-$model-$precision-$batch what="${same[*]} ${words[*]}"
  [ -d "$work/$alone" ] || run "$alone" 1 "${same[@]}" || fail "one rank: $what"
  run "many" 4 "${same[@]}" "${words[@]}"
  code=$?
  if [ $code = 0 ]; then
    trained=$((trained + 1))
    bar=$([ "$precision" = f32 ] && echo 1e-5 || echo 1e-2)
    paste <(losses "$alone" | tr ' ' '\n') <(losses many | tr ' ' '\n') |
      awk -v bar="$bar" 'NF == 2 {n++; d = $1 / $2 - 1; if (d < 0) d = -d; if (d > bar) bad = 1} END {exit bad || n != 3}' ||
      fail "$what: losses $(losses many), of one rank $(losses "$alone")"
  elif [ $code = 2 ] || [ $code = 3 ]; then
    refused=$((refused + 1))
    [ "$(grep -a '^drover: ' "$work/err" | grep -vc '^drover: warning')" = 1 ] || fail "$what: not one line"
    [ "$layouts" -le 10 ] || grep "^drover: " "$work/err"
  else
    fail "$what: exit $code"
  fi
  rm -rf "${work:?}/many"
done
echo "$layouts layouts: $trained trained as one rank does, $refused refused in one line, $failed wrong"
[ $failed = 0 ]
