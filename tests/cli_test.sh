#!/bin/bash
# tests/cli_test.sh DROVER SOURCE_DIR : the program as a user meets it. Each check says what it wanted; the exit code
# is 1 when any failed.
drover=$1 source=$2
golden=$source/tests/golden
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
failed=0 checks=0

# expect CODE STDERR-PATTERN ARGS... : runs drover; stdout goes to $work/out, stderr to $work/err
expect() {
  local code=$1 pattern=$2 got
  shift 2
  checks=$((checks + 1))
  "$drover" "$@" >"$work/out" 2>"$work/err" </dev/null
  got=$?
  [ "$got" = "$code" ] || { echo "drover $*: exit code $got, not $code"; cat "$work/err"; failed=1; }
  [ -z "$pattern" ] || grep -qE -- "$pattern" "$work/err" || { echo "drover $*: stderr has no '$pattern': $(cat "$work/err")"; failed=1; }
}
says() { # says PATTERN : the last command's stdout
  checks=$((checks + 1))
  grep -qE -- "$1" "$work/out" || { echo "stdout has no '$1': $(head -c 300 "$work/out")"; failed=1; }
}
one_line() { # the last command's error is exactly one line that begins with "drover: "
  checks=$((checks + 1))
  [ "$(wc -l <"$work/err")" = 1 ] && grep -q '^drover: ' "$work/err" || { echo "not one line: $(cat "$work/err")"; failed=1; }
}

# ---- help, version, wrong usage ----
expect 0 '' --version
says '^drover [0-9]+\.[0-9]+'
expect 0 ''
says '^  generate MODEL'
[ "$(wc -l <"$work/out")" -le 26 ] || { echo "the help does not fit a screen"; failed=1; }
"$drover" help | sed -nE 's/^  ([a-z]+) .*/\1/p' >"$work/commands"
[ "$(wc -l <"$work/commands")" -ge 8 ] || { echo "too few commands in the help"; failed=1; }
while read -r command; do
  expect 0 '' "$command" --help
  says "drover $command"
  expect 0 '' help "$command"
  awk 'length > 100' "$work/out" | grep . && { echo "$command: help wider than 100 columns"; failed=1; }
done <"$work/commands"
for sub in 'tokenizer train' 'tokenizer encode' 'tokenizer decode' 'tokenizer chat' 'tokenizer inspect' 'data build' 'data inspect'; do
  expect 0 '' $sub --help
  says "^usage: drover $sub"
  expect 0 '' help $sub
done
expect 2 "did you mean 'generate'" genrate
expect 2 'no command' zzzzzzzzzz
expect 2 'did you mean --temperature' generate x --temprature 1
one_line
expect 2 'no option -t' generate x -t 1
expect 2 'did you mean .encode' tokenizer encod a b
expect 2 'needs one of: train, encode, decode, chat, inspect' tokenizer
expect 2 'needs MODEL' generate
expect 2 'takes only MODEL' generate a b
expect 2 'needs a value' generate x --prompt
expect 2 'not a whole number' generate x --max-tokens many
expect 2 'between 0 and 100' generate x --temperature 101
expect 2 'auto\|f32\|bf16' generate x --dtype f64
expect 2 'takes no value' generate x --json=yes
expect 2 'needs --ids' logits "$golden/llama3-gqa"

# ---- models that are not there, or not models ----
for command in generate chat logits; do
  extra=(); [ $command = logits ] && extra=(--ids "$golden/llama3-gqa/ids.json" --out "$work/l.safetensors")
  expect 1 'there is no model at /nothing/here' $command /nothing/here "${extra[@]}"
  one_line
  expect 1 'is no model' $command "$golden" "${extra[@]}"
  one_line
done
expect 1 'has no tokenizer' generate "$golden/llama3-gqa" --prompt x
one_line
expect 1 'there is nothing at' inspect "$work/nothing"

# ---- clusters ----
expect 0 '' inspect --cluster list
says '^  meta-100k'
says '^  h100 '
expect 0 '' inspect --cluster "16384 h100, 8 per node, 400G, spine 1:4"
says 'oversubscription: .*4'
cp "$work/out" "$work/cluster.yaml"
expect 0 '' inspect --cluster "$work/cluster.yaml"
cp "$work/out" "$work/cluster.yaml" # what had no source before has this file's lines from now on
expect 0 '' inspect --cluster "$work/cluster.yaml"
cmp -s "$work/out" "$work/cluster.yaml" || { echo "a cluster's text does not load as itself"; failed=1; }
expect 2 'did you mean meta-24k' inspect --cluster meta-24
one_line
expect 3 '100 devices are no whole number of nodes of 8; 104 are' inspect --cluster "100 h100, 8 per node"
one_line
printf 'base: hgx\nnode: {nics: 8, nic_bytes_per_s: 400e9}\n' >"$work/bad.yaml"
expect 2 'bad.yaml:2: node.nic_bytes_per_s is 400e9; a value in its range is wanted \(0 to 250000000000 bytes/s\)' inspect --cluster "$work/bad.yaml"
one_line

# ---- published rows ----
expect 0 '' validate "$source/data/validation/grid_3_3_1.csv"
says '^INF-05 .*128 a100'
says 'rank correlation 1.000'
expect 0 '' validate "$source/data/validation/calibration.csv" --only DG8 --json
says '"id": "DG8-21".*"measured_s": 12.27, "predicted_s": '
expect 1 'the columns are neither those of calibration.csv nor of a grid' validate "$source/data/validation/clusters.csv"
one_line

