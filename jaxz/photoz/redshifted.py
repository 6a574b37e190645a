"""Labelled photometry as it would be at another redshift: labels where no spectrum was taken.

A galaxy of known redshift is fitted by spectra that have first learned from all such galaxies; the ratio of the fit at
another redshift to the fit at its own moves its fluxes there (as HAYATE does with those of a survey's own fits:
Tanigawa et al. 2024, MNRAS 530, 2012). Its residuals from the fit and its noise go with it. Beyond the labelled
redshifts the spectra are known from bluer bands, which saw the same rest wavelengths nearby.
"""

import numpy as np

from jaxz.photoz.templates import amplitudes, observed

FLOOR = 0.03  # of a flux's error, relative: what the spectra cannot do
ROUNDS, BINS = 10, 30  # of learning; of rest wavelength
FEWEST = 20  # objects that a bin of a spectrum learns from
SURE = 5.0  # sigmas of a flux that teaches
ODD = 0.5  # relative residual of one that does not: of another redshift, or blended


def trained(
    flux: np.ndarray, error: np.ndarray, z: np.ndarray, models: np.ndarray, grid: np.ndarray, wavelength: np.ndarray
) -> np.ndarray:
    """`band_fluxes` models [Z,T,C] at redshifts `grid` [Z] whose spectra have learned from flux and error [N,C] of
    objects of known redshift z [N]; wavelength [C]: of the bands.

    In turns, objects are fitted and each spectrum is multiplied, in bins of rest wavelength, by the ratio of observed
    to modelled flux of what it has a share in, weighted by share and inverse variance: non-negative matrix
    factorisation (Lee & Seung 2001, eq. 4; of photometry with errors: Blanton & Roweis 2007, AJ 133, 734). Raises
    ValueError where nothing is seen at 5 sigma.
    """
    sure = flux > SURE * error  # false for NaN
    if not sure.any():
        raise ValueError("no flux of an object of known redshift is above 5 sigma")
    flux, weight = observed(flux, error, FLOOR)
    models, at = models.copy(), nearest(z, grid)
    rest = np.log(wavelength) - np.log1p(z)[:, None]
    limits = np.quantile(rest[sure], np.linspace(0, 1, BINS + 1))
    middles, own = (limits[1:] + limits[:-1]) / 2, np.searchsorted(limits[1:-1], rest)
    seen = np.log(wavelength) - np.log1p(grid)[:, None]
    for _ in range(ROUNDS):
        parts = shares(flux, weight, models, at)[:, :, None] * models[at]
        whole = parts.sum(axis=1)
        teaching = sure & (np.abs(flux - whole) < ODD * whole)
        in_bins = lambda values, taught=teaching: np.bincount(own[taught], values[taught], BINS)
        for n in range(models.shape[1]):
            part = parts[:, n]
            found, made = in_bins(part * weight * flux), in_bins(part * weight * whole)
            enough = in_bins(part / np.where(teaching, whole, 1)) >= FEWEST
            ratio = np.divide(found, made, where=enough, out=np.ones(BINS))
            models[:, n] *= np.exp(np.interp(seen, middles, np.log(ratio)))
    return models


def redshifted(
    flux: np.ndarray, error: np.ndarray, z: np.ndarray, to: np.ndarray, models: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """[N,C] factors that make fluxes [N,C] of objects at z [N] those of the same spectra at redshifts `to` [N], as
    bright in the sum of the bands; NaN for objects that no spectrum fits. models: `band_fluxes` [Z,T,C] at `grid`."""
    flux, weight = observed(flux, error, FLOOR)
    here, there = nearest(z, grid), nearest(to, grid)
    share = shares(flux, weight, models, here)
    now, then = (np.einsum("nt,ntc->nc", share, models[at]) for at in (here, there))
    now, then = (f / np.where(f > 0, f, np.nan).sum(axis=1, keepdims=True) for f in (now, then))
    return then / now


def shares(flux: np.ndarray, weight: np.ndarray, models: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[N,T]: how much of each spectrum fits flux [N,C] best, of inverse variance `weight`, with models[at]."""
    return np.array([amplitudes(f, w, models[n])[0] for f, w, n in zip(flux, weight, at, strict=True)])


def nearest(z: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[N]: which of the redshifts `grid` [Z], ascending, is nearest to each of z [N]."""
    return np.searchsorted((grid[1:] + grid[:-1]) / 2, z)
