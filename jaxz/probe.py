"""What a frozen encoder knows of redshift, by the protocol of docs/probes.md, beside one that was never trained.

    python -m jaxz.probe --workdir=RUN --dataset=DATASET [--step N] [--item ema] [--truth] [--most 20000]

writes RUN/probe.json, or of a step RUN/probe_N.json, also beside a training that goes on: R^2 of ln(1+z), sigma_mad
and eta_15 of a ridge regression, nearest neighbours, a logistic regression over redshift bins and an attentive probe.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from jaxz import errors, logs, runtime
from jaxz.data.dataset import Dataset
from jaxz.data.prepare import Prepare
from jaxz.data.stream import Source, Stream
from jaxz.files import replace
from jaxz.inference import Model, load_run
from jaxz.models.functional import Functional, Params
from jaxz.models.vit import masked_mean
from jaxz.objectives import merged
from jaxz.photoz.metrics import Score, evaluate_metrics
from jaxz.results import sure_labels

SPLITS = ("train", "val", "test")
ALPHAS = 10.0 ** np.arange(-3, 7)  # of the ridge, for standardised features
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of the logistic regression
BINS, LEAST = 32, 20  # at most so many bins of redshift, with equally many training objects, at least so many
HEADS, EPOCHS, BATCH = 4, 20, 256  # of the attentive probe


class Part(NamedTuple):
    """A split, as an encoder sees it."""

    features: np.ndarray  # float32 [M,2D]: cls and the mean token
    tokens: np.ndarray  # float16 [M,N,D]
    observed: np.ndarray  # bool [M,N]: which hold an observation
    target: np.ndarray  # float64 [M]: ln(1+z)


def encode(model: Model, params: Params, dataset: Dataset, where: str, label: str, most: int) -> Part:
    """At most `most` objects that pass `where` and have a label, drawn with seed 0, in evaluation mode."""
    prepare, encoder = Prepare(dataset.manifest, model.normalisation), model.objective.encoder

    @jax.jit
    def look(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = prepare(batch, jax.random.key(0))
        encoded = encoder(params, seen["image"], seen["mask"], columns=seen)
        features = jnp.concatenate([encoded.cls, masked_mean(encoded.tokens, encoded.observed)], 1)
        return features.astype(jnp.float32), encoded.tokens.astype(jnp.float16), encoded.observed

    stream = Stream(
        Source(dataset, prepare.arrays, (*{*prepare.columns, *encoder.columns}, label), where), BATCH, epochs=1
    )
    parts, total = [], min(most, len(stream))
    with contextlib.closing(stream), logs.Bar("encode", total) as bar:
        for batch in stream:
            z = np.asarray(batch[label], np.float64)
            good = batch["valid"] & np.isfinite(z)
            arrays = (*jax.device_get(look(params, {n: v for n, v in batch.items() if n != label})), np.log1p(z))
            parts.append([array[good] for array in arrays])
            done = sum(len(part[0]) for part in parts)
            bar.update(min(done, total))
            if done >= most:
                break
    return Part(*(np.concatenate(arrays)[:most] for arrays in zip(*parts, strict=True)))


def standardised(parts: dict[str, Part]) -> dict[str, Part]:
    """Features and tokens with mean 0 and deviation 1 over the training objects; what never varies becomes 0."""
    train = parts["train"]
    centre, scale = train.features.mean(0), train.features.std(0)
    seen = train.observed[..., None]
    means = train.tokens.mean((0, 1), dtype=np.float32, where=seen)
    spread = train.tokens.std((0, 1), dtype=np.float32, where=seen)
    over = lambda x, scale: x / np.where(scale > 1e-6, scale, np.inf)
    return {
        name: p._replace(
            features=over(p.features - centre, scale), tokens=over(p.tokens - means, spread).astype(np.float16)
        )
        for name, p in parts.items()
    }


def best(candidates: Iterable[tuple[np.ndarray, np.ndarray]], target: np.ndarray) -> np.ndarray:
    """Of (predictions of val, predictions of test), the latter where the former's squared error is least."""
    return min(candidates, key=lambda pair: np.mean((pair[0] - target) ** 2))[1]


