"""What shift-v1 found, as text, CSV and JSON."""

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.shift.arms import Arm
from benchmarks.shift.labels import Subset
from benchmarks.shift.scores import CLOSED, METRICS, Scores, gap_closure, relative_loss
from jaxz.photoz.bootstrap import Estimate

BASELINE, ORACLE = "matched", "oracle"  # the ends of the gap


class Comparison(NamedTuple):
    """An arm less the baseline in one metric; and the share of the gap to the oracle that it closes, None where there
    is no gap."""

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
            none, oracle = (by_arm[ends[labels]] for labels in ("labelled", "oracle"))
            for metric in METRICS:
                closure = gap_closure(none[metric], metrics[metric], oracle[metric]) if metric in CLOSED else None
                found[subset, name, metric] = Comparison(metrics[metric] - none[metric], closure)
    return found


def is_end(arm: Arm, fraction: float) -> bool:
    return arm.name.split("@")[0] in (BASELINE, ORACLE) and arm.fraction == fraction


def spec_like_loss(scores: Scores, arm: str) -> Estimate | None:
    """The arm's sigma_mad over the baseline's, less 1, on objects like the labelled ones."""
    near = scores.get("spec_like", {})
    return (
        relative_loss(near[BASELINE]["sigma_mad"], near[arm]["sigma_mad"]) if {BASELINE, arm} <= near.keys() else None
    )


def shown(estimate: Estimate | None, digits: int = 4) -> str:
    return "-" if estimate is None else f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def text(scores: Scores, compared: Compared, subsets: Mapping[str, Subset]) -> str:
    """Tables for a terminal: a subset after another, an arm a line."""
    lines = []
    for subset, by_arm in scores.items():
        part = subsets[subset]
        lines += ["", f"{subset}: {part.title}, {len(part.rows):,} objects"]
        lines.append(f"{'':26}" + "".join(f"{name:>20}" for name in (*METRICS, *(f"closes {m}" for m in CLOSED))))
        for arm, metrics in by_arm.items():
            closed = [compared[subset, arm, m].closure if (subset, arm, m) in compared else None for m in CLOSED]
            cells = [shown(metrics[m]) for m in METRICS] + [shown(closure, 2) for closure in closed]
            lines.append(f"{arm:26}" + "".join(f"{cell:>20}" for cell in cells))
    lines += ["", *findings(scores, compared)]
    return "\n".join(lines[1:]) + "\n"


def csv_of(scores: Scores, compared: Compared) -> str:
    """A row an arm, subset and metric; what is not defined is left empty."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    pair = lambda name: [name, f"{name}_error"]
    table.writerow(["arm", "subset", "metric", *pair("value"), *pair("difference"), *pair("closure")])
    for subset, arm, metric, *numbers in rows(scores, compared):
        flat = [x for e in numbers for x in ((e.value, e.error) if e else ("", ""))]
        table.writerow([arm, subset, metric, *flat])
    return sink.getvalue()


def rows(scores: Scores, compared: Compared):
    """(subset, arm, metric, value, difference from the baseline, closure), Estimates or None."""
    for subset, by_arm in scores.items():
        for arm, metrics in by_arm.items():
            for metric, estimate in metrics.items():
                beside = compared.get((subset, arm, metric), Comparison(None, None))
                yield subset, arm, metric, estimate, *beside


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
    """Sentences, from the numbers alone: images beside photometry, every arm beside the baseline, the gap."""
    lines, near = [], scores.get("spec_like", {})
    if {"photometry", BASELINE} <= near.keys():
        less = near[BASELINE]["sigma_mad"] - near["photometry"]["sigma_mad"]
        lines.append(f"Images less photometry, sigma_mad on spec_like: {shown(less)}.")
    for arm in scores.get("full", {}):
        beside = [compared.get(("full", arm, m)) for m in ("sigma_mad", "eta_15")]
        if arm != BASELINE and all(beside):
            parts = ", ".join(
                f"{m} {shown(c.difference)}" for m, c in zip(("sigma_mad", "eta_15"), beside, strict=True)
            )
            loss = spec_like_loss(scores, arm)
            cost = (
                f"; sigma_mad on spec_like changes by {100 * loss.value:+.1f} ± {100 * loss.error:.1f} %"
                if loss
                else ""
            )
            lines.append(f"{arm} less {BASELINE} on full: {parts}{cost}.")
    for metric in CLOSED:
        for subset in [name for name in ("full", "beyond") if name in scores]:
            own = {a: c.closure for (s, a, m), c in compared.items() if (s, m) == (subset, metric) and c.closure}
            own = {arm: closure for arm, closure in own.items() if arm.split("@")[0] not in (BASELINE, ORACLE)}
            if not own:
                lines.append(f"{metric} on {subset}: no gap between {BASELINE} and {ORACLE} beyond 3 errors.")
                continue
            best = max(own, key=lambda arm: own[arm].value)
            lines.append(f"{metric} on {subset}: {best} closes most of the gap, {shown(own[best], 2)}.")
    return lines
