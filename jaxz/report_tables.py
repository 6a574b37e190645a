"""The report's words: the verdict, computed from the scores, and its tables as HTML."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from jaxz.report_data import Run

TEST_SETS = {"spec_like": "test set like the labelled one", "full": "every test object"}
DIFFERENT = 2.0  # errors of the difference: below, two arms are not told apart


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. best: the value that it should come near, or None where lower is always better."""

    label: str
    meaning: str
    best: float | None = 0.0
    percent: bool = False
    digits: int = 4  # shown after the point

    def rank(self, value: float) -> float:
        return value if self.best is None else abs(value - self.best)

    def text(self, value: float, error: float | None) -> str:
        """Such as "0.0212 ± 0.0004"."""
        scale, digits = (100, 2) if self.percent else (1, self.digits)
        shown = f"{value * scale:.{digits}f}" + ("" if error is None else f" ± {error * scale:.{digits}f}")
        return shown.replace("-", "−") + ("&nbsp;%" if self.percent else "")


METRICS = {
    "sigma_mad": Metric(
        "σ<sub>MAD</sub>", "scatter of e: 1.4826 × the median distance from the median; blind to outliers"
    ),
    "eta_15": Metric("η<sub>0.15</sub>", "outliers: the fraction with |e| above 0.15", percent=True),
    "bias_median": Metric("median bias", "median of e: above 0, redshifts are overestimated"),
    "crps": Metric(
        "CRPS", "distance between p(z) and the true redshift, in redshift; rewards sharp and honest p(z)", None
    ),
    "pit_ks": Metric("PIT KS", "largest departure of PIT = CDF(true z) from uniform; 0: p(z) is calibrated", digits=3),
    "coverage_68": Metric(
        "68 % coverage", "fraction inside the 68 % interval; more: p(z) too wide", 0.68, percent=True
    ),
    "eta_05": Metric("η<sub>0.05</sub>", "the fraction with |e| above 0.05", percent=True),
    "bias_mean": Metric("mean bias", "mean of e; moved by outliers"),
    "sigma_68": Metric("σ<sub>68</sub>", "half of the range that holds the middle 68 % of e"),
    "sigma_iqr": Metric("σ<sub>IQR</sub>", "interquartile range of e / 1.349"),
    "nmad0": Metric("NMAD about 0", "1.4826 × the median |e|: scatter and bias together"),
    "nmad_eazy": Metric("NMAD (EAZY)", "1.48 × the median of |Δz − median Δz| / (1 + z)"),
    "outlier_rail": Metric("outliers (RAIL)", "fraction with |e| above max(0.06, 3 σ<sub>IQR</sub>)", percent=True),
    "hsc_loss": Metric("HSC loss", "mean of 1 − 1/(1 + (e/0.15)²): 0 perfect, 1 hopeless"),
    "hsc_bias": Metric("biweight bias", "biweight location of e"),
    "hsc_sigma": Metric("biweight scatter", "biweight scale of e"),
    "hsc_outlier": Metric("biweight outliers", "fraction further than 2 biweight scatters from the bias", percent=True),
    "rms": Metric("rms", "root mean square of e; ruled by the worst outliers"),
    "rms_clipped": Metric("clipped rms", "the same without the outliers (RAIL)"),
    "r2": Metric("R²", "share of the variance of the true redshift that is explained", 1.0),
    "nll": Metric("NLL", "mean of −log p(true z)", None, digits=3),
    "cde_loss": Metric("CDE loss", "∫p² dz − 2 p(true z), mean", None, digits=3),
    "brier": Metric("Brier", "squared error of the probabilities of bins of 0.02, 0 to 2", None),
    "wasserstein": Metric("W<sub>1</sub>", "mean distance of p(z)'s mass from the true redshift", None),
    "pit_cvm": Metric("PIT CvM", "Cramér–von Mises statistic of the PIT; grows with the number of objects", digits=2),
    "pit_ad": Metric("PIT AD", "Anderson–Darling statistic of the PIT; weighs its ends", None, digits=2),
    "coverage_hpd_68": Metric("68 % HPD", "fraction inside the smallest region of 68 %", 0.68, percent=True),
    "coverage_hpd_95": Metric("95 % HPD", "fraction inside the smallest region of 95 %", 0.95, percent=True),
    "ece": Metric("calibration error", "mean |coverage − level| of the smallest regions of 5 to 95 %", digits=3),
    "pit_outlier_rate": Metric("PIT outliers", "fraction with PIT below 10⁻⁴ or above 0.9999", percent=True),
    "nz_bias": Metric("n(z) bias", "relative error of the mean redshift of the stacked p(z)"),
    "slope_z_true": Metric("slope in z<sub>true</sub>", "of the mean e given the true redshift; below 0: to the mean"),
    "slope_z_phot": Metric("slope in z<sub>estimated</sub>", "of the mean e given the estimated redshift"),
    "macro_sigma_mad": Metric("macro σ<sub>MAD</sub>", "mean over ten equal bins of true redshift"),
    "spread_sigma_mad": Metric("spread of σ<sub>MAD</sub>", "largest less smallest of those bins"),
    "macro_bias_median": Metric("macro |bias|", "mean size of the median e over ten equal bins of true redshift"),
    "spread_bias_median": Metric("spread of bias", "largest less smallest of those bins"),
    "macro_eta_15": Metric("macro η<sub>0.15</sub>", "mean over ten equal bins of true redshift", percent=True),
    "spread_eta_15": Metric("spread of η<sub>0.15</sub>", "largest less smallest of those bins", percent=True),
}
MAIN = tuple(METRICS)[:6]


