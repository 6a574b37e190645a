"""What a conversion is going to write, worked out before anything is cut.

Which object comes from which tile and goes to which shard lies in DATASET/work until the dataset is complete:

    work/plan.json                  tiles, blocks, the scale of each band, what was dropped
    work/objects/00000.parquet      the objects of a block, in the order in which they are written

A block is a number of tiles, drawn at random from the whole sky: its objects, shuffled, fill its shards. So a few
shards are a fair sample of the survey, while only one block has to lie beside the dataset at a time.
"""

import dataclasses
import glob
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.splits import assign_splits_pixels
from data_tools.survey import Survey
from data_tools.tiles import Tile
from jaxz.data.manifest import Column
from jaxz.data.order import derive
from jaxz.data.tars import raise_file_limit
from jaxz.data.writer import hash_keys
from jaxz.errors import InputError
from jaxz.files import read_json, replace

Columns = dict[str, np.ndarray]  # {column: [N]} of a chunk of the catalogue
Facts = tuple[dict[str, Column], dict[str, int], dict[str, str]]  # of a catalogue: see `make_plan`
ROW_GROUP = 100_000
SPLIT_APART = 1e6  # pixels between two tiles without a WCS: their cells are never neighbours


@dataclass(frozen=True)
class Block:
    """Numbers of its tiles, of its objects, of the first of them in the dataset, and of its first shard."""

    tiles: tuple[int, ...]
    objects: int
    first: int
    first_shard: int

    def shards(self, samples_per_shard: int) -> range:
        return range(self.first_shard, self.first_shard + math.ceil(self.objects / samples_per_shard))


@dataclass(frozen=True)
class Plan:
    """tiles: their names. sigma_ujy: {band: the sky's typical sigma a pixel}, which the stored numbers are in.
    columns: what the catalogue's are. dropped, invalid: {reason: objects}, {column: numbers}. choices: what the
    catalogue's reader chose."""

    tiles: tuple[str, ...]
    blocks: tuple[Block, ...]
    samples_per_shard: int
    sigma_ujy: dict[str, float]
    columns: dict[str, Column]
    dropped: dict[str, int]
    invalid: dict[str, int]
    choices: dict[str, str]

    @property
    def objects(self) -> int:
        return sum(block.objects for block in self.blocks)

    @property
    def shards(self) -> int:
        return sum(len(block.shards(self.samples_per_shard)) for block in self.blocks)

    @classmethod
    def load(cls, work: Path) -> "Plan":
        values = read_json(work / "plan.json", "the plan of the conversion")
        blocks = tuple(Block(**{**block, "tiles": tuple(block["tiles"])}) for block in values.pop("blocks"))
        columns = {name: Column(**column) for name, column in values.pop("columns").items()}
        return cls(**{**values, "tiles": tuple(values["tiles"]), "blocks": blocks, "columns": columns})


