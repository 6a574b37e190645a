"""How fast is a conversion, and how much memory does it take?

    python -m benchmarks.convert SCRATCH [--objects 20000] [--tiles 1] [--workers 2] [--rounds 3] [--json FILE]

Tiles of 4200 x 4200 pixels in nine bands are made in SCRATCH and converted whole: catalogue, sky, apertures, cutouts
of 64 x 64, tars and index, every process started anew. Against it a bare loop that slices the same tiles, which it
holds in memory already, and writes the same tars with webdataset.TarWriter; its loading is not counted. Interleaved.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import webdataset
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from jaxz import errors
from jaxz.data.dataset import open_dataset

SIDE, SIZE, BANDS = 4200, 64, ("u", "g", "r", "i", "z", "Y", "J", "H", "Ks")
SCALE = 0.2
SURVEY = f"""
name = "benchmark"
pixel_scale_arcsec = {SCALE}
[catalog]
object_id = "ID"
[photometry]
band = "r"
aperture_diameter_arcsec = 2.0
[splits]
cell_arcmin = 3.5
fractions = {{ train = 0.75, val = 0.05, test = 0.2 }}
"""
BAND = """
[[bands]]
name = "{band}"
file = "{{tile}}/{band}.fits"
zero_point_ab = 25.0
wavelength_nm = {wavelength}
width_nm = 100
a_over_ebv = 2.0
psf_fwhm_arcsec = 0.8
"""


def make(folder: Path, tiles: int, objects: int) -> None:
    """Noise with a star an object; tiles side by side in right ascension. Done once."""
    if (folder / "survey.toml").exists():
        return
    rng, tables = np.random.default_rng(0), []
    for tile in range(tiles):
        (folder / f"t{tile:03d}").mkdir(parents=True, exist_ok=True)
        cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150 + 0.24 * tile, "CRVAL2": 2.0}
        cards |= {"CRPIX1": SIDE / 2, "CRPIX2": SIDE / 2, "CDELT1": -SCALE / 3600, "CDELT2": SCALE / 3600}
        header = fits.Header(cards)
        x, y = rng.uniform(20, SIDE - 20, (2, objects // tiles))
        for band in BANDS:
            pixels = rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32)
            np.add.at(pixels, (np.round(y).astype(int), np.round(x).astype(int)), 50)
            fits.writeto(folder / f"t{tile:03d}" / f"{band}.fits", pixels, header, overwrite=True)
        ra, dec = WCS(header).all_pix2world(x, y, 0)
        tables.append(np.stack([ra, dec], 1))
    ra, dec = np.concatenate(tables).T
    Table({"ID": np.arange(len(ra)), "RA": ra, "DEC": dec, "Z": rng.uniform(0, 1, len(ra))}).write(
        folder / "catalog.fits", overwrite=True
    )
    bands = "".join(BAND.format(band=band, wavelength=350 + 150 * n) for n, band in enumerate(BANDS))
    (folder / "survey.toml").write_text(SURVEY + bands)


def converted(folder: Path, workers: int) -> dict:
    """Seconds of the whole command, and the largest sum of the resident memory of its processes."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [sys.executable, "-m", "data_tools.convert", "--survey", folder / "survey.toml", "--catalog"]
    command += [folder / "catalog.fits", "--images", folder, "--out", folder / "out", "--workers", str(workers)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, lines = 0, []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        raise errors.InputError(f"the conversion ended with {process.returncode}: {''.join(lines)}")
    return {"seconds": time.perf_counter() - began, "bytes": peak, "said": [line.strip() for line in lines]}


def resident(pid: int) -> int:
    """Resident bytes of a process and its children; what they share is counted in each."""
    total = 0
    for process in [pid, *children(pid)]:
        with contextlib.suppress(OSError):  # ended meanwhile
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    return total


def children(pid: int) -> list[int]:
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in children(child)]


def bare(folder: Path) -> float:
    """Seconds of slicing and writing what the conversion wrote, shard by shard."""
    dataset = open_dataset(folder / "out")
    names = np.unique(dataset.column("field"))
    planes = {name: [fits.getdata(folder / name / f"{b}.fits").astype(np.float16) for b in BANDS] for name in names}
    flags = {name: [np.zeros((SIDE, SIDE), np.uint8) for _ in BANDS] for name in names}
    columns = {name: dataset.column(name).tolist() for name in dataset.manifest.columns}
    shutil.rmtree(folder / "bare", ignore_errors=True)
    (folder / "bare").mkdir()
    began, rows = time.perf_counter(), iter(range(dataset.manifest.samples))
    for shard in dataset.manifest.shards:
        with webdataset.TarWriter(str(folder / "bare" / f"{shard.name}.tar"), mtime=0) as tar:
            for row in itertools.islice(rows, shard.samples):
                scalars = {name: values[row] for name, values in columns.items()}
                left, low = round(scalars["x"]) - SIZE // 2, round(scalars["y"]) - SIZE // 2
                here = np.s_[max(low, 0) : low + SIZE, max(left, 0) : left + SIZE]
                image = [np.zeros((len(BANDS), SIZE, SIZE), dtype) for dtype in (np.float16, np.uint8)]
                for full, source in zip(image, (planes, flags), strict=True):
                    for n, plane in enumerate(source[scalars["field"]]):
                        part = plane[here]
                        full[n, : part.shape[0], : part.shape[1]] = part
                tar.write(
                    {"__key__": f"{row:09d}", "image.npy": image[0], "image_mask.npy": image[1], "meta.json": scalars}
                )
        row += 1
    return time.perf_counter() - began


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    folder = options.scratch / f"{options.tiles}_{options.objects}"
    make(folder, options.tiles, options.objects)
    ours, loop = [], []
    for n in range(options.rounds):
        os.sync()  # what the one before wrote goes to the disk, or the next would wait for it
        ours.append(converted(folder, options.workers))
        os.sync()
        loop.append(bare(folder))
        print(f"round {n + 1}/{options.rounds}: {ours[-1]['seconds']:.1f} s against {loop[-1]:.1f} s", file=sys.stderr)
    seconds, base = np.median([o["seconds"] for o in ours]), np.median(loop)
    samples = len(open_dataset(folder / "out"))
    peak = max(o["bytes"] for o in ours)
    print(f"{samples} cutouts of {len(BANDS)} bands of {options.tiles} tile(s) of {SIDE} x {SIDE}")
    print(f"conversion {samples / seconds:,.0f}/s, bare loop {samples / base:,.0f}/s: {base / seconds:.2f} of it")
    print(f"resident memory of all its processes: at most {peak / 1e9:.2f} GB")
    if options.json:
        options.json.write_text(json.dumps({"conversion": ours, "bare_s": loop, "samples": samples}, indent=1))


if __name__ == "__main__":
    errors.run(main)
