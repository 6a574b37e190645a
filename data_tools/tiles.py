"""Aligned tiles: one FITS image a band on one pixel grid, their sky, and the cutouts made of them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.stats import SigmaClip
from astropy.wcs import WCS, WcsError
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from photutils.background import Background2D, MADStdBackgroundRMS, MedianBackground

from data_tools.survey import BandSource, Survey
from jaxz.errors import InputError

MASK_BITS = {"bad": 1, "saturated": 2, "nodata": 4}
FLOAT16_MAX = 65504.0
ALIGNED_PX = 0.1  # the largest offset between two bands' grids that still counts as one grid
SCALE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Grid:
    """The pixel grid that all bands share. shape: (H, W). wcs: None where the headers have none."""

    shape: tuple[int, int]
    wcs: WCS | None


@dataclass(frozen=True)
class Sky:
    """Background of one band in the file's units, [H, W] each: the smooth level and the rms per pixel."""

    level: np.ndarray
    rms: np.ndarray

    @property
    def sigma(self) -> float:
        """The tile's typical sigma per pixel."""
        return float(np.median(self.rms))


def find_files(survey: Survey, images: Path) -> dict[str, Path]:
    """The image of each band. Raises InputError for one that is not there."""
    if not images.is_dir():
        raise InputError(f"images: {str(images)!r} is not a directory; give the folder that holds the tiles")
    return {band.name: find_file(images, band, "file") for band in survey.bands}


def find_file(images: Path, band: BandSource, field: str) -> Path:
    path = images / getattr(band, field).replace("{band}", band.name)
    if not path.is_file():
        raise InputError(
            f"bands.{band.name}.{field}: {str(path)!r} is not there; add the tile, correct the pattern or drop the band"
        )
    return path


def read_image(path: Path, hdu: int, where: str) -> np.ndarray:
    """float32 [H, W]: the pixels of one image HDU. Raises InputError."""
    return read_hdu(path, hdu, where, lambda image: np.asarray(image.data, np.float32))


def read_hdu(path: Path, hdu: int, where: str, get: Callable):
    """get(image HDU) of a FITS file, which need not be decompressed for it. Raises InputError."""
    try:
        with fits.open(path, memmap=False) as hdus:
            if hdu >= len(hdus):
                raise InputError(
                    f"{where}hdu: {hdu}, but {str(path)!r} has HDUs 0 to {len(hdus) - 1}; use one of these"
                )
            image = hdus[hdu]
            if not image.is_image or len(image.shape) != 2:
                holds = f"an image of shape {image.shape}" if image.is_image and image.shape else "no image"
                wanted = [n for n, h in enumerate(hdus) if h.is_image and len(h.shape) == 2]
                fix = f"use {' or '.join(map(str, wanted))}" if wanted else "give a file with a two-dimensional image"
                raise InputError(f"{where}hdu: HDU {hdu} of {str(path)!r} holds {holds}; {fix}")
            return get(image)
    except InputError:
        raise
    except Exception as error:
        problem = f"{str(path)!r} is not a readable FITS file ({type(error).__name__}: {error})"
        raise InputError(f"{where}file: {problem}; fetch it again") from None


def check_aligned(survey: Survey, files: dict[str, Path]) -> Grid:
    """The one grid of all bands. Raises InputError where shapes or WCS differ, or the scale is not the survey's."""
    grid, first = None, None
    for band in survey.bands:
        path, where = files[band.name], f"bands.{band.name}."
        shape, header = read_hdu(path, band.hdu, where, lambda image: (image.shape, image.header))
        wcs = celestial(header, f"{where}file: {str(path)!r}")
        if grid is None:
            grid, first = Grid(shape, wcs), path
            continue
        if shape != grid.shape:
            sizes = f"{list(shape)}, but {str(first)!r} is {list(grid.shape)}"
            raise InputError(f"{where}file: {str(path)!r} is {sizes}; resample the bands to one pixel grid first")
        if (offset := grid_offset(grid, wcs)) > ALIGNED_PX:
            raise InputError(
                f"{where}file: {str(path)!r} is off the pixel grid of {str(first)!r} by {offset:.2f} pixels; "
                "resample the bands to one pixel grid first"
            )
    if grid.wcs is not None:
        scale = float(np.mean(proj_plane_pixel_scales(grid.wcs))) * 3600
        if abs(scale / survey.pixel_scale_arcsec - 1) > SCALE_TOLERANCE:
            raise InputError(
                f"pixel_scale_arcsec: {survey.pixel_scale_arcsec}, but the WCS of {str(first)!r} says {scale:.4g}; "
                "correct the survey file"
            )
    return grid


