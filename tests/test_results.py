"""Predictions on disk, as other programs read them."""

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from jaxz.data.manifest import Column
from jaxz.results import described, with_column, write_catalog


@pytest.mark.parametrize("flags", [[-1, 0, 1], [None, 0, 1]])
def test_flags_and_magnitudes_in_fits_are_what_they_were(tmp_path, flags):
    """A logical column would read -1, not known, as true."""
    table = pa.table({"mag_ref": pa.array([20.5, 21, 22], pa.float32())})
    table = described(table, {"mag_ref": Column("float32", "AB mag", "r band")})
    table = with_column(table, "coverage_flag", pa.array(flags, pa.int8()))
    write_catalog(tmp_path / "t.fits", with_column(table, "n_bands", pa.array([3, 2, 1], pa.int32())))
    with fits.open(tmp_path / "t.fits") as file:
        header, rows = file[1].header, file[1].data
        assert [header[f"TFORM{n}"] for n in (1, 2, 3)] == ["E", "I", "J"] and header["TUNIT1"] == "mag"
        null = header.get("TNULL2")
        assert [None if flag == null else flag for flag in rows["coverage_flag"].tolist()] == flags
        np.testing.assert_array_equal(rows["n_bands"], [3, 2, 1])
        np.testing.assert_array_equal(rows["mag_ref"], np.array([20.5, 21, 22], np.float32))