def objects_of(
    work: Path, block: int, columns: list[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """The objects of a block, in order."""
    return pq.read_table(work / "objects" / f"{block:05d}.parquet", columns=columns, filters=where)


def make_plan(
    work: Path,
    chunks: Iterable[Columns],
    survey: Survey,
    tiles: list[Tile],
    place: Callable[[Columns], tuple[Columns, dict[str, int]]],
    *,
    size: int,
    samples_per_shard: int,
    tiles_per_block: int,
    sigma_ujy: dict[str, float],
    finish: Callable[[], Facts] = lambda: ({}, {}, {}),
) -> Plan:
    """Place the objects of a catalogue, chunk by chunk, and write the plan to the empty directory `work`.

    place(chunk): the objects that can be cut, with their tile, x, y and perhaps split, and how many cannot, by reason.
    finish() is called once the chunks are read: ({column: what it is}, {column: invalid numbers}, {column: where it
    comes from}). Raises InputError where an object_id stands twice or no object lies in a tile.
    """
    order = np.argsort([int(derive(survey.splits.seed, n, *tile.name.encode())) for n, tile in enumerate(tiles)])
    groups = [tuple(order[at : at + tiles_per_block].tolist()) for at in range(0, len(tiles), tiles_per_block)]
    group_of = np.empty(len(tiles), np.int64)
    for number, group in enumerate(groups):
        group_of[list(group)] = number
    folder, seen = work / "objects", Ids()
    folder.mkdir()
    parts = Parts(folder, len(groups))
    dropped: dict[str, int] = {}
    for chunk in chunks:
        seen.add(chunk["object_id"])
        placed, lost = place(chunk)
        for reason, number in lost.items():
            dropped[reason] = dropped.get(reason, 0) + number
        parts.add(placed, group_of[placed["tile"]])
    counts = parts.close()
    seen.check(parts.paths)
    if not sum(counts):
        raise InputError(
            f"catalog: none of {sum(dropped.values())} objects lies in a tile; check the position columns, their unit "
            "and frame, and the tiles' WCS"
        )
    if "split" not in pq.read_schema(folder / "00000.parquet").names:
        split_pixels(folder, len(groups), survey, size)
    blocks, first, first_shard = [], 0, 0
    for number, (group, objects) in enumerate(zip(groups, counts, strict=True)):
        shuffle(folder / f"{number:05d}.parquet", (survey.splits.seed, number))
        blocks.append(Block(group, objects, first, first_shard))
        first, first_shard = first + objects, first_shard + math.ceil(objects / samples_per_shard)
    columns, invalid, choices = finish()
    invalid = {name: number for name, number in invalid.items() if name not in ("ra", "dec", "x", "y")}  # dropped
    names = tuple(tile.name for tile in tiles)
    plan = Plan(names, tuple(blocks), samples_per_shard, sigma_ujy, columns, dropped, invalid, choices)
    replace(work / "plan.json", json.dumps(dataclasses.asdict(plan), indent=1).encode())
    return plan


def publish(made: Path, work: Path) -> None:
    """Move a plan that is complete to its place; another process that was first has made the same one."""
    try:
        os.rename(made, work)
    except OSError:
        if not (work / "plan.json").exists():
            raise
        shutil.rmtree(made)


def scratch(out: Path) -> Path:
    """A new directory beside `out`, for what is not yet known to be right; what killed processes left there goes."""
    parent, stem = out.absolute().parent, f".{out.name}.plan-{socket.gethostname()}-"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{glob.escape(stem)}*"):
        pid = left.name.removeprefix(stem)
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    made = parent / f"{stem}{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)  # of a process before us that had our number
    made.mkdir()
    return made


class Ids:
    """Finds ids that stand twice without holding the ids of text: of all it keeps hashes, of the objects in a tile, in
    the plan's tables, one is looked up."""

    def __init__(self):
        self.seen: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> None:
        self.text = ids.dtype.kind not in "iu"
        self.seen.append(hash_keys(ids.tolist()) if self.text else ids)

    def check(self, tables: list[Path]) -> None:
        """tables: of the blocks, with the ids of all objects that were placed. Raises InputError."""
        ids = np.sort(np.concatenate([np.empty(0, np.int64), *self.seen]))
        twice = ids[1:][ids[1:] == ids[:-1]]
        if not len(twice):
            return
        named = repr(twice[0].item())
        if self.text:
            placed = (i for path in tables for i in pq.read_table(path, columns=["object_id"])["object_id"].to_pylist())
            named = next((repr(i) for i in placed if hash(i) in twice), "a text")
        raise InputError(f"catalog.object_id: holds {named} more than once; name a column of unique ids")


class Parts:
    """One growing table a block."""

    def __init__(self, folder: Path, blocks: int):
        self.paths = [folder / f"{n:05d}.parquet" for n in range(blocks)]
        self.writers: dict[int, pq.ParquetWriter] = {}
        self.counts = [0] * blocks
        raise_file_limit()  # one is open a block

    def add(self, columns: dict[str, np.ndarray], blocks: np.ndarray) -> None:
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        order = np.argsort(blocks, kind="stable")
        bounds = np.searchsorted(blocks[order], np.arange(len(self.paths) + 1))
        table = table.take(order)
        for n, path in enumerate(self.paths):
            if n not in self.writers:
                self.writers[n] = pq.ParquetWriter(path, table.schema)
            part = table.slice(bounds[n], bounds[n + 1] - bounds[n])
            self.counts[n] += len(part)
            if len(part):
                self.writers[n].write_table(part)

    def close(self) -> list[int]:
        for writer in self.writers.values():
            writer.close()
        return self.counts


def shuffle(path: Path, seed: tuple[int, int]) -> None:
    """Bring the rows of a block's table into a random order. The order of the catalogue decides, not its chunks."""
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(seed).permutation(len(table))), path, row_group_size=ROW_GROUP)


def split_pixels(folder: Path, blocks: int, survey: Survey, size: int) -> None:
    """Add the split to the blocks' tables, of tiles without a WCS: square cells in each, dealt out over all of them."""
    paths = [folder / f"{n:05d}.parquet" for n in range(blocks)]
    columns = [pq.read_table(path, columns=["tile", "x", "y"]) for path in paths]
    tile, x, y = (np.concatenate([table[name].to_numpy() for table in columns]) for name in ("tile", "x", "y"))
    cell_px = survey.splits.cell_arcmin * 60 / survey.pixel_scale_arcsec
    apart = math.ceil(SPLIT_APART / cell_px) * cell_px
    names, _ = assign_splits_pixels(
        x + tile * apart, y, gap_px=size * math.sqrt(2), cell_px=cell_px, fractions=survey.splits.fractions,
        seed=survey.splits.seed,
    )  # fmt: skip
    at = 0
    for path, part in zip(paths, columns, strict=True):
        table = pq.read_table(path)
        pq.write_table(table.append_column("split", pa.array(names[at : at + len(part)])), path)
        at += len(part)


def rows_of_tile(objects: pa.Table, tile: int) -> np.ndarray:
    """Places, in order, of a tile's objects among those of its block."""
    return np.flatnonzero(objects["tile"].to_numpy() == tile)


def tile_pairs(block: Block, tiles: list[Tile], survey: Survey) -> Iterator[tuple[int, int]]:
    """(tile, band) of every plane of a block that is there, by number."""
    for tile in block.tiles:
        for number, band in enumerate(survey.bands):
            if band.name in tiles[tile].files:
                yield tile, number
