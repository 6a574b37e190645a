"""What becomes of damaged data: seeded damage to a small dataset, one mutation at a time.

    python -m benchmarks.faults [--count 1000] [--seed 0] [--json FILE]

Each mutation of a shard or an index is streamed for an epoch with check="crc", verified, repaired and streamed again.
Outcomes of the stream: refused (an error that names the file), masked (NaN, which the device masks and counts),
harmless (all samples bit-identical to the original's), and the two that must not be: silent (another sample than the
original's, without a word) and crash. After the repair every sample that is left must be the original's. Exit 0 where
nothing was silent, crashed or left wrong.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_tools import verify
from jaxz import errors
from jaxz.data.dataset import open_dataset
from jaxz.data.index import read_index, shard_of, to_parquet
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.progress import progress

SHARDS, SAMPLES, BANDS, SIZE = 3, 12, 2, 8
IMAGE = (BANDS, SIZE, SIZE)
COLUMNS = {"object_id": "int64", "z": "float32", "ebv": "float32", "flag": "bool", "split": "string"}
HEADERS = 512 + 128  # bytes before a payload: of the tar, of npy


def make(path: Path) -> None:
    """Images, their masks and time series of variable length; labels of every kind."""
    bands = tuple(Band(f"b{n}", 500.0 + 100 * n, 80.0, 27.0, 0.2, 1.0, 1.0, 0.8) for n in range(BANDS))
    arrays = {
        "image": Array("image", "float16", IMAGE),
        "image_mask": Array("mask", "uint8", IMAGE, bits={"bad": 1}),
        "times": Array("frames", "float32", (None, 2), max=6),
    }
    writer = DatasetWriter(path, Manifest(arrays, bands, {n: Column(kind) for n, kind in COLUMNS.items()}), plan={})
    for n in range(SHARDS):
        draw, ids = np.random.default_rng(n), np.arange(SAMPLES * n, SAMPLES * (n + 1))
        content = {
            "image": draw.normal(size=(SAMPLES, *IMAGE)).astype(np.float16),
            "image_mask": draw.integers(0, 2, (SAMPLES, *IMAGE), np.uint8),
            "times": [draw.normal(size=(k, 2)).astype(np.float32) for k in draw.integers(1, 7, SAMPLES)],
        }
        labels = {"object_id": ids, "z": draw.random(SAMPLES, np.float32), "ebv": draw.random(SAMPLES, np.float32)}
        labels |= {"flag": ids % 3 == 0, "split": np.where(ids % 4 == 0, "test", "train")}
        writer.write_shard(n, [f"s{i:04d}" for i in ids], content, labels)
    writer.finish(SHARDS, {})


def change(path: Path, function: Callable[[bytearray], None]) -> None:
    """function changes the file's content in place."""
    content = bytearray(path.read_bytes())
    function(content)
    path.write_bytes(content)


def flip(path: Path, draw) -> None:
    """One bit."""

    def function(content: bytearray) -> None:
        content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))

    change(path, function)


def cut(path: Path, draw) -> None:
    os.truncate(path, int(draw.integers(path.stat().st_size)))


def cut_at_a_member(tar: Path, index: Path, draw) -> None:
    starts = [at for name in ("image", "image_mask", "times") for at in read_index(index)[f"{name}_offset"].to_pylist()]
    os.truncate(tar, int(draw.choice(starts)) - HEADERS)


def swap_samples(tar: Path, index: Path, draw, headers: int = 0) -> None:
    """Two images change places; with their headers, the whole members do."""
    table = read_index(index)
    chosen = table["image_offset"].to_numpy()[draw.choice(SAMPLES, 2, replace=False)]
    a, b = (slice(int(at) - headers, int(at) + table["image_size"][0].as_py()) for at in chosen)

    def function(content: bytearray) -> None:
        content[a], content[b] = content[b], content[a]

    change(tar, function)


def swap_files(tar: Path, index: Path, draw, kinds: tuple[str, ...]) -> None:
    """The tars, indices or both of two shards change places."""
    a, b = (f"{n:05d}" for n in draw.choice(SHARDS, 2, replace=False))
    for path in (tar, index):
        if path.suffix in kinds:
            first, second, between = (path.with_name(name + path.suffix) for name in (a, b, "between"))
            first.rename(between), second.rename(first), between.rename(second)


