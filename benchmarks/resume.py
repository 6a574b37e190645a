"""kill -9 at random moments, and the run goes on with the same samples and losses.

    python -m benchmarks.resume [--kills 50] [--seed 0] [--json FILE]

Arm "changing": all processes of a small run are killed while they start, compile, step or save; 1, 2 or 4 processes
go on from there. Every global batch of every life must hold the rows, bit for bit, of a run without a break. Arms
"1 process" and "2 processes", a fifth as many kills each: the count stays, and the metrics must be, bit for bit, those
of the unbroken run of that count too. On the CPU only the first process of several finds its compiled program again.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.loader import make
from benchmarks.processes import finish, kill, launch, read_record
from jaxz import errors

COUNTS, BATCH, EVERY = (1, 2, 4), 16, 10
MOMENTS = ("starting", "compiling", "stepping", "saving")
LONGEST = 1200  # seconds that a run without a break may take
CONFIG = """
from jaxz.config import default

def get_config():
    config = default()
    config.data.update(dict(path={path!r}, deredden=False))
    config.model.update(dict(width=32, depth=1, heads=2, patch=8))
    config.mae = dict(mask_ratio=0.5, decoder_width=16, decoder_depth=1, decoder_heads=2)
    config.losses = dict(mae=1.0)
    config.train.update(dict(steps={steps}, batch_size={batch}, log_every=1))
    config.checkpoint.update(dict(every={every}, keep=2))
    return config
