"""The batch scripts: text from a request, without a look at the machine."""

import shlex
from pathlib import Path

from jaxz.errors import BAD_INPUT, OK, REQUEUE
from launch.request import Request

EARLY = "140-no | 143-no"  # SIGUSR2, SIGTERM + 128: of tasks that had not come far enough to keep them
CONVERT_RESTARTS = 20  # of a conversion that reaches its time limit

TRAIN = """\
trap : USR2 # until there is somebody to tell
{environment}
set -u
cd {folder}

# ---- what to run -----------------------------------------------------------------------------------------------------
logs={logs}
{what}
newest() {{ ls "$run/checkpoints" 2>/dev/null | grep -x '[0-9][0-9]*' | sort -n | tail -n 1; }}
say() {{ echo "$(date '+%F %T') $*"; }}
before=$(newest); before=${{before:-0}}
{finished}say "start ${{SLURM_RESTART_COUNT:-0}} on $SLURM_JOB_NODELIST, from step $before: $run"

# ---- the processes: each has its own log, and one that fails ends all ------------------------------------------------
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS="$first:$((61440 + SLURM_JOB_ID % 4096))" # jobs that share a node must not meet
export JAXZ_DEVICES=$((SLURM_JOB_NUM_NODES * {tasks}))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# SLURM_NTASKS is that of the first life, also where a job comes back with fewer nodes.
srun --ntasks=$JAXZ_DEVICES --kill-on-bad-exit=1 --open-mode=append --output="$logs/$SLURM_JOB_ID.%t.log" \\
  {python} -m jaxz.train "${{arguments[@]}}" &
step=$!
asked=no
trap 'say "the time limit is near"; asked=yes; kill -USR2 $step' USR2
while kill -0 $step 2>/dev/null; do wait $step; done # a signal ends a wait early
wait $step; code=$?
after=$(newest); after=${{after:-0}}
say "ended with $code at step $after"
{requeue}exit $code
"""

REQUEUE_RULE = """
# ---- again? ----------------------------------------------------------------------------------------------------------
advanced=no; [ "$after" -gt "$before" ] && advanced=yes
case $code-$advanced in
  {ok}-* | {bad}-*) again=no ;;
  {stopped}-yes) again=yes ;; # stopped and saved: the usual way
  {stopped}-no | {early} | *-yes) again=counted ;; # stopped before the first step; or failed, but not at once
  *) again=no ;;
esac
[ $again-$asked-$advanced = counted-yes-yes ] && again=yes # saved when asked, though one was killed in ending
if [ $again = counted ]; then
  echo "$code at step $after" >>"$logs/$SLURM_JOB_ID.retries"
  [ "$(wc -l <"$logs/$SLURM_JOB_ID.retries")" -le {retries} ] && again=yes
fi
# A former life of this job, on a node that was cut off, must not requeue the present one.
life=$(scontrol show job {job} | grep -o 'Restarts=[0-9]*')
if [ $again = yes ] && [ "$life" = "Restarts=${{SLURM_RESTART_COUNT:-0}}" ]; then
  say "requeue"
  scontrol requeue {job} && sleep 60 # requeueing ends this script
fi
"""

FINISHED = """\
if [ $before -ge {steps} ]; then say "step $before of {steps}: nothing is left to do"; exit 0; fi
"""

CONVERT = """\
{environment}
set -u
cd {folder}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun {python} -m data_tools.convert {arguments} --workers="$SLURM_CPUS_PER_TASK" {share}
code=$?
if [ $code = {stopped} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then # it goes on where it was
  scontrol requeue {job} && sleep 60 # requeueing ends this script
fi
exit $code
"""

STAGE = """\
set -eu
mkdir -p {target}
rsync --recursive --size-only --partial {source}/ {target}/ # with new times: a purge counts from them
wrong=$(rsync --recursive --size-only --dry-run --out-format=%n {source}/ {target}/ | grep -v '/$' || true)
if [ -n "$wrong" ]; then echo "not copied whole: $wrong"; exit 1; fi
"""


