#!/bin/bash
# A PBS job array: each job takes its part of the trials, on four cores.
#   qsub -J 1-8 -v SHARDS=8,ARGUMENTS="--plugin deformable --data flowers102 --seeds 5" examples/pbs.sh
# ARGUMENTS are split at spaces, and PBS splits -v at commas: name one technique each, or a suite.
# Submit the same again after a failure or a time limit: finished trials are skipped, others continue from their last epoch.
#PBS -N flowers
#PBS -l select=1:ncpus=4:mem=8gb
#PBS -l walltime=08:00:00
#PBS -j oe
set -euo pipefail
cd "$PBS_O_WORKDIR"
export OMP_NUM_THREADS="${NCPUS:-4}"
# shellcheck disable=SC2086  # ARGUMENTS are several words
exec flowers-bench $ARGUMENTS \
  --shard "$PBS_ARRAY_INDEX/$SHARDS" \
  --store "${FLOWERS_RUNS:-$HOME/flowers/runs}" --data-dir "${FLOWERS_CACHE:-$HOME/flowers/cache}"