def ridge(parts: dict[str, Part]) -> np.ndarray:
    """ln(1+z) of the test objects by ridge regression (Hoerl & Kennard 1970), its strength chosen on val."""
    train, val, test = (parts[name] for name in SPLITS)
    x, mean = train.features.astype(np.float64), train.target.mean()
    values, vectors = np.linalg.eigh(x.T @ x)
    along = vectors.T @ (x.T @ (train.target - mean))
    weights = [vectors @ (along / (np.maximum(values, 0) + alpha)) for alpha in ALPHAS]
    return best([(val.features @ w + mean, test.features @ w + mean) for w in weights], val.target)


def neighbours(parts: dict[str, Part]) -> np.ndarray:
    """The mean ln(1+z) of the k nearest training objects, k chosen on val."""
    train, val, test = (parts[name] for name in SPLITS)
    counts = [k for k in NEIGHBOURS if k <= len(train.target)]
    index = NearestNeighbors(n_neighbors=counts[-1]).fit(train.features)
    near = [train.target[index.kneighbors(part.features, return_distance=False)] for part in (val, test)]
    return best([tuple(z[:, :k].mean(1) for z in near) for k in counts], val.target)


def binned(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the bin of each training object, the mean of each bin)."""
    count = max(2, min(BINS, len(target) // LEAST))
    edges = np.unique(np.quantile(target, np.linspace(0, 1, count + 1)[1:-1]))
    bins = np.searchsorted(edges, target, side="right")
    bins = np.unique(bins, return_inverse=True)[1]  # none is empty
    return bins, np.bincount(bins, target) / np.bincount(bins)


def logistic(parts: dict[str, Part]) -> np.ndarray:
    """The expectation of ln(1+z) by multinomial logistic regression over bins, its strength chosen on val."""
    train, val, test = (parts[name] for name in SPLITS)
    bins, centres = binned(train.target)
    candidates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last steps change little
        for strength in STRENGTHS:
            fitted = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(train.features, bins)
            candidates.append(tuple(fitted.predict_proba(part.features) @ centres for part in (val, test)))
    return best(candidates, val.target)


class Attentive(nnx.Module):
    """One learned query a head attends to the tokens; a linear layer sorts what it gathers into bins."""

    def __init__(self, width: int, bins: int, *, rngs: nnx.Rngs):
        self.query = nnx.Param(0.5 * jax.random.normal(rngs.params(), (HEADS, width)))
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(HEADS * width, rngs=rngs)
        self.out = nnx.Linear(HEADS * width, bins, rngs=rngs)

    def __call__(self, tokens: jax.Array, observed: jax.Array) -> jax.Array:
        similar = tokens @ self.query[...].T / tokens.shape[-1] ** 0.5
        weight = jax.nn.softmax(jnp.where(observed[..., None], similar, -1e9), axis=1)  # [B,N,heads]
        gathered = jnp.einsum("bnh,bnd->bhd", weight, self.value(tokens))
        return self.out(self.norm(gathered.reshape(len(tokens), -1)))


def attentive(parts: dict[str, Part]) -> np.ndarray:
    """The expectation of ln(1+z) by the attentive probe, trained by AdamW; the epoch is chosen on val."""
    train, val, test = (parts[name] for name in SPLITS)
    bins, centres = binned(train.target)
    head = Functional(lambda rngs: Attentive(train.tokens.shape[-1], len(centres), rngs=rngs))
    params = head.init(jax.random.key(0))
    count = len(bins) // min(BATCH, len(bins))  # batches of an epoch
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, EPOCHS * count), weight_decay=0.05)

    def loss(params: Params, tokens: jax.Array, observed: jax.Array, bins: jax.Array) -> jax.Array:
        logits = head(params, tokens.astype(jnp.float32), observed)
        return optax.softmax_cross_entropy_with_integer_labels(logits, bins).mean()

    @jax.jit
    def step(params: Params, state: optax.OptState, *batch: jax.Array) -> tuple[Params, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    expect = jax.jit(
        lambda params, tokens, seen: jax.nn.softmax(head(params, tokens.astype(jnp.float32), seen)) @ centres
    )
    cuts = lambda part: (slice(i, i + BATCH) for i in range(0, len(part.tokens), BATCH))
    predict = lambda part: np.concatenate([expect(params, part.tokens[c], part.observed[c]) for c in cuts(part)])
    state, draw, candidates = optimizer.init(params), np.random.default_rng(0), []
    for _ in range(EPOCHS):
        order = draw.permutation(len(bins))
        for rows in order[: len(bins) // count * count].reshape(count, -1):
            params, state = step(params, state, train.tokens[rows], train.observed[rows], bins[rows])
        candidates.append((predict(val), predict(test)))
    return best(candidates, val.target)


PROBES = {"ridge": ridge, "neighbours": neighbours, "logistic": logistic, "attentive": attentive}


def scores(predicted: np.ndarray, target: np.ndarray) -> dict[str, Score]:
    """{metric: {"value", "error"}} of predictions of ln(1+z) [M]: their R^2, sigma_mad and eta_15 of z."""
    of_z = evaluate_metrics(np.expm1(predicted), np.expm1(target))
    return {"r2_ln": evaluate_metrics(predicted, target)["r2"], **{n: of_z[n] for n in ("sigma_mad", "eta_15")}}


def probe(model: Model, params: Params, dataset: Dataset, where: dict[str, str], label: str, most: int) -> dict:
    """{probe: scores} of an encoder's parameters, and the number of objects."""
    parts = {split: encode(model, params, dataset, condition, label, most) for split, condition in where.items()}
    objects = {split: len(part.target) for split, part in parts.items()}
    if min(objects.values()) < 2:
        raise errors.InputError(f"--dataset: {objects} objects with {label!r} in its splits; each needs at least 2")
    parts = standardised(parts)
    return {"objects": objects, **{name: scores(p(parts), parts["test"].target) for name, p in PROBES.items()}}