mkdir "$work/broken" && cp "$golden/llama3-gqa/"* "$work/broken" && truncate -s -100 "$work/broken/model.safetensors"
expect 1 'model.safetensors' logits "$work/broken" --ids "$golden/llama3-gqa/ids.json" --out "$work/l.safetensors"
one_line

# ---- logits ----
expect 0 '' logits "$golden/llama4-scout" --ids "$golden/llama4-scout/ids.json" --out "$work/l.safetensors"
expect 0 '' inspect "$work/l.safetensors"
says 'F32 +\[2, [0-9]+, 64\] +logits'
echo '{"ids": [[1, 2, 3], [4, 5]]}' >"$work/ids.json"
expect 0 '' logits "$golden/llama3-gqa" --ids "$work/ids.json" --out "$work/l.safetensors"
expect 0 '' inspect "$work/l.safetensors"
says '\[3, [0-9]+\] +logits\.0'
says '\[2, [0-9]+\] +logits\.1'
echo '{"ids": [[1, 2, 99999]]}' >"$work/ids.json"
rm -f "$work/l.safetensors"
expect 1 'token 99999' logits "$golden/llama3-gqa" --ids "$work/ids.json" --out "$work/l.safetensors"
ls "$work"/l.safetensors* 2>/dev/null && { echo "a failed command left a file"; failed=1; }
echo '{"ids": [[1, -2]]}' >"$work/ids.json"
expect 1 'ids\[0\]\[1\]' logits "$golden/llama3-gqa" --ids "$work/ids.json" --out "$work/l.safetensors"
echo '{"ids": [' >"$work/ids.json"
expect 1 'ids.json:' logits "$golden/llama3-gqa" --ids "$work/ids.json" --out "$work/l.safetensors"
expect 3 'needs .* can be had' logits "$golden/llama3-gqa" --ids "$golden/llama3-gqa/ids.json" --out "$work/l" --memory 1000
one_line
expect 1 '' logits "$golden/llama3-gqa" --ids "$golden/llama3-gqa/ids.json" --out "$work/no/such/l"
one_line

# ---- tokenizer ----
expect 0 'ids learnt' tokenizer train "$source/src/base" --vocab-size 320 --out "$work/tokenizer"
printf 'int main(void)\n{ return 0; } naïve 東京 <|eot|> \xff\xfe\n' >"$work/text"
expect 0 '' tokenizer encode "$work/tokenizer" "$work/text"
cp "$work/out" "$work/ids"
says '^[0-9]+( [0-9]+)*$'
expect 0 '' tokenizer decode "$work/tokenizer" "$work/ids"
cmp -s "$work/out" "$work/text" || { echo "decode of encode is another text"; failed=1; }
expect 0 '' tokenizer inspect "$work/tokenizer"
says '320 ids'
sp=$source/tests/golden_text/sp-grok.model # a SentencePiece model, two texts at once
printf ' the  herd\n\n12 naïve 東京 \xff' >"$work/text2"
expect 0 '' tokenizer encode "$sp" "$work/text" "$work/text2"
sed -n 1p "$work/out" >"$work/ids1"; sed -n 2p "$work/out" >"$work/ids2"
expect 0 '' tokenizer decode "$sp" "$work/ids1" "$work/ids2"
cat "$work/text" "$work/text2" | cmp -s - "$work/out" || { echo "decode of encode is another text with a SentencePiece model"; failed=1; }
expect 0 '' tokenizer inspect "$sp"
says 'SentencePiece BPE, 600 ids'
echo '5 999999' >"$work/ids"
expect 1 "'999999'" tokenizer decode "$work/tokenizer" "$work/ids"
one_line
expect 2 'between 288' tokenizer train "$source/src/base" --vocab-size 100 --out "$work/t2"
expect 2 'needs --out' tokenizer train "$source/src/base"
expect 1 '' tokenizer encode "$work/nothing" "$work/text"
one_line

# ---- data ----
expect 0 '' data build "$source/src/base" --tokenizer "$work/tokenizer" --cache "$work/cache" --holdout 0.2 --verify
says '^training +[0-9]+ documents'
expect 0 '' data inspect "$source/src/base" --tokenizer "$work/tokenizer" --cache "$work/cache" --holdout 0.2
says 'commonest tokens'
expect 2 'needs --tokenizer' data build "$source/src/base"
expect 1 '' data build "$work/nothing" --tokenizer "$work/tokenizer" --cache "$work/cache"
one_line

