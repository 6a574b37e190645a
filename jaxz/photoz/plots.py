"""Figures of photometric redshifts, from arrays. Every function returns a matplotlib Figure without global state.

`arms` is a dict {name: arrays}; give the same `colours` (from `arm_colours`) to every figure of a page.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from jaxz.photoz.binned import binned_metrics
from jaxz.photoz.metrics import main_metrics, pit_ks, residuals
from jaxz.photoz.pdf import PDF

# Okabe & Ito's colours, told apart by colour-blind readers; the yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"
styled = matplotlib.rc_context(  # as a decorator: the reader's own settings stay as they are
    {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#555555",
        "axes.labelcolor": "#222222",
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "figure.constrained_layout.h_pad": 0.05,
    }
)
TREND_ROWS = (("bias_median", "median bias"), ("sigma_mad", r"$\sigma_{\rm MAD}$"), ("eta_15", r"$\eta_{0.15}$"))


def arm_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour for each arm, in order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def dashes(number: int) -> str:
    """The style of an arm's line, by its place: of those that share a colour each has its own."""
    return ("-", "--", ":", "-.")[number // len(COLOURS) % 4]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@styled
def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi)
    return sink.getvalue()


def plain(name: str) -> str:
    """A name as it stands: matplotlib would take dollar signs for mathematics."""
    return name.replace("$", r"\$")


def limits(*samples: np.ndarray) -> tuple[float, float]:
    """A common redshift range: 0 (or below) to a little past the 99.8th percentile of every sample."""
    high = max(np.percentile(z, 99.8) for z in samples if len(z))
    return min(0.0, *(float(np.min(z)) for z in samples if len(z))), 1.05 * float(high)


