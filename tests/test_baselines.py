"""The baselines' configs, from their shapes alone: what the trainer asks of any backbone."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from jaxz import objectives
from jaxz.config import fill, parse
from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError
from jaxz.flops import matmul_flops
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state
from jaxz.validate import validate
from tests.models.test_inception import UGRIZ

SIDES = {  # of the maps, by the layer's name; 1 elsewhere
    "photometry": [],
    "pasquet2019": [("first", 64), ("inception[01]", 32), ("inception[23]", 16), ("inception4", 8)],
    "treyer2024": [
        *[("first/.*/conv", 64), ("inception[012]", 32), ("inception[34]", 16), ("inception5", 8)],
        *[("conv0", 6), ("conv1", 4), ("conv2", 2)],
    ],
}
CONFIGS = sorted(Path("configs").glob("baseline_*.py"))


@pytest.fixture(scope="module", params=CONFIGS, ids=[path.stem for path in CONFIGS])
def made(request):
    config = parse([f"--config={request.param}", "--config.data.path=d"])
    normalisation = Normalisation(UGRIZ, (1.0,) * 5, 64, 0.396, config.data.deredden, config.data.stretch)
    return config, objectives.Objective(build(config.model, UGRIZ, 64), config, normalisation)


def test_objectives_that_hide_patches_are_refused(made):
    config = made[0].copy_and_resolve_references()
    config.losses = ConfigDict(dict(mae=1.0, redshift=1.0))
    with pytest.raises(InputError, match="losses: mae shows the encoder parts of images, but model.name '.*' sees wh"):
        validate(fill(config))


def test_every_parameter_has_a_place_a_rate_and_a_decay(made):
    config, objective = made
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, 10, params)
    state = abstract_state(objective, optimizer, config, AbstractMesh((1, 2), ("data", "fsdp")))
    lead = (config.train.members,) if config.train.members > 1 else ()
    assert jax.tree.map(lambda a: a.shape, state.params) == jax.tree.map(lambda a: (*lead, *a.shape), params)
    decayed = ConfigDict({**config.optim.to_dict(), "layer_decay": 0.5})
    with pytest.raises(InputError, match="optim.layer_decay: 0.5 needs a backbone of stacked blocks"):
        make_optimizer(decayed, 10, params)


def test_the_batch_holds_what_the_encoder_reads_and_predict_too(made):
    config, objective = made
    own = {"ebv"} if config.model.name != "photometry" else {f"{k}_{b}" for k in ("flux", "fluxerr") for b in "ugriz"}
    assert own <= set(objective.columns) and own == set(objective.inputs)


def test_every_layer_works_on_as_many_places_as_it_should(made):
    """A multiplication and an addition for each number of a kernel at each place of its maps, whose side halves between
    the inception layers and shrinks by two in each of Treyer's last convolutions."""
    config, objective = made
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])["encoder"]
    columns = {name: jnp.zeros(2) for name in objective.encoder.columns}
    image = jax.ShapeDtypeStruct((2, 5, 64, 64), "float32")
    count = matmul_flops(lambda p, x: objective.encoder(p, x, x, columns=columns), params, image) / 2
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim > 1
    }
    side = lambda name: next((side for start, side in SIDES[config.model.name] if re.match(start, name)), 1)
    assert count == sum(2 * size * side(name) ** 2 for name, size in kernels.items())
