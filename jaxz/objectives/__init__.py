"""Objectives, one idea a file, found by the module's name: objectives/<name>.py defines `Objective`.

    SETTINGS = dict(...)                                       # the defaults of the config's group of the same name
    CHECKS = {name: (test(settings), what it must be)}

    class Objective(Protocol):
        columns: tuple[str, ...]                               # index columns that its batches must carry
        inputs: tuple[str, ...] = ()                           # those that predict reads too
        views: int = 1                                         # differently augmented images that it needs of an object
        crops: tuple[int, int] = (0, 0)                        # number and pixels of smaller ones beside them
        teacher: bool = False                                  # whether it needs `ema`, the averaged parameters
        oriented: bool = False                                 # whether augmentation must not turn or mirror images
        parts: bool = False                                    # whether it shows the encoder some patches, or crops
        tokens_only: bool = False                              # whether it leaves the encoder's summary untrained
        reconstructs: bool = False                             # whether it predicts `reconstruction` and `hidden`
        edges: float64 [bins+1]                                # of those that predict p(z): of the bins of their `pdf`
        def __init__(self, encoder, settings, normalisation)
        def init(self, key) -> (params, extra)                 # of its own, beside the encoder's
        def loss(self, params, ema, extra, batch, key, step) -> (float32 [], Aux)
        def weight(self, batch) -> float32 []                  # optional: of what it is the mean, where that may vary
        def count_labels(self, z [M], draws [M])               # optional: told of the labels before the first loss
        def predict(self, params, extra, batch) -> dict[str, Array]

`params` is {"encoder": ..., <name>: ...} for every objective of the run, `ema` the same, averaged, or {}; `batch` is
what jaxz.data.prepare makes: image, mask, sky, and lists of views and crops, which each hold these three; where an
ensemble is trained also weight [B], how often each row counts for this member. Every call of the encoder is given the
batch as `columns`, of which it takes what it reads beside images.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError, suggest
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.models.lora import lora_init, lora_merge

LORA_SCALE = 1.0  # another one is another learning rate (Hu et al. 2022, sec. 4.1)

Prepared = Mapping[str, Any]  # a batch as jaxz.data.prepare makes it: arrays [B,...], and lists of views and crops
Extra = dict[str, Any]  # of arrays, nested


class Aux(TypedDict):
    """What comes with a loss."""

    metrics: dict[str, jax.Array]
    extra: Extra


Loss = tuple[jax.Array, Aux]


def find(name: str) -> type:
    """The `Objective` of objectives/<name>.py. Raises InputError for a name that is none."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise InputError(f"losses: {name!r} is no objective of jaxz/objectives.{suggest(name, known)}")
    return importlib.import_module(f"jaxz.objectives.{name}").Objective


