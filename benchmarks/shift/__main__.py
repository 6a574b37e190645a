"""shift-v1: which way of training survives labels that are brighter and nearer than the objects they are wanted for?

    python -m benchmarks.shift SCRATCH [--size small|full] [--seeds 0,1,2] [--json FILE] [--pretrained DIR]
    python -m benchmarks.shift SCRATCH --dataset DATASET --selection FILE.toml
    python -m benchmarks.shift SCRATCH ... --submit "--profile PROFILE --time 1:00:00" [--jobs 8]

Simulates a sky in SCRATCH, trains every arm of benchmarks/shift/arms.py on it with every seed and scores all test
objects. SCRATCH/shift.html, .csv, .txt and .json hold what was found. With --dataset the same is done on real data,
whose labels a selection hides (docs/shift_benchmark.md). With --submit each training is a job on a Slurm cluster.
Interrupted, it goes on when the same command is given again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.arms import parse_seeds
from benchmarks.shift import page, tables
from benchmarks.shift.arms import SIZES, Arm
from benchmarks.shift.costs import all_flops
from benchmarks.shift.labels import SUFFIX, Protocol, labels_name, read_selection, read_summary, subsets
from benchmarks.shift.recipes import claim
from benchmarks.shift.runs import Train, call, directory, held, not_run, run
from benchmarks.shift.scores import read_run, scored
from benchmarks.shift.trainings import here, in_turn, on_slurm
from benchmarks.shift.validation import curve, tuned
from jaxz import errors, report_data, runtime
from jaxz.data.dataset import open_dataset
from jaxz.files import replace

SKY_SEED = 1  # of the one sky that all seeds are trained on; recipes were chosen on that of seed 0


def compare(
    scratch: Path,
    protocol: Protocol,
    arms: Sequence[Arm],
    rates: Sequence[float],
    seeds: list[int],
    pretrained: Path,
    train: Train = here,
    jobs: int = 1,
) -> dict:
    """Run all arms of all seeds, `jobs` arms at once, at the best of `rates` times their learning rates; the results as
    JSON. They are written after each seed; where a run fails in the first seed, of the arms that are done.

    Raises InputError where one fails, or where rates are to be chosen without a labelled validation object.
    """
    columns, (_, labelled) = open_dataset(str(protocol.dataset)).manifest.columns, held(protocol)
    if len(rates) > 1 and not len(labelled):
        raise errors.InputError("split: no labelled object is in 'val', by which learning rates are chosen; add some")
    absent = not_run(arms, pretrained, columns, len(labelled))
    for name, why in absent.items():
        print(f"{name}: not run: {why}")
    arms = [arm for arm in arms if arm.name not in absent]
    names = [arm.name for arm in arms]
    done, losses = [], {}
    work = lambda arm, seed: run(scratch, protocol, arm, seed, pretrained, train)
    try:
        for arm, found in tuned(scratch, protocol, arms, rates, seeds[0], work, jobs):
            done = sorted([*done, arm], key=lambda arm: names.index(arm.name))
            losses |= {arm.name: found} if found else {}
    except errors.InputError:
        if any(arm.scored for arm in done):
            ended = {arm.name for arm in done}
            absent |= {name: "a run failed before it was done" for name in names if name not in ended}
            write(scratch, protocol, done, seeds[:1], losses, absent)
        raise
    for number, seed in enumerate(seeds[1:], 1):
        write(scratch, protocol, done, seeds[:number], losses, absent)
        for _ in in_turn(done, jobs, partial(work, seed=seed)):
            pass
    results = write(scratch, protocol, done, seeds, losses, absent)
    print((scratch / "shift.txt").read_text())
    return results


def write(
    scratch: Path,
    protocol: Protocol,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    losses: Mapping[str, Mapping[float, float]],
    absent: Mapping[str, str],
) -> dict:
    """Score the runs of all arms and seeds, and write SCRATCH/shift.*; the results as JSON. losses: {arm: {times its
    learning rate: validation loss}}; absent: {arm: why it was not run}."""
    manifest = open_dataset(str(protocol.dataset)).manifest
    paths = {arm.name: [directory(scratch, arm.run, seed) for seed in seeds] for arm in arms}
    own = {arm.name: arm for arm in arms if arm.scored}
    trained = [arm.name for arm in arms if arm.config]
    loss_of = lambda arm: [curve(path, protocol, arm.labels) for path in paths[arm.name]]
    validation = {name: loss_of(arm) for name, arm in own.items() if arm.config}
    keys, cells, z_true, parts = subsets(protocol)
    predicted = {name: [read_run(path, keys, z_true) for path in paths[name]] for name in own}
    scores = scored(predicted, cells, parts)
    compared = tables.compare(scores, own)
    weighed = sorted({arm.fraction for arm in arms if arm.overlay == "weights"})
    own_weights = lambda fraction, seed: labels_name(protocol, "survey", fraction, seed) + SUFFIX["weights"]
    ess = {fraction: [read_summary(protocol, own_weights(fraction, seed)) for seed in seeds] for fraction in weighed}
    replace(scratch / "shift.txt", tables.text(scores, compared, parts).encode())
    replace(scratch / "shift.csv", tables.csv_of(scores, compared).encode())
    runs = {name: [report_data.read_run(path) for path in of] for name, of in paths.items()}
    configs = {runs[name][0].path.name: runs[name][0].config for name in trained}
    flops = dict(zip(configs, all_flops(configs.values(), manifest), strict=True))
    told = page.Told(str(protocol.dataset), runs, flops, ess, validation, losses, absent)
    found = {"arms": tables.json_of(scores, compared), "not_run": absent}
    found |= {"validation_loss": validation, "learning_rates": losses, "flops": flops}
    replace(scratch / "shift.json", json.dumps(found, indent=1).encode())
    replace(scratch / "shift.html", page.html(predicted, cells, parts, scores, compared, told).encode())
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small", help="small: 2 CPU cores; full: a GPU")
    parser.add_argument("--seeds", default="0,1,2", type=parse_seeds)
    parser.add_argument("--json", type=Path, help="a copy of the results")
    parser.add_argument("--dataset", type=Path, help="real data, in place of a simulated sky")
    parser.add_argument("--selection", type=Path, help="TOML: which of its labels are kept")
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"), help="directory of published weights")
    parser.add_argument("--submit", metavar="OPTIONS", help="each training as a job, by `launch.slurm submit OPTIONS`")
    parser.add_argument("--jobs", type=int, default=1, help="of --submit: arms at once (default 1)")
    options = parser.parse_args(argv)
    if options.jobs < 1 or (options.jobs > 1 and options.submit is None):
        raise errors.InputError(f"--jobs: {options.jobs} must be at least 1, and 1 without --submit; leave it out")
    train = on_slurm(options.submit) if options.submit is not None else here
    runtime.set_xla_flags()
    options.scratch = options.scratch.resolve()  # another name of it is the same recipe
    if (options.dataset is None) != (options.selection is None):
        raise errors.InputError("--dataset and --selection: one is given without the other; give both or neither")
    size = SIZES[options.size]()
    if options.dataset:
        protocol, sky = Protocol(options.dataset.resolve(), **read_selection(options.selection)), {}
    else:
        protocol = Protocol(options.scratch / "sky")
        sky = {"samples": size.samples, "size": size.pixels, "seed": SKY_SEED, "sky": size.sky}
    claim(options.scratch, protocol, size.arms, {"size": options.size, "sky": sky})
    if sky:
        own = (f"--{name}={value}" for name, value in sky.items())
        call("data_tools.simulate", str(protocol.dataset), *own)
    found = compare(
        options.scratch, protocol, size.arms, size.rates, options.seeds, options.pretrained, train, options.jobs
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    errors.run(main, resumes=True)
