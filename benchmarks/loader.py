"""How fast batches come, against what the machine can do: each arm a process of its own, interleaved, medians.

    python -m benchmarks.loader DATASET [--rounds 5] [--json FILE]

DATASET needs a raw array `image` of one shape; where it is missing, 20,000 samples of 9 x 64 x 64 float16 are written
(1.5 GB). Batches of 256, shuffled, read from the page cache, as the trainer takes them. The limits: copying a batch
that the processor's cache holds (memcpy), or one that it cannot (from memory); pread of the tars in order, into one
buffer of the chunk's size that stays in the cache, or into batches in turn; and a bare loop of preadv over shuffled
samples into batches in turn, which is all that any reader can do with one call a sample.
"""

import argparse
import functools
import itertools
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import arms
from jaxz import errors
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.files import replace

BATCH, SECONDS, WARM = 256, 1.0, 20
CHUNKS = [2**k for k in range(15, 25)]


def make(path: Path, shards: int = 20, bands: int = 9, size: int = 64) -> None:
    """Noise of unit sky and an exponential galaxy in every cutout."""
    kinds = {"object_id": Column("int64"), "z": Column("float32"), "split": Column("string")}
    table = tuple(Band(f"b{n}", 400.0 + 100 * n, 80.0, 27.0, 0.2, 1.0, 1.0, 0.8) for n in range(bands))
    manifest = Manifest({"image": Array("image", "float16", (bands, size, size))}, table, kinds)
    writer = DatasetWriter(path, manifest, plan={"shards": shards, "bands": bands, "size": size})
    radius = np.hypot(*(np.mgrid[:size, :size] - size / 2))
    for n in range(shards):
        if not writer.done(n):
            draw, ids = np.random.default_rng(n), np.arange(1000 * n, 1000 * (n + 1))
            flux = 10 ** draw.uniform(0, 3, (1000, 1, 1, 1)).astype(np.float32)
            image = draw.standard_normal((1000, bands, size, size), np.float32) + flux * np.exp(-radius / 3)
            columns = {"object_id": ids, "z": draw.random(1000, np.float32)}
            columns["split"] = np.where(ids % 5 == 0, "test", "train")
            writer.write_shard(n, [f"s{i:08d}" for i in ids], {"image": image.astype(np.float16)}, columns)
            print(f"shard {n + 1}/{shards}", file=sys.stderr)
    writer.finish(shards, {})


def open_images(path: Path) -> Dataset:
    """The dataset at `path`, made where it is missing. Raises InputError where its images are not raw and of one shape,
    as the arms read them."""
    if not (path / "dataset.json").exists():
        make(path)
    dataset = open_dataset(path)
    spec = dataset.manifest.arrays.get("image")
    if spec is None or spec.encoding != "raw" or spec.variable:
        raise errors.InputError(f"DATASET: {str(path)!r} has no raw array 'image' of one shape; name another")
    return dataset


def pages(nbytes: int) -> list[memoryview]:
    """Two aligned batches that are in memory."""
    views = [memoryview(mmap.mmap(-1, nbytes)) for _ in range(2)]
    for view in views:
        view[:] = bytes(nbytes)
    return views


