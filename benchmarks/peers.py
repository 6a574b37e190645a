"""The stream beside other loaders: the same samples as batches of 256, shuffled, from the page cache.

    python -m benchmarks.peers DATASET [--rounds 5] [--venvs DIR] [--scratch DIR] [--json FILE]
    python -m benchmarks.peers --install [--venvs DIR]

DATASET needs a raw array `image` of one shape; where it is missing, 20,000 samples of 9 x 64 x 64 float16 are written
(1.5 GB). Its samples are written once more in each format that a peer reads (as much each, five formats) to --scratch,
by default DATASET_peers. Each peer runs in an environment of its own, which --install makes (4 GB); those absent are
skipped. Before the rounds, an epoch of every arm is compared with the index by count and sum of checksums. Five rounds
take about eight minutes on two cores. Run it alone: arms with workers suffer most from other load.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks import arms, peer_arms
from benchmarks.loader import open_images
from benchmarks.measure import measure
from jaxz import errors
from jaxz.data.dataset import Dataset
from jaxz.data.stream import Source, Stream
from jaxz.files import replace

# torch is pinned beside what depends on it, so that pip keeps the build that was installed.
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "torch": (TORCH, "webdataset==1.0.2", "wids==0.1.11"),
    "mosaic": (TORCH, "mosaicml-streaming==0.13.0"),
    "litdata": (TORCH, "litdata==0.2.76"),
    "grain": ("grain==0.2.18", "array_record==0.8.6"),
}
OURS = {
    f"jaxz, {threads} thread{'s' * (threads > 1)}, {f'window {window}' if window else 'all shuffled'}": (
        threads,
        window,
    )
    for threads in (2, 1)
    for window in (4, 0)
}
REFERENCE = next(iter(OURS))
INSTALLED = "installed.json"  # beside the environments, once all of them are whole: what is in them


def install(folder: Path) -> int:
    """Make the peers' environments; returns an exit code."""
    wrong = []
    (folder / INSTALLED).unlink(missing_ok=True)
    for n, (name, packages) in enumerate(ENVIRONMENTS.items()):
        print(f"environment {n + 1}/{len(ENVIRONMENTS)}: {' '.join(packages)}", file=sys.stderr, flush=True)
        venv.create(folder / name, symlinks=True, with_pip=True)
        if subprocess.run([python(folder, name), "-m", "pip", "install", "--quiet", *packages]).returncode:
            wrong.append(name)
    if wrong:
        print(f"failed: pip could not install {', '.join(wrong)}; run the same command again", file=sys.stderr)
        return errors.FAILED
    replace(folder / INSTALLED, json.dumps(ENVIRONMENTS, indent=1).encode())
    return errors.OK


def python(folder: Path, name: str | None) -> str:
    """The interpreter of an environment; of None, this one."""
    return sys.executable if name is None else str(folder / name / "bin" / "python")


def run_ours(dataset: Dataset, name: str, seconds: float, check: bool) -> dict:
    threads, window = OURS[name]
    source = Source(dataset, arrays=("image",), window=window)
    stream = Stream(source, peer_arms.BATCH, threads=threads, epochs=1 if check else None)
    if not check:
        return measure(lambda: (batch["image"] for batch in stream), seconds)
    spec = dataset.manifest.arrays["image"]
    data = peer_arms.Data([], Path(), spec.shape, spec.dtype)
    return peer_arms.check((batch["image"][batch["valid"]] for batch in stream), data)