# ---- generation: a golden model's weights with a tokenizer that covers its ids ----
mkdir "$work/model" && cp "$golden/llama3-gqa/"*.safetensors "$golden/llama3-gqa/"*.json "$work/model"
cp "$work/tokenizer/"* "$work/model"
vocab=$(sed -nE 's/.*"vocab_size": ([0-9]+).*/\1/p' "$work/model/config.json")
if [ "$vocab" -ge 97 ]; then prompt='a'; else prompt='!'; fi # a byte's id is its value in a tokenizer of ours
generate=(generate "$work/model" --no-bos --prompt "$prompt" --max-tokens 12)
expect 0 'made in' "${generate[@]}" --temperature 1 --seed 3 --json
cp "$work/out" "$work/first"
says '"end":"(length|stop)"'
expect 0 '' "${generate[@]}" --temperature 1 --seed 3 --json
cmp -s <(grep -o '"ids":[^]]*' "$work/first") <(grep -o '"ids":[^]]*' "$work/out") || { echo "same seed, other ids"; failed=1; }
expect 0 '' "${generate[@]}" --temperature 1 --samples 3
says '^--- sample 3, seed 2 ---'
# several prompts: in their order, each as it is alone; pages are promised before anything is made
printf '%s\n%s%s\r\n%s' "$prompt" "$prompt" "$prompt" "$prompt" >"$work/prompts"
several=(generate "$work/model" --no-bos --prompts "$work/prompts" --max-tokens 12 --temperature 1 --seed 3)
expect 0 'made in' "${several[@]}" --slots 2 --json
says '"line":3'
[ "$(grep -o '"ids":[^]]*' "$work/out" | sed -n '1p;3p' | sort -u)" = "$(grep -o '"ids":[^]]*' "$work/first")" ] || { echo "a prompt among others: other ids"; failed=1; }
expect 0 '' generate "$work/model" --no-bos --prompt "$prompt$prompt" --max-tokens 12 --temperature 1 --seed 3 --json
cp "$work/out" "$work/second"
expect 0 '' "${several[@]}" --json --cache-tokens 16
[ "$(grep -o '"ids":[^]]*' "$work/out" | sed -n 2p)" = "$(grep -o '"ids":[^]]*' "$work/second")" ] || { echo "a prompt of several with few pages: other ids"; failed=1; }
expect 0 '' "${several[@]}" --samples 2
says '^--- line 3, sample 2, seed 4 ---'
expect 3 'request 1: .* fewer tokens to make or more cache tokens' "${several[@]}" --cache-tokens 16 --max-tokens 20
expect 2 'exclude each other' "${several[@]}" --prompt x
printf '!\n\n' >"$work/prompts"
expect 2 'prompts:2: the prompt is empty' "${several[@]}"
: >"$work/prompts"
expect 2 'has no lines' "${several[@]}"
expect 3 'positions' generate "$work/model" --no-bos --prompt "$prompt" --context 1000000
# what is needed depends on the instruction set: it is asked first; a little less is refused with a context that fits
expect 3 'needs .* can be had' "${generate[@]}" --context 256 --memory 1
need=$(sed -nE 's/.* needs ([0-9.]+) kB .*/\1/p' "$work/err" | awk '{ printf "%d", 1000 * $1 }')
[ -n "$need" ] || { echo "no need in kB: $(cat "$work/err")"; failed=1; }
less=$((need - 6000))
expect 3 'a context of [0-9]+ would fit' "${generate[@]}" --context 256 --memory "$less"
fits=$(sed -nE 's/.*a context of ([0-9]+) would fit.*/\1/p' "$work/err")
expect 0 '' "${generate[@]}" --context "${fits:-256}" --memory "$less"
printf '%s\n/reset\n!\n' "$prompt" | "$drover" chat "$work/model" --no-bos --max-tokens 4 --temperature 0 >"$work/out" 2>"$work/err" ||
  { echo "chat failed: $(cat "$work/err")"; failed=1; }

# ---- eval ----
printf '{"text": "!!!"}\n{"text": "! !"}\n' >"$work/texts.jsonl"
expect 0 '' eval "$work/model" --no-bos --data "$work/texts.jsonl" --json --out "$work/items.jsonl"
says '"bits_per_byte":[0-9.]+'
[ "$(wc -l <"$work/items.jsonl")" = 2 ] || { echo "eval --out has not a line for each item"; failed=1; }
expect 2 'needs --data' eval "$work/model"
expect 1 'no file at' eval "$work/model" --data "$work/nothing.jsonl"
printf '{"text": "!!!"}\nno json\n' >"$work/texts.jsonl"
expect 3 'line 2: not JSON' eval "$work/model" --no-bos --data "$work/texts.jsonl"
expect 0 'line 2' eval "$work/model" --no-bos --data "$work/texts.jsonl" --bad-share 0.5
printf '{"question": "!", "choices": ["!", "!!"], "answer": 0}\n' >"$work/choices.jsonl"
expect 0 '' eval "$work/model" --no-bos --data "$work/choices.jsonl" --task choice
says 'acc_norm'
printf '{"prompt": "!", "answer": "x"}\n' >"$work/prompts.jsonl"
expect 0 '' eval "$work/model" --no-bos --data "$work/prompts.jsonl" --task exact --max-tokens 4
says 'exact_match_strict'

# ---- convert ----
expect 0 '' convert "$golden/llama4-scout" "$work/scout/" --shard-size 40kB
says 'tensors and'
for f in config.json generation_config.json; do
  cmp -s "$golden/llama4-scout/$f" "$work/scout/$f" || { echo "convert changed $f"; failed=1; }
