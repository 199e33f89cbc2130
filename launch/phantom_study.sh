#!/usr/bin/env bash
# The phantom study of docs/phantom_study.md: every setting and draw, a work directory each.
#
#   launch/phantom_study.sh FOLDER [--draws N] [--together N] [--config.KEY=VALUE …]
#   launch/phantom_study.sh runs/phantom_study --draws 5 --together 12    # one GPU
#
# FOLDER/hospital-DRAW is a draw's hospital, FOLDER/SETTING-DRAW a study, with its log in
# FOLDER/logs. The same command again goes on where it stopped. As many studies as
# --together run at a time (1 unless given), on one device if it has the room: none takes
# memory before it needs it. It ends with the tables of all that is there; a study that
# failed is named and makes the exit code 1.
set -euo pipefail

usage() {
  sed -n '4,5s/^# *//p' "$0" >&2
  exit 2
}

(( $# >= 1 )) && [[ $1 != -* ]] || usage
folder=$1
shift
draws=5
together=1
overrides=()
while (( $# )); do
  case $1 in
    --draws) draws=${2-}; shift 2 ;;
    --together) together=${2-}; shift 2 ;;
    --config.*=*) overrides+=("$1"); shift ;;
    *) usage ;;
  esac
done
[[ $draws =~ ^[1-9][0-9]*$ && $together =~ ^[1-9][0-9]*$ ]] || usage

mkdir -p -m 700 "$folder" "$folder/logs"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE-false}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$folder/programs}
python=${PYTHON:-python}

study() {
  local name=$1
  shift
  local draw=${name##*-}
  if "$python" -m imax_jax.main --config "configs/phantom_study.py:$name" \
    --workdir "$folder/$name" --config.data.root="$folder/hospital-$draw" "$@" \
    >"$folder/logs/$name.log" 2>&1; then
    echo "$name: done after $SECONDS s"
  else
    echo "$name: failed; the last lines of $folder/logs/$name.log:" >&2
    tail -n 3 "$folder/logs/$name.log" >&2
    return 1
  fi
}
export -f study
export folder python

each() {  # NAME … : `study` of each, some at a time
  printf '%s\n' "$@" | xargs -P "$together" -I '{}' bash -c 'study "$@"' study '{}' \
    "${verbs[@]}" "${overrides[@]}"
}

names=()
equal=()
for setting in equal few noise unseen; do
  for (( draw = 0; draw < draws; draw++ )); do
    names+=("$setting-$draw")
    [[ $setting == equal ]] && equal+=("$setting-$draw")
  done
done

failed=0
verbs=(build)
each "${equal[@]}" || failed=1  # draws the hospitals, which the other settings share
verbs=()
each "${names[@]}" || failed=1
finished=()
for name in "${names[@]}"; do
  [[ -f $folder/$name/results.json ]] && finished+=("$folder/$name")
done
"$python" -m imax_jax.main --config configs/phantom_study.py --workdir "$folder/all" \
  report --runs "$(IFS=,; echo "${finished[*]}")" || failed=1
exit "$failed"