@styled
def density(arms: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: Mapping[str, str]) -> Figure:
    """z_phot against z_true as a log density, with the strip of e below. arms: {name: (z_phot [N], z_true [N])}.

    Solid: one to one; dashed: |e| = 0.15, past which a redshift is an outlier.
    """
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    side = 9.6 / max(columns, 3)
    figure = new_figure(side * columns + 0.9, rows * side * 1.42 + 0.2)
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1.15] * rows)
    low, high = limits(*(z for pair in arms.values() for z in pair))
    edges, ruler = np.linspace(low, high, 90), np.array([low, high])
    pictures = []
    for place in range(rows * columns):
        above, below = axes[2 * (place // columns), place % columns], axes[2 * (place // columns) + 1, place % columns]
        if place >= len(arms):
            above.remove(), below.remove()
            continue
        name, (z_phot, z_true) = list(arms.items())[place]
        strip = np.linspace(-0.35, 0.35, 36)
        pictures.append(above.hist2d(z_true, z_phot, [edges, edges], cmin=1, cmap="viridis_r")[3])
        e = np.clip(residuals(z_phot, z_true), -0.349, 0.349)
        pictures.append(below.hist2d(z_true, e, [edges, strip], cmin=1, cmap="viridis_r")[3])
        for slope, style in ((0, "-"), (0.15, "--"), (-0.15, "--")):
            above.plot(ruler, ruler + slope * (1 + ruler), style, color="#222222", lw=0.9)
            below.plot(ruler, [slope, slope], style, color="#222222", lw=0.9)
        above.set(xlim=(low, high), ylim=(low, high), xticklabels=[])
        above.set_title(plain(name), color=colours[name])
        below.set(xlim=(low, high), ylim=(-0.35, 0.35), xlabel="true redshift")
        if place % columns == 0:
            above.set_ylabel("estimated redshift")
            below.set_ylabel(r"$e=\Delta z/(1+z)$")
    most = max([float(np.nanmax(p.get_array())) for p in pictures if p.get_array().count()], default=1.0)
    for picture in pictures:
        picture.set_norm(LogNorm(1, max(most, 2)))
    bar = figure.colorbar(pictures[0], ax=figure.axes, label="objects per cell", pad=0.01, aspect=40)
    bar.ax.yaxis.set_major_formatter(LogFormatter())
    bar.ax.yaxis.set_minor_formatter(LogFormatter())
    return figure


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """[bins+1] edges: even steps between the 0.5 and 99.5 percentiles, so that every bin is wide enough to read."""
    low, high = np.percentile(values, [0.5, 99.5])
    return np.linspace(low, high, bins + 1)


def shown_metrics(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `trends` shows of the columns z_phot and z_true [..., N]."""
    return main_metrics(columns["z_phot"], columns["z_true"])


@styled
def trends(
    arms: Mapping[str, Mapping[str, np.ndarray]], by: Mapping[str, str], colours: Mapping[str, str], bins: int = 9
) -> Figure:
    """Bias, sigma_mad and eta_15 with bootstrap errors in bins of several columns.

    arms: {name: {"z_phot": [N], "z_true": [N], every column of `by`, and, if known, "cells": [N] of the sky}}; by:
    {column: axis label}. Bins with fewer than 25 objects are left out. Top: the number of objects.
    """
    figure = new_figure(3.3 * len(by) + 0.6, 7.4)
    axes = figure.subplots(4, len(by), squeeze=False, sharex="col", height_ratios=[0.55, 1, 1, 1])
    for column, (key, label) in enumerate(by.items()):
        finite = {name: np.isfinite(arm[key]) for name, arm in arms.items()}
        edges = quantile_edges(np.concatenate([arm[key][finite[name]] for name, arm in arms.items()]), bins)
        shift = np.diff(edges)[0] * 0.07
        for number, (name, arm) in enumerate(arms.items()):
            z_phot, z_true, values = (np.asarray(arm[k])[finite[name]] for k in ("z_phot", "z_true", key))
            axes[0, column].hist(values, edges, histtype="step", color=colours[name])
            cells = arm["cells"][finite[name]] if "cells" in arm else None
            table = binned_metrics(z_phot, z_true, values, edges, cells=cells, metrics=shown_metrics)
            table = [b for b in table if b["objects"] >= 25]
            x = np.array([b["centre"] for b in table]) + shift * (number - (len(arms) - 1) / 2)
            for row, (metric, _) in enumerate(TREND_ROWS, 1):
                y, error = (np.array([b[metric][k] for b in table], float) for k in ("value", "error"))
                axes[row, column].errorbar(
                    x, y, error, color=colours[name], marker=MARKERS[number % len(MARKERS)], ms=4.5, lw=1.3,
                    elinewidth=1, capsize=0, label=plain(name),
                )  # fmt: skip
        axes[0, column].set_yscale("log")
        axes[0, column].yaxis.set_minor_formatter(NullFormatter())
        axes[1, column].axhline(0, color="#999999", lw=0.8, zorder=0)
        for row in (2, 3):
            axes[row, column].set_ylim(bottom=0)
        for axis in axes[:, column]:
            axis.grid(axis="y", color="#e6e6e6", lw=0.7)
            axis.set_axisbelow(True)
        axes[3, column].set_xlabel(label)
    for row, label in enumerate(["objects", *(label for _, label in TREND_ROWS)]):
        axes[row, 0].set_ylabel(label)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(arms), 4))

    return figure


@styled
def calibration(arms: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> Figure:
    """PIT histograms, and how far the distribution of PIT strays from uniform, with its KS distance.

    A hill in the histogram: p(z) too wide; a bowl: too narrow; a slope: biased. The band holds 95 % of perfect samples.
    arms: {name: pit [N]}.
    """
    figure = new_figure(10.2, 3.7)
    left, right = figure.subplots(1, 2)
    for number, (name, pit) in enumerate(arms.items()):
        style = dict(color=colours[name], ls=dashes(number), lw=1.5)
        left.stairs(*np.histogram(pit, 20, (0, 1), density=True), baseline=None, **style)
        levels = np.linspace(0, 1, 201)
        strays = np.searchsorted(np.sort(pit), levels, side="right") / len(pit) - levels
        right.plot(levels, strays, label=f"{plain(name)}: KS {pit_ks(pit):.3f}", **style)
    band = 1.358 / np.sqrt(min(len(pit) for pit in arms.values()))  # 95 % of Kolmogorov's distribution
    right.axhspan(-band, band, color="#dddddd", zorder=0)
    left.axhline(1, color="#999999", lw=0.8, zorder=0)
    left.set(xlabel="PIT = CDF(true redshift)", ylabel="density (1 is perfect)", xlim=(0, 1), ylim=(0, None))
    right.set(xlabel="PIT", ylabel="fraction below, minus PIT", xlim=(0, 1))
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return figure


@styled
def redshift_distribution(
    arms: Mapping[str, tuple[np.ndarray, PDF | None]], z_true: Mapping[str, np.ndarray], colours: Mapping[str, str]
) -> Figure:
    """n(z) of each arm: true (filled), the mean of its p(z) (line) and its point estimates (dotted).

    arms: {name: (z_phot [N], PDF of N or None)}; z_true: {name: [N]}.
    """
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    figure = new_figure(10.2 / max(columns, 2) * columns, 2.9 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    low, high = limits(*z_true.values(), *(z_phot for z_phot, _ in arms.values()))
    edges = np.linspace(low, high, 41)
    for axis, (name, (z_phot, pdf)) in zip(axes.ravel(), arms.items(), strict=False):
        axis.hist(z_true[name], edges, density=True, color="#d5d5d5", label="true")
        axis.hist(
            z_phot, edges, density=True, histtype="step", color="#333333", ls=":", lw=1.2, label="point estimates"
        )
        if pdf is not None:
            stack = pdf.probability.mean(axis=0, dtype=np.float64) / pdf.widths
            axis.stairs(stack, pdf.edges, color=colours[name], lw=1.6, label="mean p(z)")
        axis.set(xlim=(low, high), xlabel="redshift")
        axis.set_title(plain(name), color=colours[name])
        axis.legend(fontsize=8.5, handlelength=1.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("n(z), normalised")
    for axis in axes.ravel()[len(arms) :]:
        axis.remove()

    return figure


@styled
def pdf_gallery(
    arms: Mapping[str, PDF], z_true: np.ndarray, titles: Sequence[str], colours: Mapping[str, str]
) -> Figure:
    """p(z) of a few objects [N], a panel each, all arms in one; the dashed line is the true redshift."""
    n = len(z_true)
    columns = min(n, 4)
    rows = -(-n // columns)
    figure = new_figure(10.2, 1.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.ravel()):
        if place >= n:
            axis.remove()
            continue
        ends = [z_true[place]]
        for name, pdf in arms.items():
            one = pdf[[place]]
            axis.stairs(one.probability[0] / one.widths, one.edges, color=colours[name], lw=1.3, label=plain(name))
            ends += [one.quantile(0.05)[0], one.quantile(0.95)[0]]
        margin = 0.4 * (max(ends) - min(ends)) + 0.01
        axis.axvline(z_true[place], color="#222222", ls="--", lw=1.1)
        axis.set(xlim=(min(ends) - margin, max(ends) + margin), yticks=[], ylim=(0, None))
        axis.set_title(plain(titles[place]), fontsize=9, fontweight="normal")
        axis.spines["left"].set_visible(False)
        if place // columns == rows - 1 or place + columns >= n:
            axis.set_xlabel("redshift")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(arms), 4))

    return figure


@styled
def loss_curves(runs: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: Mapping[str, str]) -> Figure:
    """Training loss against step, a panel a run, as losses of different objectives do not compare: every logged
    step, pale, and a running mean over 2 % of the run. runs: {name: (step [S], loss [S])}."""
    columns = min(len(runs), 4)
    rows = -(-len(runs) // columns)
    figure = new_figure(10.2 / max(columns, 2) * columns, 2.6 * rows + 0.2)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, (step, loss)) in zip(axes.ravel(), runs.items(), strict=False):
        axis.plot(step, loss, color=colours[name], alpha=0.3, lw=0.8)
        span = max(1, len(loss) // 50)
        smooth = np.convolve(loss, np.ones(span) / span, mode="valid")
        axis.plot(np.convolve(step, np.ones(span) / span, mode="valid"), smooth, color=colours[name], lw=1.7)
        finite = smooth[np.isfinite(smooth)]
        if len(finite) and finite.min() > 0 and finite.max() > 20 * finite.min():
            axis.set_yscale("log")
        axis.set(xlabel="step")
        axis.set_title(plain(name), color=colours[name])
        axis.grid(axis="y", color="#e6e6e6", lw=0.7)
    for axis in axes[:, 0]:
        axis.set_ylabel("training loss")
    for axis in axes.ravel()[len(runs) :]:
        axis.remove()

    return figure


@styled
def cutout_gallery(images: np.ndarray, observed: np.ndarray, bands: Sequence[str], titles: Sequence[str]) -> Figure:
    """A row an object, a column a band: images [B, C, H, W] in stretched units, observed bool [B, C].

    Each cutout has its own grey scale, from its 1st to its 99.7th percentile; an absent band is hatched.
    """
    n, c = images.shape[:2]
    side = min(1.25, 9.4 / c)
    figure = new_figure(side * c + 1.1, side * n + 0.35)
    axes = figure.subplots(n, c, squeeze=False)
    for row in range(n):
        for column in range(c):
            axis = axes[row, column]
            seen = observed[row, column]
            show(axis, images[row, column] if seen else None, stretch(images[row, column]) if seen else (0, 1))
            if row == 0:
                axis.set_title(plain(bands[column]))
        axes[row, 0].set_ylabel(plain(titles[row]), rotation=0, ha="right", va="center", fontsize=9)

    return figure


@styled
def reconstructions(
    images: np.ndarray, reconstruction: np.ndarray, hidden: np.ndarray, observed: np.ndarray, bands: Sequence[str]
) -> Figure:
    """What a masked autoencoder was shown, what it filled in, and the original: three rows an object, a column a band.

    images, reconstruction: [B, C, H, W] in stretched units; hidden: bool, pixels the encoder did not see (blue);
    observed: bool [B, C]. Visible pixels of the middle row are the input's own; the rows share the original's greys.
    """
    n, c = images.shape[:2]
    side = min(1.05, 9.0 / c)
    filled = np.where(hidden, reconstruction, images)
    figure = new_figure(side * c + 1.0, side * (3.2 * n) + 0.3)
    axes = figure.subplots(4 * n - 1, c, squeeze=False, height_ratios=([1, 1, 1, 0.15] * n)[:-1])
    for axis in axes[3::4].ravel():  # air between objects
        axis.remove()
    for row in range(n):
        block = axes[4 * row : 4 * row + 3]
        for column in range(c):
            scale = stretch(images[row, column])
            seen = np.ma.masked_where(hidden[row, column], images[row, column])
            for axis, picture in zip(block[:, column], (seen, filled[row, column], images[row, column]), strict=True):
                show(axis, picture if observed[row, column] else None, scale)
        for axis, text in zip(block[:, 0], ("seen", "filled in", "original"), strict=True):
            axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    for axis, band in zip(axes[0], bands, strict=True):
        axis.set_title(plain(band))
    return figure


def stretch(image: np.ndarray) -> tuple[float, float]:
    """The grey scale of one band of one object."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99.7]) if len(finite) else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def show(axis: Axes, image: np.ndarray | None, scale: tuple[float, float]) -> None:
    """One small picture without ticks; masked pixels blue, an absent band (None) hatched."""
    grey = matplotlib.colormaps["gray"].with_extremes(bad="#7fb2dd")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if image is None:
        axis.set_facecolor("#f2f2f2")
        axis.patch.set(hatch="///", edgecolor="#cccccc")
        axis.set_aspect("equal", adjustable="box")
    else:
        axis.imshow(image, cmap=grey, vmin=scale[0], vmax=scale[1], origin="lower", interpolation="nearest")
