"""Scalar columns that join a dataset, or replace some of it, without touching a shard: overlays/NAME.parquet, by
object_id (docs/dataset_format.md)."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from jaxz.data.index import PLACES, UNREADABLE, column_type
from jaxz.data.manifest import NAME, Column, Manifest
from jaxz.data.staging import place_of
from jaxz.errors import InputError
from jaxz.files import replace

if TYPE_CHECKING:
    from jaxz.data.dataset import Dataset


class Overlay:
    """columns: {name: Column} of what it says of the objects that it names; of others it says nothing.

    Raises InputError for a file that is none: without object_id, with one twice, or with columns that cannot be.
    """

    def __init__(self, path: Path, manifest: Manifest):
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except UNREADABLE as error:
            raise InputError(f"overlays: {path} cannot be read ({error}); write it, or name another") from None
        if "object_id" not in manifest.columns or "object_id" not in table.column_names:
            where = path if "object_id" in manifest.columns else "the dataset"
            raise InputError(f"overlays: {where} has no column 'object_id', by which an overlay is joined; add it")
        kind = column_type(manifest.columns["object_id"])
        try:
            ids = table["object_id"].cast(kind).combine_chunks()
        except pa.ArrowException as error:
            raise InputError(f"overlays: {path}: object_id is not {kind} as in the dataset ({error})") from None
        if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
            raise InputError(f"overlays: {path}: object_id must be there, and once for each object")
        self.columns = {}
        for name in table.column_names:
            if name != "object_id":
                self.columns[name] = checked_column(path, table.schema.field(name), manifest)
        ids, _ = numpy_ids(ids)
        order = np.argsort(ids, kind="stable")
        self.ids, order = ids[order], pa.array(order)
        self.values = {
            name: table[name].cast(column_type(spec)).combine_chunks().take(order)
            for name, spec in self.columns.items()
        }

    def match(self, ids: pa.ChunkedArray) -> pa.Array:
        """Where the objects `ids` stand in this overlay; null for those that it does not name, and without an id."""
        wanted, known = numpy_ids(ids.combine_chunks())
        if not len(self.ids):
            return pa.nulls(len(wanted), pa.int64())
        at = np.searchsorted(
            self.ids, wanted.astype(self.ids.dtype)
        )  # longer text would widen the overlay's, each time
        at = np.minimum(at, len(self.ids) - 1)
        return pa.array(at, mask=~(known & (self.ids[at] == wanted)))

    def lay(self, name: str, at: pa.Array, stored: pa.ChunkedArray | None) -> pa.ChunkedArray:
        """A column for the objects of a match: the overlay's values, for others those stored, or nothing."""
        values = self.values[name].take(at)
        return pa.chunked_array([values]) if stored is None else pc.if_else(at.is_valid(), values, stored)


def can_be_column(name: str, manifest: Manifest) -> bool:
    """Whether an overlay's column may have a name."""
    array, _, place = name.rpartition("_")
    is_place = array in manifest.arrays and place in (*PLACES, "exceptions")  # the index's own, of its payloads
    return bool(NAME.fullmatch(name)) and name != "key" and name not in manifest.arrays and not is_place


def checked_column(path: Path, field: pa.Field, manifest: Manifest) -> Column:
    """What a column of an overlay is. Raises InputError where the dataset cannot have it."""
    name, kind, said = field.name, field.type, field.metadata or {}
    if not can_be_column(name, manifest):
        raise InputError(f"overlays: {path}: column {name!r} has a name that no column can have; rename it")
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"overlays: {path}: column {name!r} holds {kind}; use numbers, booleans or text")
    unit, description = (said.get(what, b"").decode(errors="replace") for what in (b"unit", b"description"))
    dtype = "string" if text else str(np.dtype(kind.to_pandas_dtype()))
    found = Column(dtype, unit, description or f"of {path.name}")
    known = manifest.columns.get(name, found)
    if known.dtype != dtype:
        raise InputError(f"overlays: {path}: column {name!r} holds {dtype}, the dataset {known.dtype}; cast it")
    if unit and known.unit != unit:
        raise InputError(f"overlays: {path}: column {name!r} is in {unit!r}, the dataset in {known.unit!r}; convert it")
    return known


def to_parquet(ids: pa.Array, values: dict[str, pa.Array], columns: dict[str, Column], provenance: dict) -> memoryview:
    """The bytes of an overlay: values of `columns` for the objects `ids`. provenance: JSON, kept in the metadata."""
    said = {name: {"unit": spec.unit, "description": spec.description} for name, spec in columns.items()}
    fields = [pa.field("object_id", ids.type)]
    fields += [pa.field(name, column_type(spec), metadata=said[name]) for name, spec in columns.items()]
    schema = pa.schema(fields, metadata={"jaxz": json.dumps(provenance)})
    sink = io.BytesIO()
    table = pa.table([ids, *(values[name] for name in columns)], schema=schema)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getbuffer()


def overlay_path(dataset: "Dataset", name: str, *, replace: bool = False) -> Path:
    """Where a new overlay of a Dataset goes. Raises InputError for a remote dataset, one without object_id, and,
    unless it is to be replaced, for a name that is taken."""
    if isinstance(dataset.path, str):
        raise InputError(f"dataset: {dataset.path!r} is remote; write the overlay where it is")
    if "object_id" not in dataset.manifest.columns:
        raise InputError(
            f"dataset: {str(dataset.path)!r} has no column object_id, by which overlays are joined; convert it"
        )
    path = dataset.path / place_of("overlays", name)
    if path.exists() and not replace:
        raise InputError(f"overlay: {path} exists; choose another name")
    return path


def overlay_ids(dataset: "Dataset", rows: np.ndarray) -> pa.Array:
    """object_id of the rows [K] of a Dataset that an overlay is to name. Raises InputError where one has none, or
    shares it with another row, which the overlay would change too."""
    every = dataset.arrow(columns=["object_id"])["object_id"].combine_chunks()
    ids = every.take(pa.array(rows))
    if ids.null_count:
        raise InputError(
            f"dataset: object_id of {str(dataset.path)!r} is missing for {ids.null_count} of {len(ids)} objects; "
            "choose those that have one"
        )
    sharing = pc.sum(pc.is_in(every, value_set=ids), min_count=0).as_py()
    if not pc.count_distinct(ids).as_py() == sharing == len(ids):
        raise InputError(
            f"dataset: object_id of {str(dataset.path)!r} stands more than once for some objects; make it unique"
        )
    return ids


def write_overlay(
    dataset: "Dataset",
    name: str,
    rows: np.ndarray,
    values: Mapping[str, ArrayLike],
    columns: dict[str, Column],
    provenance: dict,
) -> Path:
    """Values [K] of `columns` for the rows [K] of a Dataset, as a new overlay; its path. Raises as overlay_path and
    overlay_ids."""
    path, ids = overlay_path(dataset, name), overlay_ids(dataset, rows)
    arrays = {name: pa.array(values[name], column_type(spec)) for name, spec in columns.items()}
    path.parent.mkdir(exist_ok=True)
    replace(path, to_parquet(ids, arrays, columns, provenance))
    return path


def numpy_ids(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, or text of fixed width, which sort and compare quickly; and bool: which of them are there."""
    known = ids.is_valid().to_numpy(zero_copy_only=False)
    values = ids.fill_null("" if pa.types.is_string(ids.type) else pa.scalar(0, ids.type))
    values = values.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values, known