def label(test_set: str) -> str:
    return TEST_SETS.get(test_set, test_set)


def all_test_sets(arms: Sequence[Run]) -> list[str]:
    """The test sets of all arms, the known ones first."""
    found = {name for arm in arms for name in arm.scores}
    return [name for name in TEST_SETS if name in found] + sorted(found - TEST_SETS.keys())


def score(arm: Run, test_set: str, metric: str) -> tuple[float, float | None] | None:
    """Value and error, or None where it is missing or undefined."""
    entry = arm.scores.get(test_set, {}).get(metric) or {}
    return None if entry.get("value") is None else (entry["value"], entry.get("error"))


def ranking(arms: Sequence[Run], test_set: str, metric: str) -> list[tuple[str, float, float | None]]:
    """(arm, value, error), the best first."""
    scored = [(arm.name, *found) for arm in arms if (found := score(arm, test_set, metric))]
    return sorted(scored, key=lambda row: METRICS[metric].rank(row[1]))


def comparable(arms: Sequence[Run], test_set: str) -> bool:
    """Whether all arms were scored on the same objects, as far as their predictions and counts tell."""
    counts = {found[0] for arm in arms if (found := score(arm, test_set, "objects"))}
    keys = [np.sort(arm.predictions["key"][rows].astype(str)) for arm in arms if len(rows := arm.members(test_set))]
    return len(counts) <= 1 and all(np.array_equal(keys[0], other) for other in keys[1:])


def paired_error(first: Run, second: Run, test_set: str, metric: str) -> float | None:
    """The error of the difference between two arms, of which the same objects and seeds were drawn: what they share
    cancels. None where one of them has no estimates."""
    one, other = (arm.estimates.get(test_set, {}).get(metric) for arm in (first, second))
    return (one - other).error if one and other else None


def separation(first: tuple, second: tuple, paired: float | None) -> float:
    """|difference| of two (arm, value, error) in units of its error; 0 where no error is known."""
    errors = (first[2], second[2])
    error = math.hypot(*errors) if paired is None and None not in errors else paired
    return abs(first[1] - second[1]) / error if error else 0.0


