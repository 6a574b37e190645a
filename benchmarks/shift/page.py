"""The report page of shift-v1: tables, figures and costs in one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from benchmarks.shift import tables
from benchmarks.shift.labels import Subset
from benchmarks.shift.scores import METRICS, Columns, Scores, residual_curves
from jaxz import __version__, report_data
from jaxz.photoz import plots
from jaxz.photoz.bootstrap import Estimate
from jaxz.report import TEMPLATE, anchor, figure
from jaxz.report_figures import Picture
from jaxz.report_tables import METRICS as LABELS
from jaxz.report_tables import compute_table

OWN = {"abs_bias": "|median bias|", "tomography": "tomographic Δ&lt;z&gt;"}  # names of metrics beside the report's
AXES = {"z_true": "true redshift", "z_phot": "estimated redshift"}
ERRORS = "bootstrap over sky cells and seeds"
STEADY = 0.1  # the last part of a run, by which its learning curve is judged


def html(
    predicted: Mapping[str, Sequence[Columns]],
    cells: np.ndarray,
    subsets: Mapping[str, Subset],
    scores: Scores,
    compared: tables.Compared,
    sample_sizes: Mapping[float, Sequence[dict]],
    paths: Mapping[str, Path],
    dataset: str,
) -> str:
    """The page. predicted: {arm: [columns of all test objects, of each seed]}; sample_sizes: {label fraction: [what
    jaxz.shift found, of each seed]}; paths: {arm: directory of the first seed's run}, pretraining ones too."""
    shown = {arm: runs for arm, runs in predicted.items() if not set("+@%") & set(arm)}  # no variants of an arm
    pictures = []
    if "full" in scores:
        curves = {by: residual_curves(shown, cells, subsets["full"], by) for by in AXES}
        pictures = [*residual_pictures(curves), calibration_picture(shown, subsets["full"])]
    runs = [report_data.read_run(path) for path in paths.values()]
    pictures.append(learning_picture(runs))
    sections = "".join(f'<section id="{anchor(p.section)}"><h2>{p.section}</h2>{figure(p)}</section>' for p in pictures)
    links = [p.section for p in pictures] + ["Cost", "All metrics"]
    sentences = [*map(escape, tables.findings(scores, compared)), *weights_found(sample_sizes), method(predicted)]
    biases = bias_table(*curves["z_true"]) if "full" in scores else ""
    return Template(TEMPLATE.read_text()).substitute(
        title="shift-v1: redshifts where labels are missing",
        subtitle=escape(f"Dataset {dataset}"),
        links=" · ".join(f'<a href="#{anchor(name)}">{name}</a>' for name in links),
        verdict="".join(f"<p>{sentence}</p>" for sentence in sentences),
        scores=gap_table(scores, compared) + score_table(scores, subsets),
        figures=sections,
        cost=compute_table(runs, colours([run.name for run in runs])),
        more=biases + convergence_table(runs),
        errors=ERRORS,
        version=__version__,
    )


def colours(names: Sequence[str]) -> dict[str, str]:
    return plots.arm_colours(list(names))


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


def score_table(scores: Scores, subsets: Mapping[str, Subset]) -> str:
    """Arms under each subset."""
    body = []
    for subset, by_arm in scores.items():
        part = subsets[subset]
        body.append([escape(f"{subset}: {part.title} – {len(part.rows):,} objects")])
        body += [[escape(arm), *(tables.shown(metrics[m]) for m in METRICS)] for arm, metrics in by_arm.items()]
    return table(["arm", *map(name_of, METRICS)], body)


def gap_table(scores: Scores, compared: tables.Compared) -> str:
    head, body = tables.gap_table(scores, compared)
    title = "closed of the gap; change of spec_like"
    return table([title, *map(escape, head)], [[escape(arm), *cells] for arm, cells in body.items()])


def residual_pictures(curves: Mapping[str, tuple[np.ndarray, dict[str, list[Estimate]]]]) -> list[Picture]:
    title = "Mean residual given the true, and given the estimated redshift, of every test object"
    caption = (
        "E[e | z_true] and E[e | z_phot], e = (z_phot - z_true) / (1 + z_true), bins of 25 objects and more. Left: "
        "how far objects of a redshift are moved; right: how far a catalogue's redshift is off."
    )
    return [Picture("Residuals", title, caption, plots.png(residual_figure(curves)))]


@plots.styled
def residual_figure(curves: Mapping[str, tuple[np.ndarray, dict[str, list[Estimate]]]]) -> Figure:
    """A panel for each of z_true and z_phot, a line for each arm."""
    drawn = plots.new_figure(10.2, 4.6)
    axes = drawn.subplots(1, len(curves), sharey=True)
    for axis, (by, (edges, arms)) in zip(axes, curves.items(), strict=True):
        middle, own = (edges[1:] + edges[:-1]) / 2, colours(list(arms))
        for n, (arm, bins) in enumerate(arms.items()):
            mean, error = (np.array([getattr(b, what) for b in bins]) for what in ("value", "error"))
            beside = (n - (len(arms) - 1) / 2) * 0.08 * (edges[1] - edges[0])  # so that no bar hides another
            marker = plots.MARKERS[n // len(plots.COLOURS) % len(plots.MARKERS)]
            style = dict(color=own[arm], marker=marker, ms=4, lw=1.2)
            axis.errorbar(middle + beside, mean, error, label=plots.plain(arm), **style)
        axis.axhline(0, color="#555555", lw=0.8)
        axis.set_xlabel(AXES[by])
    axes[0].set_ylabel("mean of e")
    axes[0].legend(ncols=2, fontsize=8)
    return drawn


def calibration_picture(arms: Mapping[str, Sequence[Columns]], subset: Subset) -> Picture:
    """PIT of every test object, of the first seed."""
    pit = {arm: runs[0]["pit"][subset.rows] for arm, runs in arms.items()}
    drawn = plots.png(plots.calibration(pit, colours(list(pit))))
    caption = "A hill: p(z) too wide; a bowl: too narrow; a slope: biased. The band holds 95 % of perfect samples."
    return Picture("Calibration", "PIT of every test object, first seed", caption, drawn)


def learning_picture(runs: Sequence[report_data.Run]) -> Picture:
    logged = {run.name: (run.steps, run.losses) for run in runs if len(run.steps) > 1}
    drawn = plots.png(plots.loss_curves(logged, colours(list(logged))))
    caption = "Pale: as logged; line: running mean. Losses of different objectives do not compare."
    return Picture("Learning curves", "Training loss of each arm, first seed", caption, drawn)


def bias_table(edges: np.ndarray, arms: Mapping[str, Sequence[Estimate]]) -> str:
    """Signed mean residuals of bins of true redshift."""
    head = [
        "mean e, by true redshift",
        *(f"{low:.2f} to {high:.2f}" for low, high in zip(edges, edges[1:], strict=False)),
    ]
    text = lambda bias: tables.shown(bias, 3) if np.isfinite(bias.value) else "-"
    return table(head, [[escape(arm), *map(text, bins)] for arm, bins in arms.items()])


def convergence_table(runs: Sequence[report_data.Run]) -> str:
    """How much the training loss still fell at the end of each run."""
    body = [[escape(run.name), late_change(run.losses)] for run in runs if len(run.steps) > 1]
    return table(["run", "loss of the last tenth, less that of the tenth before"], body)


def late_change(losses: np.ndarray) -> str:
    """In the mean, in percent of the second; of fewer than 20 logged steps nothing is said."""
    count = int(STEADY * len(losses))
    if count < 2:
        return "-"
    last, before = np.nanmean(losses[-count:]), np.nanmean(losses[-2 * count : -count])
    return f"{100 * (last - before) / abs(before):+.1f} %"
