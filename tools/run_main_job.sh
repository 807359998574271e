#!/bin/bash
# The main job: train a small Llama 4 on real text, compare it with compressors, let it write. Called by `make run`.
#   DATA      text to learn: a file, directory or glob; the C headers of this machine when empty
#   MINUTES   of training; 3 when empty. A run that was interrupted goes on; one that was done goes on for as long again.
set -eu
cd "$(dirname "$0")/.."
data=${DATA:-/usr/include/**/*.h}
minutes=${MINUTES:-3}
drover=build/drover

# one run a text, so that another DATA does not continue this one
name=main
[ "$data" = "/usr/include/**/*.h" ] || name=main-$(printf '%s' "$data" | cksum | cut -d' ' -f1)
dir=runs/$name
file=$dir/job.yaml
mkdir -p "$dir"

steps_done() { sed -n 's/^step-0*\([0-9]\{1,\}\)$/\1/p' "$dir/ckpt/latest" 2>/dev/null | head -1; }
planned() { sed -n 's/^ *steps: *\([0-9]\{1,\}\).*/\1/p' "$dir/run.yaml" 2>/dev/null | head -1; }

if [ ! -e "$file" ]; then
  cat >"$file" <<YAML
# Written by \`make run\`; \`drover train $file\` does the same.
name: $name
dir: $dir
model: llama4-nano
tokenizer: {train: {vocab_size: 4096, limit: 24MB}}
data: [{path: "$data"}]
train: {minutes: $minutes, batch: 16, seq: 256, lr: 3e-3, warmup: 30, schedule: wsd, decay: 0.4, min_lr_ratio: 0.02,
        weight_decay: 0.05, val_every: 0, val_batches: 0}
checkpoint: {every: 0, minutes: 1, keep: 2}
YAML
fi

# a run that is done gets as many steps again; its warm-up is over, however short it was
more=()
before=$(steps_done || true)
if [ -n "$before" ] && [ "$before" -ge "$(planned)" ]; then
  more=("train.minutes=0" "train.steps=$((2 * before))" "train.warmup=-1")
  echo "The run in $dir has done its $before steps; it goes on for as many again."
elif [ -n "$before" ]; then
  echo "The run in $dir goes on after step $before of $(planned)."
fi
$drover train "$file" "${more[@]}"

echo
echo "Held-out text, which the model has never seen, in bits per byte (less is better):"
holdout=$(mktemp)
trap 'rm -f "$holdout"' EXIT
$drover data holdout "$file" >"$holdout" 2>/dev/null
bytes=$(wc -c <"$holdout")
bits() { awk -v n="$1" -v b="$bytes" 'BEGIN { printf "%.3f", 8 * n / b }'; }
ours=$(sed -n 's/.*"val_bits_per_byte": \([0-9.]*\).*/\1/p' "$dir/metrics.jsonl" | tail -1)
printf '  %-12s %s\n' llama4-nano "$(printf '%.3f' "$ours")" "gzip -9" "$(bits "$(gzip -9 <"$holdout" | wc -c)")" \
  "xz -9e" "$(bits "$(xz -9e <"$holdout" | wc -c)")"

echo
echo "What it writes:"
seed=1
for prompt in '/* ' '#ifndef ' 'static inline int '; do
  echo "---- after \"$prompt\""
  $drover generate "$dir" --prompt "$prompt" --max-tokens 120 --temperature 0.7 --seed $seed 2>/dev/null || true
  echo
  seed=$((seed + 1))
done
cat <<TEXT
----
Next: $drover generate $dir --prompt '#define ' --temperature 0.8
      $drover inspect $dir        what the run is
      make run                              goes on training
      make run DATA=PATH MINUTES=10         learns another text
TEXT
