"""Checks a dataset against its own manifest and index, and mends it.

    python -m data_tools.verify DATASET [--sizes | --repair] [--workers 2]

Every byte is read: sizes and sha256 of the shards, the members of each tar, the crc32 of every payload, that floats are
finite, the copies of the scalars, keys, and the index: types of the columns, finite values in the arrays that it holds.
Overlays are opened. Layers are checked, and mended, as the dataset is, and that their rows are the dataset's.
--sizes opens no tar: sizes and row counts only. --repair rebuilds an index from its tar and a tar from its index where
the tar's sha256 then proves it right, and lists the samples that stay damaged in quarantine.json, which every reader
leaves out. Exit 0: clean, or all that is damaged is listed; 1: problems, one a line on stdout; 2: not a dataset, or one
without shards.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_tools.checks import Findings, check_shard, check_sizes
from data_tools.repair import mend, write_list
from jaxz.data.dataset import open_dataset
from jaxz.data.index import UNREADABLE, read_index
from jaxz.data.manifest import Manifest
from jaxz.data.quarantine import Damage, Quarantine
from jaxz.data.transport import is_remote
from jaxz.data.writer import repeated_keys
from jaxz.errors import FAILED, InputError, run
from jaxz.progress import in_threads


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--sizes", action="store_true", help="only sizes and row counts; opens no tar")
    parser.add_argument("--repair", action="store_true", help="rebuild what can be, list the rest in quarantine.json")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"workers: {args.workers} must be at least 1")
    if is_remote(args.dataset):
        raise InputError(
            f"dataset: {args.dataset!r} is remote, and what is read of it is checked as it comes; verify it where it is"
        )
    if args.sizes and args.repair:
        raise InputError("repair: --repair must read every byte; leave out --sizes")
    dataset = Path(args.dataset)
    problems = verify(dataset, args)
    if not args.sizes:
        problems += unreadable_overlays(dataset)
    for folder in sorted(path.parent for path in dataset.glob("layers/*/dataset.json")):
        own = verify(folder, args)
        problems += own + (misalignments(dataset, folder) if not own else 0)
    return FAILED if problems else None


def verify(dataset: Path, args: argparse.Namespace) -> int:
    """Check, or mend, one dataset, or one layer as the dataset that it is; the number of problems that are left."""
    manifest = Manifest.load(dataset)
    listed = Quarantine() if args.repair else Quarantine.load(dataset, manifest)
    check = partial(mend if args.repair else check_sizes if args.sizes else check_shard, dataset, manifest)
    findings = in_threads(check, manifest.shards, args.workers, "shards")
    if not args.sizes:
        find_repeated_keys(dataset, manifest, findings)
    if args.repair:
        listed = write_list(dataset, findings)
    problems = strangers(dataset, manifest)
    where = dataset.relative_to(args.dataset)
    tell = lambda line: print(line if where == Path(".") else f"{where}: {line}")
    for found in findings:
        for line in found.mended:
            tell(f"rebuilt: {line}")
        damage = listed.shards.get(found.shard.name)
        if damage and is_as_listed(found, damage, args.sizes):
            tell(f"quarantined: {describe(found, damage)}")
            continue
        problems += found.lines
        if damage:
            problems.append(
                f"quarantine.json: the files of shard {found.shard.name} are not those whose damage is listed "
                f"({damage.count(found.shard)} samples); run --repair"
            )
    for problem in problems:
        tell(problem)
    print(f"{dataset}: {summary(manifest, findings, listed, problems)}", file=sys.stderr)
    return len(problems)


def unreadable_overlays(dataset: Path) -> int:
    """Tell the overlays that cannot be opened; how many there are."""
    count = 0
    for path in sorted(dataset.glob("overlays/*.parquet")):
        try:
            open_dataset(dataset, overlays=[path.stem])
        except InputError as error:
            print(error)
            count += 1
    return count


def misalignments(dataset: Path, layer: Path) -> int:
    """Tell where a layer that is whole by itself does not fit its dataset; the number of lines."""
    try:
        joined = open_dataset(dataset, layers=[layer.name])
        lines = []
        for n, shard in enumerate(joined.manifest.shards):
            part = joined.layers[layer.name]
            if joined.quarantine.whole(shard.name) or part.quarantine.whole(shard.name):
                continue
            keys, theirs = (each.shard_table(n, ("key",))["key"].to_pylist() for each in (joined, part))
            if wrong := [row for row, pair in enumerate(zip(keys, theirs, strict=True)) if pair[0] != pair[1]]:
                lines.append(
                    f"index/{shard.name}.parquet: {len(wrong)} of {shard.samples} samples are not the dataset's: "
                    f"{theirs[wrong[0]]!r} where that has {keys[wrong[0]]!r}; write the layer again"
                )
    except InputError as error:
        lines = [str(error)]
    for line in lines:
        print(f"layers/{layer.name}: {line}")
    return len(lines)


def is_as_listed(found: Findings, damage: Damage, sizes: bool) -> bool:
    """Whether a shard is still as it was when its damage was listed; sizes: as far as can be told without reading."""
    if sizes:
        return found.tar_bytes == damage.tar_bytes and (damage.rows is None or not found.unusable)
    now = found.damage()
    return now is not None and replace(now, reasons=()) == replace(damage, reasons=())


def describe(found: Findings, damage: Damage) -> str:
    reasons = " | ".join(damage.reasons)
    return f"shard {found.shard.name}: {damage.count(found.shard)} of {found.shard.samples} samples: {reasons}"


def summary(manifest: Manifest, findings: list[Findings], listed: Quarantine, problems: list[str]) -> str:
    """What was checked, mended and lost, in one line."""
    many = lambda count, what: f"{count} {what}{'s' * (count != 1)}"
    parts = []
    if rebuilt := sum(len(found.mended) for found in findings):
        parts.append(f"{many(rebuilt, 'file')} rebuilt")
    if listed.shards:
        lost = many(len(listed.rows(manifest)), "sample")
        parts.append(f"{lost} of {many(len(listed.shards), 'shard')} quarantined")
    none = "no other problem found" if listed.shards else "no problem found"
    parts.append(many(len(problems), "problem") if problems else none)
    return f"{manifest.samples} samples in {len(manifest.shards)} shards: {', '.join(parts)}"


def strangers(dataset: Path, manifest: Manifest) -> list[str]:
    """Shards and indices that dataset.json does not know: no reader sees their samples."""
    known = {shard.name for shard in manifest.shards}
    files = [*dataset.glob("shards/*.tar"), *dataset.glob("index/*.parquet")]
    return [f"{path.relative_to(dataset)}: not in dataset.json" for path in sorted(files) if path.stem not in known]


def find_repeated_keys(dataset: Path, manifest: Manifest, findings: list[Findings]) -> None:
    """Tell keys that stand more than once in the dataset: each is lost where it comes again."""
    known = [found for found in findings if found.hashes is not None]
    hashes = [found.hashes for found in findings if found.hashes is not None]

    def keys(n: int) -> list[str]:
        try:
            return read_index(dataset / known[n].index, ["key"])["key"].to_pylist()
        except UNREADABLE:  # changed since it was checked
            return []

    again: dict[int, list[tuple[int, str, int]]] = {}
    for n, row, key, first in repeated_keys(hashes, keys):
        again.setdefault(n, []).append((row, key, first))
    for n, places in again.items():
        found, (row, key, first) = known[n], places[0]
        found.lost.update(row for row, *_ in places)
        found.lines.append(
            f"{found.index}: {len(places)} of {found.shard.samples} samples have keys that stand before them in the "
            f"dataset; first: {key!r} of sample {row}, which shard {known[first].shard.name} has"
        )


if __name__ == "__main__":
    run(main)
