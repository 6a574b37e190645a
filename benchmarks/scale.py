"""Opening a survey of 40 million samples, and the first batch anywhere in it: a synthetic index over sparse tars.

    python -m benchmarks.scale DATASET [--shards 2000] [--rounds 5] [--json FILE]

Where DATASET is missing it is written: 20,000 rows a shard with 31 columns (4 GB of index), tars that take no disk.
Each round is a process of its own: the time to open the stream of the rows that a filter selects, the resident memory
after, and the time from restoring a position to its first batch, at several positions and in both kinds of order.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import arms
from jaxz import errors
from jaxz.data.dataset import open_dataset
from jaxz.data.index import column_type, to_parquet
from jaxz.data.manifest import Array, Band, Column, Manifest, Shard
from jaxz.data.stream import Source, Stream
from jaxz.files import replace
from jaxz.progress import progress

ROWS, BATCH, SAMPLE, STRIDE = 20_000, 256, 73_728, 75_776  # bytes of a payload, and from one to the next
FILTERS = {"labelled": "split == 'train' and z_kind == 'spec'", "all of a split": "split == 'train'"}
KINDS = {
    "object_id": "int64", "ra": "float64", "dec": "float64", "split": "string", "z_kind": "string", "z": "float32",
    "z_quality": "int8", "mag_ref": "float32", "ebv": "float32",
    **{f"{what}_b{n}": "float32" for n in range(9) for what in ("flux", "fluxerr")},
}  # fmt: skip


def manifest(shards: int) -> Manifest:
    bands = tuple(Band(f"b{n}", 400.0 + 100 * n, 80.0, 27.0, 0.2, 1.0, 1.0, 0.8) for n in range(9))
    return Manifest(
        {"image": Array("image", "float16", (9, 64, 64))},
        bands,
        {name: Column(kind) for name, kind in KINDS.items()},
        tuple(Shard(f"{n:05d}", ROWS, STRIDE * ROWS + 10_240, f"{n:064x}") for n in range(shards)),
    )


def write_shard(path: Path, n: int) -> None:
    """A fiftieth has a redshift, four fifths are to train on."""
    whole, draw = manifest(n + 1), np.random.default_rng(n)
    shard, ids, labelled = whole.shards[n], np.arange(n * ROWS, (n + 1) * ROWS), draw.random(ROWS) < 0.02
    values = {name: draw.standard_normal(ROWS) for name, kind in KINDS.items() if kind.startswith("float")}
    values |= {
        "object_id": ids,
        "split": np.array(["train", "val", "test"])[np.searchsorted([0.8, 0.9], draw.random(ROWS))],
        "z_kind": np.where(labelled, "spec", "none"),
        "z": np.where(labelled, draw.random(ROWS), np.nan),
        "z_quality": np.where(labelled, 4, 0),
    }
    table = {"key": pa.array([f"s{i:09d}" for i in ids])}
    table |= {name: pa.array(values[name]).cast(column_type(spec)) for name, spec in whole.columns.items()}
    table["image_offset"] = pa.array(640 + STRIDE * np.arange(ROWS))
    table["image_size"] = pa.array(np.full(ROWS, SAMPLE))
    table["image_crc32"] = pa.array(draw.integers(0, 2**32, ROWS, np.uint32))
    with open(path / "shards" / f"{shard.name}.tar", "wb") as tar:  # before the index, which says that both are there
        tar.truncate(shard.bytes)
    replace(
        path / "index" / f"{shard.name}.parquet",
        to_parquet(pa.table(table), {"samples": ROWS, "bytes": shard.bytes, "sha256": shard.sha256}),
    )


def make(path: Path, shards: int) -> None:
    for folder in ("index", "shards"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    todo = [n for n in range(shards) if not (path / "index" / f"{n:05d}.parquet").exists()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for _ in progress(pool.map(write_shard, [path] * len(todo), todo), len(todo), "shards"):
            pass
    replace(path / "dataset.json", manifest(shards).to_json().encode())


def measure(path: Path, where: str) -> dict:
    """Seconds to open and to the slowest first batch, bytes of resident memory, CPU seconds to open."""
    began, cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(path)
    stream = Stream(Source(dataset, ("image",), where=where), BATCH, seed=1)
    found = {"open_s": time.perf_counter() - began, "open_cpu_s": time.process_time() - cpu, "rows": len(stream)}
    found["open_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, window in (("all shuffled", 0), ("window 4", 4)):
        again = stream if not window else Stream(Source(dataset, ("image",), where=where, window=window), BATCH, seed=1)
        first = []
        for share in (0.0, 0.37, 1.5, 7.99):
            state, at = again.state(), int(share * len(again))
            state["sources"][0] |= {"epoch": at // len(again), "position": at % len(again)}
            began = time.perf_counter()
            again.restore(state)
            next(again)
            first.append(time.perf_counter() - began)
        found[f"first batch, {name}"] = max(first)
        again.close()
    found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arm", choices=FILTERS, help=argparse.SUPPRESS)  # one filter, in this process
    options = parser.parse_args(argv)
    if options.shards < 1 or options.rounds < 1:
        raise errors.InputError(f"--shards: {options.shards} and --rounds: {options.rounds} must be at least 1")
    if options.arm:
        print(json.dumps(measure(options.dataset, FILTERS[options.arm])))
        return
    if not (options.dataset / "dataset.json").exists():
        make(options.dataset, options.shards)
    arms.warm(options.dataset / "index")
    command = [sys.executable, "-m", "benchmarks.scale", str(options.dataset), "--arm"]
    found = arms.interleave({name: [*command, name] for name in FILTERS}, options.rounds)
    if options.json:
        replace(options.json, json.dumps({"rounds": found}, indent=1).encode())
    for name, results in found.items():
        if error := arms.failed(results):
            print(f"{name}: {error}")
            continue
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(f"{name}: {median['rows']:,.0f} of {len(open_dataset(options.dataset)):,} rows")
        for key, value in median.items():
            if key != "rows":
                print(f"  {key:28}{value / 1e9:8.2f} GB" if key.endswith("bytes") else f"  {key:28}{value:8.2f} s")


if __name__ == "__main__":
    errors.run(main)
