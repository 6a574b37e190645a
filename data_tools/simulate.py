"""Make a synthetic survey with images, missing bands and a realistic choice of spectroscopic redshifts.

    python -m data_tools.simulate DATASET --samples 20000 --size 32 --seed 0

--sky survey adds what real surveys have: stars, active nuclei, blends, seeing and depth that vary, correlated noise,
errors of zero points and wrong redshifts; --selection chooses who has a spectrum (docs/simulation.md). The same command
finishes an interrupted dataset. What is made depends on the arguments alone, not on --workers.
"""

import argparse
import dataclasses
import importlib.metadata
import math
import os
import signal
from pathlib import Path

import jax
import numpy as np

from data_tools import splits
from data_tools.simulator import bands, photometry, population, render, sources, spectroscopy, survey
from data_tools.simulator import sky as skies
from jaxz.data.manifest import Band, Manifest
from jaxz.data.writer import ENCODINGS, DatasetWriter, encoding_plan, with_images
from jaxz.errors import InputError, run
from jaxz.progress import Pool

CELL_ORDER = 9  # HEALPix: cells of 7 arcmin
SKY = {"sky": "ideal", "selection": "S2"}  # plans of these say nothing of them, as those from before
PACKAGES = ("jaxz", "jax", "numpy", "astropy", "speclite")


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="directory to write")
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--size", type=int, default=32, help="pixels a side, of 0.2 arcsec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sky", choices=skies.SKIES, default="ideal", help="what is between an object and its stamp")
    parser.add_argument("--selection", choices=spectroscopy.SELECTIONS, default="S2", help="who has a spectrum")
    parser.add_argument("--samples_per_shard", type=int, default=1000)
    parser.add_argument("--encoding", choices=ENCODINGS, default="raw", help="of the images (default raw)")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    args = parser.parse_args(argv)
    validate(args)

    plan = {name: getattr(args, name) for name in ("samples", "size", "seed", "samples_per_shard")}
    plan |= encoding_plan(args.encoding)
    plan |= {name: value for name, default in SKY.items() if (value := getattr(args, name)) != default}
    writer = DatasetWriter(args.dataset, make_manifest(plan), {"tool": "simulate", **plan})
    if writer.complete:
        print(f"{args.dataset} is complete: {args.samples} samples; nothing to do")
        return None
    split, summary = make_splits(plan)
    shards = -(-args.samples // args.samples_per_shard)
    step = args.samples_per_shard
    jobs = [(writer, plan, split[n * step : (n + 1) * step], n) for n in range(shards) if not writer.done(n)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    with Pool(args.workers, _start_worker) as pool:
        pool.map(write_shard, jobs, "shards")
    writer.finish(shards, summary)
    print(f"{args.dataset}: {args.samples} samples in {shards} shards")
    return None


def validate(args: argparse.Namespace) -> None:
    """Raises InputError."""
    for name in ("samples", "samples_per_shard", "workers"):
        if (value := getattr(args, name)) < 1:
            raise InputError(f"{name}: {value} must be at least 1")
    if not 16 <= args.size <= 256 or args.size % 4:  # larger cutouts would need larger cells
        near = min(max(16, args.size // 4 * 4), 256)
        raise InputError(f"size: {args.size} must be a multiple of 4 from 16 to 256; try {near}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"seed: {args.seed} must lie in 0 .. 2^63 - 1")


def make_manifest(plan: dict) -> Manifest:
    """The manifest of a survey; plan: {samples, size, seed, samples_per_shard} and, where they are not the default,
    encoding, sky and selection."""
    options = SKY | plan
    plain = skies.is_plain(options["sky"], options["selection"])
    if plain:
        listed, seen = bands.manifest_bands(), dict[str, dict]()
    else:
        listed, seen = sky_bands(options["seed"], options["sky"], options["selection"])
    arguments = " ".join(f"--{name} {value}" for name, value in plan.items())
    encoding = plan.get("encoding", "raw")
    manifest = Manifest(
        arrays={"image": survey.image_array(plan["size"], ENCODINGS[encoding])},
        bands=listed,
        columns=survey.column_specs(plain),
        provenance={
            "tool": "data_tools.simulate",
            "command": f"python -m data_tools.simulate DATASET {arguments}",
            "versions": {name: _version(name) for name in PACKAGES},
            "flux_kind": "aperture",
            **seen,
        },
    )
    return with_images(manifest, encoding)


def sky_bands(seed: int, sky: str, selection: str) -> tuple[tuple[Band, ...], dict]:
    """The bands with their tiles' median PSF and depth, and what the provenance says of their noise."""
    tiles = skies.tiles(seed, sky, selection)
    fwhm, sigma = np.median(tiles.psf_fwhm, 0), np.median(tiles.sky_sigma, 0)
    described = [
        dataclasses.replace(band, psf_fwhm_arcsec=round(float(f), 4), sky_sigma=round(float(s), 4))
        for band, f, s in zip(bands.manifest_bands(), fwhm, sigma, strict=True)
    ]
    correlation = render.CORRELATION if sky == "survey" else 0.0
    psf, aperture = fwhm / bands.FWHM_PER_SIGMA / bands.PIXEL_SCALE, survey.APERTURE_SIGMA / bands.PIXEL_SCALE
    ratio = photometry.aperture_to_pixel_noise(psf, aperture, correlation)
    noise = {band.name: {"aperture_to_pixel_noise": float(r)} for band, r in zip(described, ratio, strict=True)}
    return tuple(described), {"bands": noise}


def make_splits(plan: dict) -> tuple[np.ndarray, dict]:
    """The split of every object [N] and what the manifest says about splits."""
    _, ra, dec = population.positions(plan["seed"], 0, plan["samples"])
    gap_px = plan["size"] * math.sqrt(2)  # the diagonal of a cutout
    split, _ = splits.assign_splits(
        ra, dec, gap_arcsec=gap_px * bands.PIXEL_SCALE, order=CELL_ORDER, seed=plan["seed"], balanced=True
    )
    counts = {str(name): int(count) for name, count in zip(*np.unique(split, return_counts=True), strict=True)}
    rule = {
        "rule": "balanced",
        "healpix_order": CELL_ORDER,
        "gap_px": gap_px,
        "fractions": splits.FRACTIONS,
        "seed": plan["seed"],
    }
    return split, {"counts": counts, **rule}


def write_shard(writer: DatasetWriter, plan: dict, split: np.ndarray, n: int) -> None:
    """Make and write shard `n`; split: that of its objects."""
    seed, size, sky, selection = ((SKY | plan)[name] for name in ("seed", "size", "sky", "selection"))
    first, count = n * plan["samples_per_shard"], len(split)
    make = sources.sources if sky == "survey" else population.galaxies
    galaxies = make(seed, first, count)
    over = skies.over(galaxies, seed, first, size, sky, selection)
    seen = survey.observe(galaxies, seed, first, size, writer.manifest.arrays["image"].dtype, sky=over)
    spectra = spectroscopy.observe(galaxies, seen.mag_ref, seed, first, selection, errors=sky == "survey")
    keys = [f"{i:09d}" for i in range(first, first + count)]
    writer.write_shard(n, keys, {"image": seen.image}, survey.columns(galaxies, seen, spectra, first, split, over))


def _start_worker() -> None:
    jax.config.update("jax_platforms", "cpu")  # an accelerator has one owner, and its sums another order


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


if __name__ == "__main__":
    run(main, resumes=True)
