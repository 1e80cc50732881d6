#!/usr/bin/env bash
# A search on one Cloud TPU VM (a host with 4 or 8 chips, such as v5litepod-8), from
# your own machine. One process drives all chips; run it again to resume.
#
#   TPU=my-tpu ZONE=us-west4-a bash scripts/launch/tpu_vm.sh runs/cifar10 \
#       --dataset=cifar10 --download
#
# The workdir is a folder of the VM, and so is that of the data set, which TFDS prepares by
# tensorflow at first (docs/data.md). Make the VM beforehand, for example with
#   gcloud compute tpus tpu-vm create my-tpu --zone=us-west4-a \
#     --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite
# The VM needs Python 3.11 or newer; PYTHON=python3.12 names one that is not python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
workdir="${1:?usage: TPU=... ZONE=... tpu_vm.sh WORKDIR [flags of experiments.fliqs]}"
shift
python="${PYTHON:-python3}"  # on the VM
quoted=""
for flag in "$@"; do quoted+=" $(printf '%q' "$flag")"; done
on_the_vm() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --command="$1"
}
git archive --format=tar.gz --output=/tmp/fliqs_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/fliqs_jax.tar.gz "$TPU": --zone="$ZONE"
on_the_vm "mkdir -p fliqs_jax && tar -xzf fliqs_jax.tar.gz -C fliqs_jax &&
  cd fliqs_jax && $python -m pip install --quiet -e . 'jax[tpu]' tensorflow"
# --batch_size is that of all chips together, a multiple of their number.
on_the_vm "cd fliqs_jax && $python -m experiments.fliqs --workdir='$workdir' \
  --dtype=bfloat16 --batch_size=1024$quoted"