def conditions(dataset: Dataset, truth: bool) -> tuple[str, dict[str, str]]:
    """(label, {split: its condition}). Raises InputError where the dataset lacks labels or a split."""
    columns = dataset.manifest.columns
    label = "true_z" if truth else "z"
    for name in ("split", label, *([] if truth else ["z_kind"])):
        if name not in columns:
            raise errors.InputError(f"--dataset: {str(dataset.path)!r} has no column {name!r}, which a probe needs")
    labelled = f"isfinite({label})" if truth else sure_labels(columns)  # the true z of a star is NaN
    where = {split: f"split == '{split}' and {labelled}" for split in SPLITS}
    for condition in where.values():
        if not len(dataset.select(condition)):
            raise errors.InputError(f"--dataset: {str(dataset.path)!r} has no row with {condition}; name another")
    return label, where


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.probe", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, type=Path, help="the run")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--step", type=int, help="its checkpoint of this step; default the newest")
    parser.add_argument("--member", type=int, default=0, help="of an ensemble; default 0")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--truth", action="store_true", help="a simulation's true_z of all objects, not labels")
    parser.add_argument("--most", type=int, default=20_000, help="objects of each split; default 20000")
    options = parser.parse_args(argv)
    if options.most < 2:
        raise errors.InputError(f"--most: {options.most} must be at least 2")
    runtime.alone("jaxz.probe")
    model = load_run(options.workdir, options.item, options.step)
    members, member = model.config.train.members, options.member
    if not 0 <= member < members:
        raise errors.InputError(f"--member: {member} is none of the run's {members}, which count from 0")
    trained = jax.tree.map(lambda a: a[member], model.params) if members > 1 else model.params
    dataset = model.open_dataset(options.dataset)
    label, where = conditions(dataset, options.truth)
    fresh = jax.jit(model.objective.init)(jax.random.key(model.config.seed + member))[0]
    found = {"label": label, "item": options.item, "dataset": str(dataset.path)}
    for name, params in (("run", trained), ("random_init", fresh)):
        found[name] = probe(model, merged(params)["encoder"], dataset, where, label, options.most)
    name = "probe.json" if options.step is None else f"probe_{options.step}.json"
    replace(options.workdir / name, json.dumps(found, indent=1).encode())
    kind = "the simulation's truth of all objects" if options.truth else "spectroscopic labels"
    print(f"{options.workdir}: {kind}, {found['run']['objects']} objects; in brackets the untrained encoder")
    for name in PROBES:
        told = [
            f"{metric} {value['value']:.4f} +- {value['error'] or 0:.4f} [{other['value']:.4f}]"
            for (metric, value), other in zip(
                found["run"][name].items(), found["random_init"][name].values(), strict=True
            )
        ]
        print(f"{name:10} {', '.join(told)}")


if __name__ == "__main__":
    errors.run(main)
