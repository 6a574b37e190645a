#!/bin/bash
# jaxz converts a catalogue. Made by `python -m launch.slurm` for the profile jean_zay_h100.
#SBATCH --job-name=convert_pretrain
#SBATCH --account=abc@h100
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --partition=prepost
#SBATCH --time=20:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/pretrain/slurm/convert_%A_%a.log
#SBATCH --array=1-40

export XDG_CACHE_HOME="$WORK/.cache"
export JAXZ_CACHE="$SCRATCH/jaxz_cache"
set -u
cd /work/jaxz
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun /venv/bin/python -m data_tools.convert --survey=survey.toml --images=/scratch/tiles --out=/data/survey --workers="$SLURM_CPUS_PER_TASK" --part="$SLURM_ARRAY_TASK_ID/40"
code=$?
if [ $code = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then # it goes on where it was
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && sleep 60 # requeueing ends this script
fi
exit $code
