#!/usr/bin/env bash
# Several nodes under SLURM: one process a node, which drives all GPUs of its node.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh CONFIG[:ARG] WORKDIR [VERB …]
#
# Submit from the repository's root. WORKDIR and the raw files must lie on storage that
# all nodes share. A job that SLURM ends (a time limit, a higher priority: SIGTERM two
# minutes before) saves and is requeued, and so is one that hangs: both end with code 75.
# A requeued job goes on from its last checkpoint. Written from the documentation of SLURM
# and the source of JAX 0.10; it was never run on a cluster.
#
#SBATCH --job-name=imax_jax
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

if (( $# < 2 )); then
  echo "usage: sbatch [OPTION …] $0 CONFIG[:ARG] WORKDIR [VERB …]" >&2
  exit 2
fi
config=$1
workdir=$2
shift 2

# --distributed calls jax.distributed.initialize(), which reads SLURM's own variables
# (SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID): the
# first node coordinates, on a port made from the job's number. Left to itself it gives
# each process the one GPU of its local rank; here a process has all of its node's.
gpus=${SLURM_GPUS_ON_NODE:-0}
if (( gpus > 0 )); then
  JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $(( gpus - 1 )))
  export JAX_LOCAL_DEVICE_IDS
fi
# A proxy between the nodes breaks the coordinator's gRPC connection.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

# srun takes --cpus-per-task no longer from sbatch (since SLURM 22.05).
code=0
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-python}" -m imax_jax.main \
  --config "$config" --workdir "$workdir" --distributed "$@" || code=$?
if (( code == 75 )); then  # it has saved, or hung: the same job again goes on
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
