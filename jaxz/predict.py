"""A trained run applied to any dataset: redshifts with p(z), or embeddings.

    python -m jaxz.predict --workdir=RUN --dataset=DATASET --out=FILE.parquet [--where "split == 'test'"]
    python -m jaxz.predict --model=DIR ...                    # what jaxz.export wrote, anywhere

FILE (.parquet or .fits) gets a row per object; p(z) goes beside it as FILE's name with .hdf5, readable by qp.
In a notebook:

    model = jaxz.load_run("RUN");  model.predict(batch);  model.embed(batch)
"""

import argparse
import functools
import warnings
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from jaxz import errors, logs, objectives, runtime
from jaxz.checkpoint import Checkpoints
from jaxz.config import complete
from jaxz.data.compact import ZERO
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.prepare import COMPACT, Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.errors import suggest
from jaxz.files import read_json
from jaxz.models import build
from jaxz.photoz.pdf import PDF, write_qp
from jaxz.pretrained import load_pretrained
from jaxz.pretrained.formats import read_safetensors
from jaxz.pretrained.layouts import nested
from jaxz.results import CATALOG_COLUMNS, prediction_table, write_catalog

EXPORTED, HEADS = "model.safetensors", "heads.safetensors"  # of jaxz.export: the encoder, and what is behind it


def load_run(path: Path | str, item: str = "params", step: int | None = None) -> "Model":
    """The newest whole checkpoint of a run, or that of `step`; item "ema" takes its averaged weights. Also of a
    directory that jaxz.export wrote, which holds one item.

    Raises InputError where there is no run or no checkpoint.
    """
    if (Path(path) / EXPORTED).is_file():
        return load_exported(Path(path))
    runtime.set_xla_flags()
    if not (Path(path) / "checkpoints").is_dir():
        raise errors.InputError(
            f"workdir: {str(path)!r} is no run directory with checkpoints; train it first or name another"
        )
    checkpoints = Checkpoints(Path(path))
    try:
        meta = checkpoints.meta(step)
        model = Model(ConfigDict(complete(meta["config"])), Normalisation.from_json(meta["normalisation"]))
        model.params = checkpoints.params(model.abstract, item, step)
    finally:
        checkpoints.close()
    return model


def load_exported(path: Path) -> "Model":
    """What jaxz.export wrote. Raises InputError where a file is missing, damaged or of another model."""
    runtime.set_xla_flags()
    described = read_json(path / "config.json", "the config of an exported model")
    if "jaxz" not in described:
        raise errors.InputError(f"model: {str(path)!r} was not written by jaxz.export; name a directory that was")
    own = described["jaxz"]
    model = Model(ConfigDict(complete(own["config"])), Normalisation.from_json(own["normalisation"]))
    named_here = described["model_type"] == "jaxz"
    params = read_tree(path / EXPORTED) if named_here else {"encoder": load_pretrained(path)[1]}
    if (path / HEADS).is_file():
        params |= read_tree(path / HEADS)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    if shapes(params) != shapes(model.abstract):
        raise errors.InputError(f"model: the arrays in {str(path)!r} are not those of its config; export the run again")
    model.params = jax.device_put(params)
    return model


def read_tree(path: Path) -> dict:
    """Parameters as a nested dict of float32 arrays, of a file in which their names have dots."""
    return nested({name.replace(".", "/"): tensor.read() for name, tensor in read_safetensors(path).items()})


