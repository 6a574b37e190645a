"""Does training ever wait for its data, and does its memory grow?

    python -m benchmarks.stall DATASET [--rounds 7] [--json FILE]

A loop like the trainer's with a step that only sleeps, so long that it wants batches at 80 % of the rate at which the
stream alone gives them: the time of a step with batches from the stream against that with one batch that stays in
memory, interleaved, medians. Then the resident memory after each of ten epochs. DATASET is that of benchmarks.loader.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.loader import BATCH, make
from jaxz import errors
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.stream import Source, Stream
from jaxz.loop import prefetch
from jaxz.mesh import make_mesh

SHARE, STEPS, WARM, EPOCHS = 0.8, 60, 12, 10


class InMemory:
    """What prefetch needs of a stream: the same batch for ever."""

    def __init__(self, batch: dict):
        self.batch = batch

    def __next__(self) -> dict:
        return dict(self.batch)

    def state(self) -> dict:
        return {}


def open_stream(dataset: Dataset) -> Stream:
    return Stream(Source(dataset, arrays=("image",), columns=("z",), where="split == 'train'"), BATCH)


def step_seconds(batches, sleep: float) -> float:
    """Of one step, the first ones left out: what was read ahead while the other arm ran is used up in them."""
    for n in range(WARM + STEPS):
        if n == WARM:
            began = time.perf_counter()
        next(batches)
        time.sleep(sleep)
    return (time.perf_counter() - began) / STEPS


def rate(stream: Stream) -> float:
    """Batches a second that the stream alone gives."""
    for _ in range(WARM):
        next(stream)
    began = time.perf_counter()
    for _ in range(STEPS):
        next(stream)
    return STEPS / (time.perf_counter() - began)


def stall(dataset: Dataset, rounds: int) -> dict:
    stream = open_stream(dataset)
    alone = float(np.median([rate(stream) for _ in range(rounds)]))
    sleep, mesh = 1 / (SHARE * alone), make_mesh(1, 1)
    arms = {"stream": prefetch(stream, mesh), "memory": prefetch(InMemory(next(stream)), mesh)}
    seconds = {name: [] for name in arms}
    for _ in range(rounds):
        for name, batches in arms.items():
            seconds[name].append(step_seconds(batches, sleep))
    stream.close()
    ratio = float(np.median(np.array(seconds["stream"]) / np.array(seconds["memory"])))
    return {"loader_samples_per_second": BATCH * alone, "sleep": sleep, "step_seconds": seconds, "stall": ratio - 1}


def memory(dataset: Dataset) -> list[int]:
    """Resident bytes of this process after each epoch."""
    stream, found = open_stream(dataset), []
    for _ in range(EPOCHS):
        for _ in range(len(stream) // BATCH):
            next(stream)
        found.append(resident())
    stream.close()
    return found


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stall", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if not (options.dataset / "dataset.json").exists():
        make(options.dataset)
    dataset = open_dataset(options.dataset)
    for n in range(len(dataset.manifest.shards)):  # into the page cache
        dataset.shard_path(n).read_bytes()
    found = stall(dataset, options.rounds)
    found["resident_bytes"] = memory(dataset)
    growth = found["resident_bytes"][-1] / found["resident_bytes"][1] - 1
    print(
        f"the stream alone gives {found['loader_samples_per_second']:,.0f} samples/s; a step sleeps "
        f"{1000 * found['sleep']:.1f} ms"
    )
    print(f"a step with it takes {found['stall']:+.1%} of one with a batch in memory (the bar is +2 %)")
    print(f"resident memory after epoch {EPOCHS} is {growth:+.1%} of that after epoch 2 (the bar is +-2 %)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    errors.run(main)