def train_script(request: Request, steps: int) -> str:
    """The job, or the array of jobs, that trains. steps: at which a job of a chain has nothing left to do."""
    profile, array = request.profile, bool(request.points[0].name)
    number, least, most = "%A_%a" if array else "%j", *request.nodes
    options = {
        "job-name": request.workdir.name,
        **account(request),
        **profile.sbatch,
        **({"qos": request.qos} if request.qos else {}),
        "nodes": least if least == most else f"{least}-{most}",
        "ntasks-per-node": request.tasks,
        **({"gres": f"gpu:{request.gpus}"} if request.gpus else {}),  # each task sees all GPUs of its node
        "cpus-per-task": profile.node.cores,
        "time": request.time,
        "signal": f"B:USR2@{request.lead}",
        "requeue" if request.requeues else "no-requeue": True,
        "open-mode": "append",
        "output": logs(request) / f"{number}.log",
        **({"array": f"0-{len(request.points) - 1}{f'%{request.limit}' if request.limit else ''}"} if array else {}),
        **{name: value or True for name, _, value in (option.partition("=") for option in request.options)},
    }
    rule = REQUEUE_RULE.format(
        ok=OK, bad=BAD_INPUT, stopped=REQUEUE, early=EARLY, retries=profile.job.retries, job=own(array)
    )
    body = TRAIN.format(
        folder=quote(request.folder), environment=environment(request, devices=True), logs=quote(logs(request)),
        what=what(request), finished=FINISHED.format(steps=steps) if request.chain else "", tasks=request.tasks,
        python=request.python, requeue=rule if request.requeues else "",
    )  # fmt: skip
    return header(request, f"jaxz trains in {request.workdir}", options) + body


def what(request: Request) -> str:
    """The lines that set `run` and `arguments`, by the job's place in the array where it is one."""
    shared = [quote(argument) for argument in request.arguments]
    if not request.points[0].name:
        together = " ".join([*shared, '--workdir="$run"'])
        return f"run={quote(request.workdir)}\narguments=({together})"
    cases = [
        f"  {n}) run={quote(request.workdir / point.name)}; point=({' '.join(map(quote, point.overrides))}) ;;"
        for n, point in enumerate(request.points)
    ]
    lines = ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"]
    together = " ".join([*shared, '"${point[@]}"', '--workdir="$run"'])
    return "\n".join([*lines, f"arguments=({together})"])


def convert_script(request: Request, merge: bool) -> str:
    """An array of jobs that convert a part each, or the job after them that merges."""
    options = {
        "job-name": f"convert_{request.workdir.name}",
        **account(request),
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": 8,
        **request.profile.data["convert"],
        "signal": "TERM@120",  # to the conversion itself, which then ends with 75
        "requeue": True,
        "open-mode": "append",
        "output": logs(request) / ("merge_%j.log" if merge else "convert_%A_%a.log"),
        **({} if merge else {"array": f"1-{request.parts}"}),
    }
    share = "--merge" if merge else f'--part="$SLURM_ARRAY_TASK_ID/{request.parts}"'
    body = CONVERT.format(
        folder=quote(request.folder), environment=environment(request), python=request.python, share=share,
        arguments=" ".join(map(quote, request.convert)), stopped=REQUEUE, restarts=CONVERT_RESTARTS,
        job=own(array=not merge),
    )  # fmt: skip
    return header(request, "jaxz merges what was converted" if merge else "jaxz converts a catalogue", options) + body


def stage_script(request: Request, source: Path, target: Path) -> str:
    """The job that copies a folder, such as a dataset from the archive, and checks the sizes."""
    options = {
        "job-name": f"stage_{request.workdir.name}",
        **account(request),
        "nodes": 1,
        "ntasks": 1,
        **request.profile.data["stage"],
        "requeue": True,
        "open-mode": "append",
        "output": logs(request) / "stage_%j.log",
    }
    body = STAGE.format(source=quote(source), target=quote(target))
    return header(request, f"jaxz copies {source}", options) + body


def logs(request: Request) -> Path:
    return request.workdir / "slurm"


def own(array: bool) -> str:
    """The job's own name in its script; SLURM_JOB_ID of the last of an array is the array's too, and would mean all."""
    return '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if array else '"$SLURM_JOB_ID"'


def account(request: Request) -> dict[str, str]:
    return {"account": request.account + request.profile.account_suffix} if request.account else {}


def header(request: Request, title: str, options: dict) -> str:
    lines = [f"--{name}" if value is True else f"--{name}={quote(value)}" for name, value in options.items()]
    made = f"# {title}. Made by `python -m launch.slurm` for the profile {request.profile.name}."
    return "\n".join(["#!/bin/bash", made, *(f"#SBATCH {line}" for line in lines), "", ""])


def environment(request: Request, devices: bool = False) -> str:
    """What a job sets before Python starts; devices: for one that needs the accelerators."""
    lines = [f'export {name}="{value}"' for name, value in request.profile.environment.items()]
    if not devices:
        return "\n".join(lines)
    modules = request.profile.job.modules
    return "\n".join(
        [
            *(["module purge", *(f"module load {name}" for name in modules)] if modules else []),
            *lines,
            "unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY # with which the processes would not find each other",
            f"export JAX_PLATFORMS={'cuda,cpu' if request.gpus else 'cpu'} # and no other in silence",
            "",
        ]
    )


def quote(text: object) -> str:
    return shlex.quote(str(text))
