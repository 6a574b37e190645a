"""Catalogue and image tiles -> dataset of multi-band cutouts.

    python -m data_tools.convert --survey SURVEY [--catalog CATALOG] --images DIR --out DATASET

Without a catalogue the sources are detected. Several jobs share the work with --part 1/4, --part 2/4 ..., and --merge
ends it. docs/adding_a_survey.md explains the survey file, docs/dataset_format.md what is written. An interrupted
conversion goes on when the same command is given again.
"""

import argparse
import dataclasses
import json
import math
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.utils.exceptions import AstropyWarning

from data_tools import stamps
from data_tools.agreement import disagreements, flux_ratios
from data_tools.catalogs.catalog import COLUMNS, Catalog, open_catalog
from data_tools.catalogs.labels import REDSHIFTS, not_redshifts
from data_tools.catalogs.spec import Match
from data_tools.cutting import Job, cut_plane, share, typical_sigma, write_shard
from data_tools.inputs import check_begun, check_out, check_space, identity, input_paths, inputs, unmatched, versions
from data_tools.measure import detect, measure_sky
from data_tools.outline import count_splits, estimate, least_cell_arcmin, make_manifest, policy, split_problem
from data_tools.places import Places, good_maps
from data_tools.plan import Facts, Plan, make_plan, publish, scratch, tile_pairs
from data_tools.planes import read_band
from data_tools.splits import GAP, healpix_order
from data_tools.survey import Detection, Survey, load_survey, survey_path
from data_tools.tiles import Grid, Tile, find_tiles, to_sky
from jaxz.data.dataset import open_dataset
from jaxz.data.index import read_index
from jaxz.data.manifest import Column, Manifest
from jaxz.data.writer import ENCODINGS, DatasetWriter
from jaxz.errors import InputError, run
from jaxz.progress import Pool, in_threads, progress

SKY = ("ra", "dec")
CHUNK = 500_000  # rows of the catalogue


def main(argv: list[str]) -> int | None:
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # of headers that it mends; what it cannot read is an error
        summary = convert(args)
    print(json.dumps(summary, indent=1))
    return None


