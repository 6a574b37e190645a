#!/bin/bash
# jaxz trains in /runs/pretrain. Made by `python -m launch.slurm` for the profile jean_zay_h100.
#SBATCH --job-name=pretrain
#SBATCH --account=abc@h100
#SBATCH --partition=gpu_p6
#SBATCH --constraint=h100
#SBATCH --hint=nomultithread
#SBATCH --qos=qos_gpu_h100-t3
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=24
#SBATCH --time=20:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/pretrain/slurm/%j.log

trap : USR2 # until there is somebody to tell
module purge
module load arch/h100
export XDG_CACHE_HOME="$WORK/.cache"
export JAXZ_CACHE="$SCRATCH/jaxz_cache"
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY # with which the processes would not find each other
export JAX_PLATFORMS=cuda,cpu # and no other in silence

set -u
cd /work/jaxz

# ---- what to run -----------------------------------------------------------------------------------------------------
logs=/runs/pretrain/slurm
run=/runs/pretrain
arguments=(--config=configs/pretrain_mae.py --config.data.path=/data/survey --workdir="$run")
newest() { ls "$run/checkpoints" 2>/dev/null | grep -x '[0-9][0-9]*' | sort -n | tail -n 1; }
say() { echo "$(date '+%F %T') $*"; }
before=$(newest); before=${before:-0}
if [ $before -ge 1000 ]; then say "step $before of 1000: nothing is left to do"; exit 0; fi
say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, from step $before: $run"

# ---- the processes: each has its own log, and one that fails ends all ------------------------------------------------
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS="$first:$((61440 + SLURM_JOB_ID % 4096))" # jobs that share a node must not meet
export JAXZ_DEVICES=$((SLURM_JOB_NUM_NODES * 4))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# SLURM_NTASKS is that of the first life, also where a job comes back with fewer nodes.
srun --ntasks=$JAXZ_DEVICES --kill-on-bad-exit=1 --open-mode=append --output="$logs/$SLURM_JOB_ID.%t.log" \
  /venv/bin/python -m jaxz.train "${arguments[@]}" &
step=$!
asked=no
trap 'say "the time limit is near"; asked=yes; kill -USR2 $step' USR2
while kill -0 $step 2>/dev/null; do wait $step; done # a signal ends a wait early
wait $step; code=$?
after=$(newest); after=${after:-0}
say "ended with $code at step $after"
exit $code
