#!/usr/bin/env bash
# What train.sbatch and score.sbatch share: Ray on every node of the allocation, the given command on the
# first one, and everything gone afterwards. Slurm's signals decide how it ends:
#   USR1 (--signal, before the time limit): the command stops cleanly, and the job is queued again
#   TERM (scancel): the command stops cleanly, and that is the end
# HEAD_IP=… names the first node's address where the first one that it has is not the one to use.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" PYTHONUNBUFFERED=1

# The token of this job alone: a file that only its owner reads, and that goes with the job.
umask 077
own=$(mktemp -d "$PWD/.slurm-$SLURM_JOB_ID.XXXXXX")
trap 'rm -rf "$own"' EXIT
python -c 'import secrets; print(secrets.token_urlsafe(32), end="")' > "$own/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$own/token"

# Ray's logs and spilled objects lie in each node's /tmp until the step ends (see below).
export RAY_TMPDIR="/tmp/bloodcells-$SLURM_JOB_ID"
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head_ip=${HEAD_IP:-$(hostname --all-ip-addresses | cut --delimiter=' ' --fields=1)}
export address="$head_ip:6379" driver="$own/driver" result="$own/result"

# One of these on each node. symmetric-run starts Ray, on the first node then the command, and ends Ray.
# The command leaves its process id, for the signals, and its exit code: with several nodes symmetric-run
# may lose that when Ray ends.
# shellcheck disable=SC2016  # the nodes' shells expand these
node='mkdir -p "$RAY_TMPDIR"
code=0
ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "${SLURM_CPUS_PER_TASK:-$(nproc)}" -- bash -c '\''
    (echo "$BASHPID" > "$driver"; RAY_ADDRESS=$address exec "$@")
    code=$?
    echo $code > "$result"
    exit $code
  '\'' command "$@" || code=$?
rm -rf "$RAY_TMPDIR"
exit $code'

# shellcheck disable=SC2329  # the traps call it
stop() {
  again=$1 woken=yes
  # The command itself is the one to hear it: Ray must live on until it has ended.
  if [[ -s $driver ]]; then kill -TERM "$(< "$driver")" || true; else kill -TERM "$step"; fi
}
again=no
trap 'stop yes' USR1
trap 'stop no' TERM

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  --wait=120 bash -c "$node" node "$@" &
step=$!

# A signal ends `wait`, not the step; 127: the step had ended, and its code is known.
code=0
while true; do
  woken=no
  wait "$step" && ended=0 || ended=$?
  [[ $ended -eq 127 ]] || code=$ended
  [[ $woken == yes ]] || break
done

[[ ! -s $result ]] || code=$(< "$result")

if [[ $again == yes && $code -ne 0 ]]; then
  echo "the time is up; queued again, to go on where this stopped"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