"""


def unbroken(folder: Path, config: str, count: int) -> tuple[dict[int, list[int]], bytes]:
    """({step: rows of its global batch}, metrics.jsonl) of a run without a break."""
    print(f"without a break, {count} process(es)", file=sys.stderr, flush=True)
    run, record = folder / f"unbroken_{count}", folder / f"unbroken_{count}.rows"
    arguments = [str(record), config, f"--workdir={run}"]
    codes = finish(launch(count, arguments, folder / f"unbroken_{count}.log", "benchmarks.processes"), LONGEST)
    if any(codes):
        raise RuntimeError(f"the unbroken run of {count} ended with {codes}; see {folder}")
    lines = zip(*read_record(record, count), strict=True)
    return {parts[0]["step"]: [row for part in parts for row in part["rows"]] for parts in lines}, metrics(run)


def metrics(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


class Life:
    """From one start of `count` processes to their death."""

    def __init__(self, folder: Path, config: str, arm: str, number: int, count: int):
        self.run, self.count = folder / arm, count
        self.record, self.log = folder / f"{arm}.{number}.rows", folder / f"{arm}.{number}.log"
        self.began = time.time()
        arguments = [str(self.record), config, f"--workdir={self.run}"]
        self.processes = launch(count, arguments, self.log, "benchmarks.processes")

    def kill_at(self, moment: str, draw: np.random.Generator) -> str:
        """Kill all there; what they were doing, as found on disk. Raises RuntimeError where one ended by itself."""
        if moment == "starting":
            time.sleep(draw.uniform(0, 4))
        elif moment == "compiling":
            self.wait(lambda: self.steps() > 0)
            time.sleep(draw.uniform(0, 1))
        elif moment == "stepping":
            wanted = draw.integers(2, 2 * EVERY)
            self.wait(lambda: self.steps() > wanted)
        else:
            saves = draw.integers(1, 3)
            self.wait(lambda: self.steps() > (saves - 1) * EVERY and self.is_saving())
        early = [process.poll() for process in self.processes]
        kill(self.processes)
        if any(code is not None for code in early):
            raise RuntimeError(f"a process ended by itself with {early}; see {self.log}.*")
        if self.is_saving():
            return "saving"
        return MOMENTS[min(self.steps(), 2)]  # with one batch handed out, its step was compiling

    def steps(self) -> int:
        path = Path(f"{self.record}.0")
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def is_saving(self) -> bool:
        """Or was, at its death: a checkpoint has another name until it is whole."""
        for path in (self.run / "checkpoints").glob("*tmp*"):
            with contextlib.suppress(FileNotFoundError):  # whole since
                if path.stat().st_mtime >= self.began:
                    return True
        return False

    def wait(self, condition) -> None:
        while not condition() and all(process.poll() is None for process in self.processes):
            time.sleep(0.002)

    def seen(self) -> list[tuple[int, float]]:
        """(step, seconds since the start) of every batch that process 0 handed to a step."""
        return [(line["step"], line["time"] - self.began) for line in read_record(self.record, 1)[0]]

    def is_right(self, rows: dict[int, list[int]], newest: int) -> bool:
        """Whether it went on without leaving out a step, from one of the last two checkpoints before step `newest`, and
        with the rows of the unbroken run."""
        share, steps = BATCH // self.count, [n for n, _ in self.seen()]
        parts = enumerate(read_record(self.record, self.count))
        same = all(line["rows"] == rows[line["step"]][n * share : (n + 1) * share] for n, p in parts for line in p)
        ordered = steps == list(range(steps[0], steps[0] + len(steps)))
        return same and ordered and newest - 2 * EVERY <= steps[0] <= newest + 1


def arm(folder: Path, config: str, name: str, counts: tuple, kills: int, steps: int, rows: dict, draw) -> dict:
    """Kill and go on `kills` times, then let the run end. A kill is good where what came after it was right."""
    moments, good, pending, newest = Counter(), 0, 0, 0
    restart, new_step = {count: [] for count in counts}, {count: [] for count in counts}
    for number in range(kills + 1):
        count = int(draw.choice(counts))
        life = Life(folder, config, name.replace(" ", "_"), number, count)
        if number < kills:
            moment = draw.choice(MOMENTS if newest < steps - 5 * EVERY else MOMENTS[:2])
            moments[life.kill_at(moment, draw)] += 1
        elif any(codes := finish(life.processes, LONGEST)):
            raise RuntimeError(f"the last life ended with {codes}; see {life.log}.*")
        if seen := life.seen():
            good, pending = good + pending * life.is_right(rows, newest), 0
            restart[count] += [seen[0][1]] * (number > 0)
            new_step[count] += [seconds for n, seconds in seen if n == newest + 2]  # so that newest + 1 is done
            newest = max(newest, seen[-1][0])
        pending += 1
        print(f"{name}: life {number + 1}/{kills + 1}, {count} process(es), step {newest}", file=sys.stderr, flush=True)
    seconds = {"to_first_step": restart, "to_first_new_step": new_step}
    return {"kills": kills, "good": good, "moments": moments, "seconds": seconds}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.kills < 1:
        raise errors.InputError(f"--kills: {options.kills} must be at least 1")
    began, draw = time.monotonic(), np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(prefix="jaxz-resume-") as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        make(folder / "data", shards=3, bands=3, size=16)
        steps = 8 * options.kills + 60
        path = folder / "config.py"
        path.write_text(CONFIG.format(path=str(folder / "data"), steps=steps, batch=BATCH, every=EVERY))
        config = f"--config={path}"
        whole = {count: unbroken(folder, config, count) for count in COUNTS}
        rows = whole[1][0]
        if any(whole[count][0] != rows for count in COUNTS):
            raise RuntimeError("unbroken runs of 1, 2 and 4 processes differ in their rows")
        arms = {"changing": arm(folder, config, "changing", COUNTS, options.kills, steps, rows, draw)}
        for count in (1, 2):
            name = f"{count} process{'es' * (count > 1)}"
            found = arm(folder, config, name, (count,), -(-options.kills // 5), steps, rows, draw)
            found["same_metrics"] = metrics(folder / name.replace(" ", "_")) == whole[count][1]
            arms[name] = found
        drift = {count: float(np.max(apart(whole[count][1], whole[1][1])[:20])) for count in COUNTS[1:]}
        drift["changing"] = float(np.max(apart(metrics(folder / "changing"), whole[1][1])))
    return report({"arms": arms, "loss_differences": drift, "seconds": time.monotonic() - began}, options.json)


def apart(one: bytes, other: bytes) -> np.ndarray:
    """[S]: relative difference of the losses."""
    a, b = (np.array([json.loads(line)["loss"] for line in lines.splitlines()]) for lines in (one, other))
    return np.abs(a / b - 1)


def report(found: dict, path: Path | None) -> int:
    ok = True
    for name, arm in found["arms"].items():
        same = arm.get("same_metrics", True)
        ok &= arm["good"] == arm["kills"] and same
        print(f"{name}: {arm['good']} of {arm['kills']} ({', '.join(f'{n} {m}' for m, n in arm['moments'].items())})")
        if "same_metrics" in arm:
            print(f"    metrics {'are' if same else 'ARE NOT'} bit for bit those of the unbroken run")
        for what, seconds in arm["seconds"].items():
            medians = (f"{count}: {np.median(values):.1f}" for count, values in seconds.items() if values)
            print(f"    seconds {what.replace('_', ' ')}, median by processes   {', '.join(medians) or 'none'}")
    for name, value in found["loss_differences"].items():
        what = "all steps of the changing arm" if name == "changing" else f"20 steps of {name} processes"
        print(f"largest relative loss difference to 1 process, {what}: {value:.1e}")
    print(f"{found['seconds']:.0f} s in all")
    if path:
        path.write_text(json.dumps(found, indent=1))
    return errors.OK if ok else errors.FAILED


if __name__ == "__main__":
    errors.run(main)
