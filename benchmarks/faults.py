"""What becomes of damaged data: seeded damage to a small dataset, one mutation at a time.

    python -m benchmarks.faults [--count 1000] [--seed 0] [--json FILE]

Each mutation of a shard or an index is streamed for an epoch with check="crc", verified, repaired and streamed again.
Outcomes of the stream: refused (an error that names the file), masked (NaN, which the device masks and counts),
harmless (all samples bit-identical to the original's), told (a compact payload that was changed together with its
checksum is decoded to just what it says, and verify finds the tar changed), and the two that must not be: silent
(another sample than the original's, without a word) and crash. After the repair every sample that is left must be the
original's, or told. Exit 0 where nothing was silent, crashed or left wrong.
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
import struct
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
from jaxz.data import compact
from jaxz.data.dataset import open_dataset
from jaxz.data.index import read_index, shard_of, to_parquet
from jaxz.data.manifest import Array, Band, Column, Compact, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.progress import progress

SHARDS, SAMPLES, BANDS, SIZE = 3, 12, 2, 8
IMAGE = (BANDS, SIZE, SIZE)
COLUMNS = {"object_id": "int64", "z": "float32", "ebv": "float32", "flag": "bool", "split": "string"}
HEADERS = 512 + 128  # bytes before a raw payload: of the tar, of npy
STEPS = (0.01, 0.02)  # of the compact array
ORIGINALS = {"rebuildable": False, "with a list": True}  # an index that holds an array cannot be rebuilt from its tar


def make(work: Path) -> None:
    """The datasets that are damaged, by the names of ORIGINALS."""
    for name, listed in ORIGINALS.items():
        make_original(work / name, listed)


def make_original(path: Path, listed: bool) -> None:
    """Images raw and compact, masks and time series of variable length, labels of every kind; listed: also an array
    that lives in the index."""
    bands = tuple(Band(f"b{n}", 500.0 + 100 * n, 80.0, 27.0, 0.2, 1.0, 1.0, 0.8) for n in range(BANDS))
    arrays = {
        "image": Array("image", "float16", IMAGE),
        "image_mask": Array("mask", "uint8", IMAGE, bits={"bad": 1}),
        "deep": Array("image", "float32", IMAGE, "compact", compact=Compact(compact.VERSION, STEPS, 5)),
        "times": Array("frames", "float32", (None, 2), max=6),
    }
    if listed:
        arrays["pointing"] = Array("vector", "float32", (2,), "index")
    writer = DatasetWriter(path, Manifest(arrays, bands, {n: Column(kind) for n, kind in COLUMNS.items()}), plan={})
    for n in range(SHARDS):
        draw, ids = np.random.default_rng(n), np.arange(SAMPLES * n, SAMPLES * (n + 1))
        content = {
            "image": draw.normal(size=(SAMPLES, *IMAGE)).astype(np.float16),
            "image_mask": draw.integers(0, 2, (SAMPLES, *IMAGE), np.uint8),
            "deep": draw.normal(size=(SAMPLES, *IMAGE)).astype(np.float32),
            "times": [draw.normal(size=(k, 2)).astype(np.float32) for k in draw.integers(1, 7, SAMPLES)],
        }
        content["deep"][::3, 0, 0, :2] = 1e4  # exceptions
        if listed:
            content["pointing"] = draw.normal(size=(SAMPLES, 2)).astype(np.float32)
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
    table, headers = read_index(index), {"image": HEADERS, "image_mask": HEADERS, "times": HEADERS, "deep": 512}
    starts = [at - before for name, before in headers.items() for at in table[f"{name}_offset"].to_pylist()]
    os.truncate(tar, int(draw.choice(starts)))


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
        change_index(index, row, {"image_crc32": zlib.crc32(tar.read_bytes()[start : start + size])})


def change_index(path: Path, row: int, values: dict[str, int]) -> None:
    """{column: the value that it has from now on}"""
    table = read_index(path)
    for name, value in values.items():
        column = table[name].to_pylist()
        column[row] = value
        table = table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))
    path.write_bytes(to_parquet(table, shard_of(table)))


def forge(tar: Path, index: Path, draw, part: str) -> None:
    """A compact payload is changed, and the index has the checksum, the size and, half of the time, the number of
    exceptions of what it is then."""
    table, row = read_index(index), int(draw.integers(SAMPLES))
    start, size = (table[f"deep_{name}"][row].as_py() for name in ("offset", "size"))
    content = bytearray(tar.read_bytes())
    payload = content[start : start + size]
    if part == "cut":
        del payload[int(draw.integers(size)) :]
    elif part == "fields":  # of the payload's header, or of its chunk's
        chunk = size - struct.unpack_from("<I", payload, 12)[0]
        at = int(draw.choice([*range(0, 16, 4), *range(chunk, chunk + 32, 4)]))
        now = struct.unpack_from("<I", payload, at)[0]
        value = draw.choice([0, 1, now - 1, now + 1, 2 * now, 2**31 - 1, 2**31, 2**32 - 1, draw.integers(2**32)])
        struct.pack_into("<I", payload, at, int(value) % 2**32)
    else:
        for at in draw.integers(size, size=draw.integers(1, 5)):
            payload[at] ^= 1 << int(draw.integers(8))
    content[start : start + len(payload)] = payload
    tar.write_bytes(content)
    values = {"deep_crc32": zlib.crc32(payload), "deep_size": len(payload)}
    if len(payload) >= 12 and draw.integers(2):
        values["deep_exceptions"] = min(struct.unpack_from("<I", payload, 8)[0], 2**31 - 1)
    change_index(index, row, values)


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
    "compact bits, with checksum": (partial(forge, part="bits"), 4),
    "compact fields, with checksum": (partial(forge, part="fields"), 4),
    "compact cut, with checksum": (partial(forge, part="cut"), 1),
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
            batch["deep"] = restored(batch)
            names = batch.keys() - {"row", "epoch", "position", "valid"} - {f"deep_{name}" for name in compact.ENTRIES}
            for slot in np.flatnonzero(batch["valid"]):
                row = int(batch["row"][slot])
                rows[row] = {name: (str(batch[name].dtype), batch[name][slot].tobytes()) for name in names}
                rows[row]["split"] = split[row]
    finally:
        stream.close()
    return rows


def restored(batch: dict) -> np.ndarray:
    """The compact array of a batch, decoded: how much room its entries have depends on the samples beside it."""
    seed, at, value = (batch[f"deep_{name}"] for name in compact.ENTRIES)
    images = compact.restore(np.asarray(batch["deep"]), seed, STEPS)
    for image, where, exceptions in zip(images.reshape(len(images), -1), at, value, strict=True):
        there = where < image.size
        image[where[there]] = exceptions[there]
    return images


def is_vouched_for(path: Path, row: int, sample: dict, truth: dict) -> bool:
    """Whether a sample differs from the original's in its compact array alone, which is what the payload says, and the
    index has the checksum of that."""
    dataset, (shard, within) = open_dataset(path), divmod(row, SAMPLES)
    offset, size, crc = (int(part[within]) for part in dataset.places(shard, "deep"))
    payload = (path / f"shards/{shard:05d}.tar").read_bytes()[offset : offset + size]
    decoded = compact.decode(payload, IMAGE, STEPS).tobytes()
    return sample == truth | {"deep": ("float32", decoded)} and zlib.crc32(payload) == crc


def outcome(path: Path, original: Path) -> str:
    """What the stream makes of the dataset: refused, masked, harmless, vouched for or silent."""
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
    if all(is_vouched_for(path, row, rows[row], truth[row]) for row in different):
        return "vouched for"
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
    draw = np.random.default_rng((seed, number))
    shares = np.array([share for _, share in MUTATIONS.values()], float)
    kind = str(draw.choice(list(MUTATIONS), p=shares / shares.sum()))
    original, path = work / str(draw.choice(list(ORIGINALS))), work / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)
    name = f"{draw.integers(SHARDS):05d}"
    MUTATIONS[kind][0](path / f"shards/{name}.tar", path / f"index/{name}.parquet", draw)
    result = {"number": number, "kind": kind, "outcome": outcome(path, original)}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result["seen"] = bool(verify.main([str(path), "--workers", "1"]))
        verify.main([str(path), "--workers", "1", "--repair"])
    told = result["outcome"] == "vouched for" and result["seen"] and kind.startswith("compact")
    if result["outcome"] == "vouched for":
        result["outcome"] = "told" if told else "silent"
    rows, truth = epoch(path), originals(original)
    different = [row for row in rows if rows[row] != truth.get(row)]
    out = set(open_dataset(path).quarantined.tolist())
    result["lost"] = len(out)
    right = (told and all(is_vouched_for(path, row, rows[row], truth[row]) for row in different)) or not different
    result["left_wrong"] = rows.keys() != truth.keys() - out or not right
    return result


def say_errors_only() -> None:
    logging.getLogger("jaxz").setLevel(logging.ERROR)


def trials(work: Path, seed: int, count: int):
    """The results of all mutations, each made in another process: one that it does not survive is a crash."""
    pool = None
    for number in range(count):
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), say_errors_only)
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
        make(Path(work))
        found = list(progress(trials(Path(work), options.seed, options.count), options.count, "mutations"))
    table = collections.Counter((one["kind"], one["outcome"].partition(":")[0]) for one in found)
    outcomes = ("refused", "masked", "harmless", "told", "silent", "crash")
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
