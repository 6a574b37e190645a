"""Whether an image was mirrored: a baseline, and a detector of what tells left from right (see rotation)."""

import numpy as np
from ml_collections import ConfigDict

from jaxz.objectives import rotation


class Objective(rotation.Objective):
    """As rotation, of the image and its mirror image; augmentation must not mirror (augment.orientation="none")."""

    name = "flip"

    def rearrangements(self, size: int, settings: ConfigDict) -> np.ndarray:
        pixels = np.arange(size * size, dtype=np.int32).reshape(size, size)
        return np.stack([pixels.ravel(), pixels[:, ::-1].ravel()])
