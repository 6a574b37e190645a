"""A run scored on a dataset's test sets.

    python -m jaxz.evaluate --workdir=RUN --dataset=DATASET

writes RUN/predictions.parquet and .fits, pdf.hdf5, report.json and, as jaxz.predict does, coverage.npz for runs that
predict redshifts, and RUN/reconstructions.npz for those that reconstruct images.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np

from jaxz import errors, runtime
from jaxz.data.dataset import Dataset
from jaxz.data.stream import Stream
from jaxz.files import replace
from jaxz.inference import Model, load_run
from jaxz.predict import know_coverage, outputs_of
from jaxz.results import catalog_of, claim_scores, main_scores, test_sets, truths_of, write_results

SHOWN = 6  # reconstructed objects


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, type=Path, help="the run")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--step", type=int, help="of the checkpoint, such as jaxz.select's; default the newest")
    parser.add_argument("--overwrite", action="store_true", help="replace the scores on another dataset")
    options = parser.parse_args(argv)
    runtime.alone("jaxz.evaluate")
    model = load_run(options.workdir, options.item, options.step)
    dataset = model.open_dataset(options.dataset)
    evaluated = claim_scores(options.workdir, dataset, options.overwrite)
    evaluated |= {"item": options.item} | ({} if options.step is None else {"step": options.step})
    reconstructs = any(getattr(term, "reconstructs", False) for term in model.objective.terms.values())
    if reconstructs:
        write_reconstructions(options.workdir / "reconstructions.npz", model, dataset)
        print(f"{options.workdir}: reconstructions.npz")
    if model.edges is not None:
        know_coverage(model, options.workdir)
        score(options.workdir, model, dataset)
    elif not reconstructs:
        raise errors.InputError(
            f"--workdir: {str(options.workdir)!r} predicts neither redshifts nor hidden pixels; name another run"
        )
    replace(options.workdir / "evaluated.json", json.dumps(evaluated, indent=1).encode())


def score(workdir: Path, model: Model, dataset: Dataset) -> None:
    """Predict all test sets at once, write the results and print the main scores."""
    where = " or ".join(f"({condition})" for condition, _ in test_sets(dataset).values())
    rows, found = model.predict_dataset(dataset, where, outputs_of(model))
    pdf, spread = model.densities(found.pop("pdf"))
    catalog = catalog_of(dataset, rows, found)
    arm = workdir.resolve().name
    truths = truths_of(dataset, catalog["key"])
    report = write_results(workdir, arm, catalog, pdf, truths, spread, fits=True)
    print(*main_scores(arm, report[arm]), sep="\n")


def write_reconstructions(path: Path, model: Model, dataset: Dataset) -> None:
    """A few test objects, from the brightest to the median, as the encoder saw them and as they were filled in, by the
    first of several members."""
    rows = dataset.select("split == 'test'")
    if not len(rows):
        raise errors.InputError(f"--dataset: {str(dataset.path)!r} has no row with split == 'test'; name another")
    if "mag_ref" in dataset.manifest.columns:
        magnitude = dataset.column("mag_ref")[rows]
        rows = rows[np.argsort(np.where(np.isfinite(magnitude), magnitude, np.inf), kind="stable")]
    chosen = rows[(np.linspace(0.003, 0.4, SHOWN) ** 1.5 * len(rows)).astype(int)]
    with contextlib.closing(Stream(model.source(dataset, None), len(chosen))) as stream:
        batch = stream.fetch(chosen)
    found = model.predict(batch, dataset.manifest)
    if model.members > 1:
        found = {name: values[:, 0] for name, values in found.items()}
    fit, prepare, _ = model.compiled(dataset.manifest)
    seen = prepare(fit(batch), jax.random.key(0))
    content = {
        "image": np.asarray(seen["image"]),
        "reconstruction": found["reconstruction"],
        "hidden": found["hidden"],
        "observed": np.asarray(seen["mask"]).any((2, 3)),
        "bands": np.array([band.name for band in model.normalisation.bands]),
        "key": np.array(dataset.arrow(columns=["key"]).take(chosen)["key"].to_pylist()),
    }
    sink = io.BytesIO()
    np.savez_compressed(sink, **content)  # type: ignore[arg-type]  # NumPy's types take names for its own option
    replace(path, sink.getbuffer())


if __name__ == "__main__":
    errors.run(main)
