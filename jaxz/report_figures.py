"""The report's figures, chosen by what the runs have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxz.data.dataset import open_dataset
from jaxz.data.transport import is_remote
from jaxz.errors import InputError
from jaxz.photoz import plots
from jaxz.photoz.bootstrap import sky_cells
from jaxz.report_data import Run
from jaxz.report_tables import all_test_sets, label

SHOWN = 8  # objects in the galleries
LARGEST = 2_000_000  # samples: finding cutouts by key reads all keys of a dataset
TREND_COLUMNS = {"z_true": "true redshift", "z_best": "estimated redshift", "mag_ref": "reference magnitude (AB)"}
CONDITIONS = {
    "n_bands": "observed bands",
    "ebv": "E(B-V) (mag)",
    "coverage": "has training neighbours (overlay)",
    "coverage_flag": "has training neighbours (this arm's)",
}


class Picture(NamedTuple):
    """section: the heading it stands under; png: the file's bytes."""

    section: str
    title: str
    caption: str
    png: bytes


def pictures(runs: Sequence[Run], arms: Sequence[Run], colours: Mapping[str, str]) -> Iterator[Picture]:
    """Every figure that these runs, and their arms, have the numbers for, in the order of the page. Of an arm of
    several seeds the first is shown."""
    arms = [arm for arm in arms if arm.predictions]
    sets = [name for name in all_test_sets(arms) if any(len(arm.members(name)) for arm in arms)]
    for test_set in sets:
        yield from scatter(arms, test_set, colours)
    for test_set in sets:
        yield from shapes(arms, test_set, colours)
    if sets:
        yield from examples(arms, sets[-1], colours)
    logged = {run.name: (run.steps, run.losses) for run in runs if len(run.steps) > 1}
    if logged:
        caption = "Pale: as logged; line: running mean. Losses of different objectives do not compare."
        yield Picture("Training", "Training loss", caption, plots.png(plots.loss_curves(logged, colours)))
    for run in (run for run in runs if run.reconstructions):
        yield filled_in(run)


def select(arms: Sequence[Run], test_set: str) -> dict[str, dict[str, np.ndarray]]:
    """{arm: {column: values of the members of the test set}}, for arms that have any."""
    rows = {arm.name: arm.members(test_set) for arm in arms}
    return {a.name: {c: v[rows[a.name]] for c, v in a.predictions.items()} for a in arms if len(rows[a.name])}


def scatter(arms: Sequence[Run], test_set: str, colours: Mapping[str, str]) -> Iterator[Picture]:
    """Estimated against true redshift, and the trends of bias, scatter and outliers."""
    columns = select(arms, test_set)
    pairs = {name: (c["z_best"].astype(float), c["z_true"].astype(float)) for name, c in columns.items()}
    caption = "Solid: perfect; dashed: e = ±0.15, past which a redshift is an outlier. Below: e against true redshift."
    picture = plots.png(plots.density(pairs, colours))
    yield Picture("Point estimates", f"Estimated against true redshift: {label(test_set)}", caption, picture)

    trended = {name: {**c, "z_phot": c["z_best"], **cells_of(c)} for name, c in columns.items()}
    captions = (
        "Bins with at least 25 objects; bars are bootstrap errors. Against true redshift a bias shows where objects "
        "are wrong; against estimated redshift, how far to trust an estimate: they differ by regression to the mean.",
        "The same against what the objects were seen with.",
    )
    for kind, caption in zip((TREND_COLUMNS, CONDITIONS), captions, strict=True):
        by = {c: text for c, text in kind.items() if all(c in v and varies(v[c]) for v in columns.values())}
        if by:
            title = f"Bias, scatter and outliers{' by conditions' * (kind is CONDITIONS)}: {label(test_set)}"
            yield Picture("Point estimates", title, caption, plots.png(plots.trends(trended, by, colours)))


