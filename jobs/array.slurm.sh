#!/bin/bash
# Features of many slides on many nodes: every job of the array is given all slides and takes
# whichever nobody has, so that none is idle before all are done. Add jobs while others run, or
# cancel some: nothing is lost. (`microtome … engine=slurm` submits such an array by itself.)
# Run it again as often as you like: what is finished stays, the rest is done.
#
#SBATCH --job-name=microtome-array
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=48G
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append        # the log goes on when the job is queued again
#SBATCH --requeue                 # after a preemption
#SBATCH --signal=USR1@120         # two minutes before the time is up

set -euo pipefail

# Edit these, or set them when you submit: SLIDES=… ENCODERS=… sbatch jobs/array.slurm.sh
SLIDES=${SLIDES:-slides}          # a folder, a pattern or a CSV manifest
OUTPUT=${OUTPUT:-output}          # on a file system that every node sees
TILE_SIZE=${TILE_SIZE:-256}
MAGNIFICATION=${MAGNIFICATION:-20}
ENCODERS=${ENCODERS:-resnet50}    # several: resnet50,uni_v2
PRECISION=${PRECISION:-auto}
BATCH_SIZE=${BATCH_SIZE:-64}      # tiles

# source ~/venvs/microtome/bin/activate

# What one job has finished, also in vain, the others of the array take as it is.
ROUND=${SLURM_ARRAY_JOB_ID:-}

code=0
srun microtome "$SLIDES" output="$OUTPUT" \
  tiler.size="$TILE_SIZE" tiler.magnification="$MAGNIFICATION" \
  encoder="[$ENCODERS]" precision="$PRECISION" batch_size="$BATCH_SIZE" \
  claims.round="$ROUND" || code=$?

# Ended by a signal because the time was up: back into the queue, for the rest.
case $code in
  138 | 140 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
