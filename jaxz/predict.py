"""A trained run applied to a survey: redshifts with p(z), or embeddings.

    python -m jaxz.predict --workdir=RUN --dataset=DATASET --out=FILE.parquet [--where "split == 'test'"]
    python -m jaxz.predict --workdir=RUN --dataset=DATASET --out=DIR [--part 3/40]        # of any number of objects
    python -m jaxz.predict --model=DIR ...                    # what jaxz.export wrote, anywhere

FILE (.parquet or .fits) gets a row per object; p(z) goes beside it as FILE's name with .hdf5, readable by qp. DIR gets
catalog/part-00000.parquet (or .fits, by --format) and pdf/part-00000.hdf5, and so on, of some 65,000 objects each; the
same command goes on where an interrupted one was, and several with --part share the work. Bands are matched by name, or
by --band_map; stamps of another pixel scale or size are resampled, cut or filled up.
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxz import coverage, errors, logs, runtime
from jaxz.config import difference
from jaxz.data.dataset import Dataset
from jaxz.data.stream import Stream
from jaxz.files import read_json, replace
from jaxz.inference import BATCH, COVERAGE, Model, Predicted, counted, load_exported, load_run
from jaxz.photoz.pdf import write_qp
from jaxz.results import catalog_of, prediction_table, with_column, write_catalog

OBJECTS = 65_536  # of a part, at least: 40 MB of p(z) in 150 bins
FORMATS = ("parquet", "fits")
CLAIM = "predict.json"  # of a directory of parts: what they are of


def main(argv: list[str]) -> None:
    options = arguments(argv)
    runtime.alone("jaxz.predict")
    check_out(options)
    if options.model and options.item != "params":
        raise errors.InputError(f"--item: {options.item!r} is chosen when a run is exported; leave it out with --model")
    if options.model and options.step is not None:
        raise errors.InputError(f"--step: {options.step} is of a run's checkpoints; leave it out with --model")
    model = load_exported(options.model) if options.model else load_run(options.workdir, options.item, options.step)
    dataset = model.open_dataset(options.dataset)
    source = model.source(dataset, options.where, options.band_map)
    for line in model.compiled(dataset.manifest, options.band_map).fit.told:
        print(line, file=sys.stderr)
    if options.out.suffix and model.edges is not None:
        check_free(options.out.with_suffix(".hdf5"), options.overwrite, f", where p(z) of {options.out.name} goes,")
    with Stream(source, options.batch_size, shuffle=False, epochs=1) as stream:  # which refuses a wrong --where at once
        know_coverage(model, Path(options.workdir or options.model))
        if options.out.suffix:
            now = write_file(model, stream, options.out, options.band_map)
            count = len(stream)
        else:
            form, least = options.format or "parquet", options.objects_per_part or OBJECTS
            count, now = write_parts(model, stream, options.out, options.band_map, options.part, form, least)
    for line in closing(model, options.out, count, now):
        print(line)


class Written(NamedTuple):
    """Objects, and how many of them have coverage_flag 0."""

    objects: int
    unlike: int


def closing(model: Model, out: Path, count: int, now: Written) -> Iterator[str]:
    """What was done, of `count` objects of which this process has just written some."""
    beside = f", p(z) in {out.with_suffix('.hdf5')}" if out.suffix and model.edges is not None else ""
    yield f"{count} objects -> {out}{beside}" + (f", by checkpoint {model.step}" if model.step is not None else "")
    if model.coverage is not None and now.objects:
        of = "them" if now.objects == count else f"the {now.objects} written now"
        yield f"{now.unlike} of {of} without training objects near (coverage_flag 0)"


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jaxz.predict", description=__doc__.split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the run")
    source.add_argument("--model", type=Path, help="or a directory that jaxz.export wrote")
    parser.add_argument("--dataset", required=True)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="FILE.parquet or FILE.fits (p(z) goes to FILE.hdf5), or a directory for parts",
    )
    parser.add_argument("--where", help="rows to predict, such as \"split == 'test'\"; default all")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--step", type=int, help="of the checkpoint, such as jaxz.select's; default the newest")
    parser.add_argument(
        "--band_map", type=band_map, metavar="OURS=MODELS,...", help="bands of the dataset under the model's names"
    )
    parser.add_argument("--part", type=share, default=(1, 1), metavar="I/N", help="only this share of the parts")
    parser.add_argument("--format", choices=FORMATS, help="of the parts' catalogues; default parquet")
    parser.add_argument("--objects_per_part", type=int, metavar="N", help=f"at least so many; default {OBJECTS:,}")
    parser.add_argument("--batch_size", type=int, default=BATCH, help="objects that the device takes at once")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --out")
    return parser.parse_args(argv)


def band_map(text: str) -> dict[str, str]:
    """{"HSC-G": "g", ...} of "HSC-G=g,...". Raises InputError."""
    pairs = [pair.split("=") for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len({pair[0] for pair in pairs}) < len(pairs):
        raise errors.InputError(f"--band_map: {text!r} must be DATASETS=MODELS,..., each of the dataset's bands once")
    return dict(pairs)


def share(text: str) -> tuple[int, int]:
    """(i, n) of "i/n". Raises InputError."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise errors.InputError(f"--part: {text!r} must be I/N with I from 1 to N, such as 3/40")
    return int(number), int(count)


