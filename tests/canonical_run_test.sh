#!/bin/bash
# tests/canonical_run_test.sh DROVER ROOT : train.canonical through the program. Runs under several layouts, and runs that go on
# under another one, end with the same losses and norms in every digit, and with the same bytes of weights and moments.
drover=$1 root=$2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
settings=("model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 4,
    head_dim: 8, intermediate_size: 16, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 16}"
  "data=[{path: \"$root/docs/*.md\"}]" "tokenizer={train: {vocab_size: 320}}" dataset.holdout=0.2 train.canonical=true train.batch=8 train.seq=64
  train.precision=f32 train.val_every=2 train.val_batches=2 train.warmup=0 train.schedule=constant train.balance=aux log.tensorboard=false
  checkpoint.every=0 "dataset.cache=$work/data")
failed=0 checks=0

train() { # train NAME STEPS LAYOUT...
  local name=$1 steps=$2
  shift 2
  "$drover" train "name=$name" "dir=$work/$name" "${settings[@]}" "train.steps=$steps" "$@" >"$work/out" 2>"$work/err"
}
# Numbers of the steps, and the tensors of the last checkpoint.
result() {
  grep '"step": [0-9]*, "tokens"' "$work/$1/metrics.jsonl" | sed -nE 's/.*"step": ([0-9]+).*"loss": ([^,]+).*"grad_norm": ([^,]+).*/\1 \2 \3/p'
  grep -o '"val_loss": [^,]*' "$work/$1/metrics.jsonl"
  (cd "$work/$1/ckpt/step-00000004" && cat model*.safetensors | sha256sum && cat optimizer*.safetensors | sha256sum)
}
check() { # check WHAT : the run `it` is the run `one`
  checks=$((checks + 1))
  [ "$(result it)" = "$wanted" ] || { echo "$1: not the bits of one rank"; diff <(result it) <(echo "$wanted") | head -6; failed=1; }
  rm -rf "$work/it"
}
refused() { # refused WORDS SETTING...
  local words=$1
  shift
  checks=$((checks + 1))
  train it 4 "$@" && { echo "$*: not refused"; failed=1; }
  [ "$(grep -c . "$work/err")" -ge 1 ] && tail -1 "$work/err" | grep -q -- "$words" || { echo "$*: $(tail -1 "$work/err")"; failed=1; }
  rm -rf "$work/it"
}

train one 4 || { cat "$work/err"; exit 1; }
wanted=$(result one)
cp -r "$work/one/tokenizer" "$work/tokenizer"
checks=$((checks + 1))
grep -q 'canonical: 8 leaves of 1 sequence, products in 8 chunks; beside the same layout without it +.* of memory' "$work/err" ||
  { echo "cost not said: $(cat "$work/err")"; failed=1; }
settings+=("tokenizer=$work/tokenizer" train.canonical_chunks=8)
for layout in parallel.dp=4 parallel.tp=2,parallel.fsdp=2 parallel.ep=2,parallel.dp=2,parallel.zero=1 parallel.pp=2,parallel.tp=2,parallel.schedule=zb-v; do
  train it 4 ${layout//,/ } || tail -1 "$work/err"
  check "$layout"
done
while read -r first second; do
  train it 2 ${first//,/ } && train it 4 ${second//,/ } || tail -1 "$work/err"
  check "$first then $second"
done <<'EOF'
parallel.dp=2,parallel.tp=2 parallel.ep=4
parallel.fsdp=4,parallel.cp=2 train.threads=2
train.threads=1 parallel.pp=2,parallel.dp=2
parallel.dp=2,parallel.zero=2 parallel.dp=2,parallel.zero=3,parallel.tp=4
EOF
refused 'parallel.cp 8 leaves a rank 8 tokens of a leaf' parallel.cp=8
refused '6 leaves, which must be a power of two; train.batch=4 would do' train.batch=6
refused '16 ranks; their number must divide the leaves' parallel.dp=16 train.batch=32 train.micro_batch=4
refused 'parallel.tp 16 does not divide the 8 chunks' parallel.tp=16
refused 'train.canonical_chunks 6 is no power of two' train.canonical_chunks=6
refused 'train.canonical_chunks 64 does not divide' train.canonical_chunks=64

# ---- a tied head, which two ranks of a pipeline have, and fewer key heads than ranks
settings+=(model.tie_word_embeddings=true model.num_key_value_heads=2)
train tied 4 || cat "$work/err"
wanted=$(result tied)
for layout in parallel.pp=2,parallel.dp=2 parallel.tp=8; do
  train it 4 ${layout//,/ } || tail -1 "$work/err"
  check "tied, $layout"
done
train it 2 parallel.pp=4 && train it 4 parallel.tp=4 parallel.fsdp=2 || tail -1 "$work/err"
check 'tied, pp 4, then tp 4 and fsdp 2'
echo "$checks checks, failed: $failed"
[ "$failed" = 0 ] && [ "$checks" = 18 ]
