#!/bin/bash
# Features of many slides with all GPUs of one node: a process for each, slide by slide.
# Run it again as often as you like: what is finished stays, the rest is done.
#
#SBATCH --job-name=microtome-gpus
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=192G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append        # the log goes on when the job is queued again
#SBATCH --requeue                 # after a preemption
#SBATCH --signal=USR1@120         # two minutes before the time is up

set -euo pipefail

# Edit these, or set them when you submit: SLIDES=… ENCODERS=… sbatch jobs/multi_gpu.slurm.sh
SLIDES=${SLIDES:-slides}          # a folder, a pattern or a CSV manifest
OUTPUT=${OUTPUT:-output}          # on a file system that every node sees
TILE_SIZE=${TILE_SIZE:-256}
MAGNIFICATION=${MAGNIFICATION:-20}
ENCODERS=${ENCODERS:-resnet50}    # several: resnet50,uni_v2
PRECISION=${PRECISION:-auto}
BATCH_SIZE=${BATCH_SIZE:-64}      # tiles
DEVICES=${DEVICES:-0,1,2,3}       # the GPUs, counted from 0

# source ~/venvs/microtome/bin/activate

code=0
srun microtome "$SLIDES" output="$OUTPUT" \
  tiler.size="$TILE_SIZE" tiler.magnification="$MAGNIFICATION" \
  encoder="[$ENCODERS]" precision="$PRECISION" batch_size="$BATCH_SIZE" \
  engine.devices="[$DEVICES]" || code=$?

# Ended by a signal because the time was up: back into the queue, for the rest.
case $code in
  138 | 140 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
