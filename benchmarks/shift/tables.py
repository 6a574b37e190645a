"""What shift-v1 found, as text, CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.shift.arms import Arm
from benchmarks.shift.labels import Subset
from benchmarks.shift.scores import CLOSED, DEPENDENCE, METRICS, SIGNIFICANT, Scores, gap_closure, relative_loss
from jaxz.photoz.bootstrap import Estimate

BASELINE, ORACLE = "matched", "oracle"  # the ends of the gap

DIFFERENT, SHOWN = 2.0, 4  # errors of a difference that count as one; arms that a sentence names
MOST_LOSS = 0.05  # of sigma_mad on spec_like, with which closing the gap is still a success


class Comparison(NamedTuple):
    """An arm beside the arm `baseline`, that of as many labels, in one metric: what the baseline has, the arm less it,
    and the share of the gap to the oracle that it closes, None where there is no gap."""

    baseline: str
    none: Estimate
    difference: Estimate
    closure: Estimate | None


Compared = dict[tuple[str, str, str], Comparison]  # by subset, arm and metric


def compare(scores: Scores, arms: Mapping[str, Arm]) -> Compared:
    """Every arm beside the baseline and the oracle with as many labels."""
    found = {}
    for subset, by_arm in scores.items():
        for name, metrics in by_arm.items():
            ends = {arm.labels: other for other, arm in arms.items() if is_end(arm, arms[name].fraction)}
            if len(ends) < 2:
                continue
            none, oracle = (by_arm[ends[labels]] for labels in ("survey", "oracle"))
            for metric in (*METRICS, *DEPENDENCE):
                closure = gap_closure(none[metric], metrics[metric], oracle[metric]) if metric in CLOSED else None
                beside = Comparison(ends["survey"], none[metric], metrics[metric] - none[metric], closure)
                found[subset, name, metric] = beside
    return found


def is_end(arm: Arm, fraction: float) -> bool:
    return arm.name.split("@")[0] in (BASELINE, ORACLE) and arm.fraction == fraction


def spec_like_loss(scores: Scores, compared: Compared, arm: str) -> Estimate | None:
    """The arm's sigma_mad over the baseline's, less 1, on objects like the labelled ones."""
    beside = compared.get(("spec_like", arm, "sigma_mad"))
    return beside and relative_loss(beside.none, scores["spec_like"][arm]["sigma_mad"])


def shown(estimate: Estimate | None, digits: int = 4) -> str:
    if estimate is None or not np.isfinite(estimate.value):
        return "-"
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def percent(loss: Estimate | None) -> str:
    return f"{100 * loss.value:+.1f} ± {100 * loss.error:.1f} %" if loss else "-"


def text(scores: Scores, compared: Compared, subsets: Mapping[str, Subset]) -> str:
    """Tables for a terminal: a subset after another, an arm a line, then the gap and the findings."""
    lines = []
    for subset, by_arm in scores.items():
        lines.append(f"{subset}: {subsets[subset].title}, {len(subsets[subset].rows):,} objects")
        for names in (METRICS, DEPENDENCE):
            lines += aligned(names, {arm: [shown(metrics[m]) for m in names] for arm, metrics in by_arm.items()})
    head, body = gap_table(scores, compared)
    lines += ["share of the gap between matched and oracle that is closed", *aligned(head, body)]
    return "\n".join(lines + findings(scores, compared)) + "\n"


def aligned(head: Sequence[str], body: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table, a column 24 characters, and an empty one."""
    rows = {"": head, **body}
    return [f"{name:26}" + "".join(f"{cell:>24}" for cell in cells) for name, cells in rows.items()] + [""]


def gap_table(scores: Scores, compared: Compared) -> tuple[list[str], dict[str, list[str]]]:
    """Head and {arm: cells}: the gap that each arm closes on the full set and beyond the labels, and by how much its
    sigma_mad on spec_like is above the baseline's."""
    places = [(subset, metric) for subset in ("full", "beyond") if subset in scores for metric in CLOSED]
    body = {}
    for arm in {arm: None for _, arm, _ in compared}:
        cells = [shown(beside.closure, 2) if (beside := compared.get((s, arm, m))) else "-" for s, m in places]
        body[arm] = [*cells, percent(spec_like_loss(scores, compared, arm))]
    return [*(f"{metric}, {subset}" for subset, metric in places), "sigma_mad, spec_like"], body


