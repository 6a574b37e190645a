"""shift-v1: which way of training survives labels that are brighter and nearer than the objects they are wanted for?

    python -m benchmarks.shift SCRATCH [--size small|full] [--seeds 0,1,2] [--json FILE] [--pretrained DIR]
    python -m benchmarks.shift SCRATCH --dataset DATASET --selection FILE.toml

Simulates a sky in SCRATCH, trains every arm of benchmarks/shift/arms.py on it with every seed and scores all test
objects. SCRATCH/shift.html, .csv, .txt and .json hold what was found. With --dataset the same is done on real data,
whose labels a selection hides (docs/shift_benchmark.md). Interrupted, it goes on when the same command is given again.
"""

import argparse
import json
from pathlib import Path

from benchmarks.shift import page, tables
from benchmarks.shift.arms import SIZES, Arm
from benchmarks.shift.labels import Protocol, labels_name, read_selection, read_summary, subsets, weights_name
from benchmarks.shift.runs import call, directory, run, runnable
from benchmarks.shift.scores import read_run, scored
from jaxz import errors
from jaxz.files import read_json, replace

SKY_SEED = 1  # of the one sky that all seeds are trained on; recipes were chosen on that of seed 0


def claim(scratch: Path, size: str, protocol: Protocol) -> None:
    """Keep what a scratch directory is of. Raises InputError where it is of something else."""
    now = {"size": size, **protocol._asdict(), "dataset": str(protocol.dataset.resolve())}
    path = scratch / "protocol.json"
    then = read_json(path, "what this directory is of") if path.exists() else now
    if then != now:
        raise errors.InputError(f"SCRATCH: {str(scratch)!r} holds runs of {then}; give another directory")
    scratch.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(now, indent=1).encode())


def compare(scratch: Path, protocol: Protocol, arms: list[Arm], seeds: list[int], pretrained: Path) -> dict:
    """Run all arms of all seeds, score them and write SCRATCH/shift.*; the results as JSON."""
    arms = runnable(arms, pretrained)
    for seed in seeds:
        for arm in arms:
            run(scratch, protocol, arm, seed, pretrained)
    keys, cells, z_true, parts = subsets(protocol)
    own = {arm.name: arm for arm in arms if arm.scored}
    predicted = {name: [read_run(directory(scratch, name, seed), keys, z_true) for seed in seeds] for name in own}
    scores = scored(predicted, cells, parts)
    compared = tables.compare(scores, own)
    weighed = sorted({arm.fraction for arm in arms if arm.overlay == "weights"})
    own_weights = lambda fraction, seed: weights_name(labels_name(protocol, "survey", fraction, seed))
    ess = {fraction: [read_summary(protocol, own_weights(fraction, seed)) for seed in seeds] for fraction in weighed}
    text = tables.text(scores, compared, parts)
    print(text)
    replace(scratch / "shift.txt", text.encode())
    replace(scratch / "shift.csv", tables.csv_of(scores, compared).encode())
    found = tables.json_of(scores, compared)
    replace(scratch / "shift.json", json.dumps(found, indent=1).encode())
    paths = {arm.name: directory(scratch, arm.name, seeds[0]) for arm in arms}
    shown = page.html(predicted, cells, parts, scores, compared, ess, paths, str(protocol.dataset))
    replace(scratch / "shift.html", shown.encode())
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small", help="small: 2 CPU cores; full: a GPU")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, help="a copy of the results")
    parser.add_argument("--dataset", type=Path, help="real data, in place of a simulated sky")
    parser.add_argument("--selection", type=Path, help="TOML: which of its labels are kept")
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"), help="directory of published weights")
    options = parser.parse_args(argv)
    if (options.dataset is None) != (options.selection is None):
        raise errors.InputError("--dataset and --selection: one is given without the other; give both or neither")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise errors.InputError(f"--seeds: {options.seeds!r} must be whole numbers, such as 0,1,2") from None
    size = SIZES[options.size]()
    if options.dataset:
        protocol = Protocol(options.dataset, **read_selection(options.selection))
    else:
        protocol = Protocol(options.scratch / "sky")
    claim(options.scratch, options.size, protocol)
    if not options.dataset:
        own = ["--samples", str(size.samples), "--size", str(size.pixels), "--seed", str(SKY_SEED), "--sky", size.sky]
        call("data_tools.simulate", str(protocol.dataset), *own)
    found = compare(options.scratch, protocol, list(size.arms), seeds, options.pretrained)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    errors.run(main, resumes=True)
