"""The page of data_tools.inspect, one HTML file: figures, and the tables that data_tools/inspect.py makes."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from jaxz.data.dataset import Dataset
from jaxz.data.manifest import Band
from jaxz.photoz.plots import COLOURS, new_figure, png, show, stretch, styled

if TYPE_CHECKING:
    from data_tools.inspect import Section

SHOWN = 12  # objects in the gallery
PATTERNS = 12  # rows of the matrix of missing bands
POINTS = 30_000  # on the map
SOFTENING = 3.0  # of the asinh, in sky sigmas (Lupton et al. 1999, AJ 118 1406)
GREY = "#b8bec6"
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; }
  body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 1180px; color: var(--ink);
         font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
  h1 { margin: 0 0 0.4rem; font-size: 1.8rem; overflow-wrap: anywhere; }
  h2 { margin: 2.2rem 0 0.7rem; padding-bottom: 0.3rem; font-size: 1.25rem; border-bottom: 1px solid var(--line); }
  .soft, figcaption { color: var(--soft); font-size: 0.88rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.28rem 1.1rem 0.28rem 0; text-align: left; vertical-align: top;
           border-bottom: 1px solid var(--line); }
  tbody th { font-weight: 500; white-space: nowrap; }
  thead th { color: var(--soft); border-bottom: 2px solid var(--ink); white-space: nowrap; }
  figure { margin: 1rem 0 1.6rem; break-inside: avoid; }
  img { display: block; max-width: 100%; height: auto; }
</style></head>
<body><h1>$title</h1><p class="soft">$subtitle</p>$body</body></html>
""")


class Picture(NamedTuple):
    title: str
    caption: str
    figure: Figure


def page(dataset: Dataset, sections: Sequence["Section"]) -> str:
    """The HTML. sections: the tables of data_tools.inspect."""
    first, *others = (table(section) for section in sections)
    figures = "".join(embed(picture) for picture in pictures(dataset))
    manifest = dataset.manifest
    return PAGE.substitute(
        title=escape(Path(dataset.path).resolve().name),
        subtitle=f"{manifest.samples:,} samples, {len(manifest.bands)} bands, {len(manifest.shards):,} shards",
        body=first + figures + "".join(others),
    )


def table(section: "Section") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in section.header)
    rows = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in section.rows
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<section><h2>{escape(section.title)}</h2><div class="wide">{body}</div></section>'


def embed(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png(picture.figure)).decode()}"
    title, caption = escape(picture.title), escape(picture.caption)
    image = f'<figure><img src="{source}" alt="{title}"><figcaption>{caption}</figcaption></figure>'
    return f"<section><h2>{title}</h2>{image}</section>"


def pictures(dataset: Dataset) -> Iterator[Picture]:
    """The figures that the dataset has the columns for."""
    names = dataset.manifest.columns
    image = dataset.manifest.arrays.get("image")
    shape = image.shape if image is not None and not image.variable else ()
    if len(dataset) and len(shape) == 3 and shape[0] == len(dataset.manifest.bands):
        caption = (
            "From bright to faint. Grey: asinh of the flux over three sky sigmas, each cutout from its 1st to its "
            "99.7th percentile; blue: bad or absent pixels; hatched: band not observed. Colour: blue, green, red are "
            "the mean flux of the bluest, middle and reddest third of the bands (of those at the commonest pixel "
            "scale), balanced over the objects shown."
        )
        yield Picture("Cutouts", caption, gallery(dataset, choose(dataset)))
    if "bands_observed" in names and len(dataset.manifest.bands) and len(dataset):
        caption = f"Which bands objects have, and how many have just these: the {PATTERNS} commonest cases."
        yield Picture("Missing bands", caption, missing_bands(dataset))
    if {"mag_ref", "z"} & set(names):
        yield Picture(
            "Magnitudes and redshifts", "Grey: all samples; blue: those with a redshift.", histograms(dataset)
        )
    for x, y in (("ra", "dec"), ("x", "y")):
        if {x, y, "split"} <= set(names):
            caption = f"Each object by its split; at most {POINTS:,} are shown. 'gap' lies too near to another split."
            yield Picture("Map of the splits", caption, sky_map(dataset, x, y))
            break


