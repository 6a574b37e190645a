"""Stores the images of a dataset anew: compact (quantised, about 2.5 times smaller) or raw.

    python -m data_tools.reencode DATASET --out NEW --encoding compact|raw [--step-sigma 0.125] [--workers 2]

Rows, splits, scalars and other arrays stay as they are. Raw images made of compact ones have the dtype that the images
were measured in, not the values from before: those are lost. Every payload that is read is held against its checksum.
The same command finishes an interrupted dataset.
"""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np

from data_tools.plan import versions
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Manifest
from jaxz.data.writer import ENCODINGS, STEP_SIGMA, DatasetWriter, with_images
from jaxz.errors import InputError, run
from jaxz.progress import in_processes


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.reencode", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="dataset to write")
    parser.add_argument("--encoding", required=True, choices=ENCODINGS)
    parser.add_argument("--step-sigma", type=float, default=STEP_SIGMA, help="of compact, in sky sigmas (default 1/8)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"workers: {args.workers} must be at least 1")
    if not 1e-3 <= args.step_sigma <= 1:
        raise InputError(f"step-sigma: {args.step_sigma} must lie in 0.001 .. 1; 0.125 adds 0.13 % to the variance")
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
    in_processes(write_shard, jobs, args.workers, "shards")
    written = writer.finish(len(source.manifest.shards), source.manifest.splits)
    before, after = (sum(shard.bytes for shard in m.shards) for m in (source.manifest, written))
    print(f"{args.out}: {written.samples} samples, {after} bytes of shards, {after / before:.2f} of those before")
    return None


def new_manifest(manifest: Manifest, plan: dict) -> Manifest:
    """That of the dataset to write. Raises InputError where its images are so encoded already."""
    empty = dataclasses.replace(manifest, shards=())
    changed = with_images(empty, plan["encoding"], plan.get("step_sigma", STEP_SIGMA))
    if all(changed.arrays[name].encoding == array.encoding for name, array in manifest.arrays.items()):
        raise InputError(f"encoding: the images are {plan['encoding']} already; reencode the dataset they were made of")
    history = manifest.provenance.get("reencoded", [])
    entry = {**plan, "plan": manifest.provenance.get("plan"), "versions": versions("numpy", "blosc2")}
    provenance = {**manifest.provenance, "reencoded": [*history, entry]}
    return dataclasses.replace(changed, provenance=provenance)


def write_shard(writer: DatasetWriter, dataset: Path, n: int) -> None:
    """Write shard `n` of the new dataset, the rows of shard `n` of the old one."""
    source, arrays, columns = open_dataset(dataset), writer.manifest.arrays, writer.manifest.columns
    inside = [name for name, spec in arrays.items() if not spec.in_tar]
    index = source.shard_table(n, ("key", *columns, *inside))
    values = {name: np.array(index[name].to_pylist(), arrays[name].dtype) for name in inside}  # lists of one shape
    values |= {
        name: [as_stored(v, arrays[name]) for v in source.payloads(n, name)] for name in arrays.keys() - set(inside)
    }
    writer.write_shard(n, index["key"].to_pylist(), values, {name: index[name].to_pylist() for name in columns})


def as_stored(value: np.ndarray, spec: Array) -> np.ndarray:
    """In the array's dtype, which what a compact one was decoded to may just exceed."""
    if value.dtype == spec.dtype:
        return value
    limits = np.finfo(spec.dtype)
    return np.clip(value, limits.min, limits.max).astype(spec.dtype)


if __name__ == "__main__":
    run(main, resumes=True)
