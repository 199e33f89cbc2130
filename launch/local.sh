#!/usr/bin/env bash
# One machine: a CPU, or all its GPUs in one process.
#
#   launch/local.sh CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]
#   launch/local.sh configs/phantom.py runs/phantom
#   CUDA_VISIBLE_DEVICES=0,1 launch/local.sh configs/phantom.py runs/phantom train
#
# The same command again goes on where it stopped. PYTHON chooses the interpreter.
set -euo pipefail

if (( $# < 2 )); then
  echo "usage: $0 CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]" >&2
  exit 2
fi
config=$1
workdir=$2
shift 2

exec "${PYTHON:-python}" -m imax_jax.main --config "$config" --workdir "$workdir" "$@"