def cells_of(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"cells": int [N], the sky cell of each object}; {} where they are not known, or too few for errors."""
    found = sky_cells(columns["ra"], columns["dec"]) if {"ra", "dec"} <= columns.keys() else None
    return {} if found is None else {"cells": found}


def varies(values: np.ndarray) -> bool:
    """Whether a column has a range to be binned in."""
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and np.ptp(np.percentile(finite, [0.5, 99.5])) > 0


def shapes(arms: Sequence[Run], test_set: str, colours: Mapping[str, str]) -> Iterator[Picture]:
    """Calibration of p(z), and the redshift distribution."""
    rows = {arm.name: arm.members(test_set) for arm in arms}
    truth = {a.name: a.predictions["z_true"][rows[a.name]].astype(float) for a in arms if len(rows[a.name])}
    pdfs = {a.name: a.pdf[rows[a.name]] for a in arms if a.pdf is not None and len(rows[a.name])}
    if pdfs:
        pits = {name: pdf.cdf(truth[name]) for name, pdf in pdfs.items()}
        caption = (
            "PIT = CDF(true redshift). A hill: p(z) too wide; a bowl: too narrow; a slope: biased. Right: 95 % of "
            "perfectly calibrated samples of this size stay inside the grey band."
        )
        title = f"Calibration of p(z): {label(test_set)}"
        yield Picture("Probability densities", title, caption, plots.png(plots.calibration(pits, colours)))
    points = {a.name: (a.predictions["z_best"][rows[a.name]], pdfs.get(a.name)) for a in arms if a.name in truth}
    caption = "Grey: true redshifts; line: mean of all p(z); dotted: histogram of point estimates."
    picture = plots.png(plots.redshift_distribution(points, truth, colours))
    yield Picture("Probability densities", f"Redshift distribution: {label(test_set)}", caption, picture)


def examples(arms: Sequence[Run], test_set: str, colours: Mapping[str, str]) -> Iterator[Picture]:
    """p(z) and cutouts of a few objects that every arm predicted, evenly spaced in rank of true redshift."""
    arms = [arm for arm in arms if arm.pdf is not None and len(arm.members(test_set))]
    if not arms:
        return
    places = [
        dict(zip(a.predictions["key"][m].tolist(), m.tolist(), strict=True))
        for a in arms
        for m in [a.members(test_set)]
    ]
    first, truth = places[0], arms[0].predictions["z_true"]
    common = sorted((key for key in first if all(key in p for p in places)), key=lambda key: (truth[first[key]], key))
    if not common:
        return
    keys = [common[i] for i in np.unique(np.linspace(0, len(common) - 1, SHOWN + 2).astype(int))[1:-1]] or common[
        :SHOWN
    ]
    z_true = np.array([truth[first[key]] for key in keys], float)
    rows = {arm.name: [place[key] for key in keys] for arm, place in zip(arms, places, strict=True)}
    pdfs = {arm.name: arm.pdf[rows[arm.name]] for arm in arms if arm.pdf is not None}
    titles = [f"{key}, z = {z:.3f}" for key, z in zip(keys, z_true, strict=True)]
    caption = f"From {label(test_set)}: evenly spaced in rank of true redshift (dashed), not chosen by success."
    yield Picture(
        "Examples", "p(z) of a few objects", caption, plots.png(plots.pdf_gallery(pdfs, z_true, titles, colours))
    )
    if picture := cutouts(arms[0], keys, [f"z = {z:.3f}" for z in z_true]):
        caption = "The same objects in every band, each with its own grey scale (asinh); hatched: not observed."
        yield Picture("Examples", "Their cutouts", caption, picture)


def cutouts(arm: Run, keys: Sequence[str], titles: Sequence[str]) -> bytes | None:
    """The images of some objects, or None where the arm's dataset is not at hand or has no image."""
    path = arm.dataset
    try:
        dataset = open_dataset(path) if path and not is_remote(path) else None
    except InputError:
        return None
    if dataset is None or "image" not in dataset.manifest.arrays or len(dataset) > LARGEST:
        return None
    numbers = {key: number for number, key in enumerate(dataset.arrow(columns=["key"])["key"].to_pylist())}
    if not all(key in numbers for key in keys):
        return None
    samples = [dataset.cutout(numbers[key]) for key in keys]
    sigma = np.array([band.sky_sigma for band in dataset.manifest.bands])[:, None, None]
    images = np.stack([np.arcsinh(sample["image"] / (3 * sigma)) for sample in samples])
    names = [band.name for band in dataset.manifest.bands]
    seen = np.stack([bands_observed(sample, len(names)) for sample in samples])
    return plots.png(plots.cutout_gallery(images, seen, names, titles))


def bands_observed(sample: Mapping, bands: int) -> np.ndarray:
    """[C] bool: by the column's bits, else by the mask's good pixels."""
    if "bands_observed" in sample:
        return (sample["bands_observed"] >> np.arange(bands)) & 1 == 1
    if "image_mask" in sample:
        return (sample["image_mask"] == 0).any(axis=(-2, -1))
    return np.ones(bands, bool)


def filled_in(run: Run) -> Picture:
    """What a pretraining run makes of hidden pixels."""
    names = ("image", "reconstruction", "hidden", "observed")
    image, reconstruction, hidden, observed = (run.reconstructions[name][:3] for name in names)
    figure = plots.reconstructions(
        image, reconstruction, hidden, observed, [str(b) for b in run.reconstructions["bands"]]
    )
    caption = (
        "Seen: what the encoder was given (blue: hidden from it). Filled in: its reconstruction of the hidden pixels."
    )
    return Picture("Training", f"Reconstructions by {run.name}", caption, plots.png(figure))
