#!/bin/bash
# tests/hang_ranks_test.sh DROVER SOURCE_DIR [TRIALS] : a random rank of a job is stopped (SIGSTOP), stays away from a collective,
# leaves one out, or calls another one, under random layouts of two to four ranks, 6 times (make soak: 100). Each time one line names
# the rank, its host, the collective by number and graph node, within a second of the deadline; no process is left, and the
# run, started again by `drover launch`, ends with the bytes of an undisturbed one.
drover=$1 source=$2 trials=${3:-6}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
deadline=2 steps=8
settings=("model={model_type: llama, vocab_size: 256, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 4, \
intermediate_size: 64}" "data=[{synthetic: uniform}]" train.batch=12 train.micro_batch=2 train.seq=64 train.precision=f32 train.val_every=0
  train.val_batches=0 log.tensorboard=false train.steps=$steps checkpoint.every=4)
layouts=("3 parallel.dp=3" "2 parallel.fsdp=2" "2 parallel.tp=2" "2 parallel.pp=2" "4 parallel.dp=2 parallel.tp=2" "4 parallel.cp=2 parallel.fsdp=2")
kinds=(stop skip differ stall)

launch() { # launch NAME DEADLINE SETTINGS...
  local name=$1 wait=$2
  shift 2
  "$drover" launch "name=$name" "dir=$work/$name" "${settings[@]}" "$@" "parallel.deadline=$wait" --backoff=0.05 >"$work/out" 2>"$work/err"
}
hashes() { (cd "$work/$1/ckpt/step-$(printf %08d $steps)" && sha256sum model*.safetensors optimizer*.safetensors); }
fail() { echo "$1"; cat "$work/err"; exit 1; }
ranks() {
  local p
  for p in $(pgrep -f -- "train name=$1 "); do [ "$(readlink "/proc/$p/exe")" = "$(readlink -f "$drover")" ] && echo "$p"; done
}

call="#[0-9]+, [a-z_]+.* in '[^']+'"
for ((trial = 0; trial < trials; trial++)); do
  layout=${layouts[RANDOM % ${#layouts[@]}]} kind=${kinds[trial % ${#kinds[@]}]} name=hung-$trial
  read -r n words <<<"$layout"
  rank=$((RANDOM % n))
  calm=calm-${words// /-}
  # shellcheck disable=SC2086 # a word an axis
  [ -d "$work/$calm" ] || launch "$calm" 60 $words || fail "the undisturbed run failed: $words"
  phases=(data forward backward update)
  case $kind in
    stop) fault=train.${phases[RANDOM % 4]}:$((RANDOM % steps + 1)):stop@$rank ;;
    stall) fault=comm_stall:$((RANDOM % 20 + 1))@$rank ;;
    # not of the set-up, whose word is said again when somebody has missed it: nothing would be left out
    skip) fault=comm_skip:$((RANDOM % 20 + 4))@$rank ;;
    differ) fault=comm_differ:$((RANDOM % 20 + 1))@$rank ;;
  esac
  # shellcheck disable=SC2086
  FAULT=$fault launch $name $deadline $words || fail "FAULT=$fault $words: not back in training"
  named="(not arrived|started there too, but no data comes from): .*rank $rank on [^ ]+ \(pid [0-9]+"
  case $kind in
    stop) want="$call, waited [0-9.]+ s on rank [0-9]; $named, stopped by a signal" ;;
    stall) want="$call, waited [0-9.]+ s on rank [0-9]; $named" ;;
    differ) want="#[0-9]+ differs: .*rank $rank on [^ ]+ calls [a-z_]+ of " ;;
    # who left it out may itself wait, in the next one, for those that wait for it
    skip) want="($call, waited [0-9.]+ s on rank [0-9]; ($named|.* waits in [a-z_]+ #[0-9]+ of [a-z]+ in '[^']+' for rank $rank on )|#[0-9]+ differs: .*rank $rank on [^ ]+ calls [a-z_]+ of )" ;;
  esac
  [ "$(grep -cE "^drover: .*$want" "$work/err")" = 1 ] || fail "FAULT=$fault $words: not one line of '$want'"
  waited=$(grep -oE 'waited [0-9.]+ s on' "$work/err" | head -1 | tr -dc 0-9.)
  [ -z "$waited" ] || awk -v w="$waited" -v d=$deadline 'BEGIN {exit !(w <= d + 1)}' || fail "FAULT=$fault $words: said after $waited s"
  [ -z "$(ranks $name)" ] || fail "FAULT=$fault $words: ranks were left behind"
  [ "$(hashes "$calm")" = "$(hashes $name)" ] || fail "FAULT=$fault $words: other weights"
  rm -rf "${work:?}/$name"
  [ "$trials" -le 10 ] || echo "$((trial + 1)): $fault $words: named${waited:+ after $waited s}, the same bytes"
done
echo "$trials hangs, each named, the same bytes each time"