def timed(step: Callable[[], int], sample: int) -> dict:
    """step() returns the bytes that it moved."""
    moved, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        moved += step()
    return {
        "samples": moved / sample,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def memcpy(dataset: Dataset, cached: bool) -> dict:
    """Batch after batch out of one that the cache holds, or out of a gigabyte that it does not."""
    sample = dataset.manifest.arrays["image"].nbytes
    size = BATCH * sample
    targets = [np.frombuffer(view, np.uint8) for view in pages(size)]
    sources = np.frombuffer(mmap.mmap(-1, size if cached else (1 << 30) // size * size), np.uint8).reshape(-1, size)
    sources[:] = 1
    turns = itertools.count()

    def step() -> int:
        turn = next(turns)
        np.copyto(targets[0 if cached else turn % 2], sources[turn % len(sources)])
        return size

    return timed(step, sample)


def pread(dataset: Dataset, chunk: int, batches: bool) -> dict:
    """Whole tars in order, in chunks."""
    sample = dataset.manifest.arrays["image"].nbytes
    room = pages(max(chunk, BATCH * sample)) if batches else pages(chunk)[:1]
    views = [view[at : at + chunk] for view in room for at in range(0, len(view) - chunk + 1, chunk)]
    files = itertools.cycle([os.open(dataset.shard_path(n), os.O_RDONLY) for n in range(len(dataset.manifest.shards))])
    turns = itertools.cycle(views)

    def step() -> int:
        file, moved = next(files), 0
        while got := os.preadv(file, [next(turns)], moved):
            moved += got
        return moved

    return timed(step, sample)


def preadv_loop(dataset: Dataset) -> dict:
    """Samples of all shards in random order, one call each."""
    spec = dataset.manifest.arrays["image"]
    files = [os.open(dataset.shard_path(n), os.O_RDONLY) for n in range(len(dataset.manifest.shards))]
    places = [(file, at) for n, file in enumerate(files) for at in dataset.places(n, "image")[0].tolist()]
    order = itertools.cycle(np.random.default_rng(0).permutation(len(places)).tolist())
    slots = itertools.cycle(
        [view[at : at + spec.nbytes] for view in pages(BATCH * spec.nbytes) for at in range(0, len(view), spec.nbytes)]
    )

    def step() -> int:
        for slot, which in itertools.islice(zip(slots, order, strict=False), BATCH):
            file, at = places[which]
            os.preadv(file, (slot,), at)
        return BATCH * spec.nbytes

    return timed(step, spec.nbytes)


def stream(dataset: Dataset, threads: int, window: int, check: str) -> dict:
    source = Source(dataset, arrays=("image",), columns=("z",), where="split == 'train'", window=window)
    batches = Stream(source, BATCH, threads=threads, check=check)
    for _ in range(WARM):
        next(batches)
    size = BATCH * dataset.manifest.arrays["image"].nbytes
    found = timed(lambda: size if next(batches) else 0, dataset.manifest.arrays["image"].nbytes)
    batches.close()
    return found


LIMITS = {
    "memcpy": functools.partial(memcpy, cached=True),
    "memcpy from memory": functools.partial(memcpy, cached=False),
    **{f"pread {c >> 10} KiB": functools.partial(pread, chunk=c, batches=False) for c in CHUNKS},
    **{f"pread {c >> 10} KiB into batches": functools.partial(pread, chunk=c, batches=True) for c in CHUNKS},
    "preadv of shuffled samples": preadv_loop,
}
STREAMS = {
    f"stream, {threads} thread{'s' * (threads > 1)}, {f'window {window}' if window else 'all shuffled'}"
    f"{', check crc' * (check == 'crc')}": functools.partial(stream, threads=threads, window=window, check=check)
    for threads, window, check in [(1, 4, "size"), (1, 0, "size"), (2, 4, "size"), (2, 0, "size"), (2, 4, "crc")]
}


def table(found: dict[str, list[dict]]) -> str:
    """A row per arm, against memcpy and against the best chunk of both kinds of pread, as far as these ran."""
    rates = {name: arms.median_rate(results, "wall_s") for name, results in found.items() if not arms.failed(results)}
    best = lambda end: max(
        (rates[name] for name in rates if name.startswith("pread ") and name.endswith(end)), default=None
    )
    limits = [(10, rates.get("memcpy")), (10, best("KiB")), (22, best("into batches"))]
    lines = [f"{'':46}{'samples/s':>10}{'a CPU s':>10}{'/ memcpy':>10}{'/ pread':>10}{'/ pread into batches':>22}"]
    for name, results in found.items():
        if error := arms.failed(results):
            lines.append(f"{name:46}{error}")
            continue
        ratios = "".join(f"{rates[name] / limit:{n}.2f}" if limit else f"{'-':>{n}}" for n, limit in limits)
        lines.append(f"{name:46}{rates[name]:10,.0f}{arms.median_rate(results, 'cpu_s'):10,.0f}{ratios}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arm", choices=[*LIMITS, *STREAMS], help=argparse.SUPPRESS)  # one arm, in this process
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise errors.InputError(f"--rounds: {options.rounds} must be at least 1")
    dataset = open_images(options.dataset)
    if options.arm:
        print(json.dumps((LIMITS | STREAMS)[options.arm](dataset)))
        return
    arms.warm(options.dataset / "shards")
    command = [sys.executable, "-m", "benchmarks.loader", str(options.dataset), "--arm"]
    found = arms.interleave({name: [*command, name] for name in LIMITS | STREAMS}, options.rounds)
    if options.json:
        replace(options.json, json.dumps({"rounds": found}, indent=1).encode())
    print(table(found))


if __name__ == "__main__":
    errors.run(main)
