#!/bin/bash
# Tissue and coordinates of many slides, on the CPUs of one node. No model, no GPU.
# Run it again as often as you like: what is finished stays, the rest is done.
#
#SBATCH --job-name=microtome-coords
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append        # the log goes on when the job is queued again
#SBATCH --requeue                 # after a preemption
#SBATCH --signal=USR1@120         # two minutes before the time is up

set -euo pipefail

# Edit these, or set them when you submit: SLIDES=… OUTPUT=… sbatch jobs/coords.slurm.sh
SLIDES=${SLIDES:-slides}          # a folder, a pattern or a CSV manifest
OUTPUT=${OUTPUT:-output}          # on a file system that every node sees
TILE_SIZE=${TILE_SIZE:-256}       # pixels at MAGNIFICATION
MAGNIFICATION=${MAGNIFICATION:-20}
SEGMENTER=${SEGMENTER:-classic}   # `microtome plugins` lists the others
WORKERS=${WORKERS:-4}             # processes; each has its share of the CPUs

# source ~/venvs/microtome/bin/activate

code=0
srun microtome "$SLIDES" output="$OUTPUT" task=coords \
  tiler.size="$TILE_SIZE" tiler.magnification="$MAGNIFICATION" segmenter="$SEGMENTER" \
  engine.workers="$WORKERS" || code=$?

# Ended by a signal because the time was up: back into the queue, for the rest.
case $code in
  138 | 140 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
