#!/bin/bash
# tests/infer_ranks_test.sh DROVER SOURCE_DIR [MPIRUN] : the commands that put a model to work say the same on several ranks as on
# one, ranks as threads and, with MPIRUN, as processes.
drover=$1 source=$2 mpirun=$3
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
failed=0 checks=0
model="model={model_type: llama4_text, vocab_size: 320, hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, \
head_dim: 16, intermediate_size: 32, intermediate_size_mlp: 64, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 16}"
"$drover" train name=tiny "dir=$work/tiny" "$model" "data=$source/src/base/*.c" tokenizer.train.vocab_size=320 train.steps=30 train.batch=4 train.seq=64 \
  train.lr=1e-2 train.val_every=0 train.val_batches=0 log.tensorboard=false >/dev/null 2>"$work/err" || { cat "$work/err"; exit 1; }
printf '{"text": "static int x = %d;"}\n' 1 2 3 4 5 6 7 >"$work/texts.jsonl"
printf '{"prompt": "return ", "answer": "%d"}\n' 0 1 2 3 >"$work/asked.jsonl"
printf 'static \nint \nstatic int a\nreturn 0;\nint main(void)\n' >"$work/lines"
printf 'static int a\n/reset\nreturn 0\n\nand more\n/quit\n' >"$work/typed"
echo '{"ids": [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]}' >"$work/ids.json"

figures() { sed -E 's/, in [^;]*;/;/' "$1"; } # of eval, without the time

# each COMMAND of one rank and of LAYOUT... : the same on stdout
commands() { # commands NAME RUN... : what is said goes to $work/NAME.*
  local name=$1
  shift
  "$@" generate "$work/tiny" --prompt 'static ' --max-tokens 40 --seed 3 --dtype f32 "${layout[@]}" >"$work/$name.text" 2>"$work/err" || return
  "$@" generate "$work/tiny" --prompt 'int ' --max-tokens 20 --samples 3 --dtype f32 "${layout[@]}" >"$work/$name.texts" 2>"$work/err" || return
  "$@" generate "$work/tiny" --prompts "$work/lines" --max-tokens 24 --slots 3 --cache-tokens 144 --dtype f32 "${layout[@]}" >"$work/$name.lines" 2>"$work/err" || return
  "$@" chat "$work/tiny" --max-tokens 12 --dtype f32 "${layout[@]}" <"$work/typed" >"$work/$name.chat" 2>"$work/err" || return
  "$@" eval "$work/tiny" --data "$work/texts.jsonl" --dtype f32 --context 24 "${layout[@]}" >"$work/eval" 2>"$work/err" || return
  figures "$work/eval" >"$work/$name.perplexity"
  "$@" eval "$work/tiny" --data "$work/asked.jsonl" --task exact --max-tokens 4 --dtype f32 "${layout[@]}" >"$work/eval" 2>"$work/err" || return
  figures "$work/eval" >"$work/$name.exact"
  "$@" logits "$work/tiny" --ids "$work/ids.json" --out "$work/$name.safetensors" --dtype f32 "${layout[@]}" 2>"$work/err"
}
compare() {
  for what in text texts lines chat perplexity exact; do
    checks=$((checks + 1))
    cmp -s "$work/one.$what" "$work/$1.$what" || { echo "$1 ${layout[*]}: another $what"; diff "$work/one.$what" "$work/$1.$what" | head -5; failed=1; }
  done
  [ "$(stat -c %s "$work/one.safetensors")" = "$(stat -c %s "$work/$1.safetensors")" ] || { echo "${layout[*]}: another file of logits"; failed=1; }
}

layout=()
commands one "$drover" || { cat "$work/err"; exit 1; }
[ "$(wc -c <"$work/one.text")" -gt 30 ] && [ "$(grep -c sample "$work/one.texts")" = 3 ] && [ "$(grep -c -- '--- line' "$work/one.lines")" = 5 ] && [ "$(wc -l <"$work/one.chat")" -ge 3 ] || { echo "too little was said"; failed=1; }
while read -ra layout; do
  commands several "$drover" || { echo "${layout[*]}: $(cat "$work/err")"; failed=1; continue; }
  compare several
done <<'END'
--tp 2
--tp 4
--pp 2 --ep 2
--fsdp 3
--dp 2 --tp 2
--pp 2 --tp 4
END
if [ -n "$mpirun" ]; then
  layout=(--tp 2)
  if commands processes "$mpirun" -n 2 --oversubscribe "$drover"; then compare processes; else echo "mpirun: $(cat "$work/err")"; failed=1; fi
fi

refused() { # refused PATTERN ARGS...
  local pattern=$1
  shift
  checks=$((checks + 1))
  "$drover" generate "$work/tiny" --max-tokens 1 "$@" >/dev/null 2>"$work/err"
  [ $? = 3 ] && grep -q "$pattern" "$work/err" || { echo "generate $*: no refusal with '$pattern': $(cat "$work/err")"; failed=1; }
}
refused 'tp 3 does not divide the model.s 4 query heads; --tp 2 would' --tp 3
refused 'can run 1024 as threads' --tp 64 --dp 64
refused 'layers' --pp 8
echo "$checks checks, failed: $failed"
exit $failed
