#!/usr/bin/env bash
# The verb `build`, its files written by Apache Beam: on this machine, or on many.
#
#   launch/beam.sh CONFIG[:ARG] WORKDIR [BEAM OPTION …]
#   launch/beam.sh configs/phantom.py runs/phantom
#   launch/beam.sh configs/x.py runs/x --direct_num_workers=8 \
#     --direct_running_mode=multi_processing
#
# Only this, the direct runner, has been run, with Apache Beam 2.77. What follows is
# written from Beam's documentation of the other runners and was never tried:
#
#   Dataflow: pip install 'apache-beam[gcp]', raw images and exchange in buckets
#     launch/beam.sh configs/x.py runs/x --runner=DataflowRunner --project=PROJECT \
#       --region=REGION --temp_location=gs://BUCKET/temp --exchange=gs://BUCKET/meet \
#       --images=/mnt/raw=gs://RAW-BUCKET --sdk_container_image=IMAGE
#   Flink, Spark: WORKDIR and the raw files on storage that all nodes share
#     launch/beam.sh configs/x.py /shared/runs/x --runner=FlinkRunner \
#       --flink_master=HOST:8081 --environment_type=PROCESS \
#       --environment_options=process_command=/shared/beam/boot
#     launch/beam.sh configs/x.py /shared/runs/x --runner=SparkRunner \
#       --spark_master_url=spark://HOST:7077 --environment_type=PROCESS \
#       --environment_options=process_command=/shared/beam/boot
#
# Beam's pins are older than those of constraints.txt: it needs an environment of its own,
# on this machine and (for Dataflow: in IMAGE) on every worker, where PYTHON points to:
#
#   python3 -m venv .venv-beam && .venv-beam/bin/pip install -e '.[beam]'
#
# This machine reads the tables and hands out lists of images with all their entries; the
# workers read the images. Patients' text so lies in the exchange folder (WORKDIR's own,
# or --exchange) until the build ends: no place for it that their agreement does not allow.
set -euo pipefail

if (( $# < 2 )); then
  echo "usage: $0 CONFIG[:ARG] WORKDIR [BEAM OPTION …]" >&2
  exit 2
fi
config=$1
workdir=$2
shift 2

# One flag holds them all, split again as a shell would.
printf -v options '%q ' "${@:---runner=DirectRunner}"

exec "${PYTHON:-python}" -m imax_jax.main --config "$config" --workdir "$workdir" \
  --config.data.beam="$options" build