def check_out(options: argparse.Namespace) -> None:
    """Raises InputError for an --out that cannot be written, or that holds something else."""
    out = options.out
    if options.objects_per_part is not None and (out.suffix or options.objects_per_part < 1):
        raise errors.InputError(
            f"--objects_per_part: {options.objects_per_part} must be 1 or more, with a directory as --out"
        )
    if not out.parent.is_dir():
        raise errors.InputError(f"--out: {str(out.parent)!r} is no directory; make it first")
    if not out.suffix:
        if options.overwrite:
            raise errors.InputError("--overwrite: is for a file; delete the directory to begin anew")
        # Another process may begin there now: CLAIM comes first, by way of a temporary file.
        taken = any(not path.name.startswith(f".{CLAIM}.") for path in out.iterdir()) if out.is_dir() else out.exists()
        if taken and not (out / CLAIM).is_file():
            raise errors.InputError(f"--out: {str(out)!r} holds no {CLAIM} but something else; name another directory")
        return
    if out.suffix not in (".parquet", ".fits"):
        raise errors.InputError(f"--out: {str(out)!r} must end in .parquet or .fits, or in nothing for a directory")
    if options.part != (1, 1):
        raise errors.InputError("--part: shares the parts of a directory; name one with --out")
    if options.format:
        raise errors.InputError(f"--format: is of a directory's parts; {str(out)!r} ends in its own")
    check_free(out, options.overwrite)


def check_free(path: Path, overwrite: bool, what: str = "") -> None:
    """Raises InputError for a file that is there and is not to be overwritten, OSError where none can be made. what: is
    said of it."""
    if path.is_dir():
        raise errors.InputError(f"--out: {str(path)!r}{what} is a directory; name a file")
    if path.exists() and not overwrite:
        raise errors.InputError(f"--out: {str(path)!r}{what} exists; name another file, or add --overwrite")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def know_coverage(model: Model, path: Path) -> None:
    """Have the training objects of a model that predicts redshifts, for coverage_flag, and keep them with the run or
    exported model in `path`; where there are none at hand, say so."""
    if model.coverage is not None or model.edges is None:
        return
    try:
        found = model.learn_coverage()
    except errors.InputError as error:
        print(f"coverage_flag will be {coverage.UNKNOWN}, not known: {error}", file=sys.stderr)
        return
    with contextlib.suppress(OSError):  # another's run, which may only be read
        coverage.save(path / COVERAGE, found, model.digest)


def outputs_of(model: Model) -> tuple[str, ...]:
    """What a catalogue needs of a model's predictions."""
    return ("embedding", "n_bands") if model.edges is None else ("pdf", "n_bands", "coverage_flag")


def write_file(model: Model, stream: Stream, out: Path, band_map: dict | None) -> Written:
    """All objects as one catalogue, and p(z) beside it."""
    with logs.Bar("predict", len(stream)) as bar:
        parts = list(counted(model.predictions(stream, outputs_of(model), band_map), bar))
    return write(model, stream.sources[0].dataset, parts, out, out.with_suffix(".hdf5"))


