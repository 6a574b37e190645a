"""The arms of a comparison: runs that differ in their seed alone are one, and errors are of the same draws for all."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxz.photoz.binned import dependence_metrics, equal_bins
from jaxz.photoz.bootstrap import Estimate, hierarchical_bootstrap, sky_cells
from jaxz.photoz.metrics import ENOUGH_FOR_ERRORS, Score, all_metrics, columns_of
from jaxz.report_data import Run, starts_of
from jaxz.report_tables import all_test_sets, comparable, score
from jaxz.results import INTERVAL


def arms_of(runs: Sequence[Run]) -> list[Run]:
    """The runs that have scores, those of one recipe and several seeds as one: it has the name and the predictions of
    the first, its scores are means over its `seeds`, and their errors are those of its `estimates`, where it has any.
    """
    groups: list[list[Run]] = []
    for run in (run for run in runs if run.scores):
        for group in groups:
            if recipe(group[0]) == recipe(run) and seed(run) not in map(seed, group):
                group.append(run)
                break
        else:
            groups.append([run])
    arms = [replace(group[0], seeds=tuple(group), scores=mean_scores(group)) for group in groups]
    found: dict[str, dict] = {arm.name: {} for arm in arms}
    for test_set in all_test_sets(arms):
        for together in [arms] if comparable(arms, test_set) else [[arm] for arm in arms]:
            for name, estimates in estimated(together, test_set).items():
                found[name][test_set] = estimates
    return [replace(arm, estimates=found[arm.name], scores=with_errors(arm, found[arm.name])) for arm in arms]


def seed(run: Run) -> int | None:
    return run.config.get("seed")


def recipe(run: Run) -> str:
    """All that its config and those of the runs it started from say, but the seed."""
    there = {parent.path: parent.config for parent in run.parents}

    def told(config: dict, there: dict) -> dict:
        own = {**config, "seed": None, "starts": []}
        for path in starts_of(config):
            rest = {other: known for other, known in there.items() if other != path}  # no run is its own start
            own["starts"].append(told(there[path], rest) if path in there else str(path))
        return own | {"init": {**(config.get("init") or {}), "path": ""}, "others": []}  # are told by starts

    return json.dumps(told(run.config, there), sort_keys=True)


def mean_scores(runs: Sequence[Run]) -> dict[str, dict[str, Score]]:
    """{test set: {metric: {"value", "error"}}}: of one run its own; of several the means of what all have, their errors
    still unknown."""
    if len(runs) == 1:
        return runs[0].scores
    means: dict[str, dict[str, Score]] = {}
    for test_set, metrics in runs[0].scores.items():
        for metric in metrics:
            known = [found[0] for run in runs if (found := score(run, test_set, metric))]
            mean = float(np.mean(known)) if len(known) == len(runs) else None
            means.setdefault(test_set, {})[metric] = {"value": mean, "error": None}
    return means


def estimated(arms: Sequence[Run], test_set: str) -> dict[str, dict[str, Estimate]]:
    """{arm: {metric: Estimate}} over the objects of a test set that all of them predicted, for arms with predictions:
    drawn by sky cells, where one of them says where enough objects lie, and by seeds."""
    arms = [arm for arm in arms if all(len(run.members(test_set)) for run in arm.seeds)]
    keys = [run.predictions["key"][run.members(test_set)].astype(str) for arm in arms for run in arm.seeds]
    if not keys:
        return {}
    common = functools.reduce(np.intersect1d, keys)
    if len(common) < ENOUGH_FOR_ERRORS:
        return {}
    seen = {arm.name: [columns(run, rows_of(run, test_set, common)) for run in arm.seeds] for arm in arms}
    cells = np.arange(len(common))
    if placed := next((arm for arm in arms if {"ra", "dec"} <= arm.predictions.keys()), None):
        rows = rows_of(placed, test_set, common)
        found = sky_cells(placed.predictions["ra"][rows], placed.predictions["dec"][rows])
        cells = cells if found is None else found
    edges = equal_bins(next(iter(seen.values()))[0]["z_true"])  # the same for every resample
    measure = lambda c: all_metrics(c) | dependence_metrics(c["z_phot"], c["z_true"], edges)
    return hierarchical_bootstrap(measure, seen, cells)


def columns(run: Run, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What metrics are made of, of some rows of a run's predictions."""
    pdf = None if run.pdf is None else run.pdf[rows]
    found = {name: values[rows] for name, values in run.predictions.items()}
    low, high = INTERVAL
    interval = (found[low], found[high]) if {low, high} <= found.keys() else None
    return columns_of(found["z_best"], found["z_true"], pdf, interval)


def rows_of(run: Run, test_set: str, keys: np.ndarray) -> np.ndarray:
    """[N]: where a run's predictions have the members of a test set named by sorted `keys` [N]."""
    members = run.members(test_set)
    _, _, place = np.intersect1d(keys, run.predictions["key"][members].astype(str), return_indices=True)
    return members[place]


def with_errors(arm: Run, estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Score]]:
    """The scores of an arm with the errors of its estimates, and the estimates of metrics that its run has no score of;
    where there are no estimates, with the errors they have."""
    result = {}
    for test_set, metrics in arm.scores.items():
        own = estimates.get(test_set, {})
        result[test_set] = {
            metric: score | {"error": finite(own[metric].error)}
            if metric in own and score.get("value") is not None
            else score
            for metric, score in metrics.items()
        }
        more = own.keys() - metrics.keys()
        result[test_set] |= {m: {"value": finite(own[m].value), "error": finite(own[m].error)} for m in sorted(more)}
    return result


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
