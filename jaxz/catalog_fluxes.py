"""The catalogue's fluxes of a dataset's objects, without Galactic reddening, and the numbers that baselines read."""

import numpy as np
import pyarrow as pa

from jaxz.data.dataset import Dataset
from jaxz.data.manifest import EBV, ZERO_POINT_UJY, Band
from jaxz.errors import InputError
from jaxz.results import CATALOG_COLUMNS, sure_labels

POGSON = 2.5 / np.log(10)


def asinh_magnitudes(flux: np.ndarray, softening: np.ndarray) -> np.ndarray:
    """[N, C] AB magnitudes of fluxes in microjansky, finite at zero and below.

    softening: [C] microjansky, about the noise: m = zp - 2.5 log10(b) - (2.5 / ln 10) asinh(f / 2b). NaN stays NaN
    (Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3).
    """
    return ZERO_POINT_UJY - 2.5 * np.log10(softening) - POGSON * np.arcsinh(flux / (2 * softening))


def features(flux: np.ndarray, softening: np.ndarray, reference: int) -> np.ndarray:
    """[N, 2C-1]: the magnitude of band `reference`, the colours of adjacent bands, and those against the reference.

    NaN where a band is absent: the colours against the reference outlive the absence of a neighbour.
    """
    magnitudes = asinh_magnitudes(flux, softening)
    chosen, adjacent = magnitudes[:, reference], magnitudes[:, :-1] - magnitudes[:, 1:]
    return np.column_stack([chosen, adjacent, np.delete(magnitudes, reference, axis=1) - chosen[:, None]])


def load(dataset: Dataset, where: str, bands: list[Band], extra: list[str]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The columns `extra` as a table, and dereddened flux and its error, both [N, C] float64 in microjansky, NaN where
    absent; so is an error that is not above 0."""
    reddened = ["ebv"] if "ebv" in dataset.manifest.columns else []
    names = [f"{kind}_{band.name}" for kind in ("flux", "fluxerr") for band in bands]
    table = dataset.arrow(where, list(dict.fromkeys([*extra, *names, *reddened])))
    ebv = table["ebv"].to_numpy().astype(np.float64) if reddened else np.zeros(len(table))
    ebv = np.where((ebv >= EBV[0]) & (ebv <= EBV[1]), ebv, 0)  # unknown: taken as none, as models do
    factor = 10 ** (0.4 * np.outer(ebv, [band.a_over_ebv for band in bands]))

    def stack(kind: str) -> np.ndarray:
        return factor * np.column_stack([table[f"{kind}_{b.name}"].to_numpy().astype(np.float64) for b in bands])

    error = stack("fluxerr")
    return table.select(extra), stack("flux"), np.where(error > 0, error, np.nan)


def flux_bands(dataset: Dataset) -> list[Band]:
    """Raises InputError where fewer than two bands have fluxes with errors."""
    columns = dataset.manifest.columns
    bands = [b for b in dataset.manifest.bands if {f"flux_{b.name}", f"fluxerr_{b.name}"} <= columns.keys()]
    if len(bands) < 2:
        raise InputError(
            "flux_<band>: fewer than two bands have flux_ and fluxerr_ columns; convert with a flux catalogue"
        )
    return bands


def training_objects(dataset: Dataset, bands: list[Band]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z [N], flux and error [N,C] of the sure labels of the training split. Raises InputError for labels without z,
    or with one of -1 and below, a catalogue's word for none."""
    train, flux, error = load(dataset, f"split == 'train' and {sure_labels(dataset.manifest.columns)}", bands, ["z"])
    z = np.asarray(train["z"].to_numpy(), np.float64)
    if wrong := int((~(np.isfinite(z) & (z > -1))).sum()):
        raise InputError(f"z: {wrong} 'spec' training objects have none above -1; set their z_kind to 'none'")
    return z, flux, error


def test_objects(dataset: Dataset, bands: list[Band]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Their catalogue, flux and error [M,C]. Raises InputError where there are none."""
    columns = dataset.manifest.columns
    known = [name for name in CATALOG_COLUMNS if name == "key" or name in columns]
    catalog, flux, error = load(dataset, "split == 'test'", bands, known)
    if not len(catalog):
        raise InputError(
            "split: no object is 'test', so there is nothing to predict; convert the dataset with a test split"
        )
    if "n_bands" not in known:
        catalog = catalog.append_column("n_bands", pa.array(np.isfinite(flux).sum(axis=1)))
    return catalog, flux, error