class Model:
    """A run's objective with its parameters. Batches are dicts of NumPy arrays as a Stream yields them."""

    def __init__(self, config, normalisation: Normalisation):
        self.config, self.normalisation = config, normalisation
        encoder = build(config.model, normalisation.bands, normalisation.size)
        self.objective = objectives.Objective(encoder, config, normalisation)
        shapes, self.extra = jax.eval_shape(self.objective.init, jax.random.key(0))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.members = config.train.members
        lead = (self.members,) if self.members > 1 else ()
        self.abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype, sharding=here), shapes)
        self.params: dict = {}
        size, bands = normalisation.size, normalisation.bands
        self.training_units = Manifest(
            arrays={"image": Array("image", "float32", (len(bands), size, size))},
            bands=bands,
            columns={"ebv": Column("float32")},
        )

    @functools.lru_cache(maxsize=8)  # noqa: B019  one compiled function a dataset
    def compiled(self, manifest_json: str):
        """(Prepare, jitted predict(params, batch)) for the dataset of a manifest."""
        prepare = Prepare(Manifest.from_json(manifest_json), self.normalisation)
        of_one = lambda params, batch: self.objective.predict(params, self.extra, prepare(batch, jax.random.key(0)))
        return prepare, jax.jit(of_one if self.members == 1 else jax.vmap(of_one, (0, None), out_axes=1))

    def predict(self, batch: dict, manifest: Manifest | None = None) -> dict[str, np.ndarray]:
        """What the run's objectives predict, by name: embedding [B,D]; pdf [B,bins] (mass per redshift bin); flux [B,C]
        (microjansky); reconstruction [B,C,H,W]; and what else they say. Of a run with E > 1 members all have their
        axis: [B,E,...].

        batch: image [B,C,H,W] in stored units of `manifest`'s bands (default: those of the training dataset), and where
        there are ebv [B], bands_observed [B], image_mask [B,C,H,W] and the columns that the objectives' `inputs` name,
        such as flux_<band> [B], which count as missing (NaN) else. Without bands_observed a band that is zero in every
        pixel counts as not observed; without ebv there is a warning, and no reddening is corrected.
        Raises InputError for an image of another shape.
        """
        manifest = manifest or self.training_units
        prepare, function = self.compiled(manifest.to_json())
        batch = completed(batch, manifest, prepare.deredden, self.objective.inputs)
        return jax.device_get(function(self.params, batch))

    def embed(self, batch: dict, manifest: Manifest | None = None) -> np.ndarray:
        """float32 [B,D], of several members [B,E,D]: the encoder's summary of each image."""
        return self.predict(batch, manifest)["embedding"]

    @property
    def edges(self) -> np.ndarray | None:
        """[bins+1] redshift bin edges of `pdf`; None for a run that predicts none."""
        return self.objective.edges

    def densities(self, pdf: np.ndarray) -> tuple[PDF, np.ndarray | None]:
        """What `predict` gives as pdf, averaged over the members; and the standard deviation [N] of z_best, the median,
        between them: None for one."""
        if self.members == 1:
            return PDF(self.edges, pdf), None
        each = (PDF(self.edges, pdf[:, member]) for member in range(self.members))
        best = [np.concatenate([block.median() for block in one.blocks()]) for one in each]
        return PDF(self.edges, pdf.mean(1)), np.std(best, axis=0)

    def open_dataset(self, path: str) -> Dataset:
        """A dataset with the run's cache and, where it is the one that the run was trained on, the run's overlays."""
        settings = self.config.data
        overlays = settings.overlays if path == settings.path else ()
        return open_dataset(path, settings.cache, settings.cache_gib, overlays)

    def columns(self, dataset: Dataset) -> tuple[str, ...]:
        """Those of the dataset's columns that `predict` reads."""
        prepare, _ = self.compiled(dataset.manifest.to_json())
        return tuple(sorted({*prepare.columns, *self.objective.inputs} & dataset.manifest.columns.keys()))

    def predict_dataset(self, dataset: Dataset, where: str | None, outputs: tuple[str, ...], batch_size: int = 256):
        """(rows int64 [N], {output: [N, ...]}) for the rows that pass `where`, in order; shows progress.

        Raises InputError where the dataset's bands, size or scale do not fit the model, or it has no such output.
        """
        prepare, _ = self.compiled(dataset.manifest.to_json())
        source = Source(dataset, prepare.arrays, self.columns(dataset), where)
        stream = Stream(source, batch_size, shuffle=False, epochs=1)
        parts: dict[str, list] = {name: [] for name in ("row", *outputs)}
        with logs.Bar("predict", stream.batches) as bar:
            for n, batch in enumerate(stream):
                found = self.predict(batch, dataset.manifest) | {"row": batch["row"]}
                if unknown := parts.keys() - found.keys():
                    raise errors.InputError(
                        f"outputs: {min(unknown)!r} is not predicted.{suggest(min(unknown), found)}"
                    )
                for name in parts:
                    parts[name].append(found[name][batch["valid"]])
                bar.update(n + 1)
        stream.close()
        whole = {name: np.concatenate(values) for name, values in parts.items()}
        return whole.pop("row"), whole


