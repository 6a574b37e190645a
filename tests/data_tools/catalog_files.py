"""Reads and writes small catalogues."""

import numpy as np
from astropy.table import Table

from data_tools.catalogs.catalog import open_catalog
from data_tools.catalogs.spec import CatalogColumns

BY_NAME = CatalogColumns()


def quiet(text: str) -> None:
    pass


def read(path, spec=BY_NAME, rows=500_000, match=None, say=quiet) -> tuple[dict, object]:
    """All columns of a catalogue, and the catalogue."""
    catalog = open_catalog(path, spec, match=match, say=say)
    chunks = list(catalog.chunks(rows))
    assert max(len(chunk["object_id"]) for chunk in chunks) <= rows
    for chunk in chunks:
        assert list(chunk) == list(catalog.columns)
        for name, column in catalog.columns.items():
            assert chunk[name].dtype.kind == "U" if column.dtype == "string" else chunk[name].dtype == column.dtype
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in catalog.columns}, catalog


def same(a: dict, b: dict) -> None:
    """Bit for bit, NaN included."""
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def small(**columns) -> Table:
    """Four objects at (n, n) degrees."""
    n = np.arange(4)
    return Table({"ID": n, "RA": n * 1.0, "DEC": n * 1.0, **columns})


def write(folder, rows: Table, name: str = "c.fits"):
    rows.write(folder / name, overwrite=True)
    return folder / name
