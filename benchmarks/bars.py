"""Every figure that jaxz is held to, measured and judged: one table.

    python -m benchmarks.bars SCRATCH [--only loader,storage] [--data ../shared/data]

Runs each benchmark of RUNS whose result SCRATCH does not hold, one after the other; on 2 cores, which they want for
themselves, `shift` alone takes about nine hours. Interrupted, it goes on when the same command is given again; to
measure one again remove SCRATCH/NAME.json. SCRATCH/bars.md has the table of what is there: a row for each bar, with the
commit and the day on which it was measured; nan, which no bar takes, where an arm failed. What tests hold is not among
them.
"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks import arms
from benchmarks.peers import INSTALLED
from jaxz import errors
from jaxz.files import replace
from jaxz.provenance import versions

Read = Callable[[dict], float]


class Bar(NamedTuple):
    """of: the benchmark. read: the figure, of its JSON. limit: what it must be at least or, where `most`, at most."""

    of: str
    figure: str
    read: Read
    limit: float
    most: bool = False
    form: str = ".2f"

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


# Commands; {scratch}: of datasets and runs, {data}: of public ones. Some read what those before them have made.
RUNS = {
    "loader": "benchmarks.loader {scratch}/images",
    "peers": "benchmarks.peers {scratch}/images --venvs {scratch}/venvs",
    "stall": "benchmarks.stall {scratch}/images",
    "storage": "benchmarks.storage",
    "scale": "benchmarks.scale {scratch}/forty_million",
    "faults": "benchmarks.faults --count 1000",
    "resume": "benchmarks.resume --kills 50",
    "convert": "benchmarks.convert {scratch}/convert --rounds 5",
    "overhead": "benchmarks.step --overhead",
    "pretrained": "benchmarks.pretrained time {scratch}/dinov2_vitl14.safetensors",
    "damage": "benchmarks.pretrained damage {scratch}/dinov2_vits14.safetensors --count 500",
    "photometry": "benchmarks.photometry {scratch}/photometry --data {data}",
    "probes": "benchmarks.probes {scratch}/probes",
    "shift": "benchmarks.shift {scratch}/shift",
    "predict": "benchmarks.predict --workdir {scratch}/shift/runs/matched_0 --dataset {scratch}/shift/sky "
    "--where \"split == 'test'\" --objects_per_part 1024 --rounds 3",
}
MAKE = {  # what a run needs and does not make itself: a file that is there once all of it is, and the command
    "peers": (f"{{scratch}}/venvs/{INSTALLED}", "benchmarks.peers --install --venvs {scratch}/venvs"),
    **{
        name: (f"{{scratch}}/{weights}.safetensors",
               f"benchmarks.pretrained make --name {weights} {{scratch}}/{weights}.safetensors")
        for name, weights in (("pretrained", "dinov2_vitl14"), ("damage", "dinov2_vits14"))
    },
}  # fmt: skip
OURS = "stream, {} thread{}, {}"


def rate(found: dict, arm: str) -> float:
    """Samples a second of an arm of `loader` or `peers`; NaN where it failed."""
    results = found["rounds"].get(arm) or [{"error": "not run"}]
    return nan if arms.failed(results) else arms.median_rate(results, "wall_s")


def fastest(found: dict, names: Iterable[str]) -> float:
    """The largest rate of some arms, those that failed left out."""
    return max((value for arm in names if not isnan(value := rate(found, arm))), default=nan)


def best_pread(found: dict) -> float:
    return fastest(found, [arm for arm in found["rounds"] if arm.startswith("pread ") and arm.endswith("KiB")])


def over(arm: str, limit: str | Read) -> Read:
    """The rate of an arm in that of another."""
    return lambda found: rate(found, arm) / (limit(found) if callable(limit) else rate(found, limit))


def peer(arm: str) -> Read:
    """How many times as fast the stream is, by 2 threads, in its better order."""
    ours = ("jaxz, 2 threads, window 4", "jaxz, 2 threads, all shuffled")
    return lambda found: fastest(found, ours) / rate(found, arm)


def slowest(found: dict, starts: str) -> float:
    """The largest median, over the filters of `scale`, of what begins so; NaN where one failed."""
    if any(map(arms.failed, found["rounds"].values())):
        return nan
    return max(
        median(result[key] for result in results)
        for results in found["rounds"].values()
        for key in results[0]
        if key.startswith(starts)
    )


def worst(value: str) -> Read:
    """Over all bins of brightness of compact storage, without its standard error."""
    bins = lambda found: found["rows"]["compact, of float32"]["aperture"]
    return lambda found: max(abs(one[value]) for one in bins(found))


def mean(found: dict, arm: str, metric: str) -> float:
    """Over the seeds, of `photometry`."""
    return float(np.mean([seed[metric]["value"] for seed in found[arm]]))


def gain(arm: str) -> Read:
    """Of R^2 over the untrained ViT, mean over the seeds of `probes`."""
    return lambda found: float(np.mean([s["run"]["value"] - s["random_init"]["value"] for s in found[arm]]))


def less(arm: str, subset: str, metric: str = "sigma_mad") -> Read:
    """The arm of `shift` less the directly trained one, in errors of the difference."""

    def read(found: dict) -> float:
        entry = found["arms"][arm][subset][metric]
        return entry["difference"] / entry["difference_error"]

    return read


def images_less_photometry(found: dict) -> float:
    entry = found["arms"]["photometry"]["spec_like"]["sigma_mad"]  # its difference is photometry less images
    return -entry["difference"] / entry["difference_error"]


def closure(arm: str, metric: str) -> Read:
    """NaN where there is no gap beyond its errors."""
    return lambda found: found["arms"][arm]["beyond"][metric].get("closure", nan)


def kept(arm: str) -> Read:
    """The loss of an arm on objects like the labelled, in the scatter of the directly trained."""
    of = lambda found, arm: found["arms"][arm]["spec_like"]["sigma_mad"]["value"]
    return lambda found: of(found, arm) / of(found, "matched") - 1


ONE, TWO = OURS.format(1, "", "all shuffled"), OURS.format(2, "s", "all shuffled")
BARS = (
    Bar("loader", "stream, 1 thread, of sequential pread at its best chunk", over(ONE, best_pread), 0.8),
    Bar("loader", "stream, 1 thread, of memcpy", over(ONE, "memcpy"), 0.4),
    Bar("loader", "stream, 2 threads, of memcpy by one", over(TWO, "memcpy"), 0.6),
    Bar("loader", "all shuffled, of windows of 4 shards", over(TWO, OURS.format(2, "s", "window 4")), 0.7),
    Bar("peers", "stream, 2 threads, times webdataset, plain", peer("webdataset, plain"), 25, form=".1f"),
    Bar("peers", "times webdataset, at its best", peer("webdataset, best"), 15, form=".1f"),
    Bar(
        "peers",
        "times that with a DataLoader of 2 workers",
        peer("webdataset, best, DataLoader 2 workers"),
        15,
        form=".1f",
    ),
    Bar("peers", "times ArrayRecord, in bulk", peer("array_record, in bulk"), 6, form=".1f"),
    Bar(
        "peers",
        "times grain, DataLoader of 2 read threads",
        peer("grain DataLoader, 2 read threads"),
        8,
        form=".1f",
    ),
    Bar(
        "peers", "times mosaicml-streaming, 2 workers", peer("mosaicml-streaming, 2 workers"), 12, form=".1f"
    ),
    Bar("stall", "step with the stream, over one with a batch in memory", lambda f: f["stall"], 0.02, True, ".1%"),
    Bar(
        "stall",
        "growth of resident memory, epoch 2 to 10",
        lambda f: abs(f["resident_bytes"][-1] / f["resident_bytes"][1] - 1),
        0.02,
        True,
        ".1%",
    ),
    Bar(
        "storage",
        "compact, bytes of raw",
        lambda f: f["rows"]["compact, of float32"]["bytes"] / f["raw_bytes"],
        0.45,
        True,
        ".3f",
    ),
    Bar(
        "storage",
        "compact, decoded by a core, raw-equivalent GB/s",
        lambda f: float(np.median([one[0] for one in f["rows"]["compact, of float32"]["speed"]["1"]])) / 1e9,
        1.5,
    ),
    Bar("storage", "compact, rms error of aperture fluxes, in sigma, worst bin", worst("rms"), 0.05, True, ".3f"),
    Bar("storage", "compact, their bias, in sigma, worst bin", worst("bias"), 0.005, True, ".4f"),
    Bar("scale", "40 million rows opened with a filter, s", lambda f: slowest(f, "open_s"), 5, True, ".1f"),
    Bar("scale", "peak memory, GB", lambda f: slowest(f, "peak_bytes") / 1e9, 2, True),
    Bar("scale", "first batch at any position, s", lambda f: slowest(f, "first batch"), 1, True),
    Bar(
        "faults",
        "of 1,000 mutations: silent, crashed, or wrong after the repair",
        lambda f: sum(one["outcome"].startswith(("silent", "crash")) or bool(one.get("left_wrong")) for one in f),
        0,
        True,
        ".0f",
    ),
    Bar("resume", "kills of 50 after which all samples are those of the unbroken run",
        lambda f: f["arms"]["changing"]["good"], 50, form=".0f"),
    Bar("resume", "arms of an unchanged count (1, 2 processes) whose losses are so bit for bit",
        lambda f: sum(arm.get("same_metrics", False) for arm in f["arms"].values()), 2, form=".0f"),
    Bar("convert", "conversion, of a bare loop over arrays in memory",
        lambda f: float(np.median(f["bare_s"]) / np.median([one["seconds"] for one in f["conversion"]])), 0.5),
    Bar("convert", "resident memory of all its processes, GB",
        lambda f: max(one["bytes"] for one in f["conversion"]) / 1e9, 1.5, True),
    Bar("overhead", "compiling the step of a ViT-L, s", lambda f: f["compile_s"], 60, True, ".1f"),
    Bar("overhead", "dispatch of the step of a ViT-Ti, ms", lambda f: 1e3 * f["dispatch_s"], 2, True),
    Bar("pretrained", "import of a ViT-L, s", lambda f: f[0].get("seconds", nan), 15, True, ".1f"),
    Bar("pretrained", "its peak memory, of the file",
        lambda f: f[0].get("peak", nan) / f[0].get("bytes", nan), 2, True),
    Bar("damage", "of 500 damaged files: loaded with other numbers, or crashed",
        lambda f: sum(n for what, n in f.items() if what.isupper() or "CRASHED" in what), 0, True, ".0f"),
    Bar("photometry", "BOSS, perceptrons, sigma_mad", lambda f: mean(f, "boss mlp", "sigma_mad"), 0.0195, True, ".4f"),
    Bar("photometry", "BOSS chosen by colour: size of the median bias, corrected in uncorrected",
        lambda f: abs(mean(f, "boss_cut mlp redshifted", "bias_median") / mean(f, "boss_cut mlp", "bias_median")),
        0.5, True),
    Bar("photometry", "... and sigma_mad", lambda f: mean(f, "boss_cut mlp redshifted", "sigma_mad")
        / mean(f, "boss_cut mlp", "sigma_mad"), 0.95, True),
    Bar("photometry", "DC2, perceptrons, sigma_mad", lambda f: mean(f, "dc2 mlp", "sigma_mad"), 0.0246, True, ".4f"),
    *(Bar("probes", f"R^2 of redshift over the untrained ViT's, {arm}", gain(arm), 0.1, form=".3f")
      for arm in ("mae", "dino", "simclr", "byol")),
    Bar("shift", "spec-like sigma_mad, images less photometry, in errors", images_less_photometry, -2, True, ".1f"),
    *(Bar("shift", f"sigma_mad of all, `{arm}` less direct, in errors", less(arm, "full"), -2, True, ".1f")
      for arm in ("mae", "fluxes", "semi", "tiered")),
    *(Bar("shift", f"gap to the oracle beyond the labels closed by `tiered`, {metric}", closure("tiered", metric), 0.3)
      for metric in ("eta_15", "abs_bias")),
    Bar("shift", "sigma_mad that `tiered` loses on spec-like", kept("tiered"), 0.05, True, ".1%"),
    Bar("predict", "jaxz.predict, of the rate of the bare forward pass", lambda f: f["ratio"], 0.9),
)  # fmt: skip


def measure(scratch: Path, name: str, data: Path) -> None:
    """Run a benchmark unless SCRATCH holds its result; beside that what it is of. Raises InputError where it fails."""
    result = scratch / f"{name}.json"
    if result.exists():
        return
    places = {"scratch": scratch, "data": data}
    words = lambda template: [word.format(**places) for word in shlex.split(template)]
    began = time.monotonic()
    of = {"commit": versions()["commit"], "date": datetime.date.today().isoformat()}
    if name in MAKE and not Path(MAKE[name][0].format(**places)).exists():
        call(words(MAKE[name][1]))
    part = result.with_suffix(".part")
    part.unlink(missing_ok=True)
    # One that finds what must not be ends with 1, and has told what; so does one that breaks, but tells nothing.
    call([*words(RUNS[name]), "--json", str(part)], (errors.OK, errors.FAILED))
    if not part.exists():
        raise errors.InputError(f"--only: {name} broke, see above; mend it, or name those that are to be measured")
    replace(scratch / f"{name}.of.json", json.dumps(of | {"seconds": time.monotonic() - began}).encode())
    part.rename(result)


def call(command: Sequence[str], good: Sequence[int] = (errors.OK,)) -> None:
    print(f"python -m {shlex.join(command)}", file=sys.stderr)
    code = subprocess.run([sys.executable, "-m", *command]).returncode
    if code == errors.REQUEUE:
        raise errors.Stopped("a benchmark was stopped; give the same command again")
    if code not in good:
        raise errors.InputError(f"python -m {shlex.join(command)} ended with {code}; see above")


def table(scratch: Path, bars: Sequence[Bar]) -> list[str]:
    """The rows, in Markdown, of the benchmarks that were run."""
    lines = ["| figure | measured | bar | holds | command | commit, date |", "|---|---|---|---|---|---|"]
    for bar in bars:
        result = scratch / f"{bar.of}.json"
        if not result.exists():
            continue
        of: Mapping = json.loads((scratch / f"{bar.of}.of.json").read_bytes())
        value = bar.read(json.loads(result.read_bytes()))
        shown, limit = (format(number, bar.form) for number in (value, bar.limit))
        command = RUNS[bar.of].format(scratch="SCRATCH", data="DATA")
        holds = "yes" if bar.holds(value) else "**no**"
        sign = "at most" if bar.most else "at least"
        lines.append(
            f"| {bar.figure} | {shown} | {sign} {limit} | {holds} | `python -m {command}` "
            f"| {of['commit']}, {of['date']} |"
        )
    return lines


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bars", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--only", help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public catalogues")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(RUNS)
    for name in names:
        if name not in RUNS:
            raise errors.InputError(f"--only: {name!r} is no benchmark.{errors.suggest(name, RUNS)}")
    scratch = options.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    for name in names:
        measure(scratch, name, options.data)
        replace(scratch / "bars.md", "\n".join([*table(scratch, BARS), ""]).encode())
    print((scratch / "bars.md").read_text(), end="")


if __name__ == "__main__":
    errors.run(main, resumes=True)
