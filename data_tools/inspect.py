"""Says what a dataset holds.

    python -m data_tools.inspect DATASET [--html FILE]

--html also writes a self-contained page: the same tables, cutouts, histograms and a map of the splits.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.agreement import flux_ratios
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import ZERO_POINT_UJY
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.progress import progress

WIDTH = 140  # of the tables where stdout is not a terminal
EXAMPLES = 3  # values shown of a text column


class Section(NamedTuple):
    """A table of text; the first column is the row's name."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.inspect", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with cutouts and figures")
    args = parser.parse_args(argv)
    if args.html is not None and (args.html.suffix != ".html" or not args.html.resolve().parent.is_dir()):
        raise InputError(f"html: {str(args.html)!r} must be a .html file in a directory that exists")
    dataset = open_dataset(args.dataset)
    sections = list(summary(dataset))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for section in sections:
        console.print(text_table(section))
    if args.html is not None:
        from data_tools.inspect_page import page  # matplotlib takes a second to import

        replace(args.html, page(dataset, sections).encode())
        print(args.html)
    return None


def text_table(section: Section) -> Table:
    """As rich's table; Text keeps brackets, of units such as [uJy], from being read as markup."""
    table = Table(title=Text(section.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in section.header:
        table.add_column(Text(name), overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table


def summary(dataset: Dataset) -> Iterator[Section]:
    """The tables, in the order in which they are shown. Reads every column of the index, one at a time."""
    yield overview(dataset)
    yield arrays(dataset)
    if dataset.manifest.bands:
        yield bands(dataset)
    if "split" in dataset.manifest.columns:
        yield splits(dataset)
    if "z_kind" in dataset.manifest.columns:
        yield labels(dataset)
    yield columns(dataset)


def overview(dataset: Dataset) -> Section:
    manifest = dataset.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    made = manifest.provenance
    rows = [
        ("dataset", str(dataset.path)),
        ("samples", f"{manifest.samples:,}"),
        ("quarantined", f"{len(dataset.quarantined):,}"),
        ("shards", f"{len(manifest.shards):,}"),
        ("bytes", f"{size:,} ({size / 1e9:.3g} GB), {size / max(manifest.samples, 1) / 1e3:.3g} kB a sample"),
        *((kind, ", ".join(names)) for kind, names in beside(dataset).items() if names),
        ("schema", str(manifest.schema_version)),
        ("made by", str(made.get("tool", "not recorded"))),
    ]
    return Section("Dataset", ("", "value"), rows)


def beside(dataset: Dataset) -> dict[str, list[str]]:
    """The names of a local dataset's overlays and layers."""
    if isinstance(dataset.path, str):
        return {}
    overlays = sorted(path.stem for path in dataset.path.glob("overlays/*.parquet"))
    return {"overlays": overlays, "layers": sorted(p.parent.name for p in dataset.path.glob("layers/*/dataset.json"))}


def arrays(dataset: Dataset) -> Section:
    rows = []
    for name, array in dataset.manifest.arrays.items():
        shape = " x ".join(f"up to {array.max}" if n is None else str(n) for n in array.shape)
        bits = ", ".join(f"{bit} {value}" for bit, value in (array.bits or {}).items())
        note = f"bits: {bits}" if bits else array.unit
        rows.append((name, array.kind, array.dtype, shape, array.encoding, f"{array.nbytes:,}", note))
    return Section("Arrays", ("name", "kind", "dtype", "shape", "encoding", "bytes", "unit or bits"), rows)


def bands(dataset: Dataset) -> Section:
    """The filters, the share of objects that have them, and the depth of the catalogue's fluxes."""
    header = (
        "band",
        "wavelength nm",
        "width nm",
        "zero point AB",
        "arcsec/pixel",
        "A/E(B-V)",
        "sky sigma",
        "PSF arcsec",
    )
    observed = dataset.column("bands_observed") if "bands_observed" in dataset.manifest.columns else None
    ratios = flux_ratios(dataset)
    rows = []
    for b, band in enumerate(dataset.manifest.bands):
        share = "" if observed is None else f"{np.mean((observed >> b) & 1):.1%}"
        numbers = [band.wavelength_nm, band.width_nm, band.zero_point_ab, band.pixel_scale_arcsec, band.a_over_ebv]
        numbers += [band.sky_sigma, band.psf_fwhm_arcsec]
        ratio = f"{ratios[band.name]:.3g}" if band.name in ratios else ""
        rows.append((band.name, *(f"{x:.5g}" for x in numbers), share, depth(dataset, band.name), ratio))
    return Section("Bands", (*header, "observed", "5 sigma depth AB", "catalogue / aperture flux"), rows)


def depth(dataset: Dataset, band: str) -> str:
    """The AB magnitude of five times the median flux error."""
    if f"fluxerr_{band}" not in dataset.manifest.columns:
        return ""
    errors = dataset.column(f"fluxerr_{band}")
    errors = errors[np.isfinite(errors) & (errors > 0)]
    return f"{ZERO_POINT_UJY - 2.5 * np.log10(5 * np.median(errors)):.2f}" if len(errors) else ""


def splits(dataset: Dataset) -> Section:
    names = dataset.column("split").astype(str)
    labelled = np.isfinite(dataset.column("z")) if "z" in dataset.manifest.columns else np.zeros(len(names), bool)
    rows = [
        (
            str(name),
            f"{np.sum(names == name):,}",
            f"{np.mean(names == name):.1%}",
            f"{np.sum(labelled[names == name]):,}",
        )
        for name in np.unique(names)
    ]
    return Section("Splits", ("split", "samples", "share", "with a redshift"), rows)


def labels(dataset: Dataset) -> Section:
    """How many redshifts of each kind and quality there are, and their range."""
    kinds = dataset.column("z_kind").astype(str)
    z = dataset.column("z") if "z" in dataset.manifest.columns else np.full(len(kinds), np.nan)
    has_quality = "z_quality" in dataset.manifest.columns
    quality = dataset.column("z_quality") if has_quality else np.zeros(len(kinds), int)
    rows = []
    for kind in np.unique(kinds):
        for value in np.unique(quality[kinds == kind]):
            same = np.isnan(quality) if np.isnan(value) else quality == value
            rows.append(label_row(str(kind), f"{value:g}" if has_quality else "", z[(kinds == kind) & same]))
    return Section("Redshift labels", ("kind", "quality", "samples", "lowest z", "median z", "highest z"), rows)


def label_row(kind: str, quality: str, z: np.ndarray) -> tuple[str, ...]:
    finite = z[np.isfinite(z)]
    numbers = [f"{x:.4g}" for x in (finite.min(), np.median(finite), finite.max())] if len(finite) else ["", "", ""]
    return (kind, quality, f"{len(z):,}", *numbers)


def columns(dataset: Dataset) -> Section:
    rows = []
    names = list(dataset.manifest.columns)
    for name in progress(names, len(names), "columns"):
        spec = dataset.manifest.columns[name]
        rows.append((name, spec.dtype, spec.unit, *spread(dataset.arrow(columns=[name])[name]), spec.description))
    return Section("Columns", ("column", "dtype", "unit", "known", "lowest", "median", "highest", "description"), rows)


def spread(values: pa.ChunkedArray) -> tuple[str, str, str, str]:
    """The share of rows with a value, and the range; of text, how many values there are and some of them."""
    if pa.types.is_string(values.type):
        unique = pc.unique(values).drop_null()
        shown = ", ".join(sorted(unique.to_pylist()[:EXAMPLES]))
        return f"{1 - values.null_count / max(len(values), 1):.1%}", f"{len(unique):,} values", shown[:40], ""
    numbers = values.to_numpy().astype(float)
    finite = numbers[np.isfinite(numbers)]
    known = f"{len(finite) / max(len(numbers), 1):.1%}"
    if not len(finite):
        return known, "", "", ""
    if pa.types.is_integer(values.type):
        low, high = (str(v.as_py()) for v in pc.min_max(values).values())
        return known, low, f"{np.median(finite):.10g}", high
    return known, f"{finite.min():.6g}", f"{np.median(finite):.6g}", f"{finite.max():.6g}"


if __name__ == "__main__":
    run(main)
