"""Image tiles: which there are, and on which pixel grids."""

import contextlib
import glob
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, WcsError
from astropy.wcs.utils import proj_plane_pixel_area, wcs_to_celestial_frame

from data_tools.survey import BandSource, Survey
from jaxz.errors import InputError, suggest
from jaxz.files import persist
from jaxz.progress import in_threads

MASK_BITS = {"bad": 1, "saturated": 2, "nodata": 4}
ALIGNED_PX = 0.1  # the largest offset between two bands' grids that still counts as one grid
SCALE_TOLERANCE = 0.01
SMALL = 32 << 20  # bytes
TILE = "{tile}"
PACKED = ("", ".fz", ".gz")  # what a file may be called beside its pattern
T = TypeVar("T")
last = threading.local()


@dataclass(frozen=True)
class Grid:
    """A grid of square pixels. shape: (H, W). wcs: None where the header has none."""

    shape: tuple[int, int]
    wcs: WCS | None

    @property
    def scale_arcsec(self) -> float:
        """Side of a pixel, in the mean over the axes."""
        return float(np.sqrt(proj_plane_pixel_area(self.wcs))) * 3600

    def sky(self, x: np.ndarray, y: np.ndarray) -> SkyCoord:
        """Of 0-based pixels, in the frame of the WCS, which must be there."""
        assert self.wcs is not None
        return self.wcs.pixel_to_world(x, y)


@dataclass(frozen=True)
class Tile:
    """One part of the sky. files: the image of each band that it has, by the band's name. grid: that of the cutouts,
    which is every band's unless the survey resamples them or keeps them native."""

    name: str
    files: dict[str, Path]
    grid: Grid


def find_tiles(survey: Survey, images: Path) -> list[Tile]:
    """The tiles in a folder, in the order of their names. Raises InputError for a band that no tile has, for files that
    cannot be read, and for grids that do not fit together."""
    if not images.is_dir():
        raise InputError(f"images: {str(images)!r} is not a directory; give the folder that holds the tiles")
    found: dict[str, dict[str, Path]] = {}
    for band in survey.bands:
        files = match(images, band)
        if not files:
            path = images / band.file.replace("{band}", band.name)
            fix = "add the tile, correct the pattern or drop the band"
            raise InputError(f"bands.{band.name}.file: {str(path)!r} is not there; {fix}")
        for name, path in files.items():
            found.setdefault(name, {})[band.name] = path
    for name, files in found.items():
        for band in survey.bands:
            for field in ("weight_file", "mask_file"):
                if band.name in files and getattr(band, field):
                    companion(images, band, field, name)
    names = sorted(found)
    return in_threads(lambda name: Tile(name, found[name], common_grid(survey, found[name])), names, 4, "tiles")


def match(images: Path, band: BandSource) -> dict[str, Path]:
    """The files of a band by the name of their tile; without {tile} in the pattern there is one, named ""."""
    pattern = band.file.replace("{band}", band.name)
    if TILE not in pattern:
        path = packed(images / pattern)
        return {"": path} if path.is_file() else {}
    head, *rest = (re.escape(part) for part in pattern.split(TILE))
    named = re.compile(head + r"(?P<tile>[^/]+)" + r"(?P=tile)".join(rest) + r"(\.fz|\.gz)?")
    candidates = glob.glob("*".join([*map(glob.escape, pattern.split(TILE)), ""]), root_dir=images)
    found: dict[str, Path] = {}
    for candidate in sorted(candidates):  # the plain file first
        if m := named.fullmatch(candidate):
            found.setdefault(m["tile"], images / candidate)
    return found


def packed(path: Path) -> Path:
    """The file itself or, where it is not there, the one that fpack or gzip made of it."""
    return next((p for p in (path.with_name(path.name + end) for end in PACKED) if p.is_file()), path)


def named(pattern: str, band: BandSource, tile: str) -> str:
    """The path of a band of a tile, or of an object's image."""
    return pattern.replace("{band}", band.name).replace(TILE, tile).replace("{image}", tile)


def companion(images: Path, band: BandSource, field: str, tile: str) -> Path:
    """The weight or mask file of a tile's band; that of the image itself where none is named. Raises InputError."""
    path = packed(images / named(getattr(band, field) or band.file, band, tile))
    if not path.is_file():
        raise InputError(
            f"bands.{band.name}.{field}: {str(path)!r} is not there; add the file, correct the pattern or drop the band"
        )
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[fits.HDUList]:
    """A FITS file. The last small one of each thread stays open: its many HDUs may be images of many objects, and the
    way to each leads over those before it."""
    found = path.stat()
    if getattr(last, "key", None) == (key := (path, found.st_mtime_ns, found.st_size)):
        yield last.hdus
        return
    hdus = persist(lambda: fits.open(path, memmap=False))
    try:
        yield hdus
    except BaseException:
        hdus.close()
        raise
    if found.st_size > SMALL:
        hdus.close()
        return
    if hasattr(last, "hdus"):
        last.hdus.close()
    last.key, last.hdus = key, hdus


