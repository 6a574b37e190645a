"""How fast batches come, against what the machine can do: each arm a process of its own, interleaved, medians.

    python -m benchmarks.loader DATASET [--rounds 5] [--json FILE]

DATASET needs an array `image`; where it is missing, 20,000 samples of 9 x 64 x 64 float16 are written (1.5 GB).
Batches of 256, shuffled, read from the page cache, as the trainer takes them.
"""

import argparse
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxz import errors
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter

BATCH, SECONDS, WARM = 256, 2.0, 40
CHUNKS = [2**k for k in range(16, 26)]


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


def paged(nbytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def timed(step) -> tuple[float, float]:
    """(bytes per second of wall time, of CPU time) of `step()`, which returns the bytes that it moved."""
    moved, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        moved += step()
    return moved / (time.perf_counter() - wall), moved / (time.process_time() - cpu)


def memcpy(dataset) -> tuple[float, float]:
    source, target = (paged(BATCH * dataset.manifest.arrays["image"].nbytes) for _ in range(2))
    source[:], target[:] = 1, 1

    def step() -> int:
        np.copyto(target, source)
        return target.nbytes

    return timed(step)


def pread(dataset, chunk: int, target_bytes: int) -> tuple[float, float]:
    """Whole tars in order, in chunks, into memory of `target_bytes` that is gone through again and again."""
    memory = mmap.mmap(-1, max(chunk, target_bytes))
    views = [memoryview(memory)[at : at + chunk] for at in range(0, max(chunk, target_bytes) - chunk + 1, chunk)]
    files = [os.open(dataset.shard_path(n), os.O_RDONLY) for n in range(len(dataset.manifest.shards))]
    turn = 0

    def step() -> int:
        nonlocal turn
        turn += 1
        file, at, moved = files[turn % len(files)], 0, 0
        while got := os.preadv(file, [views[at // chunk % len(views)]], at):
            at, moved = at + got, moved + got
        return moved

    return timed(step)


def stream(dataset, threads: int, window: int, check: str = "size") -> tuple[float, float]:
    batches = Stream(
        Source(dataset, arrays=("image",), columns=("z",), where="split == 'train'", window=window),
        BATCH,
        threads=threads,
        check=check,
    )
    for _ in range(WARM):
        next(batches)
    found = timed(lambda: next(batches)["image"].nbytes)
    batches.close()
    return found


def arms(dataset) -> dict:
    batch = BATCH * dataset.manifest.arrays["image"].nbytes
    result = {"memcpy": lambda: memcpy(dataset)}
    result |= {f"pread {chunk >> 10} KiB": lambda chunk=chunk: pread(dataset, chunk, 0) for chunk in CHUNKS}
    result |= {"pread 128 KiB into a batch": lambda: pread(dataset, 1 << 17, batch)}
    for threads in (1, 2):
        for window in (4, 0):
            name = f"stream, {threads} thread{'s' * (threads > 1)}, {f'window {window}' if window else 'all shuffled'}"
            result[name] = lambda threads=threads, window=window: stream(dataset, threads, window)
    result["stream, 2 threads, window 4, check crc"] = lambda: stream(dataset, 2, 4, "crc")
    return result


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # one arm, in this process
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if not (options.dataset / "dataset.json").exists():
        make(options.dataset)
    dataset = open_dataset(options.dataset)
    if options.arm:
        print(json.dumps(arms(dataset)[options.arm]()))
        return
    for n in range(len(dataset.manifest.shards)):  # into the page cache
        dataset.shard_path(n).read_bytes()
    found = {name: [] for name in arms(dataset)}
    for turn in range(options.rounds):
        for name in found:
            command = [sys.executable, "-m", "benchmarks.loader", str(options.dataset), "--arm", name]
            found[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(f"round {turn + 1}/{options.rounds}", file=sys.stderr, flush=True)
    medians = {name: np.median(values, axis=0) for name, values in found.items()}
    limit = max(value[0] for name, value in medians.items() if name.startswith("pread") and name.endswith("KiB"))
    sample = dataset.manifest.arrays["image"].nbytes
    print(f"{'':46}samples/s  a CPU second   / memcpy   / best pread")
    for name, (wall, cpu) in medians.items():
        shares = f"{wall / medians['memcpy'][0]:11.2f}{wall / limit:13.2f}"
        print(f"{name:44}{wall / sample:11,.0f}{cpu / sample:14,.0f}{shares}")
    if options.json:
        options.json.write_text(json.dumps({"sample_bytes": sample, "bytes_per_second": found}, indent=1))


if __name__ == "__main__":
    errors.run(main)