def write_parts(
    model: Model, stream: Stream, out: Path, band_map: dict | None, part: tuple[int, int], form: str, least: int
) -> tuple[int, Written]:
    """The objects in parts of at least so many, of which those that are there stay and this process does its share: a
    run of neighbours, of so many objects, of which some are written now. Each is there as a whole once its catalogue,
    of format `form`, is. Raises InputError where `out` holds another prediction, Stopped when interrupted."""
    batches = -(-least // stream.batch_size)
    size, total = batches * stream.batch_size, len(stream)
    claim(out, model, stream, band_map, size, form)
    count, dataset = -(-total // size), stream.sources[0].dataset
    (out / "catalog").mkdir(exist_ok=True)
    (out / "pdf").mkdir(exist_ok=True)
    catalog = [out / "catalog" / f"part-{n:05d}.{form}" for n in range(count)]
    densities = [out / "pdf" / f"part-{n:05d}.hdf5" for n in range(count)]
    mine = range(count * (part[0] - 1) // part[1], count * part[0] // part[1])
    if not mine:
        told = f"part {part[0]}/{part[1]} has none of the {count} part(s) of {size:,} objects; see --objects_per_part"
        print(told, file=sys.stderr)
    todo = [n for n in mine if not catalog[n].exists()]
    objects = lambda parts: sum(min(size, total - n * size) for n in parts)
    writing: list[Future] = []
    unlike = 0
    try:
        with ThreadPoolExecutor(1) as writer, logs.Bar("predict", objects(mine), objects(mine) - objects(todo)) as bar:
            for first, numbers in neighbours(todo):
                go_to(stream, first * size)
                found = counted(model.predictions(stream, outputs_of(model), band_map), bar)
                for n in numbers:
                    blocks = list(itertools.islice(found, batches))
                    while writing:  # one waits for the disk, no more are held
                        unlike += writing.pop().result().unlike
                    writing.append(writer.submit(write, model, dataset, blocks, catalog[n], densities[n]))
            while writing:
                unlike += writing.pop().result().unlike
    except KeyboardInterrupt:
        there = sum(catalog[n].exists() for n in mine)
        told = f"{there} of {len(mine)} parts are written; run the same command again to go on"
        if there == len(mine) - len(todo):
            told += " with the next one from its start; smaller parts, in another --out, by --objects_per_part"
        raise errors.Stopped(told) from None
    return objects(mine), Written(objects(todo), unlike)


def neighbours(numbers: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """(first, all) of each run of numbers that follow one another."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found


def go_to(stream: Stream, position: int) -> None:
    state = stream.state()
    state["sources"][0] |= {"epoch": 0, "position": position}
    stream.restore(state)


def claim(out: Path, model: Model, stream: Stream, band_map: dict | None, size: int, form: str) -> None:
    """Say in DIR/predict.json what the parts are of. Raises InputError where it says something else already."""
    [source] = stream.state()["sources"]
    now = {
        "parameters": model.digest,
        "coverage": model.coverage is not None,
        "dataset": source["fingerprint"],
        "where": source["where"],
        "band_map": band_map,
        "objects": len(stream),
        "objects_per_part": size,
        "batch_size": stream.batch_size,
        "format": form,
    }
    path = out / CLAIM
    then = {"format": "parquet"} | read_json(path, "the record of a prediction") if path.exists() else now
    if changed := difference(then, now):
        raise errors.InputError(
            f"--out: {str(out)!r} holds another prediction ({'; '.join(changed)}); name another directory"
        )
    out.mkdir(exist_ok=True)
    replace(path, json.dumps(now, indent=1).encode())


def write(model: Model, dataset: Dataset, blocks: Sequence[Predicted], path: Path, densities: Path) -> Written:
    """The catalogue of some objects, and their p(z) before it. blocks: (rows, found) of Model.predictions."""
    rows = np.concatenate([rows for rows, _ in blocks])
    found = {name: np.concatenate([values[name] for _, values in blocks]) for name in outputs_of(model)}
    if model.edges is None:
        embedding = found.pop("embedding")
        values = pa.FixedSizeListArray.from_arrays(pa.array(embedding.ravel()), embedding[0].size)
        write_catalog(path, with_column(catalog_of(dataset, rows, found), "embedding", values))
        return Written(len(rows), 0)
    pdf, spread = model.densities(found.pop("pdf"))
    catalog = catalog_of(dataset, rows, found)
    write_qp(densities, pdf, {"key": np.array(catalog["key"].to_pylist(), dtype=str)})
    write_catalog(path, prediction_table(catalog, pdf, {}, spread))
    return Written(len(rows), int((found["coverage_flag"] == 0).sum()))


if __name__ == "__main__":
    errors.run(main)
