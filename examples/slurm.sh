#!/bin/bash
# A SLURM job array: each job takes its part of the trials, on four cores (and a GPU: add --gres=gpu:1).
#   sbatch --array=1-8 examples/slurm.sh --plugin transfer,deformable --data flowers102 --seeds 5
# The array is always 1-N. Submit the same again after a failure or a time limit: finished trials are skipped, others
# continue from their last epoch.
#SBATCH --job-name=flowers
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --output=flowers-%A-%a.log
set -euo pipefail
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
exec srun flowers-bench "$@" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --store "${FLOWERS_RUNS:-$HOME/flowers/runs}" --data-dir "${FLOWERS_CACHE:-$HOME/flowers/cache}"
