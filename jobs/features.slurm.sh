#!/bin/bash
# Features of many slides with one GPU. Coordinates that jobs/coords.slurm.sh left are used, and
# features are added to its files; without them everything is done here.
# Run it again as often as you like: what is finished stays, the rest is done.
#
#SBATCH --job-name=microtome-features
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=48G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append        # the log goes on when the job is queued again
#SBATCH --requeue                 # after a preemption
#SBATCH --signal=USR1@120         # two minutes before the time is up

set -euo pipefail

# Edit these, or set them when you submit: SLIDES=… ENCODERS=… sbatch jobs/features.slurm.sh
SLIDES=${SLIDES:-slides}          # a folder, a pattern or a CSV manifest
OUTPUT=${OUTPUT:-output}          # on a file system that every node sees
TILE_SIZE=${TILE_SIZE:-256}       # as for the coordinates
MAGNIFICATION=${MAGNIFICATION:-20}
SEGMENTER=${SEGMENTER:-classic}   # as for the coordinates
ENCODERS=${ENCODERS:-resnet50}    # several: resnet50,uni_v2; each tile is read once for all
DEVICE=${DEVICE:-cuda}            # auto, cpu, cuda
PRECISION=${PRECISION:-auto}      # fp32, fp16, bf16; auto is what each encoder's card says
BATCH_SIZE=${BATCH_SIZE:-64}      # tiles
READER_THREADS=${READER_THREADS:-${SLURM_CPUS_PER_TASK:-8}}

# source ~/venvs/microtome/bin/activate
# export HF_HUB_OFFLINE=1         # if nodes have no network: fetch the weights beforehand

code=0
srun microtome "$SLIDES" output="$OUTPUT" \
  tiler.size="$TILE_SIZE" tiler.magnification="$MAGNIFICATION" segmenter="$SEGMENTER" \
  encoder="[$ENCODERS]" device="$DEVICE" precision="$PRECISION" batch_size="$BATCH_SIZE" \
  reader_threads="$READER_THREADS" || code=$?

# Ended by a signal because the time was up: back into the queue, for the rest.
case $code in
  138 | 140 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
