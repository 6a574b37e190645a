"""Positions and fluxes of sources on an image, without the converter's own tools."""

import numpy as np


def near(image: np.ndarray, x: float, y: float, radius: float) -> tuple[np.ndarray, float, float] | None:
    """(part of an image [H, W] that holds a circle, x and y in it); None where the image does not."""
    half, column, row = int(radius) + 2, int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    if min(column, row) < half or column + half >= image.shape[1] or row + half >= image.shape[0]:
        return None
    part = image[row - half : row + half + 1, column - half : column + half + 1].astype(float)
    return part, x - column + half, y - row + half


def inside(shape: tuple[int, int], x: float, y: float, radius: float, fine: int = 10) -> np.ndarray:
    """[H, W]: the share of each pixel that lies in a circle."""
    at = lambda number, centre: (np.arange(number * fine) + 0.5) / fine - 0.5 - centre
    points = at(shape[0], y)[:, None] ** 2 + at(shape[1], x) ** 2 < radius**2
    return points.reshape(shape[0], fine, shape[1], fine).mean((1, 3))


def above_ring(part: np.ndarray, x: float, y: float, inner: float, outer: float) -> tuple[np.ndarray, float]:
    """(the image less a plane that is fitted to a ring around a source, the sigma of the ring)."""
    rows, columns = np.indices(part.shape)
    ring = np.hypot(columns - x, rows - y)
    ring = (ring > inner) & (ring < outer)
    terms = np.stack([np.ones(part.shape), columns - x, rows - y], -1)
    plane = np.linalg.lstsq(terms[ring], part[ring], rcond=None)[0]
    residual = part - terms @ plane
    return residual, float(residual[ring].std())


def centroid(residual: np.ndarray, x: float, y: float, sigma: float) -> tuple[float, float]:
    """The centre of a Gaussian window that is the centre of what it shows (Bertin's XWIN, YWIN)."""
    rows, columns = np.indices(residual.shape)
    for _ in range(100):
        seen = residual * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        step_x, step_y = (2 * (seen * (at - c)).sum() / seen.sum() for at, c in ((columns, x), (rows, y)))
        x, y = x + step_x, y + step_y
        if np.hypot(step_x, step_y) < 1e-5:
            break
    return x, y


def measure(
    image: np.ndarray, x: float, y: float, *, radius: float, ring: float, sigma: float, least: float = 0
) -> tuple[float, np.ndarray] | None:
    """(flux in a circle, x and y of the centre), sky from a ring around the circle; None past the edge, and for a flux
    below `least` times its noise."""
    there = near(image, x, y, ring)
    if there is None or not np.isfinite(there[0]).all():
        return None
    part, part_x, part_y = there
    residual, noise = above_ring(part, part_x, part_y, radius, ring)
    weight = inside(part.shape, part_x, part_y, radius)
    flux = float((weight * residual).sum())
    if flux < least * noise * np.sqrt((weight**2).sum()):
        return None
    moved = np.subtract(centroid(residual, part_x, part_y, sigma), (part_x, part_y))
    return flux, np.add(moved, (x, y))


def in_cutout(x: float, y: float, size: int) -> tuple[float, float]:
    """Where a position on a tile is in the cutout around it."""
    return tuple(size // 2 + at - np.floor(at + 0.5) for at in (x, y))
