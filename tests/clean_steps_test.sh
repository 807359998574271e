#!/bin/bash
# tests/clean_steps_test.sh DROVER SOURCE_DIR [STEPS] [STARTS] : make soak: so many (10,000) real steps of two ranks of which none is slow, and
# 20 starts of 40 steps: none is named; then a rank that computes 1.3 times as long from step 41 on, in steps of more than an eighth of a second, of
# which four windows are over two seconds: named by step 60.
drover=$1 steps=${3:-10000} starts=${4:-20}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
settings=("model={model_type: llama, vocab_size: 256, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, \
intermediate_size: 64}" "data=[{synthetic: uniform}]" train.batch=12 train.seq=512 train.precision=f32 train.val_every=0 train.val_batches=0
  log.tensorboard=false checkpoint.every=0 parallel.deadline=60)
run() { "$drover" launch "name=$1" "dir=$work/$1" "${settings[@]}" parallel.dp=2 "${@:2}" >"$work/out" 2>"$work/err"; }

run clean "train.steps=$steps" || { tail -5 "$work/err"; exit 1; }
flags=$(grep -c 'is slow: it computes' "$work/err")
echo "$steps clean steps, $flags ranks named slow"
grep 'is slow: it computes' "$work/err"
for ((i = 0; i < starts; i++)); do
  run "start-$i" train.steps=40 || { tail -5 "$work/err"; exit 1; }
  flags=$((flags + $(grep -c 'is slow: it computes' "$work/err")))
  grep 'is slow: it computes' "$work/err"
done
echo "$starts starts, $flags ranks named slow in all"
FAULT=train.slow:41+@1 run slow train.steps=64 train.batch=144 || { tail -5 "$work/err"; exit 1; }
grep 'is slow: it computes' "$work/err"
last=$(grep -oE 'rank 1 on [^ ]+ is slow: .* in steps [0-9]+ to [0-9]+' "$work/err" | head -1 | grep -oE '[0-9]+$')
[ "$flags" = 0 ] && [ -n "$last" ] && [ "$last" -le 60 ]
