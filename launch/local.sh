#!/usr/bin/env bash
# One machine: a CPU, or all its GPUs in one process, or shared out among several.
#
#   launch/local.sh [--processes N] CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]
#   launch/local.sh configs/phantom.py runs/phantom
#   CUDA_VISIBLE_DEVICES=0,1 launch/local.sh configs/phantom.py runs/phantom train
#   launch/local.sh --processes 2 configs/phantom.py runs/phantom train
#
# The same command again goes on where it stopped. PYTHON chooses the interpreter. Code 75
# asks for just that: SIGTERM came and it has saved, or a step hung.
#
# N processes are the code of many hosts on one; they gain nothing over one process that
# drives all devices. Each has a share of the GPUs, or a CPU device of its own. Each has
# a log, WORKDIR/logs/process-K.log; process 0 is seen as well. The first that fails
# decides the exit code and ends the others, and so does Ctrl-C: they get GRACE seconds
# (10 unless set) to stop, then they are killed.
set -euo pipefail

usage() {
  echo "usage: $0 [--processes N] CONFIG[:ARG] WORKDIR [VERB …] [--config.KEY=VALUE …]" >&2
  exit 2
}

processes=1
if [[ ${1-} == --processes ]]; then
  processes=${2-}
  [[ $processes =~ ^[1-9][0-9]*$ ]] || usage
  shift 2
fi
(( $# >= 2 )) || usage
config=$1
workdir=$2
shift 2
command=("${PYTHON:-python}" -m imax_jax.main --config "$config" --workdir "$workdir" "$@")

if (( processes == 1 )); then
  exec "${command[@]}"
fi

# ── Devices ─────────────────────────────────────────────────────────────────────────
gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi > /dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
fi
if (( ${#gpus[@]} % processes )); then
  echo "$0: ${#gpus[@]} GPUs are no multiple of $processes processes" >&2
  exit 2
fi
share=$(( ${#gpus[@]} / processes ))

# ── Start ───────────────────────────────────────────────────────────────────────────
port=$("${PYTHON:-python}" -c \
  'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# Left to itself the coordinator listens to the whole network.
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
(umask 077 && mkdir -p "$workdir/logs")

start() {
  local id=$1
  shift
  if (( share )); then
    local mine
    mine=$(IFS=,; echo "${gpus[*]:id * share:share}")
    export CUDA_VISIBLE_DEVICES=$mine
  fi
  exec "$@" --distributed --coordinator="127.0.0.1:$port" \
    --num_processes="$processes" --process_id="$id" < /dev/null 2>&1
}

# Signals that end the processes must not end what writes down their last words.
keep() {
  trap '' INT TERM
  if (( $1 == 0 )); then exec tee "$2"; else exec cat > "$2"; fi
}

# With job control each process leads a group of its own, which Ctrl-C does not reach by
# itself and which holds the workers that it starts.
set -m
for (( id = 0; id < processes; id++ )); do
  start "$id" "${command[@]}" | keep "$id" "$workdir/logs/process-$id.log" &
done
mapfile -t groups < <(jobs -p)
set +m

# ── Watch ───────────────────────────────────────────────────────────────────────────
alive() {
  local group
  for group in "${groups[@]}"; do
    if kill -0 -- "-$group" 2> /dev/null; then return 0; fi
  done
  return 1
}

stop() {
  local signal=$1 group tenths=$(( ${GRACE:-10} * 10 ))
  trap '' INT TERM  # a second Ctrl-C changes nothing
  for group in "${groups[@]}"; do
    kill -s "$signal" -- "-$group" 2> /dev/null || true
  done
  while (( tenths-- > 0 )) && alive; do sleep 0.1; done
  for group in "${groups[@]}"; do
    kill -s KILL -- "-$group" 2> /dev/null || true
  done
}

trap 'stop INT; exit 130' INT
trap 'stop TERM; exit 143' TERM

for (( left = processes; left > 0; left-- )); do
  code=0
  wait -n || code=$?
  if (( code )); then
    echo "$0: a process ended with exit code $code; ending the others." \
      "Logs: $workdir/logs/" >&2
    stop TERM
    exit "$code"
  fi
done