done
expect 3 'exists already' convert "$golden/llama4-scout" "$work/scout"
one_line
expect 0 '' convert "$work/scout" "$work/scout-bf16" --dtype bf16
expect 0 '' inspect "$work/scout-bf16"
says 'BF16'
expect 0 '' convert "$work/scout" "$work/scout-again"
cmp -s "$golden/llama4-scout/config.json" "$work/scout-again/config.json" || { echo "convert changed config.json"; failed=1; }
for family in llama3 llama4; do # Meta's layout, in any number of files, becomes the same directory with the same logits
  for parts in 1 2 8; do
    meta=$source/tests/golden_meta/$family/meta$parts
    expect 0 '' convert "$meta" "$work/$family-$parts"
    says 'tensors and'
    grep -q '"dtype": "bfloat16"' "$work/$family-$parts/config.json" || { echo "convert of $meta does not say bfloat16"; failed=1; }
    grep -q '"temperature": 0.6,' "$work/$family-$parts/generation_config.json" || { echo "convert of $meta writes no generation_config.json"; failed=1; }
    cmp "$work/$family-1/config.json" "$work/$family-$parts/config.json" || failed=1
    cmp "$work/$family-1/model.safetensors" "$work/$family-$parts/model.safetensors" || failed=1
  done
  echo '{"ids": [[3, 1, 4, 1, 5]]}' >"$work/few.json"
  expect 0 '' logits "$work/$family-1" --ids "$work/few.json" --out "$work/ours.safetensors"
  expect 0 '' logits "$source/tests/golden_meta/$family/hf" --ids "$work/few.json" --out "$work/theirs.safetensors"
  cmp "$work/ours.safetensors" "$work/theirs.safetensors" || { echo "convert of Meta's layout changed the logits"; failed=1; }
done
cp -r "$source/tests/golden_meta/llama3/meta2" "$work/damaged"
size=$(stat -c %s "$work/damaged/consolidated.01.pth")
byte=$(grep -aob 'data/3' "$work/damaged/consolidated.01.pth" | head -1 | cut -d: -f1)
printf '\377\377\377' | dd of="$work/damaged/consolidated.01.pth" bs=1 seek=$((byte + 200 < size ? byte + 200 : size / 2)) conv=notrunc 2>/dev/null
expect 1 'consolidated.01.pth is damaged: entry' convert "$work/damaged" "$work/other"
one_line
expect 2 'shard-size' convert "$golden/llama3-gqa" "$work/other" --shard-size many
expect 1 'there is no model' convert "$work/nothing" "$work/other"
FAULT=write:3 expect 1 'cannot write' convert "$golden/llama3-gqa" "$work/other"
ls -d "$work"/other "$work"/.other* 2>/dev/null && { echo "a failed conversion left something"; failed=1; }

# ---- training: a tiny run, what it may start from, and what is refused ----
says_last() { # says_last PATTERN : the last line on stderr, which is the error
  checks=$((checks + 1))
  tail -1 "$work/err" | grep -qE -- "$1" || { echo "the last line has no '$1': $(tail -1 "$work/err")"; failed=1; }
}
tiny=(name=tiny "dir=$work/runs/tiny" model=llama4-nano model.hidden_size=32 model.num_attention_heads=2 model.num_key_value_heads=1
  model.head_dim=16 model.num_hidden_layers=2 model.intermediate_size=32 model.intermediate_size_mlp=32
  "data=$source/src/base" train.steps=2 train.batch=2 train.seq=32 train.val_batches=1 "dataset.cache=$work/cache-tiny")
expect 0 '' train "${tiny[@]}" tokenizer.train.vocab_size=320
says '^tiny: 2 steps, loss'
mkdir "$work/from" && cp "$work/runs/tiny/ckpt/$(head -1 "$work/runs/tiny/ckpt/latest")/"* "$work/from" && rm -f "$work/from/manifest.json" "$work/from"/optimizer*
more=(name=more "dir=$work/runs/more" "model.from=$work/from" "data=$source/src/base" train.steps=1 train.batch=2 train.seq=32 train.val_batches=1)
expect 0 'weights from' train "${more[@]}"
grep -q 'tokens learnt' "$work/err" && { echo "model.from has a tokenizer, but one was trained"; failed=1; }
grep -q 'vocab_size' "$work/runs/more/run.yaml" && { echo "the resolved file asks for a tokenizer that was not trained"; failed=1; }
expect 0 '' train "$work/runs/more/run.yaml" # what was resolved is the same run
rm "$work/from"/tokenizer*
rm -r "$work/runs/more"
expect 3 '' train "${more[@]}"
says_last "^drover: model.from: $work/from has neither tokenizer.json nor tokenizer.model.*tokenizer: PATH.*tokenizer: \{train: \{vocab_size: N"
[ -e "$work/runs/more/ckpt" ] && { echo "a refused run left a ckpt directory"; failed=1; }
expect 0 'weights from' train "${more[@]}" "tokenizer=$work/runs/tiny/tokenizer"
rm -r "$work/runs/more"
expect 0 'tokens learnt' train "${more[@]}" tokenizer.train.vocab_size=300
rm -r "$work/runs/more"
expect 0 'tokens learnt' train "${more[@]}" 'tokenizer={train: {limit: 1MB, vocab_size: 320}}'

