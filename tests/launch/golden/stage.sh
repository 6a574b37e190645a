#!/bin/bash
# jaxz copies /store/tiles. Made by `python -m launch.slurm` for the profile jean_zay_h100.
#SBATCH --job-name=stage_pretrain
#SBATCH --account=abc@h100
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --partition=archive
#SBATCH --time=20:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/pretrain/slurm/stage_%j.log

set -eu
mkdir -p /scratch/tiles
rsync --recursive --size-only --partial /store/tiles/ /scratch/tiles/ # with new times: a purge counts from them
wrong=$(rsync --recursive --size-only --dry-run --out-format=%n /store/tiles/ /scratch/tiles/ | grep -v '/$' || true)
if [ -n "$wrong" ]; then echo "not copied whole: $wrong"; exit 1; fi
