#!/usr/bin/env bash
# A TPU pod slice: the same command on every worker (host), over gcloud's ssh.
#
#   launch/tpu.sh TPU_NAME ZONE CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]
#   launch/tpu.sh my-v4-32 us-central2-b configs/x.py /mnt/shared/runs/x train
#
# Every worker needs this repository in REPO (its home's imax_jax unless set) with its
# environment installed, and the same WORKDIR and raw files (a mounted disk or bucket).
# A run that was preempted goes on with the same command. Written from the documentation
# of gcloud and the source of JAX 0.10; it was never run on a TPU.
set -euo pipefail

if (( $# < 4 )); then
  echo "usage: $0 TPU_NAME ZONE CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]" >&2
  exit 2
fi
name=$1
zone=$2
config=$3
workdir=$4
shift 4

# Quoted once more, since a shell on the worker reads the line again. On a TPU
# jax.distributed.initialize() finds the coordinator and the workers in its metadata.
printf -v command '%q ' "${PYTHON:-python3}" -m imax_jax.main \
  --config "$config" --workdir "$workdir" --distributed "$@"
printf -v folder '%q' "${REPO:-imax_jax}"

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd $folder && exec $command"