def completed(batch: dict, manifest: Manifest, deredden: bool, columns: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The entries of a batch that a model reads, with what is missing of them filled in as Model.predict says."""
    wanted = manifest.arrays["image"].shape
    shape = np.shape(batch["image"]) if "image" in batch else "missing"
    if shape == "missing" or len(shape) != 4 or shape[1:] != wanted:
        raise errors.InputError(
            f"batch: image is {shape}, it must be [B, {', '.join(map(str, wanted))}]: the bands "
            f"{[band.name for band in manifest.bands]}, each {wanted[1]} x {wanted[2]} pixels"
        )
    names = ("image", "image_mask", "bands_observed", *COMPACT)
    used = {name: np.asarray(batch[name]) for name in names if name in batch}
    if "bands_observed" not in used:
        bits = np.uint32(1) << np.arange(wanted[0], dtype=np.uint32)
        empty = ZERO if "image_dither" in used else 0  # of compact levels
        used["bands_observed"] = ((used["image"] != empty).any((2, 3)) * bits).sum(1, dtype=np.uint32)
    if deredden and "ebv" not in batch:
        warnings.warn("batch has no 'ebv': Galactic reddening is not corrected", stacklevel=3)
    used |= {name: np.asarray(batch.get(name, np.full(shape[0], np.nan)), np.float32) for name in columns}
    return used | ({"ebv": np.asarray(batch.get("ebv", np.zeros(shape[0])), np.float32)} if deredden else {})


def catalog_of(dataset: Dataset, rows: np.ndarray) -> pa.Table:
    """key and what there is of the catalogue's columns for `rows`, with the number of observed bands."""
    known = [name for name in CATALOG_COLUMNS if name == "key" or name in dataset.manifest.columns]
    catalog = dataset.arrow(columns=known).take(pa.array(rows))
    if "n_bands" not in known:
        bits = dataset.column("bands_observed")[rows] if "bands_observed" in dataset.manifest.columns else None
        count = np.full(len(rows), len(dataset.manifest.bands)) if bits is None else np.bitwise_count(bits)
        catalog = catalog.append_column("n_bands", pa.array(count.astype(np.int32)))
    return catalog


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.predict", description=__doc__.split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the run")
    source.add_argument("--model", type=Path, help="or a directory that jaxz.export wrote")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--out", required=True, type=Path, help="FILE.parquet or FILE.fits")
    parser.add_argument("--where", help="rows to predict, such as \"split == 'test'\"; default all")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    options = parser.parse_args(argv)
    runtime.alone("jaxz.predict")
    if options.out.suffix not in (".parquet", ".fits"):
        raise errors.InputError(f"--out: {str(options.out)!r} must end in .parquet or .fits")
    if not options.out.parent.is_dir():
        raise errors.InputError(f"--out: {str(options.out.parent)!r} is no directory; make it first")
    for path in (options.out, options.out.with_suffix(".hdf5")):
        if path.exists() and not options.overwrite:
            raise errors.InputError(f"--out: {str(path)!r} exists; name another file, or add --overwrite")
    if options.model and options.item != "params":
        raise errors.InputError(f"--item: {options.item!r} is chosen when a run is exported; leave it out with --model")
    model = load_exported(options.model) if options.model else load_run(options.workdir, options.item)
    dataset = model.open_dataset(options.dataset)
    redshift = model.edges is not None
    rows, found = model.predict_dataset(dataset, options.where, ("pdf",) if redshift else ("embedding",))
    catalog = catalog_of(dataset, rows)
    if redshift:
        pdf, spread = model.densities(found["pdf"])
        write_qp(options.out.with_suffix(".hdf5"), pdf, {"key": np.array(catalog["key"].to_pylist(), dtype=str)})
        catalog = prediction_table(catalog, pdf, {}, spread)
    else:
        width = found["embedding"][0].size if len(rows) else 1
        column = pa.FixedSizeListArray.from_arrays(pa.array(found["embedding"].ravel()), width)
        catalog = catalog.append_column("embedding", column)
    write_catalog(options.out, catalog)
    print(f"{len(rows)} objects -> {options.out}{' and p(z) beside it, .hdf5' if redshift else ''}")


if __name__ == "__main__":
    errors.run(main)
