"""Image tiles: which there are, on which pixel grids, and their pixels and flags."""

import contextlib
import glob
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, WcsError
from astropy.wcs.utils import proj_plane_pixel_area, wcs_to_celestial_frame
from reproject import reproject_adaptive, reproject_interp
from scipy.ndimage import binary_dilation, zoom

from data_tools.survey import BandSource, Survey
from jaxz.errors import InputError, suggest
from jaxz.files import persist
from jaxz.progress import in_threads

MASK_BITS = {"bad": 1, "saturated": 2, "nodata": 4}
ALIGNED_PX = 0.1  # the largest offset between two bands' grids that still counts as one grid
SCALE_TOLERANCE = 0.01
SMALL = 32 << 20  # bytes
COARSER = 1.2  # ratio of areas from which on new pixels are averages of old ones
STRIP = 256  # rows that are resampled at a time
LATTICE = 8  # points along each side at which the areas of pixels are compared
TILE = "{tile}"
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


@dataclass(frozen=True)
class Tile:
    """One part of the sky. files: the image of each band that it has, by the band's name. grid: that of the cutouts,
    which is every band's unless the survey resamples them or keeps them native."""

    name: str
    files: dict[str, Path]
    grid: Grid | None


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
        path = images / pattern
        return {"": path} if path.is_file() else {}
    head, *rest = (re.escape(part) for part in pattern.split(TILE))
    named = re.compile(head + r"(?P<tile>[^/]+)" + r"(?P=tile)".join(rest))
    candidates = glob.iglob(TILE.join(map(glob.escape, pattern.split(TILE))).replace(TILE, "*"), root_dir=images)
    return {m["tile"]: images / path for path in candidates if (m := named.fullmatch(path))}


def named(pattern: str, band: BandSource, tile: str) -> str:
    """The path of a band of a tile, or of an object's image."""
    return pattern.replace("{band}", band.name).replace(TILE, tile).replace("{image}", tile)


def companion(images: Path, band: BandSource, field: str, tile: str) -> Path:
    """The weight or mask file of a tile's band; that of the image itself where none is named. Raises InputError."""
    path = images / named(getattr(band, field) or band.file, band, tile)
    if not path.is_file():
        raise InputError(
            f"bands.{band.name}.{field}: {str(path)!r} is not there; add the file, correct the pattern or drop the band"
        )
    return path


def read_image(path: Path, hdu: int | str, where: str) -> np.ndarray:
    """float32 [H, W]: the pixels of one image HDU. Raises InputError."""
    return read_hdu(path, hdu, where, lambda image: np.array(image.data, np.float32))


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


def read_hdu(path: Path, hdu: int | str, where: str, get: Callable):
    """get(image HDU) of a FITS file, which need not be decompressed for it. hdu: number or name. Raises InputError."""
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
                wanted = [n for n, h in enumerate(hdus) if h.is_image and len(h.shape) == 2]
                fix = f"use {' or '.join(map(str, wanted))}" if wanted else "give a file with a two-dimensional image"
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
            path = str(next(iter(files.values())))
            raise InputError(
                f"pixel_scale_arcsec: {survey.pixel_scale_arcsec} is the scale of no band of the tile of {path!r}; "
                "give that of a band that every tile has"
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
    elif survey.resample != "reproject" and not same_scale(grid, stated):
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
    sky = grid.wcs.pixel_to_world(x, y).icrs
    return {"ra": sky.ra.deg, "dec": sky.dec.deg}


def grid_offset(grid: Grid, wcs: WCS | None) -> float:
    """The largest distance in pixels between the corners of two grids; 0 where one of them has no WCS."""
    if grid.wcs is None or wcs is None:
        return 0.0
    height, width = grid.shape
    x, y = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float).T
    moved = sky_to_pixel(wcs, grid.wcs.pixel_to_world(x, y))
    return float(np.abs(np.stack(moved) - np.stack([x, y])).max())


def read_band(survey: Survey, images: Path, tile: Tile, band: BandSource) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Pixels float32 and flags uint8, [H, W] each, of one band of a tile, and their grid: the tile's own where the
    survey resamples its bands."""
    path, where = tile.files[band.name], f"bands.{band.name}."
    pixels = read_image(path, band.hdu, where)
    flags = flag_pixels(pixels, band.saturation)
    if band.weight_file or band.weight_hdu != "":
        weight = read_plane(images, band, "weight", tile.name, pixels.shape)
        flags[~((weight > 0) & np.isfinite(weight))] |= MASK_BITS["bad"]
    if band.mask_file or band.mask_hdu != "":
        flags |= mask_flags(images, band, tile.name, pixels.shape)
    grid = band_grid(band, path) if survey.resample != "no" else tile.grid
    if survey.resample == "reproject" and (
        grid.shape != tile.grid.shape or not grid_offset(tile.grid, grid.wcs) <= 1e-3
    ):
        return *to_grid(pixels, flags, grid, tile.grid), tile.grid
    return pixels, flags, grid


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
    """uint8 [H, W] of MASK_BITS: NaN is nodata, infinite is bad."""
    flags = np.zeros(pixels.shape, np.uint8)
    flags[np.isnan(pixels)] |= MASK_BITS["nodata"]
    flags[np.isinf(pixels)] |= MASK_BITS["bad"]
    flags[(pixels >= saturation) & np.isfinite(pixels)] |= MASK_BITS["saturated"]
    return flags


def area_ratio(old: Grid, new: Grid) -> np.ndarray:
    """[LATTICE, LATTICE]: how many old pixels a new one covers, the determinant of the Jacobian, at the middles of
    equal parts of the new grid; 1 where it has no place on the old. In a cylindrical projection it varies."""
    y, x = ((np.arange(LATTICE) + 0.5) / LATTICE * side - 0.5 for side in new.shape)
    x, y = np.meshgrid(x, y)
    at = lambda dx, dy: np.stack(sky_to_pixel(old.wcs, new.wcs.pixel_to_world(x + dx, y + dy)))
    along_x, along_y = at(0.5, 0) - at(-0.5, 0), at(0, 0.5) - at(0, -0.5)
    return np.nan_to_num(np.abs(along_x[0] * along_y[1] - along_x[1] * along_y[0]), nan=1.0)


def to_grid(pixels: np.ndarray, flags: np.ndarray, old: Grid, new: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and flags on another grid, the flux of sources conserved: a pixel holds flux, not surface brightness.

    Bicubic splines, times the ratio of the pixels' areas there, keep positions to 0.002 pixels; to larger pixels it is
    averaged instead, with the local Jacobian (DeForest 2004, Solar Physics 219 3), or the noise of the small ones would
    stay. A new pixel with a share in a bad one is bad.
    """
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
