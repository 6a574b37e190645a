"""The pixels of one band of a tile, and what is known of them: flags, and both on another grid."""

import math
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, zoom

from data_tools.catalogs.columns import HUGE
from data_tools.survey import BandSource, Survey
from data_tools.tiles import MASK_BITS, Grid, Tile, band_grid, companion, grid_offset, read_hdu, sky_to_pixel
from jaxz.errors import InputError, suggest

COARSER = 1.2  # ratio of areas from which on new pixels are averages of old ones
STRIP = 256  # rows that are resampled at a time
LATTICE = 8  # points along each side at which the areas of pixels are compared


def read_own(survey: Survey, images: Path, tile: Tile, band: BandSource) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Pixels float32 and flags uint8, [H, W] each, of one band of a tile, as they are in its file, and their grid."""
    path, where = tile.files[band.name], f"bands.{band.name}."
    pixels = read_image(path, band.hdu, where)
    flags = flag_pixels(pixels, band.saturation)
    if band.weight_file or band.weight_hdu != "":
        weight = read_plane(images, band, "weight", tile.name, pixels.shape)
        flags[~((weight > 0) & np.isfinite(weight))] |= MASK_BITS["bad"]
    if band.mask_file or band.mask_hdu != "":
        flags |= mask_flags(images, band, tile.name, pixels.shape)
    return pixels, flags, band_grid(band, path) if survey.resample != "no" else tile.grid


def read_band(survey: Survey, images: Path, tile: Tile, band: BandSource) -> tuple[np.ndarray, np.ndarray, Grid]:
    """As `read_own`, on the tile's grid where the survey reprojects its bands."""
    pixels, flags, grid = read_own(survey, images, tile, band)
    if survey.resample == "reproject" and (
        grid.shape != tile.grid.shape or not grid_offset(tile.grid, grid.wcs) <= 1e-3
    ):
        return *to_grid(pixels, flags, grid, tile.grid), tile.grid
    return pixels, flags, grid


def read_image(path: Path, hdu: int | str, where: str) -> np.ndarray:
    """float32 [H, W]: the pixels of one image HDU. Raises InputError."""
    return read_hdu(path, hdu, where, lambda image: np.array(image.data, np.float32))


def read_plane(images: Path, band: BandSource, kind: str, tile: str, shape: tuple[int, int]) -> np.ndarray:
    """[H, W]: the "weight" or "mask" of an image of `shape`. Raises InputError where its shape is another one."""
    path = companion(images, band, f"{kind}_file", tile)
    where, hdu = f"bands.{band.name}.{kind}_", getattr(band, f"{kind}_hdu")
    plane = read_hdu(path, hdu if hdu != "" else 0, where, lambda image: np.asarray(image.data))
    if plane.shape != shape:
        sizes = f"{list(plane.shape)}, but its image is {list(shape)}"
        raise InputError(f"{where}file: {str(path)!r} is {sizes}; give the {kind} of this image")
    return plane


def mask_flags(images: Path, band: BandSource, tile: str, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] of MASK_BITS: what the survey's own mask plane says, as band.mask_bits translates it; a pixel with
    any bit is bad where there is no translation."""
    plane = read_plane(images, band, "mask", tile, shape)
    if plane.dtype.kind not in "iub":
        plane = np.nan_to_num(plane).astype(np.int64)
    plane = plane.astype(np.int64, copy=False)
    flags = np.zeros(shape, np.uint8)
    if not band.mask_bits:
        flags[plane != 0] = MASK_BITS["bad"]
        return flags
    planes = None
    for kind, bits in band.mask_bits.items():
        value = 0
        for bit in bits:
            if isinstance(bit, str):
                planes = planes if planes is not None else mask_planes(images, band, tile)
                if bit not in planes:
                    raise InputError(
                        f"bands.{band.name}.mask_bits: {bit!r} is no plane of the mask, MP_{bit} of its header."
                        f"{suggest(bit, planes)}"
                    )
                bit = planes[bit]
            value |= 1 << bit
        flags[plane & np.int64(value) != 0] |= MASK_BITS[kind]
    return flags


def mask_planes(images: Path, band: BandSource, tile: str) -> dict[str, int]:
    """The numbers of the mask's bits by name: MP_NAME in its header, as the LSST and HSC pipelines write them."""
    path = companion(images, band, "mask_file", tile)
    hdu = band.mask_hdu if band.mask_hdu != "" else 0
    header = read_hdu(path, hdu, f"bands.{band.name}.mask_", lambda image: image.header)
    return {key.removeprefix("MP_"): int(header[key]) for key in header if key.startswith("MP_")}