def put_nan(tar: Path, index: Path, draw, told: bool = False) -> None:
    """NaN or inf in a pixel; told: the index has the checksum of it, as from a careless writer."""
    table, row = read_index(index), int(draw.integers(SAMPLES))
    start, size = (table[f"image_{part}"][row].as_py() for part in ("offset", "size"))
    value = np.float16([np.nan, np.inf, -np.inf][draw.integers(3)]).tobytes()

    def function(content: bytearray) -> None:
        at = start + 2 * int(draw.integers(size // 2))
        content[at : at + 2] = value

    change(tar, function)
    if told:
        checksums = table["image_crc32"].to_pylist()
        checksums[row] = zlib.crc32(tar.read_bytes()[start : start + size])
        column = table.column_names.index("image_crc32")
        table = table.set_column(column, "image_crc32", pa.array(checksums, pa.uint32()))
        index.write_bytes(to_parquet(table, shard_of(table)))


def append_garbage(tar: Path, index: Path, draw) -> None:
    tar.write_bytes(tar.read_bytes() + draw.bytes(int(draw.integers(1, 2000))))


MUTATIONS = {  # what is done with a tar, its index and random numbers; how often, relative to the others
    "bit of a tar": (lambda tar, index, draw: flip(tar, draw), 10),
    "bit of an index": (lambda tar, index, draw: flip(index, draw), 10),
    "tar cut": (lambda tar, index, draw: cut(tar, draw), 3),
    "tar cut at a member": (cut_at_a_member, 3),
    "tar of no bytes": (lambda tar, index, draw: os.truncate(tar, 0), 1),
    "garbage at the end of a tar": (append_garbage, 2),
    "index cut": (lambda tar, index, draw: cut(index, draw), 2),
    "index of no bytes": (lambda tar, index, draw: os.truncate(index, 0), 1),
    "images swapped": (swap_samples, 2),
    "members swapped": (partial(swap_samples, headers=HEADERS), 2),
    "tars swapped": (partial(swap_files, kinds=(".tar",)), 1),
    "indices swapped": (partial(swap_files, kinds=(".parquet",)), 1),
    "shards swapped": (partial(swap_files, kinds=(".tar", ".parquet")), 1),
    "NaN": (put_nan, 2),
    "NaN, with its checksum": (partial(put_nan, told=True), 3),
    "tar missing": (lambda tar, index, draw: tar.unlink(), 1),
    "index missing": (lambda tar, index, draw: index.unlink(), 1),
}


def epoch(path: Path) -> dict[int, dict]:
    """{row: its arrays and columns, as bytes} of one epoch with checksums compared."""
    dataset = open_dataset(path)
    numbers = tuple(name for name, kind in COLUMNS.items() if kind != "string")
    stream = Stream(Source(dataset, columns=numbers), 8, epochs=1, shuffle=False, check="crc")
    split, rows = dataset.column("split"), {}
    try:
        for batch in stream:
            names = batch.keys() - {"row", "epoch", "position", "valid"}
            for slot in np.flatnonzero(batch["valid"]):
                row = int(batch["row"][slot])
                rows[row] = {name: (str(batch[name].dtype), batch[name][slot].tobytes()) for name in names}
                rows[row]["split"] = split[row]
    finally:
        stream.close()
    return rows


def outcome(path: Path, original: Path) -> str:
    """What the stream makes of the dataset: refused, masked, harmless or silent."""
    truth = originals(original)
    try:
        rows = epoch(path)
    except errors.InputError as error:  # DataError is one
        return "refused" if str(path) in str(error) else f"crash: {error} names no file"
    if rows.keys() != truth.keys():
        return "silent"
    different = [row for row in rows if rows[row] != truth[row]]
    if not different:
        return "harmless"
    return "masked" if all(is_masked(rows[row], truth[row], original) for row in different) else "silent"


def is_masked(sample: dict, truth: dict, original: Path) -> bool:
    """Whether the device masks every pixel that differs, counts those that were observed, and all else is the same."""
    if any(sample[name] != truth[name] for name in truth if name != "image"):
        return False
    now, then = (
        prepare(original)(
            {name: np.frombuffer(one[name][1], one[name][0]).reshape(1, *IMAGE) for name in ("image", "image_mask")}
        )
        for one in (sample, truth)
    )
    new = then["mask"] & ~now["mask"]
    same = ((now["image"] == then["image"]) | ~now["mask"]).all() and not (now["mask"] & ~then["mask"]).any()
    return bool(same) and bool(np.isclose(now["nonfinite"][0], new.sum() / then["mask"].sum()))


@cache
def originals(path: Path) -> dict[int, dict]:
    return epoch(path)


@cache
def prepare(path: Path) -> Callable:
    import jax

    from jaxz.data.prepare import Normalisation, Prepare

    manifest = open_dataset(path).manifest
    step = Prepare(manifest, Normalisation.create(manifest, (), 3.0, False))
    return jax.jit(lambda batch: step(batch, jax.random.key(0)))


def trial(work: Path, seed: int, number: int) -> dict:
    """One mutation: its kind, what became of it, whether verify saw it, and what the repair left."""
    logging.getLogger("jaxz").setLevel(logging.ERROR)
    draw = np.random.default_rng((seed, number))
    shares = np.array([share for _, share in MUTATIONS.values()], float)
    kind = str(draw.choice(list(MUTATIONS), p=shares / shares.sum()))
    original, path = work / "original", work / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)
    name = f"{draw.integers(SHARDS):05d}"
    MUTATIONS[kind][0](path / f"shards/{name}.tar", path / f"index/{name}.parquet", draw)
    result = {"number": number, "kind": kind, "outcome": outcome(path, original)}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result["seen"] = bool(verify.main([str(path), "--workers", "1"]))
        verify.main([str(path), "--workers", "1", "--repair"])
    rows, truth = epoch(path), originals(original)
    out = set(open_dataset(path).quarantined.tolist())
    result["lost"] = len(out)
    result["left_wrong"] = rows.keys() != truth.keys() - out or any(rows[row] != truth[row] for row in rows)
    return result


def trials(work: Path, seed: int, count: int):
    """The results of all mutations, each made in another process: one that it does not survive is a crash."""
    pool = None
    for number in range(count):
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            yield pool.submit(trial, work, seed, number).result()
        except BrokenProcessPool:
            pool = None
            yield {"number": number, "kind": "?", "outcome": "crash: the process died"}
        except Exception as error:  # whatever it is, it is the finding
            yield {"number": number, "kind": "?", "outcome": f"crash: {type(error).__name__}: {error}"}
    if pool:
        pool.shutdown()


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.count < 1:
        raise errors.InputError(f"count: {options.count} must be at least 1")
    with tempfile.TemporaryDirectory() as work:
        make(Path(work) / "original")
        found = list(progress(trials(Path(work), options.seed, options.count), options.count, "mutations"))
    table = collections.Counter((one["kind"], one["outcome"].partition(":")[0]) for one in found)
    outcomes = ("refused", "masked", "harmless", "silent", "crash")
    print(f"{'':30}" + "".join(f"{name:>10}" for name in (*outcomes, "unseen", "lost")))
    for kind in [*MUTATIONS, "?"]:
        here = [one for one in found if one["kind"] == kind]
        unseen = sum(not one.get("seen", True) for one in here)
        numbers = [*(table[kind, name] for name in outcomes), unseen, sum(one.get("lost", 0) for one in here)]
        if here:
            print(f"{kind:30}" + "".join(f"{value:10}" for value in numbers))
    bad = [one for one in found if one["outcome"].startswith(("silent", "crash")) or one.get("left_wrong")]
    for one in bad:
        print(one)
    print(f"{len(found)} mutations, {len(bad)} silent, crashed or wrong after the repair")
    print("unseen: verify has nothing to say; lost: samples of the mutations that the repair leaves out")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return errors.FAILED if bad else None


if __name__ == "__main__":
    errors.run(main)
