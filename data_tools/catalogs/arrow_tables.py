"""Parquet, CSV and ECSV catalogues, streamed by pyarrow."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from astropy.table.meta import get_header_from_yaml

from data_tools.catalogs.opened import Opened, WantedColumns
from jaxz.errors import InputError

READ_AS = {"number": pa.float64(), "id": pa.int64(), "text": pa.string()}


def open_parquet(path: Path) -> Opened:
    """One file, or a directory of them whose names may say columns (healpix=12/part.parquet)."""
    import pyarrow.dataset as pads  # half a second: it imports pandas

    dataset = pads.dataset(path, format="parquet", partitioning="hive", exclude_invalid_files=False)
    schema = dataset.schema
    kinds = {field.name: kind_of(field.type) for field in schema}
    units = {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in schema}
    meta = (schema.metadata or {}).get(b"table_meta_yaml")
    if meta:  # astropy's
        header = get_header_from_yaml(meta.decode().split("\n"))
        units |= {column["name"]: str(column.get("unit", "")) for column in header["datatype"]}

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        names = sorted({name for name, _ in wanted.values()})
        batches = dataset.to_batches(
            columns=names, batch_size=min(size, 1 << 17), batch_readahead=2, fragment_readahead=1, use_threads=False
        )
        for table in regrouped(batches, size):
            yield {role: to_numpy(table[name]) for role, (name, _) in wanted.items()}

    files = [Path(name) for name in dataset.files]
    if files != sorted(files):
        raise InputError(f"catalog: the files of {str(path)!r} have no stable order; give one file")
    return Opened(files, kinds, units, dataset.count_rows(), chunks)


def open_csv(path: Path, is_ecsv: bool) -> Opened:
    """Text with one line of names. ECSV says units and types itself; CSV is numbers where its first block is."""
    units, objects, delimiter, skip = {}, {}, ",", 0
    if is_ecsv:
        header, skip = ecsv_header(path)
        delimiter = header.get("delimiter", " ")
        units = {column["name"]: str(column.get("unit", "")) for column in header["datatype"]}
        objects = {column["name"]: "array" for column in header["datatype"] if "subtype" in column}
        objects |= {column["name"]: "object" for column in header["datatype"] if column["datatype"] == "object"}
    read = pacsv.ReadOptions(skip_rows=skip, use_threads=False)
    layout = pacsv.ParseOptions(delimiter=delimiter)
    with pacsv.open_csv(path, read, layout) as reader:
        schema = reader.schema
    stored = {field.name.lstrip("# "): field.name for field in schema}  # a header may stand as a comment
    if len(stored) != len(schema):
        raise InputError(f"catalog: {str(path)!r} repeats a column name; rename one")
    kinds = {name: kind_of(schema.field(raw).type) for name, raw in stored.items()} | objects

    def chunks(wanted: WantedColumns, size: int) -> Iterator[dict[str, np.ndarray]]:
        names = sorted({stored[name] for name, _ in wanted.values()})
        strings = pacsv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        )
        with pacsv.open_csv(path, read, layout, strings) as batches:
            for table in regrouped(batches, size):
                yield {
                    role: parsed(table[stored[name]], kinds[name], read_as, name)
                    for role, (name, read_as) in wanted.items()
                }

    return Opened([path], kinds, units, None, chunks)


def ecsv_header(path: Path) -> tuple[dict, int]:
    """The header of an ECSV file and how many lines it takes."""
    lines = []
    with pa.input_stream(str(path)) as stream:
        rest = stream.read(1 << 20)
    for line in rest.split(b"\n"):
        if not line.startswith(b"#"):
            break
        lines.append(line.decode().removeprefix("# ").removeprefix("#"))
    return get_header_from_yaml(lines[1:]), len(lines)


def regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size`, the last one shorter."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + len(batch) >= size:
            yield pa.Table.from_batches([*held, batch.slice(0, size - rows)])
            batch, held, rows = batch.slice(size - rows), [], 0
        if len(batch):
            held, rows = [*held, batch], rows + len(batch)
    if held:
        yield pa.Table.from_batches(held)


def kind_of(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return "any"
    if is_text(kind):
        return "text"
    if pa.types.is_nested(kind):
        return "array"
    number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return "number" if any(test(kind) for test in number) else "object"


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def parsed(texts: pa.ChunkedArray, kind: str, read_as: str, name: str) -> np.ndarray:
    """A column of text as what it is wanted as; ids are whole numbers where the column began with numbers."""
    texts = pc.utf8_trim_whitespace(texts)
    if read_as == "id" and kind == "text":
        read_as = "text"
    try:
        return to_numpy(texts.cast(READ_AS[read_as]))
    except pa.ArrowInvalid as error:
        raise InputError(
            f"catalog: column {name!r} holds other than {READ_AS[read_as]} ({error}); correct it"
        ) from None


def to_numpy(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers, or str; a masked array where some are null."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        values = values.cast(pa.float64())
    missing = values.is_null().to_numpy() if values.null_count else None
    if is_text(values.type):
        array = np.array(values.fill_null("").to_pylist(), str)
    elif missing is None:
        array = values.to_numpy()
    else:
        array = values.fill_null(False if pa.types.is_boolean(values.type) else 0).to_numpy()
    return array if missing is None else np.ma.array(array, mask=missing)
