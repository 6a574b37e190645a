"""The report's words: the verdict, computed from the scores, and its tables as HTML."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from jaxz.photoz.binned import DEPENDENCE
from jaxz.photoz.metrics import PDF_METRICS, POINT_METRICS
from jaxz.report_data import Run, starts_of

TEST_SETS = {"spec_like": "test set like the labelled one", "full": "every test object"}
DIFFERENT = 2.0  # errors of the difference: below, two arms are not told apart


METRICS = POINT_METRICS | PDF_METRICS | DEPENDENCE
MAIN = ("sigma_mad", "eta_15", "bias_median", "crps", "pit_ks", "coverage_68")  # shown first
PRINTED = MAIN[:3]


def label(test_set: str) -> str:
    return TEST_SETS.get(test_set, test_set)


def all_test_sets(arms: Sequence[Run]) -> list[str]:
    """The test sets of all arms, the known ones first."""
    found = {name for arm in arms for name in arm.scores}
    return [name for name in TEST_SETS if name in found] + sorted(found - TEST_SETS.keys())


def score(arm: Run, test_set: str, metric: str) -> tuple[float, float | None] | None:
    """Value and error, or None where it is missing or undefined."""
    entry = arm.scores.get(test_set, {}).get(metric)
    if entry is None or (value := entry.get("value")) is None:
        return None
    return value, entry.get("error")


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


def separation(first: tuple, second: tuple, metric: str, paired: float | None) -> float:
    """How much nearer to its best value a metric is for one of two (arm, value, error), in units of the difference's
    error; 0 where no error is known. paired: that of the values' difference, which is no help for values on both sides
    of the best."""
    kind, errors = METRICS[metric], (first[2], second[2])
    if kind.best is not None and (first[1] - kind.best) * (second[1] - kind.best) < 0:
        paired = None
    error = math.hypot(*errors) if paired is None and None not in errors else paired
    return abs(kind.rank(first[1]) - kind.rank(second[1])) / error if error else 0.0


def behind(arms: Sequence[Run], test_set: str, metric: str) -> dict[str, float]:
    """{arm: its separation from the best}, the best first."""
    rows, by_name = ranking(arms, test_set, metric), {arm.name: arm for arm in arms}
    paired = [paired_error(by_name[rows[0][0]], by_name[row[0]], test_set, metric) for row in rows]
    return {row[0]: separation(rows[0], row, metric, error) for row, error in zip(rows, paired, strict=True)}


def leaders(arms: Sequence[Run], test_set: str, metric: str) -> list[str]:
    """The arms that do not differ from the best; none where no arm differs from it."""
    apart = behind(arms, test_set, metric)
    best = [name for name, distance in apart.items() if distance < DIFFERENT]
    return best if len(best) < len(apart) else []


def join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def standing(arms: Sequence[Run], test_set: str, metric: str) -> str:
    """Who leads in one metric, and whether it is beyond the errors, as half a sentence; "" where nobody is scored."""
    rows, apart = ranking(arms, test_set, metric), behind(arms, test_set, metric)
    if not rows:
        return ""
    kind, best = METRICS[metric], rows[0]
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
            before = ""
            if earlier := arm.total("images") - float(arm.compute.get("images") or 0):
                before = f", {quantity(earlier)} of them in pretraining"
                if "method" in arm.config:  # of jaxz.correct
                    corrected = join(list(dict.fromkeys(escape(path.name) for path in starts_of(arm.config))))
                    before = f", all of {corrected}, which it corrects"
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
    """Arms under each test set, a column a metric, in bold those that do not differ from the best."""
    metrics = [m for m in metrics if any(score(arm, t, m) for arm in arms for t in arm.scores)]
    head = "".join(f'<th title="{escape(METRICS[m].meaning)}">{METRICS[m].label}</th>' for m in metrics)
    body = []
    for test_set in all_test_sets(arms):
        counts = sorted({int(found[0]) for arm in arms if (found := score(arm, test_set, "objects"))})
        objects = f" – {' to '.join(f'{n:,}' for n in counts[:: max(1, len(counts) - 1)])} objects" if counts else ""
        body.append(f'<tr class="set"><th colspan="{len(metrics) + 1}">{escape(label(test_set))}{objects}</th></tr>')
        ranked = metrics if comparable(arms, test_set) else ()
        best = {m: leaders(arms, test_set, m) for m in ranked}
        for arm in (arm for arm in arms if test_set in arm.scores):
            cells = []
            for metric in metrics:
                found = score(arm, test_set, metric)
                text = METRICS[metric].text(*found) if found else "–"
                cells.append(f"<td>{f'<b>{text}</b>' if arm.name in best.get(metric, ()) else text}</td>")
            body.append(f"<tr><th>{swatch(arm, colours)}</th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th>arm</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def text_table(arms: Sequence[Run]) -> str:
    """The scores in PRINTED by arm under each test set, for a terminal."""
    blocks = []
    for test_set in all_test_sets(arms):
        rows: list[tuple[str, ...]] = [("", *PRINTED)]
        for arm in (arm for arm in arms if test_set in arm.scores):
            found = [score(arm, test_set, metric) for metric in PRINTED]
            texts = [METRICS[m].text(*of) if of else "–" for m, of in zip(PRINTED, found, strict=True)]
            rows.append((arm.name, *(text.replace("&nbsp;", " ") for text in texts)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        lines = ["  ".join(row).rstrip() for row in padded]
        blocks.append("\n".join([f"{label(test_set)}:", *lines]))
    return "\n\n".join(blocks)


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
