"""Templates fitted to the catalogue's fluxes of a dataset (jaxz.photometry --model template)."""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import speclite.filters
from astropy.io.registry import IORegistryError
from astropy.table import Table

from jaxz import logs
from jaxz.catalog_fluxes import flux_bands, load, test_objects, training_objects
from jaxz.data.dataset import Dataset
from jaxz.data.manifest import ZERO_POINT_UJY, Band
from jaxz.errors import InputError
from jaxz.photoz import spectra, templates
from jaxz.photoz.pdf import PDF

Z_MAX, REDSHIFT_BINS = 6.0, 300
CALIBRATORS, MENDERS = 500, 5000  # labelled objects that zero points, and repaired spectra, are from
PRIOR_NM = 800.0  # of the I band that the prior is for
UNLABELLED = "split == 'train' and z_kind == 'none'"
FEWEST = 50  # labelled objects that spectra learn from
BLOCK = 1000  # objects, between two signs of life


class Templates:
    """Templates for the bands of a dataset that have fluxes with errors.

    filters: BAND=CURVE of speclite; bands without one are boxes of the manifest's wavelength and width. table: of
    spectra, in place of jaxz's own. prior: that of Benitez 2000. repair: by labelled objects (`templates.repair`), and
    fewer of jaxz's own. Raises InputError for filters or a table that are none, for labels without z, and for fewer
    than 50 of them to repair by.
    """

    def __init__(
        self, dataset: Dataset, filters: Sequence[str], table: str | None, prior: bool, repair: bool, seed: int
    ):
        self.bands, self.prior = flux_bands(dataset), prior
        curves = filter_curves(self.bands, filters)
        wavelength, f_lambda = (spectra.WAVELENGTH, spectra.templates()) if table is None else read_spectra(table)
        if repair and table is None:
            f_lambda = f_lambda[list(spectra.SPAN)]
        self.edges = np.linspace(0, Z_MAX, REDSHIFT_BINS + 1)
        self.middles = (self.edges[1:] + self.edges[:-1]) / 2
        z, flux, error = training_objects(dataset, self.bands)
        if repair and len(z) < FEWEST:
            raise InputError(f"--repair: {len(z)} sure labels must be at least {FEWEST}; add labels, or leave it out")
        self.models = templates.model_fluxes(wavelength, f_lambda, curves, self.middles)
        chosen = np.random.default_rng(seed).permutation(len(z))[:MENDERS]
        z, flux, error = z[chosen], flux[chosen], error[chosen]
        if repair:
            nm = np.array([band.wavelength_nm for band in self.bands])
            self.models = templates.repair(flux, error, z, self.models, self.middles, nm)
        few = slice(CALIBRATORS)
        self.factor = templates.zero_points(flux[few], error[few], z[few], self.models, self.middles)
        offsets = -2.5 * np.log10(self.factor)
        said = ", ".join(f"{band.name} {m:+.3f}" for band, m in zip(self.bands, offsets, strict=True))
        print(f"zero points, mag: {said}", file=sys.stderr)

    def predict(self, flux: np.ndarray, error: np.ndarray) -> Iterator[tuple[slice, PDF]]:
        """Which objects, and their p(z), a block at a time, of fluxes and errors [N,C] of the bands, in microjansky;
        shows progress."""
        with logs.Bar("templates", len(flux)) as bar:
            for start in range(0, len(flux), BLOCK):
                part = slice(start, min(start + BLOCK, len(flux)))
                yield part, self.densities(flux[part], error[part])
                bar.update(part.stop)

    def densities(self, flux: np.ndarray, error: np.ndarray) -> PDF:
        """p(z) of fluxes and errors [N,C], all at once."""
        chi2 = templates.fit(flux * self.factor, error * self.factor, self.models)
        if not self.prior:
            return templates.posterior(chi2, self.edges)
        red = int(np.argmin([abs(band.wavelength_nm - PRIOR_NM) for band in self.bands]))
        magnitude = ZERO_POINT_UJY - 2.5 * np.log10(np.maximum(flux[:, red], error[:, red]))
        return templates.posterior(chi2, self.edges, templates.magnitude_prior(magnitude, self.middles))

    def predict_test(self, dataset: Dataset) -> tuple[pa.Table, PDF]:
        """Catalogue and p(z) of every test object."""
        catalog, flux, error = test_objects(dataset, self.bands)
        return catalog, PDF(self.edges, np.concatenate([pdf.probability for _, pdf in self.predict(flux, error)]))

    def labels(self, dataset: Dataset) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows [N] of the training split without any label, and what these templates say as z, z_err, z_kind [N]: the
        median, half of the central 68 %, and 'phot'; NaN and 'none' where no band is measured."""
        _, flux, error = load(dataset, UNLABELLED, self.bands, [])
        z, z_err = np.empty((2, len(flux)))
        for part, pdf in self.predict(flux, error):
            low, high = pdf.interval(0.68)
            z[part], z_err[part] = pdf.median(), (high - low) / 2
        known = templates.observed(flux, error, 0)[1].any(axis=1)
        z, z_err = (np.where(known, values, np.nan) for values in (z, z_err))
        return dataset.select(UNLABELLED), {"z": z, "z_err": z_err, "z_kind": np.where(known, "phot", "none")}


def filter_curves(bands: Sequence[Band], filters: Sequence[str]) -> list[templates.Curve]:
    """Raises InputError for a filter that speclite does not know, or of no band."""
    named = dict(text.split("=", 1) for text in filters if "=" in text)
    known = [band.name for band in bands]
    if wrong := [text for text in filters if text.split("=", 1)[0] not in known or "=" not in text]:
        raise InputError(f"--filters: {wrong[0]!r} is not BAND=CURVE with a band of {known}; mend it")
    curves = []
    for band in bands:
        middle, half = 10 * band.wavelength_nm, 5 * band.width_nm
        curve = templates.Curve(np.array([middle - half, middle + half]), np.ones(2))
        if band.name in named:
            try:
                found = speclite.filters.load_filter(named[band.name])
            except ValueError as error:
                raise InputError(f"--filters: {named[band.name]!r} is no curve of speclite ({error})") from None
            curve = templates.Curve(np.asarray(found.wavelength), np.asarray(found.response))
        curves.append(curve)
    return curves


def read_spectra(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths [W] in angstrom, of the first column, and F_lambda [T,W], of the others. Raises InputError."""
    try:
        table = Table.read(path)
        columns = [np.ma.masked_array(table[name], dtype=np.float64).filled(np.nan) for name in table.colnames]
    except (OSError, ValueError, IORegistryError) as error:
        raise InputError(f"--templates: {path!r} cannot be read as a table of numbers ({error}); mend it") from None
    if len(columns) < 2 or len(table) < 2 or any(column.ndim != 1 for column in columns):
        raise InputError(f"--templates: {path!r} must hold a column of wavelengths, then one of F_lambda each; mend it")
    wavelength, f_lambda = columns[0], np.array(columns[1:])
    if not np.isfinite(wavelength).all() or wavelength[0] <= 0 or not (np.diff(wavelength) > 0).all():
        raise InputError(f"--templates: {path!r}: the wavelengths must be above 0, and ascend; mend it")
    if not (np.isfinite(f_lambda) & (f_lambda >= 0)).all() or not f_lambda.any(axis=1).all():
        raise InputError(f"--templates: {path!r}: F_lambda must be finite, at least 0, and somewhere more; mend it")
    return wavelength, f_lambda
