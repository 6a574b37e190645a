"""The only caller of Slurm's commands."""

import subprocess

from jaxz.errors import InputError


def slurm(command: str, *arguments: str, script: str | None = None) -> str:
    """What a command of Slurm prints. Raises InputError with its words where it refuses or is not there."""
    try:
        done = subprocess.run([command, *arguments], input=script, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise InputError(f"{command}: is not here; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{command}: Slurm does not answer; try again later") from None
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        raise InputError(f"{command}: Slurm refuses ({said}); change what it names")
    return done.stdout


def try_out(script: str) -> None:
    """Slurm's own verdict on a script that is not submitted. Raises InputError where it refuses."""
    slurm("sbatch", "--test-only", script=script)


def submit(script: str, after: str = "", singleton: bool = False) -> str:
    """Submit a script; the job's number. after: a job that must have ended well, else this one is cancelled;
    singleton: start after all earlier jobs of the same name."""
    conditions = [f"afterok:{after}"] * bool(after) + ["singleton"] * singleton
    options = [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"] if conditions else []
    return slurm("sbatch", "--parsable", *options, script=script).strip().partition(";")[0]


def waiting_and_running(jobs: list[str]) -> dict[str, dict[str, str]]:
    """{job, or job_index of an array: state, reason and seconds left} of those that are in the queue."""
    layout = "%i|%T|%r|%L"
    lines = slurm("squeue", "--noheader", "--array", "--me", f"--format={layout}").splitlines()
    found = {}
    for line in lines:
        job, state, reason, left = line.split("|")
        if job.partition("_")[0] in jobs:
            found[job] = {"state": state, "reason": reason, "left": left}
    return found


def accounts(jobs: list[str]) -> list[dict[str, str]]:
    """A row for every life of the jobs: job, state, seconds, tres. [] on a cluster without accounting."""
    if not jobs:
        return []
    fields = "JobID,State,ElapsedRaw,AllocTRES"
    try:
        text = slurm("sacct", "-D", "-X", "-n", "-P", f"--jobs={','.join(jobs)}", f"--format={fields}")
    except InputError:
        return []
    return [dict(zip(("job", "state", "seconds", "tres"), line.split("|"), strict=True)) for line in text.splitlines()]


def cancel(jobs: list[str]) -> None:
    slurm("scancel", *jobs)
