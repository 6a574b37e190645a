"""The report page of shift-v1: tables, figures and costs in one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np

from benchmarks.shift import tables
from benchmarks.shift.figures import AXES, calibration_pictures, learning_pictures, residual_pictures, score_picture
from benchmarks.shift.labels import Subset
from benchmarks.shift.scores import DEPENDENCE, METRICS, Columns, Scores, residual_curves
from benchmarks.shift.validation import Curve, last_change
from jaxz import __version__, report_data
from jaxz.photoz import plots
from jaxz.photoz.bootstrap import Estimate
from jaxz.report import TEMPLATE, anchor, figure
from jaxz.report_tables import METRICS as LABELS
from jaxz.report_tables import compute_table, duration

OWN = {"abs_bias": "|median bias|", "tomography": "tomographic Δ&lt;z&gt;"}  # names of metrics beside the report's
ERRORS = "bootstrap over sky cells and seeds"
QUARTERS = (0.25, 0.5, 0.75, 1.0)  # of a training
NEAR, LATE = 0.01, 0.8  # by which a checkpoint counts as there; the last part begins before that


class Told(NamedTuple):
    """What there is to say beside scores. runs: {arm: the run of each seed}, pretraining ones too; flops: {run
    directory: of its own steps}; sample_sizes: {label fraction: [what jaxz.shift found, of each seed]}; validation:
    {arm: [curve of each seed]}; rates: {arm: {times its learning rate: validation loss}}; not_run: {arm: why}."""

    dataset: str
    runs: Mapping[str, Sequence[report_data.Run]]
    flops: Mapping[str, float]
    sample_sizes: Mapping[float, Sequence[dict]]
    validation: Mapping[str, Sequence[Curve]]
    rates: Mapping[str, Mapping[float, float]]
    not_run: Mapping[str, str]


def html(
    predicted: Mapping[str, Sequence[Columns]],
    cells: np.ndarray,
    subsets: Mapping[str, Subset],
    scores: Scores,
    compared: tables.Compared,
    told: Told,
) -> str:
    """The page. predicted: {arm: [columns of all test objects, of each seed]}."""
    pictures = [score_picture(scores)]
    if "full" in scores:
        curves = {by: residual_curves(predicted, cells, subsets["full"], by) for by in AXES}
        pictures += [*residual_pictures(curves), *calibration_pictures(predicted, subsets["full"])]
    first = {arm: runs[0] for arm, runs in told.runs.items()}
    pictures += learning_pictures(first)
    names = list(dict.fromkeys(p.section for p in pictures))
    drawn = {name: "".join(figure(p) for p in pictures if p.section == name) for name in names}
    sections = "".join(f'<section id="{anchor(name)}"><h2>{name}</h2>{drawn[name]}</section>' for name in names)
    links = [*names, "Cost", "All metrics"]
    sentences = [*map(escape, tables.findings(scores, compared)), *weights_found(told.sample_sizes)]
    sentences += [f"<b>{escape(arm)}</b>: not run: {escape(why)}." for arm, why in told.not_run.items()]
    sentences += [*converged(told.validation), method(predicted)]
    biases = bias_table(*curves["z_true"]) if "full" in scores else ""
    return Template(TEMPLATE.read_text()).substitute(
        title="shift-v1: redshifts where labels are missing",
        subtitle=escape(f"Dataset {told.dataset}"),
        links=" · ".join(f'<a href="#{anchor(name)}">{name}</a>' for name in links),
        verdict="".join(f"<p>{sentence}</p>" for sentence in sentences),
        scores=gap_table(scores, compared),
        figures=sections,
        cost=compute_table(list(first.values()), plots.arm_colours([run.name for run in first.values()]))
        + cost_table(told.runs, told.flops),
        more="".join(score_table(scores, subsets, names) for names in (METRICS, DEPENDENCE))
        + biases
        + validation_table(told.validation)
        + rate_table(told.rates),
        errors=ERRORS,
        version=__version__,
    )


def weights_found(sample_sizes: Mapping[float, Sequence[dict]]) -> list[str]:
    """What the weights are worth, a sentence for each label fraction."""
    return [
        f"Weights of {100 * fraction:g} % of the labels: {found[0]['train']:,} objects are worth "
        f"{np.mean([one['effective_sample_size'] for one in found]):,.0f} (effective sample size); AUC of the domain "
        f"classifier {np.mean([one['auc'] for one in found]):.3f}."
        for fraction, found in sample_sizes.items()
    ]


def method(predicted: Mapping[str, Sequence[Columns]]) -> str:
    seeds = max(map(len, predicted.values()))
    return (
        f"Means over {seeds} seeds; errors by a hierarchical bootstrap over sky cells and seeds, those of differences "
        f"and of the gap paired between arms. Gap closure: (m<sub>{tables.BASELINE}</sub> − m) / (m<sub>"
        f"{tables.BASELINE}</sub> − m<sub>{tables.ORACLE}</sub>), where that gap exceeds 3 errors."
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """HTML of rows of cells, the first of each its title; a row of one cell is a heading."""
    lines = []
    for first, *rest in body:
        if rest:
            lines.append(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
        else:
            lines.append(f'<tr class="set"><th colspan="{len(head)}">{first}</th></tr>')
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def name_of(metric: str) -> str:
    return OWN[metric] if metric in OWN else LABELS[metric].label


def score_table(scores: Scores, subsets: Mapping[str, Subset], names: Sequence[str]) -> str:
    """Arms under each subset, a column a metric."""
    body = []
    for subset, by_arm in scores.items():
        part = subsets[subset]
        body.append([escape(f"{subset}: {part.title} – {len(part.rows):,} objects")])
        body += [[escape(arm), *(tables.shown(metrics[m]) for m in names)] for arm, metrics in by_arm.items()]
    return table(["arm", *map(name_of, names)], body)


def gap_table(scores: Scores, compared: tables.Compared) -> str:
    head, body = tables.gap_table(scores, compared)
    return table(["gap closed", *map(escape, head)], [[escape(arm), *cells] for arm, cells in body.items()])


def bias_table(edges: np.ndarray, arms: Mapping[str, Sequence[Estimate]]) -> str:
    """Signed mean residuals of bins of true redshift."""
    head = [
        "mean e, by true redshift",
        *(f"{low:.2f} to {high:.2f}" for low, high in zip(edges, edges[1:], strict=False)),
    ]
    return table(head, [[escape(arm), *(tables.shown(bias, 3) for bias in bins)] for arm, bins in arms.items()])


def converged(validation: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Which arms still changed in the last quarter, as a sentence; [] where no seed has such a checkpoint."""
    known = {arm: last_change(curves) for arm, curves in validation.items()}
    late = {arm: change for arm, change in known.items() if change and change[0] < LATE}
    if not late:
        return []
    moved = {sign: [arm for arm, (_, change, error) in late.items() if sign * change > 2 * error] for sign in (-1, 1)}
    names = {sign: escape(", ".join(arms) or "none") for sign, arms in moved.items()}
    told = ", ".join(f"{escape(arm)} {changed(*change[1:])}" for arm, change in late.items())
    one_seed = any(np.isnan(error) for _, _, error in late.values())
    judged = f"Beyond 2 errors it still fell for: {names[-1]}; it rose for: {names[1]}."
    return [
        "Validation loss (mean of −log p(z) of validation objects, selected as the labels that the arm learned from) "
        f"over the last part of the training: {told}. {'Of one seed, so without errors.' if one_seed else judged}"
    ]