def join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def standing(arms: Sequence[Run], test_set: str, metric: str) -> str:
    """Who leads in one metric, and whether it is beyond the errors, as half a sentence; "" where nobody is scored."""
    rows, by_name = ranking(arms, test_set, metric), {arm.name: arm for arm in arms}
    if not rows:
        return ""
    kind, best = METRICS[metric], rows[0]
    apart = {
        row[0]: separation(best, row, paired_error(by_name[best[0]], by_name[row[0]], test_set, metric))
        for row in rows[1:]
    }
    tied = [row for row in rows[1:] if apart[row[0]] < DIFFERENT]
    value = kind.text(*best[1:])
    if len(rows) == 1:
        return f"{kind.label} = {value}"
    if tied:
        others = join([f"<b>{escape(row[0])}</b> ({kind.text(*row[1:])})" for row in tied])
        return f"in {kind.label}, <b>{escape(best[0])}</b> ({value}) and {others} do not differ within the errors"
    second = rows[1]
    return (
        f"<b>{escape(best[0])}</b> has the lowest {kind.label}, {value}, {apart[second[0]]:.1f} errors of the "
        f"difference ahead of {escape(second[0])} ({kind.text(*second[1:])})"
    )


def verdict(arms: Sequence[Run], runs: Sequence[Run]) -> list[str]:
    """The findings in plain sentences (HTML), from the numbers of the arms of `runs` alone."""
    sets = all_test_sets(arms)
    if not sets:
        return [
            "None of these runs has been scored yet: <code>python -m jaxz.evaluate</code> compares them on a test set."
        ]
    sentences = []
    for test_set in sets:
        title = f"<i>{escape(label(test_set)).capitalize()}</i>"
        if not comparable(arms, test_set):
            sentences.append(f"{title}: the arms were scored on different objects, so they are not ranked.")
        elif halves := [half for m in ("sigma_mad", "eta_15") if (half := standing(arms, test_set, m))]:
            counts = {int(found[0]) for arm in arms if (found := score(arm, test_set, "objects"))}
            objects = f" ({counts.pop():,} objects)" if counts else ""
            sentences.append(f"{title}{objects}: {'; '.join(halves)}.")
    sentences += [sentence for sentence in (gap(arms, sets), cost(arms, sets)) if sentence]
    if seen := [arm.name for arm in arms if arm.transductive]:
        names = join([f"<b>{escape(name)}</b>" for name in seen])
        sentences.append(f"Knew of the test split's objects in training, without their labels (transductive): {names}.")
    begun = {parent.path for run in runs for parent in run.parents}
    if lacking := [run.name for run in runs if not run.scores and run.path.resolve() not in begun]:
        sentences.append(f"Not scored: {join([f'<b>{escape(name)}</b>' for name in lacking])}.")
    return [*sentences, errors(arms)]


def errors(arms: Sequence[Run]) -> str:
    """What the errors hold, and how those of a difference were found."""
    alone = [escape(arm.name) for arm in arms if arm.scores and not arm.estimates]
    apart = f"; for {join(alone)}, without predictions, from both errors as if independent" if alone else ""
    seeds = join([f"<b>{escape(arm.name)}</b> ({len(arm.seeds)} seeds)" for arm in arms if len(arm.seeds) > 1])
    between = (
        f"and between the training seeds of {seeds}"
        if seeds
        else "of one training run each, without the spread between seeds"
    )
    return (
        "Errors are bootstrap errors over sky cells of 7 arcmin, or over objects where their positions are not known, "
        f"{between}. Arms differ where they do by {DIFFERENT:g} errors of their difference, found by drawing the same "
        f"for both{apart}."
    )


def gap(arms: Sequence[Run], sets: Sequence[str]) -> str:
    """How the leader on every object does worse there than on objects like the labelled ones."""
    if not {"spec_like", "full"} <= set(sets) or not (rows := ranking(arms, "full", "sigma_mad")):
        return ""
    arm = next(arm for arm in arms if arm.name == rows[0][0])
    changes = []
    for metric in ("sigma_mad", "eta_15", "bias_median"):
        near, far = score(arm, "spec_like", metric), score(arm, "full", metric)
        if near and far:
            changes.append(f"{METRICS[metric].label} {METRICS[metric].text(*near)} → {METRICS[metric].text(*far)}")
    step = f"From the {label('spec_like')} to {label('full')}, <b>{escape(arm.name)}</b> changes:"
    return f"{step} {', '.join(changes)}." if changes else ""


