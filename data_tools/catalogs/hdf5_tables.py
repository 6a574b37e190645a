"""HDF5 catalogues: a dataset a column in one group, or one compound dataset. Nothing is unpickled, no link followed."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from astropy.table.meta import get_header_from_yaml

from data_tools.catalogs.opened import Opened, WantedColumns
from jaxz.errors import InputError

HEADER_LIMIT = 1 << 20  # bytes


def open_hdf5(path: Path, group: str = "") -> Opened:
    """The columns of a group or of a compound dataset; without `group`, of the only one there is.

    A group's rows are as many as most of its datasets have; another, such as a grid of redshifts, is no column.
    """
    file = h5py.File(path, "r")
    found = find_tables(file)
    wanted = group.strip("/")
    if (group and wanted not in found) or (not group and len(found) != 1):
        known = ", ".join(repr(f"/{name}") for name in found) or "none"
        named = f"{group!r} is not one" if group else f"{len(found)} there"
        raise InputError(f"catalog.group: {named} of the tables of {str(path)!r}; use one of: {known}")
    place = found[wanted if group else next(iter(found))]
    if isinstance(place, h5py.Dataset):
        return open_compound(file, place, path)
    columns = {name: item for name, item in children(place).items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
    number = statistics.mode(len(item) for item in columns.values())
    columns = {name: item for name, item in columns.items() if len(item) == number}

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, number, size):
            part = slice(start, min(start + size, number))
            yield {role: text(columns[name][part]) for role, (name, _) in wanted.items()}

    kinds = {name: kind_of(item.dtype, item.ndim) for name, item in columns.items()}
    units = {name: unit_of(item) for name, item in columns.items()}
    return Opened([path], kinds, units, number, chunks)


def open_compound(file: h5py.File, table: h5py.Dataset, path: Path) -> Opened:
    """The fields of a compound dataset, such as pandas, PyTables and astropy write them."""

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        fields = table.fields(sorted({name for name, _ in wanted.values()}))
        for start in range(0, len(table), size):
            part = fields[start : start + size]
            yield {role: text(part[name]) for role, (name, _) in wanted.items()}

    kinds = {name: kind_of(table.dtype[name], 1) for name in table.dtype.names}
    units = dict.fromkeys(kinds, "")
    meta = children(table.parent).get(f"{table.name.rpartition('/')[2]}.__table_column_meta__")
    if isinstance(meta, h5py.Dataset) and meta.nbytes < HEADER_LIMIT:  # astropy's
        header = get_header_from_yaml([line.decode() for line in meta[()]])
        units |= {column["name"]: str(column.get("unit", "")) for column in header["datatype"]}
    return Opened([path], kinds, units, len(table), chunks)


def find_tables(file: h5py.File) -> dict[str, h5py.Group | h5py.Dataset]:
    """{path: group that holds columns, or compound dataset}."""
    found, todo, seen = {}, [file["/"]], set()
    while todo:
        group = todo.pop()
        if group in seen:  # a group may hold itself
            continue
        seen.add(group)
        for item in children(group).values():
            if isinstance(item, h5py.Group):
                todo.append(item)
            elif item.dtype.names is not None and item.ndim == 1:
                found[item.name.strip("/")] = item
            elif item.ndim > 0 and "__table_column_meta__" not in item.name:
                found[group.name.strip("/")] = group
    return found


def children(group: h5py.Group) -> dict[str, h5py.Group | h5py.Dataset]:
    """What a group itself holds: links are left out, for they lead to other files."""
    hard = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    items = {name: group[name] for name in hard}
    return {n: i for n, i in items.items() if isinstance(i, h5py.Group) or not (i.is_virtual or i.external)}


def kind_of(dtype: np.dtype, ndim: int) -> str:
    if ndim != 1 or dtype.subdtype is not None:
        return "array"
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    return "number" if dtype.kind in "iufb" else "object"


def unit_of(item: h5py.Dataset) -> str:
    unit = next((item.attrs[name] for name in ("unit", "units") if name in item.attrs), "")
    return unit.decode() if isinstance(unit, bytes) else str(unit)


def text(values: np.ndarray) -> np.ndarray:
    """Strings of bytes as str; numbers as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":  # of variable length
        return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values], dtype=str)
    return values