def read_hdu(path: Path, hdu: int | str, where: str, get: Callable[[fits.ImageHDU], T]) -> T:
    """get(image HDU) of a FITS file, which need not be decompressed for it. hdu: number or name. Raises InputError."""
    if hdu == 0 and path.suffix == ".fz":
        hdu = 1  # where fpack has to put the image of the primary HDU
    try:
        with opened(path) as hdus:
            names = [h.name for h in hdus]
            if isinstance(hdu, str) and hdu.upper() not in names:
                raise InputError(
                    f"{where}hdu: {hdu!r} is no HDU of {str(path)!r}.{suggest(hdu.upper(), filter(None, names))}"
                )
            if isinstance(hdu, int) and hdu >= len(hdus):
                raise InputError(
                    f"{where}hdu: {hdu}, but {str(path)!r} has HDUs 0 to {len(hdus) - 1}; use one of these"
                )
            image = hdus[hdu]
            if not image.is_image or len(image.shape) != 2:
                holds = f"an image of shape {image.shape}" if image.is_image and image.shape else "no image"
                wanted = [f"{n} ({h.name})" for n, h in enumerate(hdus) if h.is_image and len(h.shape) == 2]
                fix = f"use one of {', '.join(wanted)}" if wanted else "give a file with a two-dimensional image"
                raise InputError(f"{where}hdu: HDU {hdu} of {str(path)!r} holds {holds}; {fix}")
            return get(image)
    except InputError:
        raise
    except Exception as error:
        problem = f"{str(path)!r} is not a readable FITS file ({type(error).__name__}: {error})"
        raise InputError(f"{where}file: {problem}; fetch it again") from None


def band_grid(band: BandSource, path: Path) -> Grid:
    where = f"bands.{band.name}."
    shape, header = read_hdu(path, band.hdu, where, lambda image: (image.shape, image.header))
    return Grid(shape, celestial(header, f"{where}file: {str(path)!r}"))


def common_grid(survey: Survey, files: dict[str, Path]) -> Grid:
    """The grid of a tile's cutouts: that of all its bands, or of the one at the survey's pixel scale (the reference
    band first) where bands differ on purpose. Raises InputError where shapes, WCS or scales do not fit."""
    bands = [band for band in survey.bands if band.name in files]
    grids = {band.name: band_grid(band, files[band.name]) for band in bands}
    for band in bands:
        check_scale(survey, band, grids[band.name], files[band.name])
    if survey.resample != "no":
        ordered = sorted(grids, key=lambda name: name != survey.photometry.band)
        fitting = [grids[name] for name in ordered if same_scale(grids[name], survey.pixel_scale_arcsec)]
        if not fitting:
            path, scales = str(next(iter(files.values()))), {b: round(g.scale_arcsec, 4) for b, g in grids.items()}
            raise InputError(
                f"pixel_scale_arcsec: {survey.pixel_scale_arcsec} is the scale of no band of the tile of {path!r}, "
                f"which has {scales}; give that of a band that every tile has"
            )
        return fitting[0]
    first = bands[0]
    grid = next((g for g in grids.values() if g.wcs is not None), grids[first.name])
    for band in bands[1:]:
        where, path, own = f"bands.{band.name}.file:", str(files[band.name]), grids[band.name]
        fix = 'say resample = "reproject" or "native", or bring the bands to one pixel grid first'
        if own.shape != grid.shape:
            sizes = f"{list(own.shape)}, but {str(files[first.name])!r} is {list(grid.shape)}"
            raise InputError(f"{where} {path!r} is {sizes}; {fix}")
        if not (offset := grid_offset(grid, own.wcs)) <= ALIGNED_PX:  # nor is NaN, of another side of the sky
            raise InputError(
                f"{where} {path!r} is off the pixel grid of {str(files[first.name])!r} by {offset:.2f} pixels; {fix}"
            )
    return grid


def same_scale(grid: Grid, scale_arcsec: float) -> bool:
    return abs(grid.scale_arcsec / scale_arcsec - 1) <= SCALE_TOLERANCE


def check_scale(survey: Survey, band: BandSource, grid: Grid, path: Path) -> None:
    """Raises InputError where the survey file's pixel scale is not the WCS's, or resampling lacks a WCS."""
    field, stated = survey.scale_field(band)
    if grid.wcs is None:
        if survey.resample != "no":
            raise InputError(
                f"resample: {survey.resample!r} needs a WCS in every band, and {str(path)!r} has none; "
                'use aligned tiles and resample = "no"'
            )
    elif (survey.resample != "reproject" or band.pixel_scale_arcsec) and not same_scale(grid, stated):
        raise InputError(
            f"{field}: {stated}, but the WCS of {str(path)!r} says {grid.scale_arcsec:.4g}; correct the survey file"
        )


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


def to_pixels(grid: Grid, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based pixels of ICRS positions in degrees; NaN where the projection has none or the position is none."""
    x, y = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    valid = (np.abs(ra) <= 360) & (np.abs(dec) <= 90)
    x[valid], y[valid] = sky_to_pixel(grid.wcs, SkyCoord(ra[valid], dec[valid], unit="deg", frame="icrs"))
    return x, y


def to_sky(grid: Grid, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """{ra, dec}, ICRS in degrees, of 0-based pixels; nothing without a WCS."""
    if grid.wcs is None:
        return {}
    sky = grid.sky(x, y).icrs
    return {"ra": sky.ra.deg, "dec": sky.dec.deg}


def grid_offset(grid: Grid, wcs: WCS | None) -> float:
    """The largest distance in pixels between the corners of two grids; 0 where one of them has no WCS."""
    if grid.wcs is None or wcs is None:
        return 0.0
    height, width = grid.shape
    x, y = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float).T
    moved = sky_to_pixel(wcs, grid.sky(x, y))
    return float(np.abs(np.stack(moved) - np.stack([x, y])).max())
