"""A tiny sky for shift-v1: quick to write, its colours say the redshift."""

import numpy as np

from benchmarks.shift.labels import CATALOG
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter

BANDS = ("g", "r", "i")


def sky(path, truth=True, objects=600, val=15, change=lambda columns: None):
    """One-pixel cutouts whose colours say the redshift; bright ones have labels, a few test objects a photometric z.
    One of `val` objects is of the validation split; `change` may alter columns in place before they are written."""
    bands = tuple(Band(b, 480.0 + 150 * n, 100.0, 23.9, 0.2, 1.0, 0.01, 0.8) for n, b in enumerate(BANDS))
    kinds = dict.fromkeys(("z", "z_err", "mag_ref", "ebv", *CATALOG), "float32") | {"z_kind": "string"}
    kinds |= {"object_id": "int64", "ra": "float64", "dec": "float64", "split": "string"}
    kinds |= {f"{kind}_{band}": "float32" for kind in ("flux", "fluxerr") for band in BANDS}
    kinds |= {"true_z": "float32"} if truth else {}
    image = Array("image", "float32", (len(BANDS), 1, 1), encoding="index")
    manifest = Manifest(arrays={"image": image}, bands=bands, columns={n: Column(k) for n, k in kinds.items()})
    writer, draw, ids = DatasetWriter(path, manifest, plan={}), np.random.default_rng(0), np.arange(objects)
    z, magnitude = draw.uniform(0.1, 1.5, objects), draw.uniform(18, 25, objects)
    labelled = (magnitude < 23) & (draw.uniform(size=objects) < 0.8)
    flux = 10 ** (-0.4 * (magnitude - 23.9))[:, None] * np.stack([1 / (1 + z), np.ones(objects), 1 + z], 1)
    columns = {
        "object_id": ids,
        "ra": ids % 30 + 0.5,
        "dec": ids // 30 % 20 + 0.5,
        "split": np.where(ids % 3 == 0, "test", np.where(ids % val == 1, "val", "train")),
        "z_kind": np.where(labelled, "spec", "none"),
        "z": np.where(labelled, z, np.nan),
        "z_err": np.where(labelled, 1e-3, np.nan),
        "mag_ref": magnitude,
        "ebv": np.zeros(objects),
        **{name: np.where(ids % 2 == 0, z + e, np.nan) for name, e in zip(CATALOG, (0, -0.03, 0.03), strict=True)},
        "true_z": z,
        **{f"flux_{band}": flux[:, n] for n, band in enumerate(BANDS)},
        **{f"fluxerr_{band}": np.full(objects, 0.01) for band in BANDS},
    }
    change(columns)
    own = {name: values for name, values in columns.items() if name in kinds}
    writer.write_shard(0, [f"o{n:06d}" for n in ids], {"image": flux[:, :, None, None].astype(np.float32)}, own)
    writer.finish(1, {})
    return path, columns
