"""What runs learned from, and the held-out objects that they are chosen and corrected by: of sure labels, weighted,
none of which taught them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxz.data.dataset import Dataset
from jaxz.data.where import option_filter
from jaxz.errors import InputError
from jaxz.inference import Model, ancestors
from jaxz.results import sure_labels

TEST = "split == 'test'"


class Held(NamedTuple):
    """Held-out objects: the filter that they pass, their rows [N], ascending, redshifts z [N] and weights [N]."""

    where: str
    rows: np.ndarray
    z: np.ndarray
    weights: np.ndarray


def held_out(
    dataset: Dataset, models: Sequence[Model], given: str, column: str | None, fewest: int, unlabelled: bool = False
) -> Held:
    """The objects of the filter `given` with a sure label. column: of their weights; None: all count alike. unlabelled:
    objects of `given` without a sure label will be used too, and are held to the same.

    Raises InputError where fewer than `fewest` count, or where any are test objects or taught a model, or a run that it
    began from, their redshift.
    """
    where = option_filter("--held", given, sure_labels(dataset.manifest.columns), "isfinite(z)")
    rows = dataset.select(where)
    weights = weights_of(dataset, rows, column)
    if (count := int((weights > 0).sum())) < fewest:
        raise InputError(
            f"--held: {given!r} chooses {count} labelled objects that count, at least {fewest} are needed; set more "
            "aside by data_tools.relabel --folds, train without them, and name that fold"
            + (", which jaxz.shift --held weighs" if column else "")
        )
    used = dataset.select(option_filter("--held", given)) if unlabelled else rows
    learned = (("were trained on", learned_from(dataset, model)) for model in models)
    for what, others in (("are test objects", dataset.select(TEST)), *learned):
        if count := len(np.intersect1d(used, others)):
            raise InputError(f"--held: {count} objects of {given!r} {what}; name others")
    return Held(where, rows, dataset.column("z")[rows].astype(np.float64), weights)


def weights_of(dataset: Dataset, rows: np.ndarray, column: str | None) -> np.ndarray:
    """[N] of the rows: a column, 0 where it says nothing, or 1. Raises InputError for what are no weights."""
    if not column:
        return np.ones(len(rows))
    spec = dataset.manifest.columns.get(column)
    if spec is None:
        raise InputError(f"--weights: the dataset has no column {column!r}; name an --overlay of jaxz.shift")
    if spec.dtype == "string" or column.startswith("true_"):
        what = "holds text" if spec.dtype == "string" else "is the truth of a simulation"
        raise InputError(f"--weights: the column {column!r} {what}; name one of weights, such as jaxz.shift writes")
    weights = dataset.column(column)[rows].astype(np.float64)
    if (wrong := weights[(weights < 0) | np.isinf(weights)]).size:
        raise InputError(
            f"--weights: the column {column!r} holds {wrong[0]:g}; weights are finite and at least 0, mend it or name "
            "another"
        )
    return np.nan_to_num(weights)


def learned_from(dataset: Dataset, model: Model) -> np.ndarray:
    """The rows of a dataset whose redshifts a run, or one that it began from, was trained on. Raises InputError where
    that cannot be told."""
    runs = [one for one in (model, *ancestors(model)) if one.learns_redshifts]
    found = [rows for one in runs for _, rows in trained_rows(dataset, one)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def labels_of(dataset: Dataset, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The rows [N] of a dataset that a run learned from, ascending, and the redshifts that it learned. Raises
    InputError where there are none, or different ones of an object."""
    found = list(trained_rows(dataset, model))
    rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in found)])
    if not len(rows):
        raise InputError(f"--dataset: {str(dataset.path)!r} taught the run no redshifts; name the one that did")
    z = np.concatenate([seen.column("z")[rows].astype(np.float64) for seen, rows in found])
    once, first, which = np.unique(rows, return_index=True, return_inverse=True)
    if count := len(np.unique(rows[z != z[first][which]])):
        raise InputError(
            f"data.sources: {count} objects have another redshift in one source of the run than in another; name a "
            "run of one label for each object"
        )
    return once, z[first]


def trained_rows(dataset: Dataset, model: Model) -> Iterator[tuple[Dataset, np.ndarray]]:
    """Model.source_rows of the sources that were the dataset, or a copy of it."""
    try:
        yield from model.source_rows(dataset)
    except InputError as error:
        raise InputError(
            f"--dataset: what the run learned of {str(dataset.path)!r} cannot be told ({error}); put the dataset that "
            "it was trained on, with its overlays, back there, or a link to it"
        ) from None
