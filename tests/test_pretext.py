"""Rotation, flip and jigsaw: their rearrangements, chance on a sky without direction, and directions found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxz.config import default, fill, validate
from jaxz.errors import InputError
from jaxz.objectives.jigsaw import distant_orders
from jaxz.objectives.rotation import rearranged
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


def blobs(key, ramp: float):
    """Noisy round blobs about the middle, [256,3,16,16], on a sky that rises by `ramp` sigma from left to right."""
    place, height, noise = jax.random.split(key, 3)
    centre = 7.5 + 2 * jax.random.normal(place, (256, 2))
    y, x = jnp.mgrid[:16, :16]
    distance = (y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2
    image = 3 * jax.random.exponential(height, (256, 3, 1, 1)) * jnp.exp(-distance / 10)[:, None]
    image += jax.random.normal(noise, image.shape) + ramp * jnp.linspace(-0.5, 0.5, 16)
    return {"image": image, "mask": jnp.ones(image.shape, bool)}


def trained_accuracy(name: str, ramp: float) -> float:
    """On 5120 objects that training did not see, after 300 steps of 256."""
    objective, params, extra = make({name: 1.0})
    optimizer = optax.adam(3e-3)
    loss = lambda p, key: objective.loss(p, {}, extra, blobs(key, ramp), jax.random.fold_in(key, 1), 0)

    def step(state, key):
        params, opt = state
        updates, opt = optimizer.update(jax.grad(loss, has_aux=True)(params, key)[0], opt)
        return (optax.apply_updates(params, updates), opt), None

    def run(params):
        keys = jax.random.split(KEY, 320)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys[:300])
        seen = jax.lax.map(lambda key: loss(params, key)[1]["metrics"][f"{name}/accuracy"], keys[300:])
        return seen.mean()

    return float(jax.jit(run)(params))


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
        with pytest.raises(InputError, match=f"augment.square: True, but {name} learns which way"):
            validate(fill(config))
        config.augment.square = False
    validate(fill(config))


def test_pieces_must_divide_the_image():
    with pytest.raises(InputError, match="jigsaw.pieces: 3 does not divide the cutouts' 16 pixels"):
        make(dict(jigsaw=1.0), jigsaw=dict(pieces=3))