refused() { # refused CODE PATTERN SETTINGS... : a run that ends before its first step, with a line that says why
  expect "$1" '' train "${tiny[@]}" name=no "dir=$work/runs/no" tokenizer.train.vocab_size=320 "${@:3}"
  says_last "^drover: .*$2"
  ls "$work/runs/no/ckpt/"step-* 2>/dev/null && { echo "a refused run left a checkpoint"; failed=1; }
}
refused 2 'did you mean train.steps' train.stps=3
refused 2 'train.steps is many' train.steps=many
refused 2 '1 to 16777216 tokens' train.seq=0
refused 3 'does not divide train.batch' train.batch=10 train.micro_batch=4
refused 3 'more tokens at once' train.batch=1000000 train.seq=65536
refused 3 'train.warmup 30 is more than train.steps' train.warmup=30
refused 3 'train.canonical_chunks 3 is no power of two' train.canonical=true train.canonical_chunks=3 train.batch=4 train.micro_batch=1
refused 3 'canonical: parallel.context ring .*parallel.context=gather' train.canonical=true parallel.context=ring parallel.cp=2 train.batch=4 train.micro_batch=1
refused 3 'ring is for up to 127 ranks.*parallel.context=gather' parallel.cp=128 parallel.context=ring train.seq=256
refused 2 'no schedule and no file .*did you mean 1f1b' parallel.pp=2 parallel.schedule=1f1d
refused 3 'needs 4 micro-batches.*zb-v takes any' parallel.pp=2 parallel.schedule=dualpipev model.num_hidden_layers=4
refused 3 'cannot be shared out over 4 stages' parallel.pp=2 parallel.schedule=zb-v
refused 2 "no field 'num_hiden_layers'; did you mean num_hidden_layers" model.num_hiden_layers=3
refused 2 'hidden_size is not an integer' model.hidden_size=wide
refused 2 'num_attention_heads is 0' model.num_attention_heads=0
refused 3 'not a multiple of num_key_value_heads' model.num_attention_heads=4 model.num_key_value_heads=3
refused 3 'head_dim 7 is not even' model.head_dim=7
refused 3 'num_local_experts is 4096, at most 1024' model.num_local_experts=4096
refused 3 'num_experts_per_tok is 9 of num_local_experts' model.num_experts_per_tok=9
refused 3 'moe_layers\[0\]' 'model.moe_layers=[7]'
refused 3 'no_rope_layers has 3 numbers for 2 layers' 'model.no_rope_layers=[1, 1, 0]'
refused 3 'layer_types has 1 names for 2 layers' 'model.layer_types=[full_attention]'
refused 3 'hidden_act is gelu' model.hidden_act=gelu
refused 2 'did you mean llama4-nano' model.preset=llama4-nanu
refused 3 'rows than i32 can count|needs .* of memory' train.batch=65536 train.seq=30000 model.num_experts_per_tok=4
refused 3 'needs .* of memory.*fit' train.memory_limit=100000
refused 3 'exclude each other' "model.from=$work/from"
refused 1 'nothing/here' data=/nothing/here
: >"$work/empty.txt"
refused 1 "empty" "data=$work/empty.txt"
expect 3 '' train "${tiny[@]}" tokenizer.train.vocab_size=320 model.intermediate_size=64 train.steps=3
says_last 'is needed.*give the run another name'
expect 3 '' train "${tiny[@]}" tokenizer.train.vocab_size=400
says_last 'has 320 tokens, but tokenizer.train.vocab_size is 400'

# ---- pipelines: a schedule is shown, written down, drawn, and read back ----
piped=("${tiny[@]}" tokenizer.train.vocab_size=320 name=piped "dir=$work/runs/piped" parallel.pp=2 train.micro_batch=1 train.threads=1)
expect 0 '' train "${piped[@]}" parallel.schedule=zb-h1 --dry-run --schedule "$work/mine.pipeline"
says '^pipeline zb-h1: 2 ranks, 2 stages, 2 micro-batches; [0-9.]+% of the time is waiting .* by the work of this stage \(F 1, B [0-9.]+, W [0-9.]+\)'
says '^rank 1 \. +F0 B0'
expect 0 '' inspect "$work/mine.pipeline"
says '^rank 0 F0 F1'
expect 0 '' train "${piped[@]}" parallel.schedule=zb-h1 --dry-run --schedule "$work/mine.svg"
grep -q '^<svg' "$work/mine.svg" || { echo "no picture in mine.svg"; failed=1; }
expect 0 'pipeline zb-h1: 2 ranks' train "${piped[@]}" "parallel.schedule=$work/mine.pipeline"
says '^piped: 2 steps, loss'
refused 3 'is a schedule for 2 ranks and 2 micro-batches' parallel.pp=2 train.micro_batch=2 "parallel.schedule=$work/mine.pipeline"
sed -i 's/^rank 0: F0.0/rank 0: B0.0 F0.0/' "$work/mine.pipeline"
refused 3 'done twice' parallel.pp=2 train.micro_batch=1 "parallel.schedule=$work/mine.pipeline"
expect 2 'goes with --dry-run' train "${piped[@]}" --schedule "$work/x"

# ---- steps that are no numbers end a run with a checkpoint and exit code 1 ----
export FAULT=train.nan:2,train.nan:3
expect 1 'step 2 skipped: the loss is not finite' train "${tiny[@]}" name=nan "dir=$work/runs/nan" tokenizer.train.vocab_size=320 train.steps=9 train.max_skips=1
unset FAULT
says_last '^drover: 2 bad steps in a row at step 3'
[ "$(head -1 "$work/runs/nan/ckpt/latest")" = step-00000002 ] || { echo "no checkpoint of the last whole step"; failed=1; }
FAULT=train.nun:2 expect 2 'did you mean train.nan' train "${tiny[@]}"