def changed(change: float, error: float) -> str:
    return f"{change:+.3f}" if np.isnan(error) else f"{change:+.3f} ± {error:.3f}"


def validation_table(validation: Mapping[str, Sequence[Curve]]) -> str:
    """The loss of the kept checkpoints in the mean over seeds, with the spread between them, and the last change."""
    head = ["validation loss after", *(f"{share:.0%}" for share in QUARTERS), "change since the checkpoint before"]
    body = []
    for arm, curves in validation.items():
        last = max((max(found, default=0) for found in curves), default=0)
        cells = []
        for share in QUARTERS:
            losses = [loss for found in curves for step, loss in found.items() if abs(step / last - share) < NEAR]
            spread = f" (σ {np.std(losses, ddof=1):.3f})" if len(losses) > 1 else ""
            cells.append(f"{np.mean(losses):.3f}{spread}" if losses else "-")
        since = last_change(curves)
        cells.append(f"{changed(*since[1:])}, since {since[0]:.0%}" if since else "-")
        body.append([escape(arm), *cells])
    return table(head, body) if body else ""


def rate_table(rates: Mapping[str, Mapping[float, float]]) -> str:
    """What the first seed chose the learning rates by; "" where none were tried."""
    tried = sorted({rate for losses in rates.values() for rate in losses})
    head = ["validation loss at", *(f"{rate:g} × the learning rate" for rate in tried), "chosen"]
    body = [
        [escape(arm), *(f"{losses[rate]:.3f}" for rate in tried), f"{min(losses, key=losses.get):g}"]
        for arm, losses in rates.items()
    ]
    return table(head, body) if body else ""


def cost_table(runs: Mapping[str, Sequence[report_data.Run]], flops: Mapping[str, float]) -> str:
    """FLOPs of the matrix products of all training steps, with those of the run that it began from, and seconds of the
    seeds."""
    total = {arm: sum(flops.get(one.path.name, 0) for one in (of[0], *of[0].parents)) for arm, of in runs.items()}
    base = total.get(tables.BASELINE)
    body = []
    for arm, of in runs.items():
        seconds = [run.total("seconds") for run in of]
        spread = f" (σ {duration(float(np.std(seconds, ddof=1)))})" if len(seconds) > 1 else ""
        counted = [f"{total[arm]:.3g}", f"{total[arm] / base:.3f}" if base else "-"] if total[arm] else ["-", "-"]
        body.append([escape(arm), *counted, f"{duration(float(np.mean(seconds)))}{spread}"])
    head = ["arm, with what it began from", "FLOPs", f"over {tables.BASELINE}'s", "time, mean over seeds"]
    return table(head, body)
