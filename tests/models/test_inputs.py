"""Images of other sizes: against SciPy's interpolation, and what a mask hides."""

import jax
import numpy as np
from scipy.ndimage import zoom

from jaxz.models.inputs import resize_images


def test_larger_images_are_scipys_and_what_is_hidden_takes_no_part():
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    resize = jax.jit(resize_images, static_argnums=2)
    found, mask = resize(image, np.ones(image.shape, bool), 3.5)
    wanted = zoom(image, (1, 1, 3.5, 3.5), order=1, mode="nearest", grid_mode=True)
    assert mask.all()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    halves, _ = resize(image, np.ones(image.shape, bool), 2.0)
    back = np.asarray(resize(halves, np.ones(halves.shape, bool), 0.5)[0])
    np.testing.assert_allclose(back.mean((2, 3)), image.mean((2, 3)), atol=0.1)
    hidden = np.ones(image.shape, bool)
    hidden[0, :, :4] = False
    flat, seen = resize(np.where(hidden, 2.0, np.nan).astype(np.float32), hidden, 3.5)
    np.testing.assert_allclose(flat, np.where(seen, 2.0, 0.0), rtol=1e-6)
    assert not seen[0, :, :14].any() and seen[0, :, 14:].all() and seen[1].all()
