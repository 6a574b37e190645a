"""Measures one band of a tile: its sky, its sources, and fluxes in fixed apertures; by SEP, Source Extractor's core
(Bertin & Arnouts 1996, A&AS 117 393; Barbary 2016, JOSS 1 58)."""

import contextlib
import math
from collections.abc import Iterable
from functools import cache, cached_property

import numpy as np
import sep
from astropy.stats import gaussian_fwhm_to_sigma, mad_std, sigma_clip
from scipy.ndimage import gaussian_filter, maximum_filter, uniform_filter

from data_tools.survey import Detection
from data_tools.tiles import MASK_BITS
from jaxz.errors import InputError

EMPTY_APERTURES = 4000
FEWEST_APERTURES = 30  # side by side: of fewer, the scatter is uncertain by a fifth and more
STRIP_APERTURES = 10  # high is a strip of them
SOURCE = 2.0  # sigma a pixel, in the mean of 3 x 3: what may be noise is not left out
CLIPPED = 0.98658  # sigma of a Gaussian cut off at 3 sigma, in units of its own: SEP's estimate is that of what is left
FLOAT16_MAX = 65504.0
FINE = 50  # points a pixel and axis, for areas of overlap
MOST_PIXELS = 10_000_000  # above the threshold at a time, for SEP's buffers
TIED = 0.1  # share of pixels with one value from which on they hold too few photons to clip
PHOTONS = 16  # a block that can be clipped
LEAST_BOX = 8  # blocks across a box of the mesh
SAMPLED_PIXELS = 1_000_000  # for the share of ties
ENOUGH_PIXELS = 4_000_000  # of a tile, for its typical noise

sep.set_extract_pixstack(MOST_PIXELS)
sep.set_sub_object_limit(100_000)


