#!/bin/bash
# tests/plan_lands_test.sh DROVER SOURCE_DIR [MPIRUN] : the layout that `drover plan --search` finds for a small model on 2 and 4
# ranks of a processor is run by `drover train` as it was written, as threads and, with MPIRUN, by `drover launch`: it trains, and
# holds what the plan said, to the byte.
drover=$1 mpirun=${3:-}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
failed=0 checks=0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1
number() { sed -nE "s/.*\"$1\": ([0-9.e+-]+).*/\1/p" "$2" | head -1; }

# What a run counts beside its programs: batches ahead, and the copy from which checkpoints are written.
beside() { "$drover" train "$1" --dry-run 2>/dev/null | awk '/prefetched batches|checkpoint snapshot|copies in memory/ { for (i = 1; i <= NF; i++) if ($i ~ /^[0-9]+$/) { sum += $i; break } } END { print sum + 0 }'; }

check() { # check NAME RUNDIR : its bytes are the plan's
  local held planned
  checks=$((checks + 1))
  [ "$(grep -c '"loss"' "$2/metrics.jsonl")" = 3 ] || { echo "$1: not three steps"; failed=1; return; }
  held=$(($(number peak_bytes "$2/metrics.jsonl") - $(beside "$work/$1.yaml")))
  planned=$(sed -E 's/.*"memory": \[\{//; s/\}.*//' "$work/$1.json" | sed -nE 's/.*"total": ([0-9]+).*/\1/p')
  [ "$held" -gt 100000 ] && [ "$held" = "$planned" ] || { echo "$1: holds $held bytes, planned $planned"; failed=1; }
  echo "$1: $(sed -nE 's/.*"layout": \{([^}]*)\}.*/\1/p' "$work/$1.json" | tr -d '"'); $held bytes, as planned; $(printf %.3g "$(number step_s "$work/$1.json")") s a step planned, $(sed -nE 's/.*"step_s": ([0-9.e+-]+).*/\1/p' "$2/metrics.jsonl" | tail -1) s the last one"
}

for ranks in 4 2; do
  for model in llama3-nano llama4-nano grok1-nano; do
    name=$model-$ranks
    printf 'base: cpu\nnodes: 1\ndevice: {cores: %d}\nnode: {devices: %d}\n' $ranks $ranks >"$work/machine.yaml"
    "$drover" plan --model $model --cluster "$work/machine.yaml" --search --simulate 6 --max-batch 1k train.seq=64 train.steps=3 train.warmup=0 \
      train.threads=1 checkpoint.every=0 log.tensorboard=false "dir=$work/$name" --out "$work/$name.yaml" --json >"$work/$name.json" 2>"$work/err" ||
      { echo "$name: no plan: $(cat "$work/err")"; failed=1; continue; }
    "$drover" train "$work/$name.yaml" >"$work/out" 2>"$work/err" || { echo "$name: does not train: $(tail -3 "$work/err")"; failed=1; continue; }
    check "$name" "$work/$name"
    [ -n "$mpirun" ] && [ $ranks = 2 ] || continue # more processes than cores wait for each other
    rm -r "$work/$name"
    "$drover" launch "$work/$name.yaml" -n $ranks >"$work/out" 2>"$work/err" || { echo "$name: cannot be launched: $(tail -3 "$work/err")"; failed=1; continue; }
    check "$name" "$work/$name"
  done
done
# sums in an order of their own are planned as they are run
printf 'base: cpu\nnodes: 1\ndevice: {cores: 2}\nnode: {devices: 2}\n' >"$work/machine.yaml"
"$drover" plan --model llama3-nano --cluster "$work/machine.yaml" train.canonical=true parallel.fsdp=2 train.batch=4 train.micro_batch=1 train.seq=64 train.steps=3 \
  train.warmup=0 train.threads=1 checkpoint.every=0 log.tensorboard=false "dir=$work/canonical" --out "$work/canonical.yaml" --json >"$work/canonical.json" &&
  "$drover" train "$work/canonical.yaml" >"$work/out" 2>"$work/err" || { echo "canonical: $(tail -3 "$work/err")"; failed=1; }
check canonical "$work/canonical"
echo "$checks checks, failed: $failed"
[ "$failed" = 0 ] && [ "$checks" = "$([ -n "$mpirun" ] && echo 10 || echo 7)" ]