# ---- conversations ----
chats=$source/tests/golden_chat
echo '[{"role": "user", "content": "<|eot|> hi"}, {"role": "assistant", "content": "x"}]' >"$work/chat.json"
expect 2 'has no chat format; --chat-format' tokenizer chat "$chats/llama4" "$work/chat.json"
one_line
expect 0 '' tokenizer chat "$chats/llama4" "$work/chat.json" --chat-format llama4
says '^\{"format": "llama4", "ids": \[800, 805, .*\], "mask": \[0, .*, 1, 1\]\}$'
expect 2 'did you mean llama3' tokenizer chat "$chats/llama3" "$work/chat.json" --chat-format llama31
expect 1 'lacks the tokens' tokenizer chat "$chats/llama3" "$work/chat.json" --chat-format llama4
expect 2 'FILE, a conversation' tokenizer chat "$chats/llama3"
expect 1 'messages\[0\]: role' tokenizer chat "$chats/llama4" <(echo '[{"role": "usr", "content": ""}]') --chat-format llama4
one_line
expect 0 '' tokenizer chat "$chats/llama4" "$chats/conversations.jsonl" --template
says 'endgeneration'
cp -r "$chats/llama4" "$work/speaks" && cp "$work/out" "$work/speaks/chat_template.jinja"
expect 0 '' tokenizer chat "$work/speaks" "$work/chat.json"
says '"format": "drover"'
expect 0 '' tokenizer inspect "$work/speaks"
says 'chat template +drover'
expect 0 '' tokenizer chat "$work/speaks" "$work/chat.json"
cp "$work/out" "$work/ids.json"
expect 0 '' tokenizer decode "$work/speaks" <(sed 's/.*"ids": //; s/, "mask".*//' "$work/ids.json")
says '^<\|eot\|> hi<\|eot\|><\|header_start\|>assistant'
# a run may put our template into its checkpoints, where the tokenizer has none and has tokens for turns
speaking=("${tiny[@]}" name=speaking "dir=$work/runs/speaking" train.steps=1 tokenizer.chat_template=drover)
expect 0 '' train "${speaking[@]}" tokenizer.train.vocab_size=320
speaking_ckpt=$work/runs/speaking/ckpt/$(head -1 "$work/runs/speaking/ckpt/latest")
expect 0 '' tokenizer chat "$speaking_ckpt" "$work/chat.json"
says '"format": "drover"'
expect 3 'has a chat template already' train "${speaking[@]}" name=again "dir=$work/runs/again" "tokenizer.path=$speaking_ckpt"
expect 3 'no tokens for turns' train "${speaking[@]}" name=again "dir=$work/runs/again" "tokenizer.path=$source/tests/golden_text/hf-plain.json"
sed -i 's/loop.first/loop.last/' "$work/speaks/chat_template.jinja"
expect 2 'chat template .structure [0-9a-f]{16}. is none that drover knows; the nearest is --chat-format llama4' \
  tokenizer chat "$work/speaks" "$work/chat.json"

# ---- a conversation with a model that carries our template ----
cat >"$work/talker.yaml" <<END
name: talker
model: {model_type: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
        intermediate_size: 64, vocab_size: 320, max_position_embeddings: 512}
tokenizer: $work/tokenizer
data: [{path: $source/src/base/log.c}]
train: {steps: 2, batch: 2, micro_batch: 2, seq: 32, warmup: 1}
END
(cd "$work" && "$drover" train talker.yaml >/dev/null 2>"$work/err") || { echo "train failed: $(cat "$work/err")"; failed=1; }
talks=$(echo "$work"/runs/talker/ckpt/step-*) talk=(--max-tokens 6 --temperature 0)
cp "$work/speaks/chat_template.jinja" "$talks" && sed -i 's/loop.last/loop.first/' "$talks/chat_template.jinja"
printf 'hi\n' | "$drover" chat "$talks" "${talk[@]}" >"$work/one" 2>"$work/err" || { echo "chat: $(cat "$work/err")"; failed=1; }
printf 'hi\nyou\n/reset\nhi\n' | "$drover" chat "$talks" "${talk[@]}" >"$work/three" 2>"$work/err" || { echo "chat: $(cat "$work/err")"; failed=1; }
# The answer as a JSON text, whatever bytes are in it.
said=$(head -c -1 "$work/one" | od -An -v -tu1 |
  LC_ALL=C awk '{ for (i = 1; i <= NF; i++) if ($i < 32 || $i == 34 || $i == 92) printf "\\u%04x", $i; else printf "%c", $i + 0 }')
hi='{"role": "user", "content": "hi"}'
echo "[$hi]" >"$work/chat1.json"
echo "[$hi, {\"role\": \"assistant\", \"content\": \"$said\"}, {\"role\": \"user\", \"content\": \"you\"}]" >"$work/chat2.json"
expect 0 '' chat "$talks" --messages "$work/chat1.json" "${talk[@]}"
cmp "$work/out" "$work/one" || { echo "a file of one message is answered otherwise than the line"; failed=1; }
expect 0 '' chat "$talks" --messages "$work/chat2.json" "${talk[@]}"
cat "$work/one" "$work/out" "$work/one" | cmp - "$work/three" || { echo "a second turn is answered otherwise than the whole conversation"; failed=1; }
expect 3 'a conversation of [0-9]+ tokens in a context of 8' chat "$talks" --messages "$work/chat1.json" --context 8
expect 2 'exclude each other' chat "$talks" --messages "$work/chat1.json" --system x
expect 2 'no chat format for --messages' chat "$talks" --messages "$work/chat1.json" --chat-format plain
expect 2 'there is no chat format "x"' chat "$talks" --chat-format x

# ---- Grok-1 with a SentencePiece tokenizer: trained, written to, converted, trained on, the tokenizer as it was ----
cat >"$work/grok.yaml" <<END
model: {model_type: grok-1, vocab_size: 600, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
        head_dim: 8, intermediate_size: 24, num_experts: 4, num_experts_per_tok: 2, max_attn_value: 30,
        attn_output_multiplier: 0.35, embedding_multiplier_scale: 5.65, output_multiplier_scale: 0.577}
