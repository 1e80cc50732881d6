#!/usr/bin/env bash
# A search on one machine with several GPUs. One process drives all of them, so nothing
# has to be distributed; run it again to resume.
#
#   bash scripts/launch/gpu_node.sh runs/imagenet --dataset=imagenet2012 --image_size=224
#   CUDA_VISIBLE_DEVICES=0,1 bash scripts/launch/gpu_node.sh runs/two_gpus
#
# Once, beforehand: pip install -e . "jax[cuda13]", and prepare the data set (docs/data.md).
# With tensorflow installed --download does that; ImageNet's files are fetched by hand first.
set -euo pipefail
cd "$(dirname "$0")/../.."
workdir="${1:?usage: gpu_node.sh WORKDIR [flags of experiments.fliqs]}"
shift
# --batch_size is that of all GPUs together, a multiple of their number.
python -m experiments.fliqs --workdir="$workdir" --dtype=bfloat16 --batch_size=1024 "$@"
