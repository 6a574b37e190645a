"""What does each way of pretraining teach of redshift, beside an encoder that was never trained?

    python -m benchmarks.probes SCRATCH [--seeds 0,1,2] [--arms mae,dino,simclr,byol] [--steps 600] [--json FILE]

For each seed a simulated sky is made in SCRATCH and each arm trained on it by configs/pretrain_ARM.py with the demo's
model, then probed by the protocol of docs/probes.md. Scores: R^2 of ln(1+z) of the linear probe, on all test objects.
The stem is `fused`, which knows nothing: through `apertures` an encoder that was never trained sees colours already.
Interrupted, it goes on when the same command is given again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.arms import parse_seeds
from jaxz import errors

SAMPLES, SIZE = 20_000, 32
VIT = {"width": 128, "depth": 4, "heads": 4, "patch": 8, "stem": "fused"}
MODEL = [f"--config.model.{name}={value}" for name, value in VIT.items()]
EXTRA = {"mae": ["--config.data.deredden=True", "--config.train.batch_size=128"]}
AVERAGED = ("dino", "byol")  # what is used of them is the teacher


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode:
        raise errors.InputError(f"{' '.join(command)} ended with {done.returncode}")


def probed(scratch: Path, seed: int, arm: str, steps: int) -> dict:
    """{"run", "random_init": value and error of R^2} of an arm, trained and probed unless that was done."""
    dataset, workdir = scratch / f"sky{seed}", scratch / f"{arm}_{steps}_{seed}"
    if not (workdir / "probe.json").exists():
        run("data_tools.simulate", str(dataset), "--samples", str(SAMPLES), "--size", str(SIZE), "--seed", str(seed))
        fields = [f"--config.data.path={dataset}", f"--config.seed={seed}", f"--config.train.steps={steps}"]
        config = f"--config=configs/pretrain_{arm}.py"
        run("jaxz.train", config, f"--workdir={workdir}", *MODEL, *fields, *EXTRA.get(arm, []))
        item = ["--item", "ema"] if arm in AVERAGED else []
        run("jaxz.probe", f"--workdir={workdir}", f"--dataset={dataset}", "--truth", *item)
    found = json.loads((workdir / "probe.json").read_bytes())
    return {name: found[name]["ridge"]["r2_ln"] for name in ("run", "random_init")}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--seeds", default="0,1,2", type=parse_seeds)
    parser.add_argument("--arms", default="mae,dino,simclr,byol")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    found: dict[str, list[dict]] = {arm: [] for arm in options.arms.split(",")}
    for seed in options.seeds:
        for arm, results in found.items():
            results.append(probed(options.scratch, seed, arm, options.steps))
            values = " ".join(f"{name} {score['value']:.3f}" for name, score in results[-1].items())
            print(f"seed {seed}, {arm}: {values}", file=sys.stderr)
    for arm, results in found.items():
        trained, fresh = (np.array([r[name]["value"] for r in results]) for name in ("run", "random_init"))
        gain = trained - fresh
        print(
            f"{arm:8} R^2 {trained.mean():.3f} +- {trained.std(ddof=1):.3f}, untrained {fresh.mean():.3f} +- "
            f"{fresh.std(ddof=1):.3f}, gain {gain.mean():.3f} +- {gain.std(ddof=1):.3f} over {len(options.seeds)} seeds"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    errors.run(main)
