"""Rotation, flip and jigsaw: their rearrangements, chance on a sky without direction, and directions found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxz.config import default, fill
from jaxz.errors import InputError
from jaxz.objectives.jigsaw import distant_orders
from jaxz.objectives.rotation import rearranged
from jaxz.validate import validate
from tests.terms import make

KEY = jax.random.key(3)


def test_turns_and_mirror_images_are_those_of_numpy():
    image = jax.random.normal(KEY, (4, 3, 16, 16))
    for name, expected in {
        "rotation": [np.rot90(image[k], k, (1, 2)) for k in range(4)],
        "flip": [image[0], image[1][..., ::-1]],
    }.items():
        sources = jnp.asarray(make({name: 1.0})[0].terms[name].sources)
        np.testing.assert_array_equal(rearranged(image[: len(sources)], sources), expected)


def test_jigsaw_moves_whole_pieces():
    sources = make(dict(jigsaw=1.0))[0].terms["jigsaw"].sources
    whole = np.arange(256).reshape(16, 16)
    quarters = [whole[y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    for source, order in zip(sources, distant_orders(4, 24), strict=True):
        a, b, c, d = (quarters[n] for n in order)
        np.testing.assert_array_equal(source.reshape(16, 16), np.block([[a, b], [c, d]]))
    assert len({tuple(source) for source in sources}) == 24


def test_orders_of_nine_pieces_are_far_apart():
    orders = distant_orders(9, 50)
    apart = (orders[:, None] != orders).sum(-1)[~np.eye(50, dtype=bool)]
    assert (np.sort(orders, 1) == np.arange(9)).all() and apart.min() >= 7


def blobs(ramp: float) -> np.ndarray:
    """[160,128,3,16,16]: batches of noisy round blobs about the middle, on a sky that rises by `ramp` sigma from left
    to right."""
    rng = np.random.default_rng(0)
    centre = rng.normal(7.5, 2, (160, 128, 2, 1))
    y, x = (np.exp(-((np.arange(16) - centre[:, :, axis]) ** 2) / 10) for axis in range(2))
    image = rng.exponential(3, (160, 128, 3, 1, 1)) * (y[..., None] * x[..., None, :])[:, :, None]
    return (image + rng.normal(size=image.shape) + ramp * np.linspace(-0.5, 0.5, 16)).astype(np.float32)


def trained_accuracy(name: str, ramp: float) -> float:
    """Of the last 5120 objects, each told before it is trained on."""
    objective, params, extra = make({name: 1.0})
    optimizer = optax.adam(3e-3)

    def loss(params, image, key):
        return objective.loss(params, {}, extra, {"image": image, "mask": jnp.ones(image.shape, bool)}, key, 0)

    def step(state, data):
        gradients, aux = jax.grad(loss, has_aux=True)(state[0], *data)
        updates, opt = optimizer.update(gradients, state[1])
        return (optax.apply_updates(state[0], updates), opt), aux["metrics"][f"{name}/accuracy"]

    images = blobs(ramp)
    keys = jax.random.split(KEY, len(images))
    accuracy = jax.jit(lambda *data: jax.lax.scan(step, (params, optimizer.init(params)), data)[1])(images, keys)
    return float(accuracy[-40:].mean())


@pytest.mark.parametrize(("name", "chance"), [("rotation", 0.25), ("flip", 0.5)])
def test_a_sky_without_direction_leaves_chance_and_a_gradient_is_found(name, chance):
    assert abs(trained_accuracy(name, 0.0) - chance) < 0.03
    assert trained_accuracy(name, 1.0) > 0.9


def test_jigsaw_is_learned_on_a_sky_without_direction():
    assert trained_accuracy("jigsaw", 0.0) > 0.5  # chance: 1/24


@pytest.mark.parametrize("name", ["rotation", "flip", "jigsaw"])
def test_augmentation_must_not_turn_what_is_to_be_told(name):
    config = default()
    config.data.path, config.losses = "somewhere", {name: 1.0}
    if name != "jigsaw":
        with pytest.raises(InputError, match=f"augment.orientation: 'square', but {name} learns an image's turn"):
            validate(fill(config))
        config.augment.orientation = "none"
    validate(fill(config))


def test_pieces_must_divide_the_image():
    with pytest.raises(InputError, match="jigsaw.pieces: 3 does not divide the cutouts' 16 pixels"):
        make(dict(jigsaw=1.0), jigsaw=dict(pieces=3))