def csv_of(scores: Scores, compared: Compared) -> str:
    """A row an arm, subset and metric; what is not defined is left empty."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    pair = lambda name: [name, f"{name}_error"]
    table.writerow(["arm", "subset", "metric", *pair("value"), *pair("difference"), *pair("closure")])
    for subset, arm, metric, *numbers in rows(scores, compared):
        flat = [finite(x) for e in numbers for x in ((e.value, e.error) if e else (np.nan, np.nan))]
        table.writerow([arm, subset, metric, *flat])
    return sink.getvalue()


def rows(scores: Scores, compared: Compared):
    """(subset, arm, metric, value, difference from the baseline, closure), Estimates or None."""
    for subset, by_arm in scores.items():
        for arm, metrics in by_arm.items():
            for metric, estimate in metrics.items():
                beside = compared.get((subset, arm, metric))
                yield subset, arm, metric, estimate, beside and beside.difference, beside and beside.closure


def json_of(scores: Scores, compared: Compared) -> dict:
    """{arm: {subset: {metric: {"value", "error", "difference", "difference_error", "closure", "closure_error"}}}}, the
    last four where they are defined; null: too few objects to say."""
    found: dict = {}
    for subset, arm, metric, value, difference, closure in rows(scores, compared):
        entry = {}
        for name, estimate in (("value", value), ("difference", difference), ("closure", closure)):
            if estimate is not None:
                entry |= {name: finite(estimate.value), f"{name}_error".removeprefix("value_"): finite(estimate.error)}
        found.setdefault(arm, {}).setdefault(subset, {})[metric] = entry
    return found


def finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def findings(scores: Scores, compared: Compared) -> list[str]:
    """Sentences, from the numbers alone: images beside photometry, who beats the baseline, who closes the gap."""
    lines, near = [], scores.get("spec_like", {})
    if {"photometry", BASELINE} <= near.keys():
        less = near[BASELINE]["sigma_mad"] - near["photometry"]["sigma_mad"]
        lines.append(f"sigma_mad on spec_like, {BASELINE} less photometry: {shown(less)}.")
    losses = {arm: spec_like_loss(scores, compared, arm) for arm in near}
    for metric in CLOSED:
        for subset in [name for name in ("full", "beyond") if (name, BASELINE, metric) in compared]:
            lines.append(finding(subset, metric, compared, losses))
    return lines


def finding(subset: str, metric: str, compared: Compared, losses: Mapping[str, Estimate | None]) -> str:
    """Which arms of all labels are below the baseline beyond the errors, and which of them closes most of the gap, with
    its loss on spec_like, {arm: `spec_like_loss`}."""
    own = {arm: beside for (s, arm, m), beside in compared.items() if (s, m) == (subset, metric)}
    arms = {arm: c for arm, c in own.items() if c.baseline == BASELINE and arm not in (BASELINE, ORACLE)}
    better = [arm for arm, c in arms.items() if c.difference.value < -DIFFERENT * c.difference.error]
    better.sort(key=lambda arm: arms[arm].difference.value)
    names = ", ".join(f"{arm} ({shown(arms[arm].difference)})" for arm in better[:SHOWN]) or "none"
    more = f" and {len(better) - SHOWN} more" if len(better) > SHOWN else ""
    closed = {arm: c.closure for arm, c in arms.items() if c.closure and c.closure.value > DIFFERENT * c.closure.error}
    if own[BASELINE].closure is None:
        gap = f"there is no gap beyond {SIGNIFICANT:g} errors"
    elif not closed:
        gap = f"no arm closes the gap by more than {DIFFERENT:g} errors"
    else:
        best = max(closed, key=lambda arm: closed[arm].value)
        loss = losses.get(best)
        gap = f"{best} closes most of the gap, {shown(closed[best], 2)}, at {percent(loss)} in sigma_mad on spec_like"
        if loss and loss.value > MOST_LOSS:
            gap += f": more than {100 * MOST_LOSS:g} %, so no success"
    return f"{metric} on {subset}: below {BASELINE} by {DIFFERENT:g} errors and more: {names}{more}; {gap}."
