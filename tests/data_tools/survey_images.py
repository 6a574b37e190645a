"""A dataset with everything that other formats have a place for: bands that objects lack, masks, positions, text."""

from pathlib import Path

import numpy as np

from data_tools.tiles import MASK_BITS
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter, with_images

NAMES = ("g", "r", "i")


def survey_images(
    path: Path,
    samples: int = 40,
    size: int = 8,
    encoding: str = "raw",
    shards: int = 3,
    scales=(0.2, 0.2, 0.2),
    **given,
) -> Path:
    """Every fifth object lacks band r; every seventh has a saturated pixel; positions lie in several HEALPix cells.
    scales: of the bands' pixels. given: values of columns in place of those made here, or of reals beside them."""
    rng = np.random.default_rng(3)
    shape = (len(NAMES), size, size)
    bands = tuple(
        Band(name, 480.0 + 140 * c, 120.0, 27.0 + c, scales[c], 3.0 - c, 1.0, 0.7) for c, name in enumerate(NAMES)
    )
    columns = {"object_id": Column("string"), "ra": Column("float64", "deg"), "dec": Column("float64", "deg")}
    columns |= {"split": Column("string"), "z": Column("float32", "", "redshift"), "z_kind": Column("string")}
    columns |= {"bands_observed": Column("uint32"), "flags": Column("int32"), "z_flag_orig": Column("string")}
    columns |= {name: Column(np.array(given[name]).dtype.name) for name in given.keys() - columns.keys()}
    dtype = {"raw": "float16", "compact": "float32"}[encoding]
    arrays = {"image": Array("image", dtype, shape), "image_mask": Array("mask", "uint8", shape, bits=MASK_BITS)}
    arrays["features"] = Array("vector", "float32", (4,), encoding="index")
    manifest = with_images(Manifest(arrays, bands, columns), encoding)
    image = rng.normal(size=(samples, *shape)).astype(dtype)
    mask = np.zeros(image.shape, np.uint8)
    mask[::5, 1], image[::5, 1] = MASK_BITS["nodata"], 0
    mask[::7, 0, 3, 3], image[::7, 0, 3, 3] = MASK_BITS["saturated"], 65504
    z = np.where(np.arange(samples) % 2, rng.uniform(0, 2, samples), np.nan).astype(np.float32)
    values = {
        "object_id": [f"J{n:03d}.é/{n}" for n in range(samples)],
        "ra": rng.uniform(10, 20, samples),
        "dec": rng.uniform(-5, 5, samples),
        "split": np.where(np.arange(samples) % 4, "train", "test"),
        "z": z,
        "z_kind": np.where(np.isfinite(z), "spec", "none"),
        "bands_observed": np.where(np.arange(samples) % 5, 0b111, 0b101),
        "flags": np.arange(samples),
        "z_flag_orig": [f"q{n % 3}" for n in range(samples)],
    }
    values |= given
    features = rng.normal(size=(samples, 4)).astype(np.float32)
    writer = DatasetWriter(path, manifest, plan={"test": samples})
    for n, rows in enumerate(np.array_split(np.arange(samples), shards)):
        stored = {"image": image[rows], "image_mask": mask[rows], "features": features[rows]}
        writer.write_shard(
            n, [f"s{row:05d}" for row in rows], stored, {k: np.array(v)[rows] for k, v in values.items()}
        )
    writer.finish(shards, {})
    return path
