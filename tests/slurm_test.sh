#!/bin/bash
# tests/slurm_test.sh DROVER SOURCE_DIR (make test-slurm, as root): a Slurm cluster of four nodes on this machine, one slurmd each. A job
# of four ranks loses a node in the middle and is requeued; another one is told to save and requeued. Both end with the same
# bytes as an undisturbed run under mpirun. docs/launch.md says how the cluster is configured.
drover=$(readlink -f "$1") source=$2
[ "$(id -u)" = 0 ] || { echo "test-slurm needs root: slurmd and slurmctld run as it"; exit 1; }
for program in munged slurmctld slurmd sbatch; do
  PATH=$PATH:/usr/sbin command -v $program >/dev/null || { echo "$program is missing; install slurm-wlm and munge"; exit 1; }
done
PATH=$PATH:/usr/sbin
work=$(mktemp -d /tmp/drover-slurm-XXXXXX) && chmod 755 "$work"
export SLURM_CONF=$work/slurm.conf OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
# ranks on different nodes of one machine reach each other over the loopback device; their shared memory would have the same names
export OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
host=$(hostname -s) steps=40 nodes=4 failed=0

pids() { cat "$work"/*.pid 2>/dev/null; }
finish() {
  scancel -u root 2>/dev/null
  sleep 1
  for p in $(pids) $(of_cluster); do kill -9 "$p" 2>/dev/null; done
  [ "$failed" = 0 ] && [ -z "$keep" ] && rm -rf "$work" || echo "logs stay in $work"
}
of_cluster() { # processes that belong to nodes of this cluster: those of one node with its name
  grep -lzxE "SLURMD_NODENAME=${1:-t[0-9]+}" $(grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null) /dev/null 2>/dev/null |
    sed 's:/proc/::; s:/environ::'
}
trap finish EXIT
fail() { echo "FAIL: $1"; tail -n 20 "$work"/run/*/launch/*.log 2>/dev/null; squeue; sinfo; failed=1; exit 1; }

# ---- the cluster
mkdir -p "$work/state" "$work/run"
dd if=/dev/urandom of="$work/munge.key" bs=1 count=1024 2>/dev/null && chmod 400 "$work/munge.key"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" --log-file="$work/munged.log" \
  --seed-file="$work/munge.seed" || fail "munged does not start"
cat >"$SLURM_CONF" <<CONF
ClusterName=drover-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=26817
SrunPortRange=26900-26999
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
TmpFS=$work/tmp-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=10
NodeName=t[0-$((nodes - 1))] NodeHostname=$host NodeAddr=127.0.0.1 Port=[26820-$((26819 + nodes))] CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld -f "$SLURM_CONF" || fail "slurmctld does not start"
for ((n = 0; n < nodes; n++)); do mkdir -p "$work/tmp-t$n" "$work/spool-t$n"; done
for ((n = 0; n < nodes; n++)); do slurmd -f "$SLURM_CONF" -N t$n || fail "slurmd of t$n does not start"; done
for ((try = 0; try < 60; try++)); do
  [ "$(sinfo -h -o %n:%t -N 2>/dev/null | grep -c ':idle$')" = $nodes ] && break
  sleep 0.5
done
[ "$(sinfo -h -o %n:%t -N | grep -c ':idle$')" = $nodes ] || fail "the nodes do not come up"

# ---- runs
settings=("model={model_type: llama4_text, vocab_size: 320, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, \
head_dim: 8, intermediate_size: 24, intermediate_size_mlp: 48, num_local_experts: 4, interleave_moe_layer_step: 2, attention_chunk_size: 32}"
  "data=[{synthetic: uniform}]" train.batch=8 train.seq=64 train.precision=f32 train.val_every=0 train.val_batches=0 log.tensorboard=false
  train.steps=$steps checkpoint.every=5 parallel.dp=2 parallel.fsdp=2)
hashes() { (cd "$work/run/$1/ckpt/step-000000$steps" && sha256sum model*.safetensors optimizer*.safetensors); }
submit() { # submit NAME : the job's number
  "$drover" launch "name=$1" "dir=$work/run/$1" "${settings[@]}" -n 4 --slurm --tasks-per-node 2 --backoff 1 --sbatch "--time=20" 2>"$work/err" |
    sed -n 's/^Submitted batch job \([0-9]*\)$/\1/p'
}
state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'; }
wait_step() { # wait_step NAME STEP : until metrics.jsonl has it
  local try
  for ((try = 0; try < 600; try++)); do
    grep -q "\"step\": $2," "$work/run/$1/metrics.jsonl" 2>/dev/null && return
    sleep 0.1
  done
  fail "$1 does not come to step $2"
}
wait_done() { # wait_done NAME JOB : a requeued job is held back for two minutes unless it is told otherwise; not at once: nodes refuse a
  # job that has just left them ('Job credential revoked')
  local try
  for ((try = 0; try < 300; try++)); do
    case $(state "$2") in
      COMPLETED) return ;;
      FAILED | CANCELLED | TIMEOUT) fail "$1 ends as $(state "$2")" ;;
      PENDING) sleep 6 && scontrol update JobId="$2" StartTime=now 2>/dev/null ;;
    esac
    sleep 0.5
  done
  fail "$1 does not end: $(state "$2")"
}
same() { [ -s "$work/hashes" ] && [ "$(hashes "$1")" = "$(cat "$work/hashes")" ] || fail "$1 ends with other bytes"; }
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }

"$drover" launch name=calm "dir=$work/run/calm" "${settings[@]}" -n 4 >/dev/null 2>"$work/err" || fail "the undisturbed run: $(cat "$work/err")"
hashes calm >"$work/hashes"

job=$(submit lost) && [ -n "$job" ] || fail "sbatch: $(cat "$work/err")"
wait_step lost 7
batch=$(scontrol show job "$job" | sed -n 's/.*BatchHost=\([^ ]*\).*/\1/p')
victim=$(scontrol show hostnames "$(scontrol show job "$job" | sed -n 's/^ *NodeList=\([^ ]*\).*/\1/p')" | grep -vx "$batch" | head -1)
echo "job $job runs on $batch and $victim; killing $victim"
for p in $(cat "$work/slurmd-$victim.pid") $(of_cluster "$victim"); do kill -9 "$p" 2>/dev/null; done
wait_done lost "$job"
[ "$(restarts "$job")" -ge 1 ] || fail "the job was not requeued"
same lost
echo "job $job lost $victim, was requeued and ended with the same bytes"

job=$(submit told) && [ -n "$job" ] || fail "sbatch: $(cat "$work/err")"
wait_step told 7
scancel --signal=USR1 --batch "$job"
wait_done told "$job"
[ "$(restarts "$job")" -ge 1 ] && grep -q '"interrupted"' "$work/run/told/metrics.jsonl" || fail "the job was not stopped with a checkpoint and requeued"
same told
echo "job $job was told to save, was requeued and ended with the same bytes"
