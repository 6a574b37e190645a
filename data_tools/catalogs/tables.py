"""Catalogue files, read chunk by chunk: FITS and VOTable here, HDF5 and Arrow's formats in their own modules."""

import contextlib
import dataclasses
import gzip
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Column
from astropy.utils.exceptions import AstropyWarning
from astropy.utils.xml.iterparser import get_xml_iterator

from data_tools.catalogs import arrow_tables, hdf5_tables
from data_tools.catalogs.columns import to_text
from data_tools.catalogs.opened import Opened, WantedColumns
from jaxz.errors import BAD_PATH, InputError

HEAD = 4096  # bytes that tell the format


def open_table(path: Path, hdu: int | str = "", group: str = "", say: Callable[[str], None] = print) -> Opened:
    """The columns of a table and a way to read them; nothing but its header is read yet.

    A directory holds the parts of one catalogue; formats are told by content, CSV being what is left. hdu: number
    or name of the HDU of a FITS file, group: the path in an HDF5 file; without, the file must hold one table. Raises
    InputError for what is no such table, holds pickled objects or points to other files.
    """
    try:
        return masked(open_folder(path, hdu, group, say) if path.is_dir() else open_file(path, hdu, group, say))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of many kinds: whatever a damaged file makes its library raise
        if isinstance(error, OSError) and error.errno is not None and error.errno not in BAD_PATH:
            raise  # a full disk, say
        problem = f"{str(path)!r} cannot be read as a table ({type(error).__name__}: {error})"
        raise InputError(f"catalog: {problem}; give FITS, Parquet, HDF5, VOTable, ECSV or CSV") from None


def open_file(path: Path, hdu: int | str, group: str, say: Callable[[str], None]) -> Opened:
    head = read_head(path)
    if head.startswith(b"SIMPLE  ="):
        return open_fits(path, hdu, say)
    if head.startswith(b"PAR1"):
        return arrow_tables.open_parquet(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return hdf5_tables.open_hdf5(path, group)
    if b"<VOTABLE" in head:
        return open_votable(path)
    return arrow_tables.open_csv(path, is_ecsv=head.startswith(b"# %ECSV"))


def masked(table: Opened) -> Opened:
    """The same, with the masks that astropy stores beside a column of a format without: X.mask is that of X."""
    if not any(f"{name}.mask" in table.kinds for name in table.kinds):
        return table

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        masks = {role: (f"{name}.mask", "text") for role, (name, _) in wanted.items() if f"{name}.mask" in table.kinds}
        for raw in table.chunks({**wanted, **{f"{role}.mask": column for role, column in masks.items()}}, size):
            for role in masks:
                raw[role] = np.ma.array(raw[role], mask=to_text(raw.pop(f"{role}.mask")) == "True")
            yield raw

    return dataclasses.replace(table, chunks=chunks)


def open_folder(path: Path, hdu: int | str, group: str, say: Callable[[str], None]) -> Opened:
    """The files of a folder as one catalogue, in the order of their paths: a Parquet dataset, or tables that agree."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".", "_")))
    if not files:
        raise InputError(f"catalog: {str(path)!r} is empty; give a table or a folder of them")
    if read_head(files[0]).startswith(b"PAR1"):
        return arrow_tables.open_parquet(path)
    tables = [open_file(file, hdu, group, say) for file in files]
    kinds, units = dict(tables[0].kinds), tables[0].units
    for table in tables:
        kinds |= {name: kind for name, kind in table.kinds.items() if kinds.get(name) == "any"}
        same = kinds.keys() == table.kinds.keys() and all(k in (kinds[n], "any") for n, k in table.kinds.items())
        if not same or table.units != units:
            differ = "differ in their columns or units"
            raise InputError(f"catalog: {str(files[0])!r} and {str(table.files[0])!r} {differ}; keep tables that agree")
    counts = [table.rows for table in tables if table.rows is not None]

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        for table in tables:
            yield from table.chunks(wanted, size)

    return Opened(files, kinds, units, sum(counts) if len(counts) == len(tables) else None, chunks)


def read_head(path: Path) -> bytes:
    """The first bytes, decompressed."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read(HEAD)
        file.seek(0)
        with gzip.open(file) as unpacked:
            return unpacked.read(HEAD)


def open_fits(path: Path, hdu: int | str, say: Callable[[str], None]) -> Opened:
    """A binary table, memory-mapped; one that is gzipped is unpacked to a temporary file first."""
    with unpacked(path, say) as place, warnings.catch_warnings(), fits.open(place, memmap=True) as hdus:
        warnings.simplefilter("ignore", AstropyWarning)  # of what it mends; a truncated file is an error below
        table = choose_hdu(hdus, hdu, path)
        offset, rows, width = table.fileinfo()["datLoc"], table.header["NAXIS2"], table.header["NAXIS1"]
        dtype = table.columns.dtype.newbyteorder(">")
        if dtype.itemsize != width:
            raise InputError(f"catalog: {str(path)!r} has rows of {width} bytes, its columns take {dtype.itemsize}")
        if place.stat().st_size < offset + rows * width:
            raise InputError(f"catalog: {str(path)!r} is truncated, its {rows} rows are not all there; fetch it again")
        fields = {column.name: FitsField.of(column, dtype[column.name]) for column in table.columns}
        data = np.memmap(place, dtype, "r", offset, (rows,)) if rows else np.empty(0, dtype)

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, rows, size):
            part = data[start : start + size]
            yield {role: fields[name].values(part[name]) for role, (name, _) in wanted.items()}

    units = {name: field.unit for name, field in fields.items()}
    kinds = {name: field.kind for name, field in fields.items()}
    return Opened([path], kinds, units, rows, chunks)


