#!/usr/bin/env bash
# A search on a Slurm cluster: a process a GPU, which JAX joins by Slurm's variables.
#
#   sbatch --nodes=2 scripts/launch/slurm.sh /shared/runs/imagenet \
#       --dataset=imagenet2012 --image_size=224 --data_dir=/shared/tfds
#
# The workdir is a folder that all nodes share. Submitted again it resumes, also after
# the time limit: two minutes before it, all save a checkpoint and stop. Start it in the
# checkout, with the environment that has `pip install -e . "jax[cuda13]"` active, and with
# the data set prepared in --data_dir (docs/data.md): with --download each process would.
#SBATCH --job-name=fliqs
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail
workdir="${1:?usage: sbatch scripts/launch/slurm.sh WORKDIR [flags of experiments.fliqs]}"
shift
# --kill-on-bad-exit: no task outlives another. --batch_size is that of all GPUs.
# Not every Slurm hands --cpus-per-task of the job on to srun.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" python -m experiments.fliqs --distributed \
  --workdir="$workdir" --dtype=bfloat16 --batch_size=1024 "$@"