def convert(args: argparse.Namespace) -> dict:
    """Do all that the command line asks for, and say what was done."""
    began = time.monotonic()
    survey = load_survey(args.survey)
    if args.match is None and survey.match is not None and survey.match.file:
        args.match = Path(survey.match.file)
    if args.match is not None and args.catalog is None:
        raise InputError(
            f"match: {str(args.match)!r} is matched to a catalogue's objects, and none is given; convert without it, "
            "then add its redshifts with data_tools.relabel --match"
        )
    if not args.dry_run:
        check_out(args.out)
    catalog: Catalog | None = None
    if survey.stamped:
        catalog = read_catalog(survey, args)
        tiles = stamps.groups(survey, objects_in(catalog))
    else:
        tiles = find_tiles(survey, args.images)
        check_size(args.size, survey, tiles)
    paths = input_paths(survey, args, tiles)
    others = {} if survey.stamped else count_unmatched(args.images, paths)
    read = inputs(paths)
    plan_of = identity(args, read)
    if not args.dry_run:
        check_begun(args.out, plan_of)
        if (args.out / "dataset.json").exists():
            shutil.rmtree(args.out / "work", ignore_errors=True)  # what a kill at the very end left
            print(f"{args.out} is complete already", file=sys.stderr)
            return summary_of(args, Manifest.load(args.out), tiles) | others
    work = args.out / "work"
    made = work if (work / "plan.json").exists() and not args.dry_run else scratch(args.out)
    try:
        if made == work:
            plan = Plan.load(work)
        else:
            plan = plan_work(made, survey, args, tiles, catalog or find_objects(survey, args))
        for name, number in plan.invalid.items():
            if name in REDSHIFTS and number:
                print(not_redshifts(name, number), file=sys.stderr)
        placed = {*pq.read_schema(made / "objects" / "00000.parquet").names}
        manifest = make_manifest(survey, plan, placed, args)
        expected, dealt = estimate(manifest, plan, tiles), count_splits(made, plan, survey)
        if problem := split_problem(dealt, survey, args.size):
            print(problem, file=sys.stderr)
        if args.dry_run:
            told = {"out": str(args.out), "dry_run": True, "dropped": plan.dropped, "invalid": plan.invalid}
            return expected | dealt | told | {"catalog": plan.choices} | others
        fix = "choose another disk, fewer tiles_per_block or encoding=compact"
        check_space(args.out, expected["bytes"] + expected["work_bytes"], fix, expected["files"])
        manifest = dataclasses.replace(manifest, provenance=provenance(survey, args, read, plan))
        writer = DatasetWriter(args.out, manifest, plan_of)
        if made != work:
            publish(made, work)
    finally:
        if made != work:
            shutil.rmtree(made, ignore_errors=True)
    # A WCS loses digits on its way to a process.
    bare = [dataclasses.replace(tile, grid=Grid(tile.grid.shape, None)) for tile in tiles]
    job = Job(
        survey, args.images, work, bare, args.size, args.samples_per_shard, ENCODINGS[args.encoding], plan.sigma_ujy,
        args.images.resolve().name,
    )  # fmt: skip
    if not args.merge:
        with Pool(args.workers, partial(share, job)) as pool:
            cut_blocks(job, plan, writer, pool, args.part)
        if args.part != (1, 1):
            done = sum(writer.done(n) for n in range(plan.shards))
            return {"out": str(args.out), "part": "{}/{}".format(*args.part), "shards": [done, plan.shards]}
    summary = finish(job, plan, writer, args) | others
    print(f"{summary['samples']} cutouts in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return summary


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_tools.convert", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--survey", required=True, help="TOML file that describes the survey, or the name of a built-in one"
    )
    parser.add_argument("--catalog", type=Path, help="table of the objects; without it sources are detected")
    parser.add_argument("--match", type=Path, help="catalogue of redshifts to take from by position")
    parser.add_argument("--images", required=True, type=Path, help="folder of the tiles")
    parser.add_argument("--out", required=True, type=Path, help="dataset to write")
    parser.add_argument("--size", type=int, default=64, help="side of a cutout in pixels, even (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="default 1000")
    parser.add_argument("--tiles_per_block", type=int, default=16, help="whose objects are shuffled (default 16)")
    parser.add_argument("--encoding", choices=ENCODINGS, default="raw", help="of the images (default raw)")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="do only the I-th of N parts")
    parser.add_argument("--merge", action="store_true", help="all parts are done: write dataset.json")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    args = parser.parse_args(argv)
    args.survey = str(survey_path(args.survey))
    if args.size < 2 or args.size % 2:
        raise InputError(f"size: {args.size} must be even and at least 2; the centre is pixel size / 2")
    for name in ("workers", "samples_per_shard", "tiles_per_block"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}: {getattr(args, name)} must be at least 1")
    if args.merge and args.part != (1, 1):
        raise InputError("merge: is given with part; merge once, after the parts")
    return args