@contextlib.contextmanager
def unpacked(path: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The file itself or, where it is gzipped, an unpacked copy, gone when this ends (a memory map of it stays)."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        yield path
        return
    say(f"catalog: {path.name} is unpacked to a temporary file in {tempfile.gettempdir()}")
    with tempfile.NamedTemporaryFile(suffix=".fits") as file:
        with gzip.open(path) as source:
            shutil.copyfileobj(source, file, 1 << 24)
        file.flush()
        yield Path(file.name)


def choose_hdu(hdus: fits.HDUList, hdu: int | str, path: Path) -> fits.BinTableHDU:
    """The HDU asked for, or the only table. Raises InputError."""
    tables = {
        n: h.name
        for n, h in enumerate(hdus)
        if isinstance(h, fits.BinTableHDU) and not isinstance(h, fits.CompImageHDU)
    }
    wanted = [n for n, name in tables.items() if hdu in ("", n, name)]
    if len(wanted) != 1:
        known = ", ".join(f"{n} {name!r}" for n, name in tables.items()) or "none"
        raise InputError(
            f"catalog.hdu: {hdu!r} names {len(wanted)} binary tables of {str(path)!r}; use one of: {known}"
        )
    if "ZTABLE" in hdus[wanted[0]].header:
        raise InputError(f"catalog: {str(path)!r} holds a tile-compressed table; unpack it with funpack")
    return hdus[wanted[0]]


@dataclass(frozen=True)
class FitsField:
    """A column of a FITS table: what its stored numbers mean (FITS standard 4.0, 7.3.2)."""

    kind: str  # "number", "text", "array"
    unit: str
    logical: bool
    null: int | None
    scale: float
    zero: float

    @classmethod
    def of(cls, column: fits.Column, dtype: np.dtype) -> "FitsField":
        letter = column.format.format
        scalar = dtype.subdtype is None and letter in "LBIJKEDA" and dtype.itemsize > 0
        kind = ("text" if letter == "A" else "number") if scalar else "array"
        scale, zero = (float(1 if column.bscale in ("", None) else column.bscale), column.bzero or 0)
        return cls(kind, column.unit or "", letter == "L", column.null if column.null != "" else None, scale, zero)

    def values(self, stored: np.ndarray) -> np.ndarray:
        """In native byte order, scaled, masked where they are null."""
        if self.kind == "text":
            return np.char.decode(stored, "ascii", "replace")
        if self.logical:
            return np.ma.array(stored == ord("T"), mask=(stored != ord("T")) & (stored != ord("F")))
        values = stored.astype(stored.dtype.newbyteorder("="))
        if self.scale == 1 and self.zero in (0, 1 << 15, 1 << 31, 1 << 63, -128):  # integers without a sign, or with
            scaled = unsigned(values, int(self.zero)) if self.zero else values
        else:
            scaled = values * self.scale + self.zero
        return (
            scaled if self.null is None or values.dtype.kind == "f" else np.ma.array(scaled, mask=values == self.null)
        )


def unsigned(values: np.ndarray, zero: int) -> np.ndarray:
    """Integers + zero, exactly: FITS stores unsigned ones shifted by half their range, and signed bytes likewise."""
    if values.dtype.kind == "f":
        return values + zero
    if zero == -128:
        return values.astype(np.int16) - 128
    top = values.dtype.itemsize * 8 - 1
    if zero != 1 << top:
        return values.astype(np.float64) + zero
    return values.view(f"u{values.dtype.itemsize}") ^ np.array(zero, f"u{values.dtype.itemsize}")


def open_votable(path: Path) -> Opened:
    """The only table of a VOTable, read whole. One whose data lie in another place is refused."""
    with get_xml_iterator(str(path)) as elements:
        for start, tag, data, _ in elements:
            if start and tag == "STREAM" and "href" in data:
                raise InputError(f"catalog: {str(path)!r} points to data elsewhere ({data['href']!r}); give those data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of VOTables that break the standard in small things
        tables = list(parse(path).iter_tables())
    if len(tables) != 1:
        raise InputError(f"catalog: {str(path)!r} holds {len(tables)} tables; give a file with one")
    table = tables[0].to_table(use_names_over_ids=True)
    kinds = {name: kind_of(table[name]) for name in table.colnames}
    units = {name: str(table[name].unit or "") for name in table.colnames}

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(table), size):
            yield {role: np.ma.asarray(table[name][start : start + size]) for role, (name, _) in wanted.items()}

    return Opened([path], kinds, units, len(table), chunks)


def kind_of(values: Column) -> str:
    """What a column of an astropy table holds."""
    if values.ndim != 1:
        return "array"
    if values.dtype.kind == "O":
        texts = all(isinstance(v, str) for v in np.ma.asarray(values).compressed())
        return "text" if texts else "object"
    return "text" if values.dtype.kind in "US" else "number"