def celestial(header: fits.Header, where: str) -> WCS | None:
    try:
        wcs = WCS(header)
    except (WcsError, ValueError) as error:
        raise InputError(f"{where} has a WCS that cannot be used ({error}); correct its header") from None
    if not wcs.has_celestial:
        return None
    wcs = wcs.celestial
    try:
        wcs_to_celestial_frame(wcs)
    except ValueError:
        known = False
    else:
        known = wcs.wcs.lngtyp in ("RA", "GLON")  # astropy takes ecliptic coordinates for ICRS
    if not known:
        frame = f"CTYPE {' '.join(wcs.wcs.ctype)}, RADESYS {wcs.wcs.radesys!r}"
        raise InputError(f"{where} has a sky frame that is not equatorial or Galactic ({frame}); correct its header")
    return wcs


def sky_to_pixel(wcs: WCS, sky: SkyCoord) -> tuple[np.ndarray, np.ndarray]:
    """0-based pixels [N] of sky positions, which may be in another frame than the WCS."""
    with warnings.catch_warnings():
        # A catalogue may cover far more than the tile, where the distortion's inverse need not converge.
        warnings.filterwarnings("ignore", message=".*failed to converge.*")
        return wcs.world_to_pixel(sky)


def grid_offset(grid: Grid, wcs: WCS | None) -> float:
    """The largest distance in pixels between the corners of two grids; 0 where one of them has no WCS."""
    if grid.wcs is None or wcs is None:
        return 0.0
    height, width = grid.shape
    x, y = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float).T
    moved = sky_to_pixel(wcs, grid.wcs.pixel_to_world(x, y))
    return float(np.abs(np.stack(moved) - np.stack([x, y])).max())


def flag_pixels(pixels: np.ndarray, weight: np.ndarray | None, saturation: float) -> np.ndarray:
    """uint8 [H, W] of MASK_BITS: NaN is nodata, infinite or without weight is bad."""
    flags = np.zeros(pixels.shape, np.uint8)
    flags[np.isnan(pixels)] |= MASK_BITS["nodata"]
    flags[np.isinf(pixels)] |= MASK_BITS["bad"]
    flags[(pixels >= saturation) & np.isfinite(pixels)] |= MASK_BITS["saturated"]
    if weight is not None:
        flags[~(weight > 0)] |= MASK_BITS["bad"]
    return flags


def measure_sky(pixels: np.ndarray, flags: np.ndarray, box: int, band: str) -> Sky:
    """Level and rms on a mesh of boxes, from sigma-clipped medians and MADs. Raises InputError where no box is good."""
    box = (min(box, pixels.shape[0]), min(box, pixels.shape[1]))
    try:
        background = Background2D(
            pixels, box, mask=flags > 0, exclude_percentile=50, sigma_clip=SigmaClip(sigma=3.0, maxiters=10),
            bkg_estimator=MedianBackground(), bkg_rms_estimator=MADStdBackgroundRMS(),
        )  # fmt: skip
        level, rms = (np.asarray(a, np.float32) for a in (background.background, background.background_rms))
    except ValueError:
        raise InputError(f"bands.{band}.file: no part of the tile has half of its pixels good; drop the band") from None
    if not (np.isfinite(rms).all() and np.median(rms) > 0):
        raise InputError(f"bands.{band}.file: the sky has a sigma of {np.median(rms):g}, no noise; drop the band")
    return Sky(level, rms)


def to_stored(pixels: np.ndarray, flags: np.ndarray, scale: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(dtype, uint8) [H, W]: pixels times scale, and flags. Bad and absent pixels become 0; those past float16 are
    clipped and flagged as saturated."""
    scaled = pixels * np.float32(scale)
    scaled[flags & (MASK_BITS["bad"] | MASK_BITS["nodata"]) > 0] = 0
    flags = flags | np.where(np.abs(scaled) > FLOAT16_MAX, np.uint8(MASK_BITS["saturated"]), np.uint8(0))
    return np.clip(scaled, -FLOAT16_MAX, FLOAT16_MAX).astype(dtype), flags


def nearest_pixel(x: np.ndarray) -> np.ndarray:
    """int64: pixel i holds positions from i - 0.5 up to i + 0.5 (0-based)."""
    return np.floor(np.asarray(x, float) + 0.5).astype(np.int64)


def fits_inside(x: np.ndarray, y: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Bool [N]: whether the cutout of size x size around the nearest pixel lies in the tile; not of NaN."""
    left, low = (np.floor(np.asarray(a, float) + 0.5) - size // 2 for a in (x, y))  # floats: 1e30 is no int64
    return (left >= 0) & (low >= 0) & (left + size <= shape[1]) & (low + size <= shape[0])


def cut(planes: list[np.ndarray], x: float, y: float, size: int) -> np.ndarray:
    """[C, size, size]: the nearest pixel to (x, y) is pixel [size // 2, size // 2] of the cutout."""
    left, low = int(nearest_pixel(x)) - size // 2, int(nearest_pixel(y)) - size // 2
    return np.stack([plane[low : low + size, left : left + size] for plane in planes])