tokenizer: $sp
END
short=("data=$source/src/base" train.steps=2 train.batch=2 train.seq=32 train.val_batches=1 log.tensorboard=false)
for balance in bias aux; do
  note=''
  [ $balance = aux ] || note='bias that only drover reads'
  expect 0 "$note" train "$work/grok.yaml" "name=$balance" "dir=$work/grok-$balance" "${short[@]}" "train.balance=$balance"
  expect 0 'made in' generate "$work/grok-$balance" --prompt 'int main' --max-tokens 6 --temperature 0
  expect 0 '' inspect "$work/grok-$balance/ckpt/step-00000002" --tensors
  says '^  experts +4, 2 per token, width 24(; balanced by bias)?$'
  says 'moe_block.experts.3.linear_v.weight'
  expect 0 '' convert "$work/grok-$balance" "$work/grok-$balance-hf"
  cmp "$sp" "$work/grok-$balance-hf/tokenizer.model" || failed=1
  expect 0 'made in' generate "$work/grok-$balance-hf" --prompt 'int main' --max-tokens 6 --temperature 0
  expect 0 'weights from' train "name=on" "dir=$work/grok-$balance-on" "model.from=$work/grok-$balance-hf" "${short[@]}"
  cmp "$sp" "$work/grok-$balance-on/ckpt/step-00000002/tokenizer.model" || failed=1
done

# ---- GPT blocks: trained, written to, converted with every bit, trained on ----
expect 0 '' train model=gpt-nano model.n_layer=2 name=gpt "dir=$work/gpt" "${short[@]}" tokenizer.train.vocab_size=400
expect 0 'made in' generate "$work/gpt" --prompt 'int main' --max-tokens 6 --temperature 0
expect 0 'made in' generate "$work/gpt" --prompt 'int main' --max-tokens 6 --temperature 0 --tp 2
expect 3 'learned 1024 positions' train model=gpt-nano name=long "dir=$work/long" "${short[@]}" tokenizer.train.vocab_size=400 train.seq=2048
expect 0 '' train "model={model_type: mpt, vocab_size: 400, d_model: 24, n_layers: 2, n_heads: 3}" name=mpt "dir=$work/mpt" "${short[@]}" tokenizer.train.vocab_size=400
expect 0 'made in' generate "$work/mpt" --prompt 'int main' --max-tokens 6 --temperature 0
for case in gpt2-plain gpt2-unscaled mpt-six-heads; do
  expect 0 '' convert "$golden/$case" "$work/$case"
  for d in "$golden/$case" "$work/$case"; do
    expect 0 '' logits "$d" --ids "$golden/$case/ids.json" --out "$work/$case.$(basename "$(dirname "$d")").safetensors"
  done
  cmp "$work/$case.golden.safetensors" "$work/$case.$(basename "$work").safetensors" || failed=1
done

# ---- inspect ----
expect 0 '' inspect "$golden/gpt2-plain" --tensors
says 'feed-forward +width 128, two matrices, biases'
says 'positions +40, learned'
says 'transformer.h.1.attn.c_attn.weight'
expect 0 '' inspect "$golden/mpt-six-heads"
says 'positions +64, slopes of scores'
expect 0 '' inspect "$golden/llama4-scout"
says 'experts +4'
says '^files: 3, .*numbers'
says '^tokenizer: none'
expect 0 '' inspect "$work/model"
says '^tokenizer: Hugging Face, 320 ids'
says '^chat template: none'
expect 0 '' inspect "$golden/llama3-rope-linear"
says 'scaled by 4 \(linear\)'
expect 0 '' inspect llama4-nano --graph loss
says 'linear_cross_entropy'
expect 0 '' inspect llama4-nano --program step
says 'adam m'
expect 0 '' inspect "$golden/llama3-gqa" --graph decode --dot
says '^digraph'
expect 1 'did you mean llama4-nano' inspect llama4-nanu
expect 2 'say which' inspect llama4-nano --dot
expect 0 '' inspect "$work/tokenizer"
says '320 ids'

# ---- plans ----
node="64 h100, 8 per node, 400G"
big=(--model llama3.1-8b --cluster "$node" train.batch=64 train.micro_batch=1)
expect 0 '' plan "${big[@]}" parallel.tp=8 parallel.dp=8 --tokens 1T
says '^memory .* of '
says '^budget   1.00T tokens: '
expect 0 '' plan "${big[@]}" parallel.tp=8 parallel.dp=8 --json
says '"fits": true, "peak_bytes": [0-9]+'
expect 3 'the layout does not fit: a rank needs [0-9.]+ GB, a h100 has' plan "${big[@]}" parallel.dp=64
one_line
expect 3 'tp 2 would' plan "${big[@]}" parallel.tp=3
expect 3 '64 devices' plan "${big[@]}" parallel.dp=128 train.batch=128
expect 2 'did you mean llama3.1-70b' plan --model llama3.1-70c --cluster "$node"
expect 0 '' plan --model llama3-nano --cluster "8 h100, 8 per node" train.canonical=true train.seq=64 train.batch=4 train.micro_batch=1 parallel.dp=2
expect 3 'train.canonical 6 leaves|6 leaves, which must be a power of two' plan --model llama3-nano --cluster "8 h100, 8 per node" train.canonical=true train.seq=64 train.batch=6 train.micro_batch=1 parallel.dp=2
expect 0 '' plan --model llama3-nano --cluster "8 h100, 8 per node" train.canonical=true train.seq=64 train.steps=2 --search --max-batch 4k --simulate 4 --out "$work/canonical.yaml"
expect 0 '' plan "$work/canonical.yaml" --cluster "8 h100, 8 per node"
expect 2 'cluster is missing' plan --model llama3.1-8b
expect 2 'neither a run file nor --model' plan --cluster "$node"
expect 2 'a number of tokens is wanted' plan "${big[@]}" parallel.tp=8 parallel.dp=8 --tokens lots
expect 0 '' plan --model llama3-nano --cluster "8 h100, 8 per node" --search --max-batch 4k --simulate 4 train.seq=64 train.steps=2 --out "$work/found.yaml"
says '^search   [0-9]+ layouts divide'
expect 0 '' plan "$work/found.yaml" --cluster "8 h100, 8 per node" # what is written is what was planned
grep -E 'pp|tp|dp' "$work/found.yaml" >/dev/null || { echo "the run file of a plan has no layout"; failed=1; }
(cd "$work" && "$drover" train found.yaml train.batch=64 train.threads=1 >"$work/out" 2>"$work/err") || { echo "a plan's run file does not train: $(cat "$work/err")"; failed=1; }
says '2 steps'