def part(text: str) -> tuple[int, int]:
    """(I, N) of "I/N"."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"part: {text!r} must be I/N with I from 1 to N, such as 2/4")
    return int(number), int(count)


def check_size(size: int, survey: Survey, tiles: list[Tile]) -> None:
    """Raises InputError for cutouts that do not fit the tiles or, with the gap around them, the cells of the splits."""
    height, width = np.max([tile.grid.shape for tile in tiles], 0)
    if size > min(height, width):
        raise InputError(
            f"size: {size} is larger than the tile, {[int(height), int(width)]} pixels; give a smaller size"
        )
    needed = least_cell_arcmin(size, survey)
    if survey.splits.cell_arcmin < needed:
        cell = survey.splits.cell_arcmin
        raise InputError(
            f"splits.cell_arcmin: {cell} is too small for cutouts of {size} pixels of {survey.coarsest_arcsec:g} "
            f"arcsec; use at least {needed:.3g}"
        )


def count_unmatched(images: Path, paths: dict[str, Path]) -> dict[str, int]:
    """Of the summary: how many FITS files of the folder are not read. Says which the first is."""
    if others := unmatched(images, paths):
        print(f"{len(others)} FITS files fit no band's pattern and are not read, first: {others[0]}", file=sys.stderr)
    return {"unmatched_files": len(others)}


def plan_work(
    made: Path, survey: Survey, args: argparse.Namespace, tiles: list[Tile], objects: Catalog | Detection
) -> Plan:
    """Measure the bands' sky, read the catalogue or detect the sources, and write the plan to an empty directory."""
    places: Places | stamps.Placed
    if survey.stamped and isinstance(objects, Catalog):
        names = stamps.names_of(next(objects.chunks()))
        measure = partial(stamps.typical_sigma, survey, args.images, names)
        places = stamps.Placed(survey, objects_in(objects), args.size, "ra" in objects.columns)
    else:
        measure = partial(typical_sigma, survey, args.images, tiles)
        among = objects.band if isinstance(objects, Detection) else ""
        by_sky = isinstance(objects, Detection) or "ra" in objects.columns
        maps = good_maps(survey, args.images, tiles, args.size, among, args.workers) if by_sky else {}
        places = Places(tiles, survey, args.size, maps, among)
    sigmas = in_threads(measure, survey.bands, args.workers, "bands")
    facts: Callable[[], Facts]
    if isinstance(objects, Detection):
        chunks = detected(survey, objects, args.images, tiles, args.workers)
        known = {name: COLUMNS[name] for name in ("ra", "dec", "x", "y", "z", "z_err", "z_kind")}
        known["object_id"] = Column("int64", "", "number of the detection")
        facts = lambda: ({name: column for name, column in known.items() if places.sky or name not in SKY}, {}, {})
    else:
        chunks, facts = objects.chunks(CHUNK), lambda: (objects.columns, objects.invalid, objects.choices)
        if objects.rows is not None:
            chunks = progress(chunks, math.ceil(objects.rows / CHUNK), "catalogue")
    return make_plan(
        made, chunks, survey, tiles, places.place, samples_per_shard=args.samples_per_shard,
        tiles_per_block=args.tiles_per_block, size=args.size, finish=facts,
        sigma_ujy={band.name: sigma for band, sigma in zip(survey.bands, sigmas, strict=True)},
    )  # fmt: skip


def find_objects(survey: Survey, args: argparse.Namespace) -> Catalog | Detection:
    """The catalogue, opened, or how the sources are detected without one. Raises InputError."""
    if args.catalog is None and survey.detection is not None:
        return survey.detection
    return read_catalog(survey, args)


def read_catalog(survey: Survey, args: argparse.Namespace) -> Catalog:
    """The catalogue, opened. Raises InputError."""
    if args.catalog is None:
        raise InputError(f"catalog: none given, and {args.survey!r} has no [detection] section; give one of the two")
    if survey.catalog is None:
        raise InputError(f"catalog: {args.survey!r} has no [catalog] section; add one that names the columns")
    if not args.catalog.exists():
        raise InputError(f"catalog: {str(args.catalog)!r} is not there; check the path")
    match = dataclasses.replace(survey.match or Match(), file=str(args.match)) if args.match else None
    return open_catalog(args.catalog, survey.catalog, match=match, say=lambda text: print(text, file=sys.stderr))


def objects_in(catalog: Catalog) -> int:
    return catalog.rows if catalog.rows is not None else sum(len(chunk["object_id"]) for chunk in catalog.chunks())


