"""What images cost on disk, how fast a core decodes them, and what is lost of pixels and fluxes.

    python -m benchmarks.storage [--samples 1024] [--rounds 7] [--json FILE]

Simulated cutouts of 9 x 64 x 64, sky sigma 1, none of them without a band. Their brightness is spread over all there
is: an aperture of 2 arcsec across has a signal to noise from 1 to 10,000 in the mean of the bands. Errors are those of
decoded images against the float32 images before any storage.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.simulator import bands, population, render, survey
from jaxz import errors
from jaxz.data import compact
from jaxz.data.reader import Buffers
from jaxz.data.writer import STEP_SIGMA

BANDS, SIZE, SEED = 9, 64, 0
RADIUS = 5.0  # pixels, of the aperture
EDGES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # of the aperture's signal to noise
RAW = BANDS * SIZE * SIZE * 2  # bytes of float16, in which speeds are counted
SECONDS = 0.3  # of decoding in a round


class Storage(NamedTuple):
    encode: Callable[[np.ndarray, int], bytes]  # of float32 [C,H,W] and a dither seed
    unpack: Callable[[bytes, memoryview], None]  # what a reader's thread does with a payload, into its slot of a batch
    decode: Callable[[bytes], np.ndarray] | None = None  # float32 [C,H,W]; None: as the row before


def storages() -> dict[str, Storage]:
    blosc = compact.blosc2()
    shape, filters = (BANDS, SIZE, SIZE), blosc.Filter

    def chunk(values: np.ndarray, codec, level: int, shuffle) -> bytes:
        return blosc.compress2(
            values, codec=codec, clevel=level, typesize=2, filters=[shuffle], filters_meta=[0], nthreads=1
        )

    def levels(image: np.ndarray, seed: int) -> np.ndarray:
        slot = np.empty(shape, np.int16)
        compact.unpack(compact.encode(image, (STEP_SIGMA,) * BANDS, seed), slot)
        return slot

    def quantised(step: float, dtype: str) -> Storage:
        steps = (step,) * BANDS
        encode = lambda image, seed: compact.encode(image.astype(dtype), steps, seed)
        return Storage(encode, compact.unpack, lambda payload: compact.decode(payload, shape, steps))

    def copy(payload: bytes, slot: memoryview) -> None:
        slot[:] = payload

    decompress = lambda payload, slot: blosc.decompress2(payload, slot, nthreads=1)
    half = lambda image: image.astype(np.float16)
    values = lambda stored: np.frombuffer(stored, np.float16).reshape(shape).astype(np.float32)
    return {
        "float16": Storage(lambda image, _: half(image).tobytes(), copy, values),
        "float16, zstd 5, shuffle": Storage(
            lambda image, _: chunk(half(image), blosc.Codec.ZSTD, 5, filters.SHUFFLE), decompress
        ),
        "compact, of float16": quantised(STEP_SIGMA, "float16"),
        "compact, of float32": quantised(STEP_SIGMA, "float32"),
        "its levels, not compressed": Storage(lambda image, seed: levels(image, seed).tobytes(), copy),
        "its levels, zstd 1, bitshuffle": Storage(
            lambda image, seed: chunk(levels(image, seed), blosc.Codec.ZSTD, 1, filters.BITSHUFFLE), decompress
        ),
        "compact, of float32, sigma / 4": quantised(0.25, "float32"),
    }


def images(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [N,C,H,W] with noise, signal to noise [N,C] in the aperture, and centres [N,2]."""
    galaxies = population.galaxies(SEED, 0, count)
    psf = bands.PSF_SIGMA / bands.PIXEL_SCALE
    stamps = survey.draw(galaxies, np.ones((count, len(survey.NAMES))), SIZE, psf)[:, :BANDS]
    centre = (SIZE - 1) / 2 + galaxies.offset
    flux = np.stack([aperture(stamps[:, c], centre) for c in range(BANDS)], 1)
    random = np.random.default_rng(SEED)
    colours = random.lognormal(0, 0.5, (count, BANDS))
    wanted = 10 ** random.uniform(0, 4, (count, 1)) * colours  # signal to noise
    stamps = stamps * (wanted / flux)[..., None, None]
    return stamps.astype(np.float32) + render.sky_noise(stamps.shape, SEED, 0), wanted, centre