# ---- what follows from plans ----
expect 3 'it fits with parallel.zero=1 \([0-9.]+ GB, [0-9.]+ s a step\)|it fits with ' plan "${big[@]}" parallel.dp=64
one_line
expect 3 'train.batch=128 would do' plan "${big[@]}" parallel.tp=2 parallel.dp=32 train.batch=120 # the nearest that divides
expect 3 'parallel.cp=2 would do' plan "${big[@]}" parallel.cp=3
expect 3 '[0-9]+ devices would do, with ' plan --model llama3.1-70b --cluster hgx --simulate 4
one_line
expect 3 'less than one batch of .*train.batch=' plan "${big[@]}" parallel.tp=8 parallel.dp=8 --tokens 100k
expect 3 'less than one sequence of train.seq' plan "${big[@]}" --search --max-batch 1k
one_line
nano=(--model llama3-nano --cluster "8 h100, 8 per node" train.seq=64 --max-batch 16k --simulate 2)
expect 0 '' plan "${nano[@]}" --report "$work/plan.html" --tokens 1B
grep -q '<svg' "$work/plan.html" && ! grep -q 'http' "$work/plan.html" || { echo "the page has no pictures, or fetches something"; failed=1; }
expect 0 '' plan "${nano[@]}" --tokens 10T --days 400
says '^smallest +[0-9]+ h100: '
expect 0 '' plan "${nano[@]}" --tokens 10T --days 400 --json
says '^\{"days_wanted": 400, "devices": '
expect 0 '' plan "${nano[@]}" --tokens 10T --days 400 --report "$work/small.html" --out "$work/small.yaml"
grep -q '</html>' "$work/small.html" && grep -q '^parallel' "$work/small.yaml" || { echo "--days writes no page or no run file"; failed=1; }
expect 2 'report is of one plan' plan "${nano[@]}" --doubling --report "$work/small.html"
expect 2 'days needs --tokens' plan "${nano[@]}" --days 40
expect 0 '' plan --model gpt-nano "${nano[@]:2}" --days 0.01 --largest
says '^largest  [0-9.]+[MB] weights'
says 'model: .*"n_head": [0-9]+, "n_embd": [0-9]+, "n_layer": [0-9]+'
expect 2 'largest needs --days' plan "${nano[@]}" --largest
expect 0 '' plan "${nano[@]}" --doubling
says '^doubling buys [0-9.]+x useful tokens/s with batches of at most'
expect 2 'one question at a time' plan "${nano[@]}" --doubling --days 3
expect 0 '' plan --compare "$work/found.yaml" search --cluster "8 h100, 8 per node" --simulate 2
says '(is better than|come to the same)'
expect 0 '' plan --model llama3-nano --compare "8 h100, 8 per node" hgx train.seq=64 --max-batch 16k --simulate 2 --json
says '"better": [01], "why": '
expect 2 'needs two or more of' plan --compare "$work/found.yaml"
expect 2 'needs two or more of' plan --compare "$work/found.yaml" --cluster hgx
expect 0 '' plan --compare "$work/found.yaml@8 h100, 8 per node" --cluster hgx # the same on both
says '^A  hgx on hgx: '
expect 2 'did you mean' plan --compare "$work/found.yaml" hgxx --cluster hgx
expect 1 'No such file' plan --compare missing.yaml hgx --cluster hgx
expect 2 'takes several' plan "$work/found.yaml" "$work/found.yaml" --cluster hgx
expect 0 '' validate "$source/data/validation/calibration.csv" "$source/data/validation/grid_3_3_1.csv" --only GR --residuals "$work/residuals.yaml"
says '^dense: \{rows: [0-9]+, within: '
expect 0 '' validate "$source/data/validation/calibration.csv" "$source/data/validation/grid_3_3_1.csv" --only INF
says '^least rank correlation in a grid .* 1.000 >= 0.90  met'

# ---- a full disk on standard output ----
if [ -e /dev/full ]; then
  "$drover" inspect llama4-nano >/dev/full 2>"$work/err" && { echo "a full disk on stdout went unnoticed"; failed=1; }
  grep -q 'standard output' "$work/err" || { echo "no word on standard output: $(cat "$work/err")"; failed=1; }
fi

expect 0 '' doctor --json
says '"peak_f32_flop_per_s"'

echo "$checks checks, failed: $failed"
exit $failed