def detected(
    survey: Survey, detection: Detection, images: Path, tiles: list[Tile], workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """The sources of each tile in the detection's band, as columns; of those on several tiles, one is kept."""
    band = survey.bands[survey.band_number(detection.band)]
    holding = [tile for tile in tiles if band.name in tile.files]

    def find(tile: Tile) -> np.ndarray:
        pixels, flags, _ = read_band(survey, images, tile, band)
        where = f"bands.{band.name}.file: {str(tile.files[band.name])!r}"
        try:
            sky = measure_sky(pixels, flags, survey.photometry.background_box_px, where)
            return detect(pixels, flags, sky, detection, survey.pixel_scale_arcsec)
        except InputError as error:  # of one tile of many, blank or without a source
            if len(holding) == 1:
                raise
            print(f"{tile.name}: no source ({error})", file=sys.stderr)
            return np.empty((0, 2))

    first = 0
    for tile, found in zip(holding, in_threads(find, holding, workers, "detection"), strict=True):
        (x, y), number = found.T, tiles.index(tile)
        unknown = np.full(len(x), np.nan, np.float32)
        yield {
            "object_id": np.arange(first, first + len(x), dtype=np.int64), "x": x, "y": y,
            "tile": np.full(len(x), tile.name), "detected_in": np.full(len(x), number), **to_sky(tile.grid, x, y),
            "z": unknown, "z_err": unknown, "z_kind": np.full(len(x), "none"),
        }  # fmt: skip
        first += len(x)


def provenance(survey: Survey, args: argparse.Namespace, read: list[dict], plan: Plan) -> dict:
    told = ("survey", "catalog", "match", "images", "size", "samples_per_shard", "tiles_per_block", "encoding")
    arguments = {name: value if isinstance(value := getattr(args, name), int) else str(value) for name in told}
    return {
        "tool": "data_tools.convert", "arguments": arguments, "survey": survey.text, "policy": policy(survey),
        "inputs": read, "versions": {"python": platform.python_version(), **versions()}, "catalog": plan.choices,
        "invalid": plan.invalid,
    }  # fmt: skip


def cut_blocks(job: Job, plan: Plan, writer: DatasetWriter, pool: Pool, share: tuple[int, int]) -> None:
    """Write the shards of every share[1]-th block, from the share[0]-th on, that are not there yet."""
    number, count = share
    mine = [n for n in range(len(plan.blocks)) if n % count == number - 1]
    if not mine:
        print(f"part {number}/{count}: there are {len(plan.blocks)} blocks; nothing is left to do", file=sys.stderr)
    for n in mine:
        block = plan.blocks[n]
        todo = [shard for shard in block.shards(plan.samples_per_shard) if not writer.done(shard)]
        if todo:
            name = f"block {n + 1}/{len(plan.blocks)}"
            pairs = [(n, *pair) for pair in tile_pairs(block, job.tiles, job.survey)]
            pool.map(stamps.cut_group if job.survey.stamped else cut_plane, pairs, f"{name}: planes")
            pool.map(write_shard, [(writer, n, block, shard) for shard in todo], f"{name}: shards")
        shutil.rmtree(job.work / "planes" / f"{n:05d}", ignore_errors=True)


def finish(job: Job, plan: Plan, writer: DatasetWriter, args: argparse.Namespace) -> dict:
    """Write dataset.json once every shard is there, and say what is in the dataset."""
    missing = [n for n in range(plan.shards) if not writer.done(n)]
    if missing:
        raise InputError(
            f"merge: {len(missing)} of {plan.shards} shards are missing, the first is {missing[0]:05d}; run the parts "
            "that have not ended"
        )
    counts, labelled, written = dict.fromkeys((*job.survey.splits.fractions, GAP), 0), 0, 0
    for n in range(plan.shards):
        index = read_index(writer.path / "index" / f"{n:05d}.parquet", ["split", "z"])
        for name, number in zip(*np.unique(index["split"].to_numpy(), return_counts=True), strict=True):
            counts[name] += int(number)
        labelled += int(np.isfinite(index["z"].to_numpy()).sum())
        written += len(index)
    if not written:
        raise InputError("catalog: no object has a good pixel; check the positions and the tiles")
    dropped = {**plan.dropped, "without a good pixel": plan.objects - written}
    bands = measured_bands(job)
    facts = {"dropped": dropped, "bands": bands, "labelled": labelled}
    manifest = writer.finish(plan.shards, split_rule(job, counts, args.size, "ra" in writer.manifest.columns), facts)
    shutil.rmtree(job.work)
    for line in disagreements(flux_ratios(open_dataset(writer.path))):
        print(line, file=sys.stderr)
    return summary_of(args, manifest, job.tiles)


def split_rule(job: Job, counts: dict[str, int], size: int, sky: bool) -> dict:
    rule, gap_px = job.survey.splits, size * math.sqrt(2) * job.survey.coarsest_arcsec / job.survey.pixel_scale_arcsec
    cells = {"rule": "hash", "healpix_order": healpix_order(rule.cell_arcmin)}
    if job.survey.stamped:
        cells = {"rule": "hash" if sky else "object", **({"healpix_order": cells["healpix_order"]} if sky else {})}
    elif not sky:
        cells = {"rule": "balanced", "cell_px": rule.cell_arcmin * 60 / job.survey.pixel_scale_arcsec}
    return {"counts": counts, **cells, "gap_px": gap_px, "fractions": rule.fractions, "seed": rule.seed}


def measured_bands(job: Job) -> dict[str, dict]:
    """What the planes of each band have said: the median ratio of their noise, the tiles without a good sky, and those
    on which it could not be measured."""
    blank: dict[str, dict[str, str]] = {band.name: {} for band in job.survey.bands}
    crowded: dict[str, list[str]] = {band.name: [] for band in job.survey.bands}
    ratios: dict[str, list[float]] = {band.name: [] for band in job.survey.bands}
    for path in sorted((job.work / "measured").glob("*.json")):
        _, tile_number, band_number = path.stem.split("_")
        tile, name = job.tiles[int(tile_number)].name, job.survey.bands[int(band_number)].name
        facts = json.loads(path.read_bytes())
        if "blank" in facts:
            blank[name][tile] = facts["blank"]
        elif math.isnan(facts["noise_ratio"]):
            crowded[name].append(tile)
        else:
            ratios[name].append(facts["noise_ratio"])
    if doubtful := {name: len(tiles) for name, tiles in crowded.items() if tiles}:
        print(
            f"fluxerr is doubtful: too few empty apertures on so many tiles, {doubtful}; it is there that of pixels "
            "without correlation",
            file=sys.stderr,
        )
    return {
        band.name: {
            "uncertain": band.uncertain,
            "blank": blank[band.name],
            "crowded": crowded[band.name],
            "scale_per_ujy": 1 / job.sigma_ujy[band.name],
            "aperture_to_pixel_noise": float(np.median(ratios[band.name])) if ratios[band.name] else None,
        }
        for band in job.survey.bands
    }


def summary_of(args: argparse.Namespace, manifest: Manifest, tiles: list[Tile]) -> dict:
    made = manifest.provenance
    bands = [
        {"name": band.name, "tiles": sum(band.name in tile.files for tile in tiles),
         "blank_tiles": len(made["bands"][band.name]["blank"]), "zero_point_ab": round(band.zero_point_ab, 4),
         "aperture_to_pixel_noise": made["bands"][band.name]["aperture_to_pixel_noise"]}
        for band in manifest.bands
    ]  # fmt: skip
    return {
        "out": str(args.out), "samples": manifest.samples, "shards": len(manifest.shards), "tiles": len(tiles),
        "dropped": made["dropped"], "invalid": made["invalid"], "catalog": made["catalog"], "size": args.size,
        "wcs": "ra" in manifest.columns, "splits": manifest.splits["counts"],
        "labelled": made["labelled"], "bands": bands, "bytes": sum(shard.bytes for shard in manifest.shards),
    }  # fmt: skip


if __name__ == "__main__":
    run(main, resumes=True)
