#!/usr/bin/env bash
# A search on a Cloud TPU pod slice (several hosts, such as v5litepod-64), from your own
# machine. The same command runs on every host; JAX finds the others by itself. If a
# host is lost all stop, and running this again resumes.
#
#   TPU=my-pod ZONE=us-west4-a SHARE=10.0.0.2:/share \
#     bash scripts/launch/tpu_pod.sh cifar10 --dataset=cifar10 --data_dir=/mnt/share/tfds
#
# SHARE is an NFS folder that all hosts reach (Cloud Filestore, say): it holds the
# workdirs, /mnt/share/runs/NAME, and the data set, prepared there beforehand
# (docs/data.md): with --download each host would. Make the slice beforehand as in
# tpu_vm.sh, with a larger --accelerator-type. Its hosts need Python 3.11 or
# newer; PYTHON=python3.12 names one that is not python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TPU:?name of the pod slice}" "${ZONE:?its zone}" "${SHARE:?HOST:/FOLDER of an NFS share}"
name="${1:?usage: TPU=... ZONE=... SHARE=... tpu_pod.sh NAME [flags of experiments.fliqs]}"
shift
python="${PYTHON:-python3}"  # on the hosts
quoted=""
for flag in "$@"; do quoted+=" $(printf '%q' "$flag")"; done
on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}
git archive --format=tar.gz --output=/tmp/fliqs_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/fliqs_jax.tar.gz "$TPU": --zone="$ZONE" --worker=all
on_all_hosts "mkdir -p fliqs_jax && tar -xzf fliqs_jax.tar.gz -C fliqs_jax &&
  cd fliqs_jax && $python -m pip install --quiet -e . 'jax[tpu]' && sudo mkdir -p /mnt/share &&
  (mountpoint -q /mnt/share || sudo mount -t nfs '$SHARE' /mnt/share)"
# --batch_size is that of all chips together, a multiple of their number.
on_all_hosts "cd fliqs_jax && $python -m experiments.fliqs --distributed \
  --workdir='/mnt/share/runs/$name' \
  --dtype=bfloat16 --batch_size=4096$quoted"
