"""The figures of shift-v1: few arms in each, since no figure of all of them can be read."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.shift.labels import Subset
from benchmarks.shift.scores import Columns, Scores
from benchmarks.shift.tables import BASELINE
from jaxz import report_data
from jaxz.photoz import plots
from jaxz.photoz.bootstrap import Estimate
from jaxz.report_figures import Picture

# One of each family: fluxes, templates, CNN, direct ViT, its bound, self-supervised, semi-supervised, two tiers of
# labels, published weights. Those that were run are shown.
REPRESENTATIVES = (
    "photometry", "templates", "treyer", "matched", "oracle", "mae", "fluxes", "dino", "semi", "tiered",
    "dinov2_vitb14_finetune", "clip_vitb16_finetune",
)  # fmt: skip
LINEAR = 0.01  # from 0 on, of an axis of biases; beyond it is logarithmic
SUBSETS, SCORED = ("spec_like", "full", "beyond"), ("sigma_mad", "eta_15", "bias_median")  # of the first figure
AXES = {"z_true": "true redshift", "z_phot": "estimated redshift"}

Curves = Mapping[str, tuple[np.ndarray, dict[str, list[Estimate]]]]  # by z_true and z_phot: edges, bins of each arm


def groups(arms: Collection[str]) -> dict[str, list[str]]:
    """{title: arms} of figures: the representatives, and each arm beside itself trained by weights."""
    found = {"one arm of each family": [arm for arm in REPRESENTATIVES if arm in arms]}
    pairs = [arm for arm in arms if f"{arm}+weights" in arms]
    found |= {f"{arm} with and without weights": [arm, f"{arm}+weights"] for arm in pairs}
    return {title: own for title, own in found.items() if own}


def score_picture(scores: Scores) -> Picture:
    """Every arm's metrics, on a few subsets side by side."""
    subsets = [name for name in SUBSETS if name in scores]
    drawn = plots.png(score_figure({name: scores[name] for name in subsets}))
    caption = (
        f"Left of the dashed line, that of {BASELINE} on the same test objects, is better; for the bias, whose axis is "
        f"linear up to {LINEAR}, nearer to 0."
    )
    return Picture("Scores", f"Every arm on {', '.join(subsets)}", caption, drawn)


@plots.styled
def score_figure(scores: Scores) -> Figure:
    """A panel a metric, a row an arm, a colour a subset."""
    arms = list(next(iter(scores.values())))
    drawn = plots.new_figure(10.2, 1.4 + 0.28 * len(arms))
    axes = drawn.subplots(1, len(SCORED), sharey=True)
    colours = plots.arm_colours(list(scores))
    for axis, metric in zip(axes, SCORED, strict=True):
        for n, (subset, own) in enumerate(scores.items()):
            value, error = (np.array([getattr(own[arm][metric], what) for arm in arms]) for what in ("value", "error"))
            rows = np.arange(len(arms)) + 0.2 * (n - (len(scores) - 1) / 2)
            axis.errorbar(value, rows, xerr=error, fmt="o", ms=4, color=colours[subset], label=plots.plain(subset))
            if BASELINE in arms:
                axis.axvline(value[arms.index(BASELINE)], color=colours[subset], lw=0.8, ls="--")
        if all(own[arm][metric].value > 0 for own in scores.values() for arm in arms):
            axis.set_xscale("log")
            axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
            axis.xaxis.set(minor_locator=NullLocator())
        else:  # a bias may be large in one arm, and is small in most
            axis.set_xscale("symlog", linthresh=LINEAR)
            axis.margins(x=0.05)
            axis.axvline(0, color="#999999", lw=0.8)
            axis.set_xticks([-0.1, -0.01, 0, 0.01, 0.1])
            axis.xaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
        axis.tick_params("x", labelsize=8)  # there may be many
        axis.set_xlabel(metric)
        for row in range(0, len(arms), 2):  # leads the eye to the name
            axis.axhspan(row - 0.5, row + 0.5, color="#f3f5f7", lw=0, zorder=0)
        axis.set_ylim(len(arms) - 0.5, -0.5)
    axes[0].set_yticks(np.arange(len(arms)), [plots.plain(arm) for arm in arms])
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(scores))
    return drawn


def residual_pictures(curves: Curves) -> Iterator[Picture]:
    caption = (
        "E[e | z_true] and E[e | z_phot], e = (z_phot - z_true) / (1 + z_true), bins of 25 objects and more. Left: "
        "how far objects of a redshift are moved; right: how far a catalogue's redshift is off."
    )
    for title, arms in groups(curves["z_true"][1]).items():
        shown = {by: (edges, {arm: bins[arm] for arm in arms}) for by, (edges, bins) in curves.items()}
        title = f"Mean residual given the true, and given the estimated redshift, of every test object: {title}"
        yield Picture("Residuals", title, caption, plots.png(residual_figure(shown)))


@plots.styled
def residual_figure(curves: Curves) -> Figure:
    """A panel for each of z_true and z_phot, a line for each arm."""
    drawn = plots.new_figure(10.2, 4.6)
    axes = drawn.subplots(1, len(curves), sharey=True)
    for axis, (by, (edges, arms)) in zip(axes, curves.items(), strict=True):
        middle, own = (edges[1:] + edges[:-1]) / 2, plots.arm_colours(list(arms))
        for n, (arm, bins) in enumerate(arms.items()):
            mean, error = (np.array([getattr(b, what) for b in bins]) for what in ("value", "error"))
            beside = (n - (len(arms) - 1) / 2) * 0.08 * (edges[1] - edges[0])  # so that no bar hides another
            style = dict(color=own[arm], marker=plots.MARKERS[n % len(plots.MARKERS)], ls=plots.dashes(n), ms=4, lw=1.2)
            axis.errorbar(middle + beside, mean, error, label=plots.plain(arm), **style)
        axis.axhline(0, color="#555555", lw=0.8)
        axis.set_xlabel(AXES[by])
    axes[0].set_ylabel("mean of e")
    axes[0].legend(ncols=2, fontsize=8)
    return drawn


def calibration_pictures(predicted: Mapping[str, Sequence[Columns]], subset: Subset) -> Iterator[Picture]:
    """PIT of every test object, of the first seed."""
    caption = "A hill: p(z) too wide; a bowl: too narrow; a slope: biased. The band holds 95 % of perfect samples."
    for title, arms in groups(predicted).items():
        pit = {arm: predicted[arm][0]["pit"][subset.rows] for arm in arms}
        drawn = plots.png(plots.calibration(pit, plots.arm_colours(arms)))
        yield Picture("Calibration", f"PIT of every test object, first seed: {title}", caption, drawn)


def learning_pictures(runs: Mapping[str, report_data.Run]) -> Iterator[Picture]:
    """runs: {arm: its run of the first seed}, of which the representatives, and what they begin from, are shown."""
    wanted = {one.path.resolve() for arm in REPRESENTATIVES if arm in runs for one in (runs[arm], *runs[arm].parents)}
    logged = {
        arm: (run.steps, run.losses) for arm, run in runs.items() if run.path.resolve() in wanted and len(run.steps) > 1
    }
    if logged:
        drawn = plots.png(plots.loss_curves(logged, plots.arm_colours(list(logged))))
        caption = "Pale: as logged; line: running mean. Losses of different objectives do not compare."
        yield Picture("Learning curves", "Training loss, first seed: one arm of each family", caption, drawn)
