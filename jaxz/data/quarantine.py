"""Samples that are out because their stored data is damaged: DATASET/quarantine.json (docs/dataset_format.md).

Written by `data_tools.verify --repair`; every process that reads the dataset leaves the same samples out.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxz.data.manifest import Manifest, Shard
from jaxz.errors import InputError
from jaxz.files import read_json

VERSION = 1
FIX = "run `python -m data_tools.verify --repair` to make it again"


@dataclass(frozen=True)
class Damage:
    """What is out of one shard, and the files in which that was found; None: a file that was not there."""

    rows: tuple[int, ...] | None  # within the shard, in order; None: all
    reasons: tuple[str, ...] = ()
    tar_bytes: int | None = None
    tar_sha256: str | None = None
    index_sha256: str | None = None

    def count(self, shard: Shard) -> int:
        return shard.samples if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Quarantine:
    """Damage by the name of the shard. A shard may be listed without any row: its samples are whole, its tar is not."""

    shards: Mapping[str, Damage] = field(default_factory=dict)

    def rows(self, manifest: Manifest) -> np.ndarray:
        """int64 [M]: the global rows that are out, in order."""
        out, start = [np.empty(0, np.int64)], 0
        for shard in manifest.shards:
            if damage := self.shards.get(shard.name):
                here = range(shard.samples) if damage.rows is None else damage.rows
                out.append(start + np.array(here, np.int64))
            start += shard.samples
        return np.concatenate(out)

    def whole(self, name: str) -> bool:
        """Whether all of a shard is out, so that neither its tar nor its index is opened."""
        return name in self.shards and self.shards[name].rows is None

    def explains(self, name: str, size: int) -> bool:
        """Whether a tar of this size is the damaged one whose loss is listed."""
        return name in self.shards and self.shards[name].tar_bytes == size

    def to_json(self) -> str:
        rows = {name: "all" if d.rows is None else list(d.rows) for name, d in self.shards.items()}
        evidence = {name: dataclasses.asdict(damage) for name, damage in self.shards.items()}
        for found in evidence.values():
            del found["rows"]
        return json.dumps({"version": VERSION, "shards": rows, "evidence": evidence}, indent=1)

    @classmethod
    def load(cls, dataset: Path | str, manifest: Manifest) -> "Quarantine":
        """The list of a dataset, empty where there is none. Raises InputError for one that is malformed."""
        path = Path(dataset) / "quarantine.json"
        if not path.exists():
            return cls()
        raw = read_json(path, "the list of damaged samples")
        if raw.get("version") != VERSION:
            raise InputError(f"{path}: version: {raw.get('version')!r} is not {VERSION}; {FIX}")
        shards, evidence = raw.get("shards"), raw.get("evidence", {})
        if not isinstance(shards, dict) or not isinstance(evidence, dict):
            raise InputError(f"{path}: shards and evidence must be objects; {FIX}")
        known = {shard.name: shard.samples for shard in manifest.shards}
        found = {}
        for name, rows in shards.items():
            if name not in known:
                raise InputError(f"{path}: shards: {name!r:.80} is not a shard of the dataset; {FIX}")
            if not is_rows(rows, known[name]):
                raise InputError(
                    f"{path}: shards.{name}: {rows!r:.80} must be 'all' or rising row numbers, "
                    f"0..{known[name] - 1}; {FIX}"
                )
            try:
                found[name] = Damage(None if rows == "all" else tuple(rows), **seen(evidence.get(name, {})))
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}: evidence.{name}: {error}; {FIX}") from None
        return cls(found)


def is_rows(rows: object, samples: int) -> bool:
    """Whether it is "all" or a list of different row numbers of a shard, in order."""
    if not isinstance(rows, list):
        return rows == "all"
    whole = all(type(row) is int and 0 <= row < samples for row in rows)
    return whole and all(a < b for a, b in zip(rows, rows[1:], strict=False))


def seen(raw: object) -> dict:
    """The fields of a Damage beside its rows. Raises ValueError or TypeError for others."""
    if not isinstance(raw, dict):
        raise ValueError("must be an object")
    reasons, size = raw.get("reasons", []), raw.get("tar_bytes")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise ValueError("reasons must be a list of text")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError(f"tar_bytes {size!r:.80} must be a number of bytes or null")
    for name in ("tar_sha256", "index_sha256"):
        value = raw.get(name)
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
            raise ValueError(f"{name} {value!r:.80} must be 64 hexadecimal digits or null")
    return {**raw, "reasons": tuple(reasons)}
