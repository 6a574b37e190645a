"""Which tile each object is cut from: of those that hold it, the one with the most good pixels in its cutout.

Where tiles overlap, a coarse map of the good pixels of each says so, made before the catalogue is read.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from scipy.ndimage import map_coordinates

from data_tools.measure import nearest_pixel, sampled_sky
from data_tools.planes import read_own
from data_tools.splits import assign_splits, healpix_order
from data_tools.survey import BandSource, Survey
from data_tools.tiles import Grid, Tile, to_pixels, to_sky
from jaxz.errors import InputError
from jaxz.progress import in_threads

SMALLEST_BLOCK = 8  # pixels: the maps of many tiles are held at once
FULL = 255  # of a block all of whose pixels are good in all bands


class Places:
    """Finds the tile of each object."""

    def __init__(self, tiles: list[Tile], survey: Survey, size: int, maps: dict[int, np.ndarray], among: str = ""):
        """maps: those of `good_maps`. among: a band that the tile of an object must have."""
        self.maps, self.among = maps, among
        self.tiles, self.survey, self.size = tiles, survey, size
        self.names = {tile.name: n for n, tile in enumerate(tiles)}
        self.sky = all(tile.grid.wcs is not None for tile in tiles)
        if self.sky:
            self.centres, self.radii = np.array([disc(tile) for tile in tiles], object).T
        self.gap_px = size * math.sqrt(2)

    def place(self, chunk: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The objects that lie in a tile, with tile (int32), x, y and, where the sky is known, ra, dec and split; and
        how many do not, by reason."""
        chunk = dict(chunk)
        by_sky, own = "ra" in chunk, chunk.pop("detected_in", None)
        if by_sky and not self.sky:
            path = next(str(f) for tile in self.tiles if tile.grid.wcs is None for f in tile.files.values())
            raise InputError(f"catalog.ra: needs a WCS, and {path!r} has none; add it, or name x and y instead")
        names = ("ra", "dec") if by_sky else ("x", "y")
        known = np.isfinite([chunk[name] for name in names]).all(0)
        tile, x, y = self.by_sky(chunk) if by_sky else self.by_pixel(chunk)
        inside = (tile >= 0) & known
        lost = {"without a position": int((~known).sum()), "in no tile": int((known & ~inside).sum())}
        if own is not None:  # it is found on the others, too
            lost["found again on another tile"] = int((inside & (tile != own)).sum())
            inside &= tile == own
        placed = {name: values[inside] for name, values in chunk.items()}
        placed |= {"tile": tile[inside], "x": x[inside], "y": y[inside]}
        if not by_sky and self.sky:
            placed["ra"], placed["dec"] = np.empty((2, inside.sum()))
            for n in np.unique(placed["tile"]):
                here = placed["tile"] == n
                sky = to_sky(self.tiles[n].grid, placed["x"][here], placed["y"][here])
                placed["ra"][here], placed["dec"][here] = sky["ra"], sky["dec"]
        if self.sky:
            rule = self.survey.splits
            placed["split"], _ = assign_splits(
                placed["ra"], placed["dec"], gap_arcsec=self.gap_px * self.survey.coarsest_arcsec,
                order=healpix_order(rule.cell_arcmin), fractions=rule.fractions, seed=rule.seed,
            )  # fmt: skip
        return placed, lost

    def by_pixel(self, chunk: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if "tile" in chunk:
            found = [self.names.get(name, -1) for name in chunk["tile"].tolist()]
            tile = np.array(found, np.int32).reshape(len(chunk["tile"]))
        elif len(self.tiles) == 1:
            tile = np.zeros(len(chunk["x"]), np.int32)
        else:
            raise InputError(f"catalog.tile: needed with x and y for {len(self.tiles)} tiles; name the column")
        shapes = np.array([t.grid.shape for t in self.tiles])[tile]
        inside = is_inside(chunk["x"], chunk["y"], shapes[:, 0], shapes[:, 1])
        return np.where(inside, tile, -1).astype(np.int32), chunk["x"], chunk["y"]

    def by_sky(self, chunk: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tiles that hold an object, that with the most good pixels in its cutout, in percent of those of all
        bands; of equal ones, that whose centre is nearest."""
        number = len(chunk["ra"])
        tile = np.full(number, -1, np.int32)
        x, y, cover, distance = np.full((4, number), np.nan)
        cover[:], distance[:] = -1, np.inf
        ra, dec = np.radians(chunk["ra"]), np.radians(chunk["dec"])
        vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)
        for n, (candidate, centre, radius) in enumerate(zip(self.tiles, self.centres, self.radii, strict=True)):
            if self.among and self.among not in candidate.files:
                continue
            near = np.flatnonzero(vectors @ centre >= math.cos(radius))  # not where it is NaN
            height, width = candidate.grid.shape
            px, py = to_pixels(candidate.grid, chunk["ra"][near], chunk["dec"][near])
            inside = is_inside(px, py, height, width)
            near, px, py = near[inside], px[inside], py[inside]
            if not len(near):
                continue
            share = good_percent(self.maps[n], px, py, self.size) if n in self.maps else np.zeros(len(near))
            away = np.hypot(px - (width - 1) / 2, py - (height - 1) / 2)
            better = (share > cover[near]) | ((share == cover[near]) & (away < distance[near]))
            chosen = near[better]
            tile[chosen], x[chosen], y[chosen] = n, px[better], py[better]
            cover[chosen], distance[chosen] = share[better], away[better]
        return tile, x, y


def border(grid: Grid, outside: float) -> SkyCoord:
    """The centre of a grid, and nine points along each side, so many pixels outside of the outermost ones."""
    (y0, y1), (x0, x1) = ((-outside, side - 1 + outside) for side in grid.shape)
    x, y = np.linspace(x0, x1, 9), np.linspace(y0, y1, 9)
    x = np.concatenate([[(x0 + x1) / 2], x, x, [x0] * 9, [x1] * 9])
    y = np.concatenate([[(y0 + y1) / 2], [y0] * 9, [y1] * 9, y, y])
    return grid.sky(x, y).icrs


def disc(tile: Tile) -> tuple[np.ndarray, float]:
    """Unit vector of a tile's centre, and the angle in radians within which all of it lies."""
    sky = border(tile.grid, 1.0)
    return sky[0].cartesian.xyz.value, float(sky[0].separation(sky[1:]).max().rad) * 1.05


def overlapping(tiles: list[Tile]) -> list[int]:
    """The numbers of the tiles that share a part of the sky with another: of two, one has a point of its border, or its
    centre, in the other. None without a WCS."""
    if len(tiles) == 1 or any(tile.grid.wcs is None for tile in tiles):
        return []
    points = [border(tile.grid, 0.0) for tile in tiles]
    ra, dec = (np.stack([getattr(sky, axis).deg for sky in points]) for axis in ("ra", "dec"))
    centres, radii = (np.array(part) for part in zip(*map(disc, tiles), strict=True))
    found = set()
    for n, tile in enumerate(tiles):
        apart = np.arccos(np.clip(centres @ centres[n], -1, 1))
        near = np.setdiff1d(np.flatnonzero(apart < radii + radii[n]), n)
        x, y = to_pixels(tile.grid, ra[near].ravel(), dec[near].ravel())
        inside = is_inside(x, y, *tile.grid.shape).reshape(len(near), len(points[0])).any(1)
        found |= {*near[inside].tolist(), *([n] if inside.any() else [])}
    return sorted(found)


def good_maps(
    survey: Survey, images: Path, tiles: list[Tile], size: int, among: str, workers: int
) -> dict[int, np.ndarray]:
    """{number of a tile: uint8 [ceil(H / b), ceil(W / b)]} of the tiles that overlap others: the good pixels in blocks
    of b x b pixels of the cutouts' grid, of all bands of the survey; a band without a sky has none. FULL: all of them.

    b is a quarter of `size`. among: only where this band has good pixels. Reads each of these tiles once."""
    chosen = overlapping(tiles)
    make = lambda n: good_map(survey, images, tiles[n], block_of(size), among)
    return dict(zip(chosen, in_threads(make, chosen, workers, "overlapping tiles"), strict=True))


def block_of(size: int) -> int:
    return max(SMALLEST_BLOCK, size // 4)


def good_map(survey: Survey, images: Path, tile: Tile, block: int, among: str) -> np.ndarray:
    """Of one tile, as `good_maps` says."""
    shares = {b.name: good_blocks(survey, images, tile, b, block) for b in survey.bands if b.name in tile.files}
    total = sum(shares.values()) / len(survey.bands)
    if among in shares:
        total = np.where(shares[among] > 0, total, 0)
    return np.round(FULL * total).astype(np.uint8)


def good_blocks(survey: Survey, images: Path, tile: Tile, band: BandSource, block: int) -> np.ndarray:
    """float [ceil(H / block), ceil(W / block)] of the tile's grid: the share of a band's good pixels; where the band is
    on another grid, that at the middle of the block."""
    pixels, flags, grid = read_own(survey, images, tile, band)
    rows, columns = (-(-side // block) for side in tile.grid.shape)
    try:
        sampled_sky(pixels, flags, survey.photometry.background_box_px, band.name)
    except InputError:  # blank
        return np.zeros((rows, columns))
    edges = [(0, -side % block) for side in grid.shape]
    good = np.pad(flags == 0, edges).reshape(-(-grid.shape[0] // block), block, -1, block).mean((1, 3))
    if grid is tile.grid:
        return good
    y, x = np.indices((rows, columns)).reshape(2, -1) * block + (block - 1) / 2
    x, y = to_pixels(grid, **to_sky(tile.grid, x, y))
    inside = is_inside(x, y, *grid.shape)
    there = good[tuple(nearest_pixel(np.where(inside, at, 0)) // block for at in (y, x))]
    return np.where(inside, there, 0).reshape(rows, columns)


def good_percent(blocks: np.ndarray, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Whole percents [N]: the good pixels of cutouts around x, y, by a tile's map, whose blocks are taken as even. The
    sum over a rectangle is that of the map's integral at its corners, which is bilinear within a block."""
    block = block_of(size)
    integral = np.pad(blocks.cumsum(0, dtype=float).cumsum(1), ((1, 0), (1, 0)))
    left, low = ((nearest_pixel(centre) - size // 2) / block for centre in (x, y))
    until = partial(map_coordinates, integral, order=1, mode="nearest")
    right, high = left + size / block, low + size / block
    total = until([high, right]) - until([low, right]) - until([high, left]) + until([low, left])
    return np.round(100 * total / FULL * (block / size) ** 2)


def is_inside(x: np.ndarray, y: np.ndarray, height: np.ndarray | int, width: np.ndarray | int) -> np.ndarray:
    """Whether the nearest pixel is one of the tile; not of NaN."""
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