def choose(dataset: Dataset) -> np.ndarray:
    """int64 [<= SHOWN]: rows evenly over the range of mag_ref, or over the dataset where there is none."""
    magnitude = dataset.column("mag_ref") if "mag_ref" in dataset.manifest.columns else np.array([])
    rows = np.setdiff1d(np.flatnonzero(np.isfinite(magnitude)), dataset.quarantined)
    if not len(rows):
        rows = dataset.select(None)
        return rows[np.unique(np.linspace(0, len(rows) - 1, SHOWN).round().astype(int))]
    rows = rows[np.argsort(magnitude[rows], kind="stable")]
    low, high = np.percentile(magnitude[rows], [0.5, 99])
    wanted = np.linspace(low, high, SHOWN)
    return rows[np.unique(np.searchsorted(magnitude[rows], wanted).clip(0, len(rows) - 1))]


@styled
def gallery(dataset: Dataset, rows: np.ndarray) -> Figure:
    """A row an object, a column a band; colour in front where there are three bands."""
    bands = dataset.manifest.bands
    samples = [dataset.cutout(int(row)) for row in rows]
    images = np.stack([sample["image"].astype(np.float32) for sample in samples])  # [B, C, H, W]
    masks = [sample.get("image_mask", np.uint8(0)) for sample in samples]  # [C, H, W], or one for all bands or pixels
    good = np.stack([np.broadcast_to(mask == 0, images.shape[1:]) for mask in masks])
    good &= np.stack([observed(sample, len(bands)) for sample in samples])[:, :, None, None]
    sigma = np.array([band.sky_sigma for band in bands])[:, None, None]
    greys = np.ma.masked_where(~good, np.arcsinh(images / (SOFTENING * sigma)))
    mixed = one_scale(bands)
    coloured = len(mixed) >= 3
    columns = len(bands) + coloured
    side = min(1.25, 11.2 / columns)
    figure = new_figure(side * columns + 1.0, side * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    if coloured:
        axes[0, 0].set_title("colour")
        parts = (images * good)[:, mixed], good[:, mixed], [bands[b] for b in mixed]
        for axis, picture in zip(axes[:, 0], composite(*parts), strict=True):
            axis.imshow(picture, origin="lower", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for r, row in enumerate(axes[:, coloured:]):
        for c, axis in enumerate(row):
            seen = bool(good[r, c].any())
            show(axis, greys[r, c] if seen else None, stretch(greys[r, c].compressed()) if seen else (0, 1))
            if r == 0:
                axis.set_title(bands[c].name)
    for axis, sample in zip(axes[:, 0], samples, strict=True):
        axis.set_ylabel(caption(sample), rotation=0, ha="right", va="center", fontsize=8.5)
    return figure


def one_scale(bands: Sequence[Band]) -> list[int]:
    """Numbers of the bands that have the commonest pixel scale, to one part in a hundred: only these can be laid over
    one another."""
    scales = [band.pixel_scale_arcsec for band in bands]
    alike = [[n for n, other in enumerate(scales) if abs(other / scale - 1) <= 0.01] for scale in sorted(scales)]
    return max(alike, key=len)


def observed(sample: dict, bands: int) -> np.ndarray:
    """Bool [C]: the bands of a sample that bands_observed names; all where the column is missing."""
    return (sample.get("bands_observed", (1 << bands) - 1) >> np.arange(bands)) & 1 > 0


def caption(sample: dict) -> str:
    lines = [f"m = {sample['mag_ref']:.1f}"] if np.isfinite(sample.get("mag_ref", np.nan)) else [sample["key"]]
    if np.isfinite(sample.get("z", np.nan)):
        lines.append(f"z = {sample['z']:.3f}")
    return "\n".join(lines)


def composite(images: np.ndarray, good: np.ndarray, bands: Sequence[Band]) -> np.ndarray:
    """Float [B, H, W, 3] in 0..1: red, green and blue of images [B, C, H, W] (stored units, 0 where not good).

    The stretch acts on the mean of the three and keeps their ratios (Lupton et al. 2004, PASP 116 133, eq. 2).
    """
    order = np.argsort([-band.wavelength_nm for band in bands])
    ujy = np.array([band.ujy_per_unit for band in bands])
    sky = ujy * np.array([band.sky_sigma for band in bands])
    channels, noises = [], []
    for third in np.array_split(order, 3):
        weight = good[:, third] / sky[third, None, None] ** 2
        total = np.maximum(weight.sum(1), 1e-30)
        channels.append((images[:, third] * ujy[third, None, None] * weight).sum(1) / total)
        noises.append((1 / sky[third] ** 2).sum() ** -0.5)
    rgb, noise = np.stack(channels, -1), np.array(noises)
    rgb -= np.median(rgb, axis=(1, 2), keepdims=True)  # the sky
    bright = np.maximum(np.median(np.percentile(rgb, 99.7, axis=(1, 2)), axis=0), noise)  # of a typical object
    rgb = rgb * (bright[1] / bright)  # which is to look white
    soft = SOFTENING * np.max(noise * (bright[1] / bright))
    intensity = np.maximum(rgb.mean(-1, keepdims=True), 1e-30)
    top = np.maximum(np.percentile(intensity, 99.7, axis=(1, 2), keepdims=True), 2 * soft)
    return np.clip(rgb / intensity * np.arcsinh(intensity / soft) / np.arcsinh(top / soft), 0, 1)


@styled
def missing_bands(dataset: Dataset) -> Figure:
    """A row a set of bands that objects have, by how many; a column a band."""
    names = [band.name for band in dataset.manifest.bands]
    patterns, counts = np.unique(dataset.column("bands_observed"), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PATTERNS]
    there = (patterns[order][:, None] >> np.arange(len(names), dtype=patterns.dtype)) & 1
    figure = new_figure(2.6 + 0.5 * len(names), 0.9 + 0.32 * len(order))
    axis = figure.subplots()
    axis.pcolormesh(there, cmap=ListedColormap(["white", COLOURS[0]]), vmin=0, vmax=1, edgecolors=GREY, linewidth=0.6)
    axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90 if max(map(len, names)) > 3 else 0)
    shares = [f"{counts[n]:,} ({counts[n] / len(dataset):.1%})" for n in order]
    axis.set_yticks(np.arange(len(order)) + 0.5, shares)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.invert_yaxis()
    return figure


@styled
def histograms(dataset: Dataset) -> Figure:
    """mag_ref and z of all samples, and of those with a redshift."""
    texts = {"mag_ref": "reference magnitude (AB)", "z": "redshift"}
    names = [name for name in texts if name in dataset.manifest.columns]
    labelled = np.isfinite(dataset.column("z")) if "z" in names else np.zeros(len(dataset), bool)
    names = [name for name in names if np.isfinite(dataset.column(name)).any()]
    figure = new_figure(4.8 * max(len(names), 1), 3.2)
    for axis, name in zip(figure.subplots(1, max(len(names), 1), squeeze=False)[0], names, strict=False):
        values = dataset.column(name)
        finite = np.isfinite(values)
        edges = np.histogram_bin_edges(np.clip(values[finite], *np.percentile(values[finite], [0.1, 99.9])), 50)
        if name != "z":
            axis.hist(values[finite], edges, color=GREY)
        axis.hist(values[finite & labelled], edges, color=COLOURS[0], alpha=0.85)
        axis.set(xlabel=texts[name], ylabel="samples")
    return figure


@styled
def sky_map(dataset: Dataset, x: str, y: str) -> Figure:
    """Positions coloured by split: ra and dec in degrees (east to the left), or pixels of the tile."""
    rows = np.arange(len(dataset))
    if len(rows) > POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, POINTS, replace=False))
    across, up, split = (dataset.column(name)[rows] for name in (x, y, "split"))
    middle = float(np.mean(up[np.isfinite(up)])) if np.isfinite(up).any() else 0.0
    names = [name for name in np.unique(split.astype(str)) if name != "gap"]
    colours = {**dict(zip(names, COLOURS, strict=False)), "gap": GREY}
    figure = new_figure(7.2, 5.6)
    axis = figure.subplots()
    for name, colour in colours.items():
        here = split == name
        if here.any():
            axis.scatter(across[here], up[here], s=max(1.0, min(14.0, 2e4 / len(rows))), color=colour, lw=0, label=name)
    sky = x == "ra"
    axis.set(xlabel="right ascension (deg)" if sky else "x (pixel)", ylabel="declination (deg)" if sky else "y (pixel)")
    axis.set_aspect(1 / max(np.cos(np.radians(middle)), 0.1) if sky else 1, adjustable="datalim")
    if sky:
        axis.invert_xaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure
