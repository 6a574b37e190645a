"""A trained run applied to batches and datasets: redshifts with p(z), embeddings, reconstructions.

model = jaxz.load_run("RUN");  model.predict(batch);  model.embed(batch)
"""

import collections
import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz import batches, coverage, errors, logs, objectives, runtime
from jaxz.checkpoint import Checkpoints
from jaxz.config import complete, sources_of
from jaxz.coverage import UNKNOWN, brightness
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.fit import Fit
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.data.transport import is_remote, place
from jaxz.data.where import training_filter
from jaxz.errors import suggest
from jaxz.files import read_json
from jaxz.models import build
from jaxz.models.functional import Params
from jaxz.photoz.pdf import PDF
from jaxz.pretrained import load_pretrained
from jaxz.pretrained.formats import read_safetensors
from jaxz.pretrained.layouts import nested

EXPORTED, HEADS = "model.safetensors", "heads.safetensors"  # of jaxz.export: the encoder, and what is behind it
COVERAGE = "coverage.npz"  # of a run or what jaxz.export wrote: the training objects of coverage_flag
EMBEDDING_ALONE = frozenset(("embedding", "brightness", "n_bands"))  # outputs without what the objectives predict
BATCH = 256
UNDER_WAY = 2  # batches on the device while the host reads the next


def load_run(path: Path | str, item: str = "params", step: int | None = None) -> "Model":
    """The newest whole checkpoint of a run, or that of `step`; item "ema" takes its averaged weights. Also of a
    directory that jaxz.export wrote, which holds one item.

    Raises InputError where there is no run or no checkpoint.
    """
    if (Path(path) / EXPORTED).is_file():
        if step is not None or item != "params":
            raise errors.InputError(
                f"step, item: are of a run's checkpoints, and {str(path)!r} was exported with one; leave them out"
            )
        return load_exported(Path(path))
    runtime.set_xla_flags()
    if not (Path(path) / "checkpoints").is_dir():
        raise errors.InputError(
            f"workdir: {str(path)!r} is no run directory with checkpoints; train it first or name another"
        )
    with contextlib.closing(Checkpoints(Path(path))) as checkpoints:
        model = of_checkpoint(checkpoints, step)
        model.params = checkpoints.params(model.abstract, item, step)
        model.step = next(number for number in checkpoints.newest(step) if number not in checkpoints.damaged)
    if (Path(path) / COVERAGE).is_file():
        model.coverage = jax.device_put(coverage.load(Path(path) / COVERAGE, model.digest))
    return model


def of_checkpoint(checkpoints: Checkpoints, step: int | None = None) -> "Model":
    """The model of a checkpoint, without parameters."""
    meta = checkpoints.meta(step)
    model = Model(ConfigDict(complete(meta["config"])), Normalisation.from_json(meta["normalisation"]))
    model.trained_on = [source["fingerprint"]["rows"] for source in meta["stream"]["sources"]]
    return model


def ancestors(model: "Model") -> Iterator["Model"]:
    """The models that a run began from, by init.path, the nearest first, some without parameters. Warns of a run that
    is not there any more; weights that others published are none."""
    seen = set()
    while (path := model.config.init.path) and place(path) not in seen:
        seen.add(place(path))
        if (Path(path) / "checkpoints").is_dir():
            with contextlib.closing(Checkpoints(Path(path))) as checkpoints:
                model = of_checkpoint(checkpoints)
        elif (Path(path) / EXPORTED).is_file() and "jaxz" in read_json(Path(path) / "config.json", "its config"):
            model = load_exported(Path(path))
        else:
            if model.config.model.name != "published":
                logs.log.warning("init.path: %r is not there: what it was trained on is not known", path)
            return
        yield model


def load_exported(path: Path) -> "Model":
    """What jaxz.export wrote. Raises InputError where a file is missing, damaged or of another model."""
    runtime.set_xla_flags()
    if not path.is_dir():
        raise errors.InputError(f"model: {str(path)!r} is no directory; name one that jaxz.export wrote")
    described = read_json(path / "config.json", "the config of an exported model")
    if "jaxz" not in described:
        a_run = "; a run is given by --workdir" if (path / "checkpoints").is_dir() else ""
        raise errors.InputError(
            f"model: {str(path)!r} was not written by jaxz.export; name a directory that was{a_run}"
        )
    own = described["jaxz"]
    try:
        config = complete(own["config"], str(path / "config.json"))
        normalisation = Normalisation.from_json(own["normalisation"])
        named_here = described["model_type"] == "jaxz"
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise errors.InputError(
            f"{path / 'config.json'}: is not as jaxz.export wrote it ({what}); restore it or export the run again"
        ) from None
    model = Model(ConfigDict(config), normalisation)
    params = read_tree(path / EXPORTED) if named_here else {"encoder": load_pretrained(path)[1]}
    if (path / HEADS).is_file():
        params |= read_tree(path / HEADS)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    if shapes(params) != shapes(model.abstract):
        raise errors.InputError(f"model: the arrays in {str(path)!r} are not those of its config; export the run again")
    model.params = jax.device_put(params)
    model.trained_on = own.get("trained_on", [])
    model.coverage = jax.device_put(coverage.load(path / COVERAGE))
    return model


def read_tree(path: Path) -> Params:
    """Parameters as a nested dict of float32 arrays, of a file in which their names have dots."""
    return nested({name.replace(".", "/"): tensor.read() for name, tensor in read_safetensors(path).items()})


Predicted = tuple[np.ndarray, dict[str, np.ndarray]]  # rows int64 [B] of a dataset, {output: [B, ...]}


class Compiled(NamedTuple):
    """What a model does to batches of one dataset: match them, prepare them, predict."""

    fit: Fit
    prepare: Prepare
    function: collections.abc.Callable


class Model:
    """A run's objective with its parameters. Batches are dicts of NumPy arrays as a Stream yields them.

    band_map, where it is taken, says which band of a dataset is which of the model's, as jaxz.data.fit.Fit does; others
    are matched by name.
    """

    def __init__(self, config: ConfigDict, normalisation: Normalisation):
        self.config, self.normalisation = config, normalisation
        encoder = build(config.model, normalisation.bands, normalisation.size)
        self.objective = objectives.Objective(encoder, config, normalisation)
        shapes, self.extra = jax.eval_shape(self.objective.init, jax.random.key(0))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.members = config.train.members
        lead = (self.members,) if self.members > 1 else ()
        self.abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype, sharding=here), shapes)
        self.params: Params = {}
        self.step: int | None = None  # of the checkpoint that they are of
        self.coverage: coverage.Coverage | None = None  # on the device
        self.trained_on: list[str] = []  # digests of the rows of the datasets of its sources
        self._compiled = functools.lru_cache(maxsize=8)(self._compile)  # a function a dataset
        size, bands = normalisation.size, normalisation.bands
        self.training_units = Manifest(
            arrays={"image": Array("image", "float32", (len(bands), size, size))},
            bands=bands,
            columns={"ebv": Column("float32")},
        )

    @functools.cached_property
    def digest(self) -> str:
        """Of the parameters' values."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(self.params)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def compiled(
        self, manifest: Manifest, band_map: Mapping[str, str] | None = None, outputs: tuple[str, ...] = ()
    ) -> Compiled:
        """Compiled for the dataset of a manifest; only `outputs` are computed, () being all."""
        return self._compiled(manifest.to_json(), tuple((band_map or {}).items()), outputs)

    def _compile(self, manifest_json: str, band_map: tuple, outputs: tuple[str, ...]) -> Compiled:
        fit = Fit(Manifest.from_json(manifest_json), self.normalisation, dict(band_map))
        prepare = Prepare(fit.manifest, self.normalisation)

        def function(
            params: Params, known: coverage.Coverage | None, batch: dict[str, jax.Array]
        ) -> dict[str, jax.Array]:
            seen = batches.without_constant(prepare(fit(batch), jax.random.key(0)))
            predict = lambda params: self.objective.predict(params, self.extra, seen)
            if outputs and EMBEDDING_ALONE.issuperset(outputs):  # needs one view, p(z) eight
                predict = lambda params: {"embedding": self.objective.embed(params, seen)}
            found = predict(params) if self.members == 1 else jax.vmap(predict, out_axes=1)(params)
            found |= {"n_bands": seen["mask"].any((2, 3)).sum(1, dtype=jnp.int32), "brightness": brightness(seen)}
            flag = jnp.full(len(found["n_bands"]), UNKNOWN, jnp.int8)
            if known is not None:
                flag = known.flag(found["embedding"].reshape(len(flag), -1), found["brightness"])
            found["coverage_flag"] = jnp.where(found["n_bands"] > 0, flag, 0)
            if unknown := set(outputs) - found.keys():
                raise errors.InputError(f"outputs: {min(unknown)!r} is not predicted.{suggest(min(unknown), found)}")
            return {name: found[name] for name in outputs or found}

        return Compiled(fit, prepare, jax.jit(function))

    def predict(
        self, batch: Mapping, manifest: Manifest | None = None, band_map: Mapping[str, str] | None = None
    ) -> dict[str, np.ndarray]:
        """What the run's objectives predict, by name: embedding [B,D]; pdf [B,bins] (mass per redshift bin); flux [B,C]
        (microjansky); reconstruction [B,C,H,W]; and what else they say. Of a run with E > 1 members all have their
        axis: [B,E,...]. Of the object itself: n_bands [B], how many of the model's bands have a good pixel;
        brightness [B,C] and coverage_flag [B] (1 or 0; -1: not known) of jaxz.coverage.

        batch: image [B,C,h,w] in stored units of `manifest`'s bands (default: those of the training dataset), and where
        there are ebv [B], bands_observed [B], image_mask [B,C,h,w] and the columns that the objectives' `inputs` name,
        such as flux_<band> [B], which count as missing (NaN) else. A band counts as not observed where all its good
        pixels are one number; without ebv, or where it is NaN, there is a warning, and no reddening is corrected.
        Raises InputError for an image of another shape and what else jaxz.batches.check refuses.
        """
        return self._of_arrays(batch, manifest, band_map, ())

    def _of_arrays(
        self,
        batch: Mapping,
        manifest: Manifest | None,
        band_map: Mapping[str, str] | None,
        outputs: tuple[str, ...],
    ) -> dict[str, np.ndarray]:
        manifest = manifest or self.training_units
        compiled = self.compiled(manifest, band_map, outputs)
        batches.check(batch, manifest, compiled.prepare.deredden, self._inputs(compiled).values())
        return jax.device_get(self._start(compiled, batch, manifest))

    def _inputs(self, compiled: Compiled) -> dict[str, str]:
        """{column that the objectives read: what the dataset calls it}."""
        names = {new: name for name, new in compiled.fit.columns.items()}
        return {name: names.get(name, name) for name in self.objective.inputs}

    def _start(self, compiled: Compiled, batch: Mapping, manifest: Manifest) -> dict[str, jax.Array]:
        """Predictions of a batch, without waiting for the device."""
        whole = batches.completed(batch, manifest, compiled.prepare.deredden, self._inputs(compiled))
        return compiled.function(self.params, self.coverage, whole)

    def embed(
        self, batch: Mapping, manifest: Manifest | None = None, band_map: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """float32 [B,D], of several members [B,E,D]: the encoder's summary of each image."""
        return self._of_arrays(batch, manifest, band_map, ("embedding",))["embedding"]

    @property
    def edges(self) -> np.ndarray | None:
        """[bins+1] redshift bin edges of `pdf`; None for a run that predicts none."""
        return self.objective.edges

    def densities(self, pdf: np.ndarray) -> tuple[PDF, np.ndarray | None]:
        """What `predict` gives as pdf, averaged over the members; and the standard deviation [N] of z_best, the median,
        between them: None for one. Raises ValueError for a run that predicts no p(z)."""
        if (edges := self.edges) is None:
            raise ValueError("the run predicts no p(z)")
        if self.members == 1:
            return PDF(edges, pdf), None
        each = (PDF(edges, pdf[:, member]) for member in range(self.members))
        best = [np.concatenate([block.median() for block in one.blocks()]) for one in each]
        return PDF(edges, pdf.mean(1)), np.std(best, axis=0)

    def open_dataset(self, path: str, overlays: Sequence[str] = ()) -> Dataset:
        """A dataset with the run's cache and, where it is the one that the run was trained on, the run's overlays; then
        those named."""
        settings = self.config.data
        own = settings.overlays if place(path) == place(settings.path) else ()
        return open_dataset(path, settings.cache, settings.cache_gib, tuple(dict.fromkeys((*own, *overlays))))

    def source(self, dataset: Dataset, where: str | None, band_map: Mapping[str, str] | None = None) -> Source:
        """What a stream must read of a dataset for `predict`. Raises InputError where the dataset does not fit."""
        fit, prepare, _ = self.compiled(dataset.manifest, band_map)
        wanted = {*prepare.columns, *self.objective.inputs}
        return Source(dataset, fit.arrays, tuple(sorted(n for n, new in fit.columns.items() if new in wanted)), where)

    def predictions(
        self, stream: Stream, outputs: tuple[str, ...], band_map: Mapping[str, str] | None = None
    ) -> Iterator[Predicted]:
        """Those of the batches of a stream of one source, of rows that count. The device works on the next batches
        meanwhile."""
        manifest = stream.sources[0].dataset.manifest
        compiled = self.compiled(manifest, band_map, outputs)
        under_way: collections.deque[tuple[np.ndarray, np.ndarray, dict[str, jax.Array]]] = collections.deque()

        def take() -> Predicted:
            rows, valid, found = under_way.popleft()
            return rows[valid], {name: values[valid] for name, values in jax.device_get(found).items()}

        for batch in stream:
            under_way.append((batch["row"], batch["valid"], self._start(compiled, batch, manifest)))
            if len(under_way) > UNDER_WAY:
                yield take()
        while under_way:
            yield take()

    def predict_dataset(
        self,
        dataset: Dataset,
        where: str | None,
        outputs: tuple[str, ...],
        batch_size: int = BATCH,
        band_map: Mapping[str, str] | None = None,
    ) -> Predicted:
        """(rows int64 [N], {output: [N, ...]}) for the rows that pass `where`, in order; shows progress.

        Raises InputError where the dataset's bands or scale do not fit the model, or it has no such output.
        """
        if isinstance(outputs, str):
            raise errors.InputError(f"outputs: {outputs!r} must be a tuple of names; write ({outputs!r},)")
        stream = Stream(self.source(dataset, where, band_map), batch_size, shuffle=False, epochs=1)
        with contextlib.closing(stream), logs.Bar("predict", len(stream)) as bar:
            parts = list(counted(self.predictions(stream, outputs, band_map), bar))
        rows, found = zip(*parts, strict=True)
        return np.concatenate(rows), {name: np.concatenate([part[name] for part in found]) for name in outputs}

    def learn_coverage(self) -> coverage.Coverage:
        """Fill `coverage` with training objects of the run that have a redshift within its bins: all, or 4,096 drawn of
        them. Raises InputError where their dataset is not at hand or has changed, or they are few."""
        if remote := [source["path"] for source in sources_of(self.config.data) if is_remote(source["path"])]:
            raise errors.InputError(f"coverage: {remote[0]!r} is remote; its training objects are not fetched")
        chosen = list(self.training_rows())
        starts = np.cumsum([0, *(len(rows) for _, rows in chosen)])
        drawn = np.sort(np.random.default_rng(0).permutation(starts[-1])[: coverage.MOST])
        own = np.split(drawn, np.searchsorted(drawn, starts[1:-1]))
        parts = [
            part
            for (dataset, rows), start, places in zip(chosen, starts, own, strict=False)
            for part in self._looked_at(dataset, rows[places - start])
        ]
        if not parts:
            raise errors.InputError("coverage: no training object has a redshift within the bins")
        spaces = (np.concatenate([part[name] for part in parts]) for name in ("embedding", "brightness"))
        self.coverage = jax.device_put(coverage.coverage_of(*spaces))
        return self.coverage

    def _looked_at(self, dataset: Dataset, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Embedding [B',D] and brightness [B',C] of rows of a dataset, in batches."""
        compiled = self.compiled(dataset.manifest, None, ("embedding", "brightness"))
        with Stream(self.source(dataset, None), 1) as stream:
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                batch = stream.fetch(np.resize(some, BATCH))  # always as many: compiled once
                found = jax.device_get(self._start(compiled, batch, dataset.manifest))
                yield {name: values[: len(some)].reshape(len(some), -1) for name, values in found.items()}

    def training_rows(self) -> Iterator[tuple[Dataset, np.ndarray]]:
        """Every dataset with the overlays that sources read it with, and those of its rows that any of them draws."""
        rows = collections.defaultdict(list)
        for dataset, own in self.source_rows():
            rows[dataset].append(own)
        for dataset, chosen in rows.items():
            yield dataset, np.unique(np.concatenate(chosen))

    @property
    def learns_redshifts(self) -> bool:
        return "z" in self.objective.columns

    def source_rows(self, wanted: Dataset | None = None) -> Iterator[tuple[Dataset, np.ndarray]]:
        """(dataset with its overlays, rows that it draws with a redshift that the run learns) of each source that has
        redshifts, or of those alone that were the dataset `wanted`: lie where it lies, or had its rows. Raises
        InputError where one cannot be read, or has other rows than in training."""
        data, datasets = self.config.data, {}
        split = "" if data.transductive else "split == 'train'"
        labelled = "isfinite(z)" if self.edges is None else f"z >= {self.edges[0]} and z < {self.edges[-1]}"
        for n, source in enumerate(sources_of(data)):
            path, overlays, then = source["path"], source["overlays"], self.trained_on[n : n + 1]
            if wanted is not None and place(path) != place(wanted.path) and wanted.fingerprint()["rows"] not in then:
                continue
            opened = place(path), tuple(overlays)
            if opened not in datasets:
                datasets[opened] = open_dataset(path, data.cache, data.cache_gib, overlays, data.layers)
            if datasets[opened].fingerprint()["rows"] not in then:
                raise errors.InputError(f"data.path: {path!r} does not hold the rows that the run was trained on")
            if "z" in datasets[opened].manifest.columns:
                yield datasets[opened], datasets[opened].select(training_filter(split, source["where"], labelled))


def counted(parts: Iterator[Predicted], bar: logs.Bar) -> Iterator[Predicted]:
    """The (rows, found), each told to the bar."""
    done = bar.done
    for rows, found in parts:
        done += len(rows)
        bar.update(done)
        yield rows, found