class Objective:
    """The sum of the terms in `config.losses` over one encoder, each times its weight of the step (config.losses: a
    number, or pairs (step, weight); jaxz/config.py); itself an objective, whose columns and inputs hold those that the
    encoder reads.

    With optim.lora_rank its parameters hold low-rank factors beside the encoder's, `lora`, which the terms see merged.
    """

    def __init__(self, encoder: Encoder, config: ConfigDict, normalisation: Normalisation):
        self.encoder, self.weights = encoder, dict(config.losses)
        self.terms = {name: find(name)(encoder, config.get(name), normalisation) for name in self.weights}
        if config.model.get("summary") == "cls" and all(getattr(t, "tokens_only", False) for t in self.terms.values()):
            raise InputError(
                f"model.summary: 'cls' is trained by none of losses {', '.join(self.terms)}; use 'mean', or add a term"
            )
        self.rank, self.kernels = config.optim.lora_rank, config.optim.lora_kernels
        every = lambda name: {column for term in self.terms.values() for column in getattr(term, name, ())}
        self.columns = tuple(sorted(every("columns").union(encoder.columns)))
        self.inputs = tuple(sorted(every("inputs").union(encoder.columns)))
        self.views = max(getattr(term, "views", 1) for term in self.terms.values())
        crops = {name: term.crops for name, term in self.terms.items() if getattr(term, "crops", (0, 0))[0]}
        if len(set(crops.values())) > 1:
            raise InputError(
                f"losses: {' and '.join(crops)} want different crops, {crops}; give them the same settings"
            )
        self.crops = next(iter(crops.values()), (0, 0))
        densities = {name: term.edges for name, term in self.terms.items() if hasattr(term, "edges")}
        if len(densities) > 1:
            raise InputError(f"losses: {' and '.join(densities)} each predict p(z); keep one of them")
        self.edges = next(iter(densities.values()), None)  # of the redshift bins of `pdf`; None: no p(z) is predicted

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        params: Params = {"encoder": self.encoder.init(jax.random.fold_in(key, 0))}
        extra: Extra = {}
        for n, (name, term) in enumerate(self.terms.items()):
            params[name], extra[name] = term.init(jax.random.fold_in(key, n + 1))
        if self.rank:
            own = jax.random.fold_in(key, len(self.terms) + 1)
            params["lora"] = lora_init(own, params["encoder"], self.kernels, self.rank)
        return params, extra

    def count_labels(self, z: np.ndarray, draws: np.ndarray) -> None:
        """Tell the terms that predict p(z) of the labels z [M] and how often each is drawn, before the first loss."""
        for term in self.terms.values():
            if hasattr(term, "count_labels"):
                term.count_labels(z, draws)

    def slice_weights(self, batch: Prepared) -> dict[str, jax.Array]:
        """{term: how much a slice of a batch has of that which the term's loss is a mean of}, where that may vary."""
        return {name: term.weight(batch) for name, term in self.terms.items() if hasattr(term, "weight")}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        """Of a slice of a batch, `share` holds its slice_weights over their means."""
        params, ema = merged(params), merged(ema)
        share = batch.get("share", {})
        total = jnp.float32(0)
        metrics: dict[str, jax.Array] = {}
        kept: Extra = {}
        for n, (name, term) in enumerate(self.terms.items()):
            value, aux = term.loss(params, ema, extra[name], batch, jax.random.fold_in(key, n), step)
            weight, value = weight_at(self.weights[name], step), share.get(name, 1.0) * value
            total += weight * value
            if isinstance(weight, jax.Array):
                metrics[f"{name}/weight"] = weight
            metrics |= {f"{name}/loss": value, **{f"{name}/{metric}": v for metric, v in aux["metrics"].items()}}
            kept[name] = aux["extra"]
        return total, {"metrics": metrics, "extra": kept}

    def embed(self, params: Params, batch: Prepared) -> jax.Array:
        """[B,D]: the encoder's summary of each image."""
        return self.encoder(merged(params)["encoder"], batch["image"], batch["mask"], columns=batch).cls

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`embedding` [B,D] and what each term predicts."""
        result, params = {"embedding": self.embed(params, batch)}, merged(params)
        for name, term in self.terms.items():
            result |= term.predict(params, extra[name], batch)
        return result


def weight_at(weight: float | Sequence[tuple[int, float]], step: jax.Array) -> float | jax.Array:
    """A weight of config.losses in a step: the number, or, of pairs (step, weight), on straight lines between them and
    constant before the first and after the last."""
    if isinstance(weight, int | float):
        return weight
    steps, weights = zip(*weight, strict=True)
    return jnp.interp(step, jnp.float32(steps), jnp.float32(weights))


def merged(params: Params) -> Params:
    """`params` with their low-rank factors, where there are any, added to the encoder."""
    if "lora" not in params:
        return params
    encoder = lora_merge(params["encoder"], params["lora"], LORA_SCALE)
    return {name: value for name, value in params.items() if name != "lora"} | {"encoder": encoder}
