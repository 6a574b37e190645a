"""The baselines' configs, from their shapes alone: what the trainer asks of any backbone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from jaxz import objectives
from jaxz.config import parse
from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError
from jaxz.flops import matmul_flops
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state
from tests.models.test_inception import UGRIZ

CONFIGS = sorted(Path("configs").glob("baseline_*.py"))


@pytest.fixture(params=CONFIGS, ids=[path.stem for path in CONFIGS])
def made(request):
    config = parse([f"--config={request.param}", "--config.data.path=d"])
    normalisation = Normalisation(UGRIZ, (1.0,) * 5, 64, 0.396, config.data.deredden, config.data.stretch)
    return config, objectives.Objective(build(config.model, UGRIZ, 64), config, normalisation)


def test_every_parameter_has_a_place_a_rate_and_a_decay(made):
    config, objective = made
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, 10, params)
    state = abstract_state(objective, optimizer, config, AbstractMesh((1, 2), ("data", "fsdp")))
    lead = (config.train.members,) if config.train.members > 1 else ()
    assert jax.tree.map(lambda a: a.shape, state.params) == jax.tree.map(lambda a: (*lead, *a.shape), params)
    with pytest.raises(InputError, match="optim.layer_decay: 0.5 needs a backbone of stacked blocks"):
        config.optim.layer_decay = 0.5
        make_optimizer(config.optim, 10, params)


def test_the_batch_holds_what_the_encoder_reads_and_predict_too(made):
    config, objective = made
    own = {"ebv"} if config.model.name != "photometry" else {f"{k}_{b}" for k in ("flux", "fluxerr") for b in "ugriz"}
    assert own <= set(objective.columns) and own == set(objective.inputs)


def test_operations_are_counted(made):
    """By hand: of the perceptron, and of the first convolution and the hidden layers of Pasquet's."""
    config, objective = made
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    columns = {name: jnp.zeros(2) for name in objective.encoder.columns}
    image = jax.ShapeDtypeStruct((2, 5, 64, 64), "float32")
    count = matmul_flops(lambda p, x: objective.encoder(p["encoder"], x, x, columns=columns), params, image) / 2
    if config.model.name == "photometry":
        assert count == 2 * (21 * 128 + 2 * 128 * 128)
    if config.model.name == "pasquet2019":
        own = {name: sum(a.size for a in jax.tree.leaves(p) if a.ndim > 1) for name, p in params["encoder"].items()}
        places = {"first": 64**2, "inception0": 32**2, "inception1": 32**2, "inception2": 16**2, "inception3": 16**2}
        assert count == 2 * sum(size * places.get(name, 8**2 if "inc" in name else 1) for name, size in own.items())
    assert count > 0
