"""In which order an image's pieces lie (Noroozi & Favaro 2016): a baseline that learns how objects hang together."""

import itertools

import numpy as np
from ml_collections import ConfigDict

from jaxz.errors import InputError
from jaxz.objectives import rotation

SETTINGS = dict(pieces=2, orders=24)
CHECKS = {
    "pieces": (lambda s: s.pieces in (2, 3), "2 or 3"),
    "orders": (lambda s: 2 <= s.orders <= (24 if s.pieces == 2 else 1000), "from 2 to 24, or to 1000 for 3 pieces"),
}


class Objective(rotation.Objective):
    """As rotation, of orders of pieces, which are not turned. settings: pieces along a side, orders (how many there are
    to tell apart). Raises InputError where the pieces do not divide the image."""

    name, oriented = "jigsaw", False

    def rearrangements(self, size: int, settings: ConfigDict) -> np.ndarray:
        pieces, side = settings.pieces, size // settings.pieces
        if size % pieces:
            raise InputError(f"jigsaw.pieces: {pieces} does not divide the cutouts' {size} pixels; choose a divisor")
        pixels = np.arange(size * size, dtype=np.int32).reshape(pieces, side, pieces, side).swapaxes(1, 2)
        shuffled = pixels.reshape(-1, side, side)[distant_orders(pieces**2, settings.orders)]  # [K,n,side,side]
        grid = shuffled.reshape(-1, pieces, pieces, side, side).swapaxes(2, 3)
        return grid.reshape(-1, size * size)


def distant_orders(count: int, orders: int) -> np.ndarray:
    """[orders, count] int: permutations, from the identity on each as far as can be from those before, by the least
    number of places in which it differs from one of them (Noroozi & Favaro 2016, algorithm 1)."""
    every = np.array(list(itertools.permutations(range(count))), np.int8)
    chosen, distance = [0], np.full(len(every), count + 1)
    while len(chosen) < orders:
        distance = np.minimum(distance, (every != every[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return every[chosen].astype(int)