def expected(dataset: Dataset) -> dict:
    """What the index says of an epoch: samples and the sum of their checksums mod 2^32."""
    sums = [int(dataset.places(n, "image")[2].sum()) for n in range(len(dataset.manifest.shards))]
    return {"samples": len(dataset), "crc32": sum(sums) % 2**32}


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The command of every arm, to which --seconds, --check or --convert is added."""
    ours = [sys.executable, "-m", "benchmarks.peers", str(options.dataset), "--arm"]
    found = {name: [*ours, name] for name in OURS}
    folders = ["--shards", str(options.dataset / "shards"), "--scratch", str(options.scratch)]
    for name, arm in peer_arms.ARMS.items():
        found[name] = [python(options.venvs, arm.venv), "-m", "benchmarks.peer_arms", name, *folders]
    return found


def prepare(name: str, command: list[str], options: argparse.Namespace, wanted: dict) -> dict:
    """Convert what the arm reads, if need be, and check what it delivers."""
    if not Path(command[0]).exists():
        return {"error": f"skipped: no {command[0]}; python -m benchmarks.peers --install"}
    if not folder(name, options).exists():
        result = arms.run([*command, "--convert"], timeout=3600)
        if not folder(name, options).exists():  # a conversion prints nothing: its folder appears once it is complete
            return result
    result = arms.run([*command, "--check"])
    delivered = {key: result.get(key) for key in wanted}
    if "error" not in result and delivered != wanted:
        result["error"] = f"delivers {delivered}, not {wanted}; is {folder(name, options)} of another dataset?"
    return result


def folder(name: str, options: argparse.Namespace) -> Path:
    """What an arm reads."""
    form = peer_arms.ARMS[name].form if name in peer_arms.ARMS else None
    return options.dataset / "shards" if form is None else options.scratch / form


def table(prepared: dict[str, dict], found: dict[str, list[dict]]) -> str:
    """A row per arm: medians, and how many times as fast the reference arm is."""
    rates = {
        name: [arms.median_rate(results, over) for over in ("wall_s", "cpu_s")]
        for name, results in found.items()
        if not arms.failed(results)
    }
    lines = [f"{'':42}{'samples/s':>10}{'a CPU s':>10}{'first batch s':>15}{'peak GB':>9}{'ours: wall':>12}{'CPU':>7}"]
    for name in prepared:
        if name not in rates:
            lines.append(f"{name:42}{prepared[name].get('error') or arms.failed(found[name])}")
            continue
        first, peak = (statistics.median(r[key] for r in found[name]) for key in ("first_batch_s", "peak_bytes"))
        line = f"{name:42}{rates[name][0]:10,.0f}{rates[name][1]:10,.0f}{first:15.2f}{peak / 1e9:9.2f}"
        if REFERENCE in rates:
            wall, cpu = (ours / rate for ours, rate in zip(rates[REFERENCE], rates[name], strict=True))
            line += f"{wall:12.1f}{cpu:7.1f}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str]) -> int | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxz" / "peers"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each arm in each round")
    parser.add_argument("--venvs", type=Path, default=cache, help="the peers' environments (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="the samples in the peers' formats")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--install", action="store_true", help="make the peers' environments")
    parser.add_argument("--arm", choices=OURS, help=argparse.SUPPRESS)  # one of ours, in this process
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.venvs = options.venvs.absolute()
    if options.install:
        return install(options.venvs)
    if options.dataset is None:
        parser.error("DATASET or --install is required")
    if options.rounds < 1:
        raise errors.InputError(f"--rounds: {options.rounds} must be at least 1")
    dataset = open_images(options.dataset)
    if options.arm:
        print(json.dumps(run_ours(dataset, options.arm, options.seconds, options.check)))
        return None
    options.scratch = options.scratch or options.dataset.with_name(f"{options.dataset.name}_peers")
    compare(dataset, options)
    return None


def compare(dataset: Dataset, options: argparse.Namespace) -> None:
    wanted, prepared = expected(dataset), {}
    every = commands(options)
    for n, (name, command) in enumerate(every.items()):
        prepared[name] = prepare(name, command, options, wanted)
        print(f"checked {n + 1}/{len(every)}: {name}", file=sys.stderr, flush=True)
    timed = {name: [*every[name], "--seconds", str(options.seconds)] for name in every if "error" not in prepared[name]}
    found = arms.interleave(timed, options.rounds, before=lambda name: arms.warm(folder(name, options)))
    if options.json:
        report = {"sample_bytes": dataset.manifest.arrays["image"].nbytes, "checks": prepared, "rounds": found}
        replace(options.json, json.dumps(report, indent=1).encode())
    print(table(prepared, found))


if __name__ == "__main__":
    errors.run(main)