class Sky:
    """Background of one band in the file's units, on a mesh of boxes, sources clipped. mesh: of the means of blocks of
    `block` x `block` pixels of an image of `shape`."""

    def __init__(self, mesh: sep.Background, shape: tuple[int, int], block: int):
        self.mesh, self.shape, self.block = mesh, shape, block

    @cached_property
    def rms(self) -> np.ndarray:
        """float32 [H, W]: sigma per pixel, interpolated."""
        rms = self.mesh.rms(dtype=np.float32)
        rms *= np.float32(self.block / CLIPPED)
        return self.of_pixels(rms)

    @property
    def sigma(self) -> float:
        """The tile's typical sigma per pixel. SEP's own is 1 where there is no noise."""
        return float(np.median(self.rms[::8, ::8]))

    @property
    def level(self) -> float:
        """The tile's typical level."""
        return float(self.mesh.globalback)

    def subtracted(self, pixels: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """float32 [H, W]: pixels less the smooth level, 0 where they are bad or absent."""
        residual = self.of_pixels(self.mesh.back(dtype=np.float32))
        np.subtract(pixels, residual, out=residual)
        residual[flags & (MASK_BITS["bad"] | MASK_BITS["nodata"]) > 0] = 0
        return residual

    def of_pixels(self, blocks: np.ndarray) -> np.ndarray:
        """[H, W]: for every pixel, the value of its block."""
        if self.block == 1:
            return blocks
        pixels = blocks.repeat(self.block, 0).repeat(self.block, 1)
        return np.ascontiguousarray(pixels[: self.shape[0], : self.shape[1]])  # SEP takes no other


def measure_sky(pixels: np.ndarray, flags: np.ndarray, box: int, where: str) -> Sky:
    """Raises InputError where no box of the mesh has half of its pixels good, or the sky has no noise.

    Clipping finds level and noise of many photons a pixel. Where many pixels hold none (GALEX, X-rays), and so one
    value, it is the means of blocks of 2, 4, 8 ... pixels that are clipped: a share exp(-n) of pixels without a photon
    means n photons a pixel.
    """
    box_y, box_x = (min(box, side) for side in pixels.shape)
    bad = flags > 0
    if not is_half_good(bad, box_y, box_x):
        raise InputError(f"{where}: no part of the tile has half of its pixels good; drop the band")
    values = np.where(bad, np.float32(0), pixels) if bad.any() else pixels
    means, empty, block, share = values, bad, 1, tied(values, bad)
    if share > TIED:
        while -math.log(share) * block**2 < PHOTONS and 2 * block * LEAST_BOX <= min(box_y, box_x):
            block *= 2
        means, empty = block_means(values, bad, block)
    sky = Sky(sep.Background(means, mask=empty, bw=box_x // block, bh=box_y // block), pixels.shape, block)
    if not (math.isfinite(sky.sigma) and sky.sigma > 0):
        raise InputError(f"{where}: the sky has a sigma of {sky.sigma:g}, no noise; drop the band")
    return sky


def sampled_sky(pixels: np.ndarray, flags: np.ndarray, box: int, where: str) -> Sky:
    """The sky on every n-th row of boxes of the mesh, on all where these have none. Raises InputError."""
    if (rows := every_nth_strip(pixels.shape, box)) is not None:
        with contextlib.suppress(InputError):
            return measure_sky(pixels[rows], flags[rows], box, where)
    return measure_sky(pixels, flags, box, where)


def every_nth_strip(shape: tuple[int, int], height: int) -> np.ndarray | None:
    """The numbers of rows, in strips of `height`, of about ENOUGH_PIXELS; None where that is all of an image."""
    step = math.prod(shape) // ENOUGH_PIXELS
    if step < 2 or shape[0] <= step * height:
        return None
    return np.arange(shape[0] // height * height).reshape(-1, height)[::step].ravel()


def tied(values: np.ndarray, bad: np.ndarray) -> float:
    """The share of good pixels, of about a million, that hold the most frequent value."""
    step = math.isqrt(values.size // SAMPLED_PIXELS) + 1
    good = values[::step, ::step][~bad[::step, ::step]]
    return float(np.unique(good, return_counts=True)[1].max() / len(good)) if len(good) else 0.0


def block_means(values: np.ndarray, bad: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32, bool) [ceil(H / block), ceil(W / block)]: means of the good pixels, 0 and True where fewer than half
    of a block are. values: 0 where bad."""
    edges = [(0, -side % block) for side in values.shape]
    whole = lambda plane: np.pad(plane, edges).reshape(-(-values.shape[0] // block), block, -1, block).sum((1, 3))
    number, total = whole(~bad), whole(values)
    few = number < block**2 / 2
    return np.where(few, 0, total / np.maximum(number, 1)).astype(np.float32), few


def is_half_good(bad: np.ndarray, box_y: int, box_x: int) -> bool:
    """Whether any box of the mesh has half of its pixels good."""
    height, width = bad.shape[0] // box_y * box_y, bad.shape[1] // box_x * box_x
    boxes = bad[:height, :width].reshape(height // box_y, box_y, width // box_x, box_x)
    return bool((boxes.mean((1, 3)) <= 0.5).any())


def detect(pixels: np.ndarray, flags: np.ndarray, sky: Sky, settings: Detection, scale_arcsec: float) -> np.ndarray:
    """float64 [N, 2]: x, y (0-based pixels) of the sources, by y and x: windowed centres.

    The image over its rms goes through a Gaussian matched filter before the threshold, which is in units of the
    filtered sky's sigma (Irwin 1985, MNRAS 214 575): it holds the correlation of the noise. Sources that touch are
    deblended. Raises InputError where there is none.
    """
    width = settings.filter_fwhm_arcsec / scale_arcsec * gaussian_fwhm_to_sigma
    bad = flags > 0
    residual = sky.subtracted(pixels, flags)
    filtered = gaussian_filter(residual / sky.rms, width)
    sigma = mad_std(filtered[~bad])
    found = sep.extract(filtered, settings.threshold_sigma * sigma, minarea=settings.min_pixels, filter_kernel=None)
    if not len(found):
        raise InputError(
            f"detection.threshold_sigma: {settings.threshold_sigma} finds no source in band {settings.band}; lower it"
        )
    x, y, problems = sep.winpos(residual, found["x"], found["y"], max(width, 0.5), mask=bad)
    astray = (problems > 0) | (np.hypot(x - found["x"], y - found["y"]) > settings.filter_fwhm_arcsec / scale_arcsec)
    centres = np.where(astray[:, None], np.stack([found["x"], found["y"]], 1), np.stack([x, y], 1))
    return centres[np.lexsort(centres.T)]


def aperture_flux(residual: np.ndarray, flags: np.ndarray, xy: np.ndarray, radius_px: float) -> np.ndarray:
    """float64 [N]: the sum of sky-subtracted pixels [H, W], finite, in circles (exact overlap); NaN where a pixel of a
    circle is flagged or outside of the tile."""
    flux, _, problems = sep.sum_circle(residual, xy[:, 0], xy[:, 1], radius_px, mask=flags > 0, subpix=0)
    return np.where(problems & (sep.APER_TRUNC | sep.APER_HASMASKED | sep.APER_ALLMASKED) > 0, np.nan, flux)


@cache
def noise_area(radius_px: float) -> float:
    """Variance of an aperture's sum over that of a pixel, were the pixels independent: the sum of squared overlaps."""
    reach = math.ceil(radius_px + 0.5)
    at = ((np.arange((2 * reach + 1) * FINE) + 0.5) / FINE - reach - 0.5).reshape(-1, FINE)
    # Row by row: all points of a wide aperture at once would take gigabytes.
    inside = [(row[:, None, None] ** 2 + at**2 < radius_px**2).mean((0, 2)) for row in at]
    return float((np.stack(inside) ** 2).sum())


def aperture_noise(residual: np.ndarray, flags: np.ndarray, rms: np.ndarray, radius_px: float) -> float:
    """The sigma of apertures laid at random beside the sources, the rest of which are clipped: it holds the noise's
    correlation between pixels, which the noise of one pixel, rms [H, W], does not (Labbe et al. 2003, AJ 125 1107). NaN
    where there is no room for FEWEST_APERTURES that do not overlap."""
    rows = every_nth_strip(residual.shape, STRIP_APERTURES * math.ceil(2 * radius_px))
    if rows is not None and math.isfinite(found := aperture_noise(residual[rows], flags[rows], rms[rows], radius_px)):
        return found
    height, width = residual.shape
    above = uniform_filter(residual, 3)
    above = np.divide(above, rms, out=above) > SOURCE
    taken = maximum_filter(above, 2 * round(radius_px / 2) + 1) | (flags > 0)
    edge = min(radius_px + 1, (min(height, width) - 1) / 2)
    rng = np.random.default_rng(0)
    xy = rng.uniform((edge, edge), (width - 1 - edge, height - 1 - edge), (EMPTY_APERTURES, 2))
    flux = aperture_flux(residual, taken, xy, radius_px)
    flux = flux[np.isfinite(flux)]
    room = len(flux) / EMPTY_APERTURES * (height - 1 - 2 * edge) * (width - 1 - 2 * edge)
    if room < FEWEST_APERTURES * math.pi * radius_px**2:
        return math.nan
    return float(mad_std(sigma_clip(flux, sigma=3, maxiters=10, stdfunc="mad_std", masked=False)))


def to_stored(pixels: np.ndarray, flags: np.ndarray, scale: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(dtype, uint8) [H, W]: pixels, which are overwritten, times scale; and flags. Bad and absent pixels become 0;
    those past float16 are clipped and flagged as saturated."""
    pixels *= np.float32(scale)
    pixels[flags & (MASK_BITS["bad"] | MASK_BITS["nodata"]) > 0] = 0
    flags = flags | ((pixels > FLOAT16_MAX) | (pixels < -FLOAT16_MAX)) * np.uint8(MASK_BITS["saturated"])
    return np.clip(pixels, -FLOAT16_MAX, FLOAT16_MAX, out=pixels).astype(dtype, copy=False), flags


def nearest_pixel(x: np.ndarray) -> np.ndarray:
    """int64: pixel i holds positions from i - 0.5 up to i + 0.5 (0-based)."""
    return np.floor(np.asarray(x, float) + 0.5).astype(np.int64)


def cut(plane: np.ndarray, x: np.ndarray, y: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    """[N, size, size]: the nearest pixel to (x, y) is pixel [size // 2, size // 2]; `fill` past the tile's edges."""
    cutouts = np.empty((len(x), size, size), plane.dtype)
    cut_into(cutouts, plane, x, y, size, fill)
    return cutouts


def cut_into(out: Iterable[np.ndarray], plane: np.ndarray, x: np.ndarray, y: np.ndarray, size: int, fill: int) -> None:
    """As `cut`, into N arrays [size, size]."""
    height, width = plane.shape
    lefts, lows = nearest_pixel(x) - size // 2, nearest_pixel(y) - size // 2
    for into, left, low in zip(out, lefts.tolist(), lows.tolist(), strict=True):
        x0, x1, y0, y1 = max(left, 0), min(left + size, width), max(low, 0), min(low + size, height)
        if (x1 - x0, y1 - y0) != (size, size):
            into[:] = fill
            if x1 <= x0 or y1 <= y0:
                continue
        into[y0 - low : y1 - low, x0 - left : x1 - left] = plane[y0:y1, x0:x1]
