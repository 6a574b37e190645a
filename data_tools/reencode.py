"""Stores the images of a dataset anew: compact (quantised and compressed) or raw.

    python -m data_tools.reencode DATASET --out NEW --encoding compact|raw [--step-sigma 0.125] [--workers 2]

Rows, splits, scalars, overlays and other arrays stay as they are, and so do images that have that encoding already. Raw
images made of compact ones have the dtype that the images were measured in, not the values from before: those are lost.
Every payload that is read is held against its checksum. The same command finishes an interrupted dataset.
"""

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np

from data_tools.inputs import versions
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Array, Manifest
from jaxz.data.transport import is_remote
from jaxz.data.writer import ENCODINGS, STEP_SIGMA, DatasetWriter, Stored, with_images
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.progress import Pool


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.reencode", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--out", required=True, help="dataset to write")
    parser.add_argument("--encoding", required=True, choices=ENCODINGS)
    parser.add_argument("--step-sigma", type=float, default=STEP_SIGMA, help="of compact, in sky sigmas (default 1/8)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"workers: {args.workers} must be at least 1")
    if not 1e-3 <= args.step_sigma <= 1:
        raise InputError(f"step-sigma: {args.step_sigma} must lie in 0.001 .. 1; 0.125 adds 0.13 % to the variance")
    for name in ("dataset", "out"):
        if is_remote(path := getattr(args, name)):
            raise InputError(f"{name}: {path!r} is remote; reencode between local directories and copy the result")
    if Path(args.out).resolve() == Path(args.dataset).resolve():
        raise InputError(f"out: {args.out!r} is the dataset itself; name another directory")
    source = open_dataset(args.dataset)
    if len(source.quarantined):
        raise InputError(f"dataset: {len(source.quarantined)} samples are quarantined; restore their shards first")
    plan = {"tool": "reencode", "rows": source.fingerprint()["rows"], "encoding": args.encoding}
    plan |= {"step_sigma": args.step_sigma} if args.encoding == "compact" else {}
    writer = DatasetWriter(args.out, new_manifest(source.manifest, plan), plan)
    if writer.complete:
        print(f"{args.out} is complete already", file=sys.stderr)
        return None
    jobs = [(writer, args.dataset, n) for n in range(len(source.manifest.shards)) if not writer.done(n)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    with Pool(args.workers) as pool:
        pool.map(write_shard, jobs, "shards")
    folder = Path(source.path)
    copy_overlays(folder, writer.path)
    written = writer.finish(len(source.manifest.shards), source.manifest.splits)
    if layers := sorted(path.parent.name for path in folder.glob("layers/*/dataset.json")):
        print(f"layers {', '.join(layers)} stay with {args.dataset}; copied to {args.out}, they fit", file=sys.stderr)
    before, after = (sum(shard.bytes for shard in m.shards) for m in (source.manifest, written))
    print(f"{args.out}: {written.samples} samples, {after} bytes of shards, {after / before:.2f} of those before")
    return None


def new_manifest(manifest: Manifest, plan: dict) -> Manifest:
    """That of the dataset to write. Raises InputError where its images are so encoded already."""
    empty = dataclasses.replace(manifest, shards=())
    changed = with_images(empty, plan["encoding"], plan.get("step_sigma", STEP_SIGMA))
    if changed.arrays == manifest.arrays:
        raise InputError(f"encoding: the images are {plan['encoding']} already; reencode the dataset they were made of")
    history = manifest.provenance.get("reencoded", [])
    entry = {**plan, "plan": manifest.provenance.get("plan"), "versions": versions("numpy", "blosc2")}
    provenance = {**manifest.provenance, "reencoded": [*history, entry]}
    return dataclasses.replace(changed, provenance=provenance)


def write_shard(writer: DatasetWriter, dataset: str, n: int) -> None:
    """Write shard `n` of the new dataset, the rows of shard `n` of the old one.

    Raises InputError for what the writer refuses, such as pixels that are not finite.
    """
    source, arrays, columns = open_dataset(dataset), writer.manifest.arrays, writer.manifest.columns
    inside = [name for name, spec in arrays.items() if not spec.in_tar]
    index = source.shard_table(n, ("key", *columns, *inside))
    values: dict[str, Stored] = {  # those of the index are lists of one shape
        name: np.array(index[name].to_pylist(), arrays[name].dtype) for name in inside
    }
    values |= {name: stored(source, n, name, arrays[name]) for name in arrays.keys() - set(inside)}
    scalars = {name: index[name].to_pylist() for name in columns}
    try:
        writer.write_shard(n, index["key"].to_pylist(), values, scalars)
    except ValueError as error:
        raise InputError(f"{source.shard_path(n)}: {error}") from None


def copy_overlays(old: Path, new: Path) -> None:
    """Overlays go by object_id, which stays."""
    for path in sorted(old.glob("overlays/*.parquet")):
        (new / "overlays").mkdir(exist_ok=True)
        replace(new / "overlays" / path.name, path.read_bytes())


def stored(source: Dataset, n: int, name: str, spec: Array) -> Stored:
    """What the writer takes of an array of shard `n`. Compact ones that stay so, as they are: quantising the decoded
    values again would add noise."""
    if not (spec.compact and source.manifest.arrays[name].compact):
        return [as_stored(value, spec) for value in source.payloads(n, name)]
    offsets, sizes, _ = source.places(n, name)
    file = source.open_shard(n)
    try:  # payloads() compares checksums, and sizes before so much is read
        places = zip(offsets.tolist(), sizes.tolist(), source.payloads(n, name), strict=True)
        return [os.pread(file, size, offset) for offset, size, _ in places]
    finally:
        os.close(file)


def as_stored(value: np.ndarray, spec: Array) -> np.ndarray:
    """In the array's dtype, which what a compact one was decoded to may just exceed."""
    if value.dtype == spec.dtype:
        return value
    limits = np.finfo(spec.dtype)
    return np.clip(value, limits.min, limits.max).astype(spec.dtype)


if __name__ == "__main__":
    run(main, resumes=True)