def cost(arms: Sequence[Run], sets: Sequence[str]) -> str:
    """What each arm cost in images and time, with pretraining, the best of the last test set first."""
    parts = []
    for name, *_ in ranking(arms, sets[-1], "sigma_mad"):
        arm = next(arm for arm in arms if arm.name == name)
        if arm.compute:
            pretraining = arm.total("images") - float(arm.compute.get("images") or 0)
            before = f", {quantity(pretraining)} of them in pretraining" if pretraining else ""
            images = (
                f"saw {quantity(arm.total('images'))} images{before}, in"
                if arm.total("images")
                else "saw no images; it took"
            )
            parts.append(f"{escape(name)} {images} {duration(arm.total('seconds'))}")
    return f"Cost: {'; '.join(parts)}." if parts else ""


def quantity(number: float) -> str:
    """Such as 12.3 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Such as 3.4 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def score_table(arms: Sequence[Run], metrics: Sequence[str], colours: Mapping[str, str]) -> str:
    """Arms under each test set, a column a metric, the best of each in bold."""
    metrics = [m for m in metrics if any(score(arm, t, m) for arm in arms for t in arm.scores)]
    head = "".join(f'<th title="{escape(METRICS[m].meaning)}">{METRICS[m].label}</th>' for m in metrics)
    body = []
    for test_set in all_test_sets(arms):
        counts = sorted({int(found[0]) for arm in arms if (found := score(arm, test_set, "objects"))})
        objects = f" – {' to '.join(f'{n:,}' for n in counts[:: max(1, len(counts) - 1)])} objects" if counts else ""
        body.append(f'<tr class="set"><th colspan="{len(metrics) + 1}">{escape(label(test_set))}{objects}</th></tr>')
        ranked = metrics if comparable(arms, test_set) else ()
        best = {m: rows[0][0] for m in ranked if len(rows := ranking(arms, test_set, m)) > 1}
        for arm in (arm for arm in arms if test_set in arm.scores):
            cells = []
            for metric in metrics:
                found = score(arm, test_set, metric)
                text = METRICS[metric].text(*found) if found else "–"
                cells.append(f"<td>{f'<b>{text}</b>' if best.get(metric) == arm.name else text}</td>")
            body.append(f"<tr><th>{swatch(arm, colours)}</th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th>arm</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def compute_table(runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    """What each run cost, by itself and with the runs it started from."""
    rows = []
    for run in runs:
        own, names = run.compute, [parent.name for parent in run.parents]
        before = (", " if run.config.get("others") else " ← ").join(names)
        start = (run.config.get("init") or {}).get("path")
        cells = (
            escape(before or (f"{start} (not found)" if start else "scratch")),
            f"{own['steps']:,} × {own['batch_size']:,}" if own.get("steps") and own.get("batch_size") else "–",
            with_total(run, "images", quantity),
            with_total(run, "seconds", duration),
            quantity(own["parameters"]) if own.get("parameters") else "–",
            escape(str(own.get("devices", "–"))),
        )
        rows.append(f"<tr><th>{swatch(run, colours)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    columns = ("starts from", "steps × batch", "images", "time", "parameters", "devices")
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f"<table><thead><tr><th>run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def with_total(run: Run, name: str, text: Callable[[float], str]) -> str:
    """A run's own cost and, where it started from another run, the sum in brackets."""
    own = text(run.compute[name]) if run.compute.get(name) else "–"
    return f"{own} ({text(run.total(name))})" if run.parents else own


def definitions(arms: Sequence[Run], metrics: Sequence[str]) -> str:
    """One line for each metric that is shown."""
    shown = [m for m in metrics if any(score(arm, t, m) for arm in arms for t in arm.scores)]
    error = "<dt>e</dt><dd>(z<sub>estimated</sub> − z<sub>true</sub>) / (1 + z<sub>true</sub>)</dd>"
    return (
        f"<dl>{error}" + "".join(f"<dt>{METRICS[m].label}</dt><dd>{METRICS[m].meaning}</dd>" for m in shown) + "</dl>"
    )


def swatch(run: Run, colours: Mapping[str, str]) -> str:
    """A run's colour and name; what the marks mean, the verdict says."""
    mark = (f" ({len(run.seeds)} seeds)" if len(run.seeds) > 1 else "") + " (transductive)" * run.transductive
    return f'<span class="swatch" style="background:{colours[run.name]}"></span>{escape(run.name)}{mark}'
