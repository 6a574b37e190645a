#!/bin/bash
# jaxz trains in /runs/pretrain. Made by `python -m launch.slurm` for the profile jean_zay_a100.
#SBATCH --job-name=pretrain
#SBATCH --account=abc@a100
#SBATCH --partition=gpu_p5
#SBATCH --constraint=a100
#SBATCH --hint=nomultithread
#SBATCH --qos=qos_gpu_a100-t3
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=20:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/runs/pretrain/slurm/%A_%a.log
#SBATCH --array=0-3%2

trap : USR2 # until there is somebody to tell
module purge
module load arch/a100
export XDG_CACHE_HOME="$WORK/.cache"
export JAXZ_CACHE="$SCRATCH/jaxz_cache"
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY # with which the processes would not find each other
export JAX_PLATFORMS=cuda,cpu # and no other in silence

set -u
cd /work/jaxz

# ---- what to run -----------------------------------------------------------------------------------------------------
logs=/runs/pretrain/slurm
case $SLURM_ARRAY_TASK_ID in
  0) run=/runs/pretrain/seed=0,lr=1e-3; point=(--config.seed=0 --config.optim.lr=1e-3) ;;
  1) run=/runs/pretrain/seed=0,lr=3e-4; point=(--config.seed=0 --config.optim.lr=3e-4) ;;
  2) run=/runs/pretrain/seed=1,lr=1e-3; point=(--config.seed=1 --config.optim.lr=1e-3) ;;
  3) run=/runs/pretrain/seed=1,lr=3e-4; point=(--config.seed=1 --config.optim.lr=3e-4) ;;
esac
arguments=(--config=configs/pretrain_mae.py --config.data.path=/data/survey "${point[@]}" --workdir="$run")
newest() { ls "$run/checkpoints" 2>/dev/null | grep -x '[0-9][0-9]*' | sort -n | tail -n 1; }
say() { echo "$(date '+%F %T') $*"; }
before=$(newest); before=${before:-0}
say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, from step $before: $run"

# ---- the processes: each has its own log, and one that fails ends all ------------------------------------------------
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS="$first:$((61440 + SLURM_JOB_ID % 4096))" # jobs that share a node must not meet
export JAXZ_DEVICES=$((SLURM_JOB_NUM_NODES * 8))
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

# ---- again? ----------------------------------------------------------------------------------------------------------
advanced=no; [ "$after" -gt "$before" ] && advanced=yes
case $code-$advanced in
  0-* | 2-*) again=no ;;
  75-yes) again=yes ;; # stopped and saved: the usual way
  75-no | 140-no | 143-no | *-yes) again=counted ;; # stopped before the first step; or failed, but not at once
  *) again=no ;;
esac
[ $again-$asked-$advanced = counted-yes-yes ] && again=yes # saved when asked, though one was killed in ending
if [ $again = counted ]; then
  echo "$code at step $after" >>"$logs/$SLURM_JOB_ID.retries"
  [ "$(wc -l <"$logs/$SLURM_JOB_ID.retries")" -le 3 ] && again=yes
fi
# A former life of this job, on a node that was cut off, must not requeue the present one.
life=$(scontrol show job "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" | grep -o 'Restarts=[0-9]*')
if [ $again = yes ] && [ "$life" = "Restarts=${SLURM_RESTART_COUNT:-0}" ]; then
  say "requeue"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && sleep 60 # requeueing ends this script
fi
exit $code
