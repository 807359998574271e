#!/bin/bash
# tests/resume_test.sh DROVER : a run goes on under any other layout. Two steps under one layout, the third
# under another: its loss and gradient norm are those of a run on one rank, to 1e-5.
drover=$1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
model="model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 4, \
head_dim: 8, intermediate_size: 16, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 16}"
settings=("$model" "data=[{synthetic: uniform}]" train.batch=8
  train.seq=64 train.precision=f32 train.val_every=0 train.val_batches=0 train.warmup=0 train.schedule=wsd train.decay=0 log.tensorboard=false
  checkpoint.every=0)
failed=0 checks=0

# The router's losses are means over the sequences that all ranks compute at once: four, under every layout.
micro_batch() {
  local n=4 axis
  for axis; do
    [[ $axis =~ ^parallel\.(dp|fsdp|ep)=([0-9]+)$ ]] && n=$((n / BASH_REMATCH[2]))
  done
  echo "train.micro_batch=$n"
}
train() { # train NAME STEPS LAYOUT... : exit code and stderr kept
  local name=$1 steps=$2
  shift 2
  "$drover" train "name=$name" "dir=$work/$name" "${settings[@]}" "train.steps=$steps" "$(micro_batch "$@")" "$@" >"$work/out" 2>"$work/err" ||
    { echo "$name $*: $(tail -1 "$work/err")"; failed=1; return 1; }
}
numbers() { # of step 3: loss and gradient norm
  grep '"step": 3,' "$work/$1/metrics.jsonl" | sed -nE 's/.*"loss": ([^,]+).*"grad_norm": ([^,]+).*/\1 \2/p' | tail -1
}
same() { # same A B : both numbers within 1e-5
  checks=$((checks + 1))
  echo "$1 $2" | awk '{for (i = 1; i <= 2; i++) {d = $i / $(i + 2) - 1; if (d > 1e-5 || d < -1e-5) exit 1}; exit NF != 4}'
}

train one 3 && wanted=$(numbers one)
while read -r first second; do
  name=$(echo "$first-$second" | tr -d '.=,')
  train "$name" 2 ${first//,/ } && train "$name" 3 ${second//,/ } || continue
  same "$wanted" "$(numbers "$name")" || { echo "$first then $second: '$(numbers "$name")', one rank: '$wanted'"; failed=1; }
done <<'EOF'
parallel.dp=2 parallel.tp=2
parallel.tp=4 parallel.fsdp=4
parallel.fsdp=2,parallel.tp=2 parallel.cp=2
parallel.ep=2 parallel.pp=2
parallel.pp=4 parallel.ep=4
parallel.cp=2,parallel.ep=2 train.threads=1
train.threads=1 parallel.pp=2,parallel.tp=2
parallel.pp=2,parallel.dp=2 parallel.fsdp=4,parallel.tp=2
parallel.dp=4 parallel.dp=2
parallel.fsdp=4 parallel.ep=2,parallel.cp=2
parallel.ep=2,parallel.tp=2 parallel.dp=2,parallel.pp=2,parallel.tp=2
parallel.dp=2,parallel.zero=1 parallel.fsdp=2
parallel.tp=2,parallel.fold_experts=true parallel.tp=2,parallel.ep=2,parallel.fold_experts=true
parallel.fsdp=4 parallel.dp=4,parallel.zero=2
parallel.dp=2,parallel.zero=3 parallel.dp=2,parallel.tp=2,parallel.zero=1
parallel.pp=2,parallel.schedule=zb-v parallel.pp=4,parallel.schedule=zb-h1
parallel.cp=4,parallel.context=ring parallel.cp=2
parallel.cp=2,parallel.tp=2 parallel.cp=4,parallel.context=ring
parallel.cp=2,parallel.dp=2,parallel.context=ring parallel.fsdp=2
parallel.tp=8 parallel.fsdp=2,parallel.tp=2
parallel.dp=2 parallel.tp=8
EOF
# a tied embedding, which two ranks of a pipeline hold: it is saved once and read by both
tied="model={model_type: llama, vocab_size: 320, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 4, \
head_dim: 8, intermediate_size: 48, tie_word_embeddings: true}"
train tied-one 3 "$tied" && wanted=$(numbers tied-one)
train tied-there 2 "$tied" parallel.pp=2 parallel.dp=2 && train tied-there 3 "$tied" parallel.tp=2 && same "$wanted" "$(numbers tied-there)" ||
  { echo "from a pipeline: '$(numbers tied-there)', one rank: '$wanted'"; failed=1; }
train tied-back 2 "$tied" parallel.fsdp=2 && train tied-back 3 "$tied" parallel.pp=4 parallel.schedule=zb-h1 parallel.fsdp=2 && same "$wanted" "$(numbers tied-back)" ||
  { echo "to a pipeline: '$(numbers tied-back)', one rank: '$wanted'"; failed=1; }
# another number of them is said, with the setting that keeps it
train together 2 train.micro_batch=4 && train together 3 train.micro_batch=2 parallel.dp=4
checks=$((checks + 1))
grep -q 'balancing loss was a mean over 4 sequences .* and is over 8 now; train.micro_batch=1 would keep it' "$work/err" ||
  { echo "not said: $(cat "$work/err")"; failed=1; }
echo "$checks checks, failed: $failed"
[ "$failed" = 0 ] && [ "$checks" = 24 ]