def aperture(image: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Flux [N] of [N,H,W] in units of its sky noise: that of the pixels' noise, of sigma 1, weighted as the flux is."""
    y, x = np.indices(image.shape[-2:])
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    weight = np.clip(RADIUS + 0.5 - distance, 0, 1)
    return (image.astype(np.float64) * weight).sum((1, 2)) / np.sqrt((weight**2).sum((1, 2)))


def slots_in_memory(count: int) -> list[memoryview]:
    """Those of a batch, written once: the first touch of a page is no part of decoding."""
    _, slots = Buffers().take((count, BANDS, SIZE, SIZE), "int16")
    for slot in slots:
        slot[:] = bytes(RAW)
    return slots


def speed(storage: Storage, payloads: list[bytes], slots: list[memoryview], threads: int) -> tuple[float, float]:
    """Raw-equivalent bytes per second of wall time and of CPU time, into the slots of a batch."""

    def work(first: int) -> int:
        done, end = 0, time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for n in range(first, len(payloads), threads):
                storage.unpack(payloads[n], slots[n])
                done += RAW
        return done

    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - wall), done / (time.process_time() - cpu)


def loss(found: np.ndarray, truth: np.ndarray, significance: np.ndarray, centre: np.ndarray) -> dict:
    """Of decoded images: rms of a pixel's error, and for each bin of signal to noise rms and bias of the aperture's, in
    sigmas of the sky, with standard errors."""
    off = np.stack([aperture(found[:, c] - truth[:, c], centre) for c in range(BANDS)], 1)
    bins = []
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        part = off[(significance >= low) & (significance < high)]
        rms, root = np.sqrt((part**2).mean()), np.sqrt(len(part))
        bins.append({"from": low, "to": high, "fluxes": len(part), "rms": rms, "rms_error": rms / root / np.sqrt(2),
                     "bias": part.mean(), "bias_error": part.std() / root})  # fmt: skip
    return {"pixel_rms": float(np.sqrt(np.mean((found - truth) ** 2, dtype=np.float64))), "aperture": bins}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    truth, significance, centre = images(options.samples)
    rows, stored = {}, {}
    for name, storage in storages().items():
        stored[name] = [storage.encode(image, compact.sample_seed(SEED, str(n))) for n, image in enumerate(truth)]
        rows[name] = {"bytes": float(np.mean([len(payload) for payload in stored[name]])), "speed": {1: [], 2: []}}
        if storage.decode:
            rows[name] |= loss(np.stack([storage.decode(p) for p in stored[name]]), truth, significance, centre)
    slots = slots_in_memory(options.samples)
    for turn in range(options.rounds):
        for name, storage in storages().items():
            for threads, found in rows[name]["speed"].items():
                found.append(speed(storage, stored[name], slots, threads))
        print(f"round {turn + 1}/{options.rounds}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"raw_bytes": RAW, "step_sigma": STEP_SIGMA, "rows": rows}, indent=1))
    print("\n".join(table(rows)))


def table(rows: dict) -> list[str]:
    """Speeds in GB/s of float16; aperture errors as rms, bias +- its error, in sigmas of the aperture's sky noise."""
    lines = [f"{'':32}bytes  ratio   GB/s: 1 thread  a CPU second  2 threads   pixel rms"]
    for name, row in rows.items():
        (one, cpu), (two, _) = (np.median(row["speed"][threads], axis=0) / 1e9 for threads in (1, 2))
        rms = f"{row['pixel_rms']:12.4f}" if "pixel_rms" in row else ""
        lines.append(f"{name:32}{row['bytes']:6.0f}{row['bytes'] / RAW:7.3f}{one:17.2f}{cpu:14.2f}{two:11.2f}{rms}")
    lines.append("aperture flux error in its sky noise, by signal to noise: rms, bias +- standard error")
    for name, row in rows.items():
        for found in row.get("aperture", ()):
            span = f"{found['from']} to {found['to']}"
            bias = f"{found['bias']:+.5f} +- {found['bias_error']:.5f}"
            lines.append(f"{name:32}{span:>14}{found['fluxes']:6}{found['rms']:9.4f}  {bias}")
    return lines


if __name__ == "__main__":
    errors.run(main)