def flag_pixels(pixels: np.ndarray, saturation: float) -> np.ndarray:
    """uint8 [H, W] of MASK_BITS: NaN is nodata; infinite, or a number that stands for it (1e30, 3.4e38 ...), is bad."""
    flags = np.zeros(pixels.shape, np.uint8)
    flags[np.isnan(pixels)] |= MASK_BITS["nodata"]
    flags[(pixels >= HUGE) | (pixels <= -HUGE)] |= MASK_BITS["bad"]
    flags[(pixels >= saturation) & (pixels < HUGE)] |= MASK_BITS["saturated"]
    return flags


def area_ratio(old: Grid, new: Grid) -> np.ndarray:
    """[LATTICE, LATTICE]: how many old pixels a new one covers, the determinant of the Jacobian, at the middles of
    equal parts of the new grid; 1 where it has no place on the old. In a cylindrical projection it varies."""
    y, x = ((np.arange(LATTICE) + 0.5) / LATTICE * side - 0.5 for side in new.shape)
    x, y = np.meshgrid(x, y)
    at = lambda dx, dy: np.stack(sky_to_pixel(old.wcs, new.sky(x + dx, y + dy)))
    along_x, along_y = at(0.5, 0) - at(-0.5, 0), at(0, 0.5) - at(0, -0.5)
    return np.nan_to_num(np.abs(along_x[0] * along_y[1] - along_x[1] * along_y[0]), nan=1.0)


def to_grid(pixels: np.ndarray, flags: np.ndarray, old: Grid, new: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and flags on another grid, the flux of sources conserved: a pixel holds flux, not surface brightness.

    Bicubic splines, times the ratio of the pixels' areas there, keep positions to 0.002 pixels; to larger pixels it is
    averaged instead, with the local Jacobian (DeForest 2004, Solar Physics 219 3), or the noise of the small ones would
    stay. A new pixel with a share in a bad one is bad.
    """
    from reproject import reproject_adaptive, reproject_interp  # half a second, in every process

    lost = flags & (MASK_BITS["bad"] | MASK_BITS["nodata"]) > 0
    whole = np.where(lost, np.median(pixels[~lost][::7]) if not lost.all() else 0, pixels).astype(np.float64)
    areas = area_ratio(old, new)
    area = float(np.nanmedian(areas))
    strips = {"shape_out": new.shape, "block_size": (STRIP, new.shape[1])}  # or 140 bytes a pixel are needed
    if area > COARSER:
        moved, _ = reproject_adaptive(
            (whole, old.wcs), new.wcs, conserve_flux=True, kernel="gaussian", kernel_width=1.0, boundary_mode="ignore",
            **strips,
        )  # fmt: skip
    else:
        moved, _ = reproject_interp((whole, old.wcs), new.wcs, order="bicubic", **strips)
        moved *= zoom(areas, np.divide(new.shape, areas.shape), order=1, mode="nearest", grid_mode=True)
    reach = 1 + math.ceil(max(1.0, math.sqrt(area)) / math.sqrt(2))  # of a new pixel, or of the spline
    for kind in ("bad", "saturated"):
        near = binary_dilation(lost if kind == "bad" else flags & MASK_BITS[kind] > 0, iterations=reach)
        flags = np.where(near & (flags == 0), MASK_BITS[kind], flags)
    nearest, inside = reproject_interp(
        (flags.astype(float), old.wcs), new.wcs, order="nearest-neighbor", roundtrip_coords=False, **strips
    )  # where the WCS does not lead back, `moved` is NaN
    flags = np.where(inside > 0, np.nan_to_num(nearest), MASK_BITS["nodata"]).astype(np.uint8)
    flags[np.isnan(moved)] |= MASK_BITS["nodata"]
    moved[flags & MASK_BITS["nodata"] > 0] = np.nan
    return moved.astype(np.float32), flags
