"""What astronomers expect of a dataset, as Astropy has it: tables with units, and the WCS of a cutout."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy import units as u
from astropy.table import Column as TableColumn
from astropy.table import MaskedColumn, Table
from astropy.wcs import WCS

from jaxz.data.columns import numpy_values
from jaxz.data.manifest import Array, Band, Column
from jaxz.errors import InputError

UNITS = {"AB mag": "mag(AB)"}  # the manifests' own spelling
FITS_UNITS = {"AB mag": "mag"}
NEIGHBOURS = 64
FEWEST = 4  # neighbours; fewer do not show whether they agree
SCALE_ERROR, SCATTER_PX = 0.01, 0.2  # more is another grid than the manifest says, or no linear one
LEAST_SPREAD = 1e-3  # of the neighbours across the line along which they spread most, relative to that


def astropy_table(table: pa.Table, columns: dict[str, Column], arrays: dict[str, Array]) -> Table:
    """An index as an Astropy table: units and descriptions of `columns`, arrays as columns [N, ...]."""
    made = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        shape = arrays[name].full_shape if name in arrays else ()
        values, missing = text_values(values) if values.type == pa.string() else numpy_values(values, shape)
        values = values if values.flags.writeable else values.copy()  # Arrow's own memory is not to be written to
        spec = columns.get(name) or Column("string", arrays[name].unit if name in arrays else "")
        kind = {"unit": astropy_unit(spec.unit), "description": spec.description or None}
        made[name] = MaskedColumn(values, mask=missing, **kind) if missing.any() else TableColumn(values, **kind)
    return Table(made, copy=False)


def text_values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text of fixed width [N], and bool [N] where it is missing."""
    missing = column.is_null().to_numpy()
    return column.fill_null("").to_numpy().astype(str), missing


def astropy_unit(text: str) -> u.UnitBase | None:
    """None where nothing is said; what Astropy does not know stays as it is written."""
    return u.Unit(UNITS.get(text, text), parse_strict="silent") if text else None


def fits_unit(text: str) -> u.UnitBase | None:
    """None where FITS has no such unit; magnitudes lose their zero point."""
    try:
        unit = u.Unit(FITS_UNITS.get(text, text))
        unit.to_string("fits")
        return unit if text else None
    except ValueError:
        return None


def in_microjansky(image: np.ndarray, bands: tuple[Band, ...]) -> np.ndarray:
    """float32 [C,H,W] of an image in stored units. Raises InputError where its bands are not known."""
    if len(image) != len(bands):
        raise InputError(f"unit: 'uJy' needs {len(image)} bands' zero points, the manifest has {len(bands)}; use ''")
    return image * np.array([band.ujy_per_unit for band in bands], np.float32)[:, None, None]


def cutout_wcs(places: pa.Table, row: int, shape: tuple[int, int], scale_arcsec: float) -> WCS | None:
    """The WCS of a cutout of shape (H, W) around an object; None where the others do not tell it.

    places: columns x, y (0-based pixels of the tile), ra, dec (deg, ICRS) and perhaps field (the tile) of a shard. The
    object's own position is exact; scale and rotation are those that fit its nearest neighbours of the same tile, as a
    tangent plane at the object (Calabretta & Greisen 2002, eq. 54), with distortion left out. So positions in the
    cutout are as good as the catalogue's, to a fraction of a pixel: for overlays, offsets, and finding the object in
    other surveys, not for astrometry. Where the neighbours contradict scale_arcsec by 1 %, or scatter by 0.2 pixels,
    the columns are of another grid, and there is none.
    """
    x, y, ra, dec = (places[name].to_numpy().astype(float) for name in ("x", "y", "ra", "dec"))
    near = np.all(np.isfinite([x, y, ra, dec]), axis=0)
    if not near[row]:
        return None
    if "field" in places.column_names:
        near &= pc.equal(places["field"], places["field"][row]).fill_null(False).to_numpy()
    near[row] = False
    distance = np.where(near, np.hypot(x - x[row], y - y[row]), np.inf)
    chosen = np.argsort(distance, kind="stable")[: min(NEIGHBOURS, np.count_nonzero(near))]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.radesys, wcs.wcs.crval = ("RA---TAN", "DEC--TAN"), "ICRS", (ra[row], dec[row])
    pixels = np.stack([x[chosen] - x[row], y[chosen] - y[row]], 1)
    plane = np.stack(wcs.wcs_world2pix(ra[chosen], dec[chosen], 1), 1)  # degrees from the object, with a unit matrix
    if not is_linear(pixels, plane, scale_arcsec / 3600):
        return None
    height, width = shape
    wcs.wcs.cd = np.linalg.lstsq(pixels, plane, rcond=None)[0].T
    middle = (np.array([x[row], y[row]]) + 0.5) % 1 - 0.5  # from the pixel that the object is in
    wcs.wcs.crpix = middle + np.array([width // 2 + 1, height // 2 + 1])
    wcs.array_shape = shape
    return wcs


def is_linear(pixels: np.ndarray, plane: np.ndarray, scale: float) -> bool:
    """Whether offsets [M,2] in pixels and in degrees are those of one grid of `scale` degrees a pixel."""
    if len(pixels) < FEWEST or not np.isfinite(plane).all():
        return False
    matrix, _, _, spread = np.linalg.lstsq(pixels, plane, rcond=None)
    if spread[1] < LEAST_SPREAD * spread[0]:
        return False
    scatter = np.sqrt(np.mean((pixels @ matrix - plane) ** 2)) / scale
    found = np.sqrt(abs(np.linalg.det(matrix))) / scale
    return scatter <= SCATTER_PX and abs(found - 1) <= SCALE_ERROR
