"""Redshifts by template fits: chi^2 over redshift and non-negative combinations of spectra (EAZY: Brammer et al. 2008),
or the best single one (LePhare: Arnouts et al. 1999). The baseline that needs no labels, and reaches any redshift."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import csr_array

from jaxz.photoz.pdf import PDF
from jaxz.photoz.spectra import igm_transmission

STEP = 0.004  # of ln(wavelength)
FLOOR = 0.05  # of the error, in units of |flux|: what templates and zero points do not know
ITERATIONS = 1000  # of non-negative least squares, at most
OFFSET_ROUNDS = 10  # more, and offsets follow what the templates cannot do, along what they can
NODE, PULL = 0.1, 100.0  # of a repair: between nodes in ln(wavelength); 1 / variance of a factor about its neighbours
REPAIR_ROUNDS, UPDATES = 10, 10  # and in each so many of the factors
# Benitez 2000, table 1, for E/S0, Sbc/Scd and Irr: alpha, z_0, k_m, f, k
BENITEZ = ((2.46, 0.431, 0.091, 0.35, 0.147), (1.81, 0.390, 0.0636, 0.50, 0.450), (0.91, 0.063, 0.123, 0.15, 0.0))


class Curve(NamedTuple):
    """A filter's response [W], of any unit, to photons of wavelengths [W] in angstrom."""

    wavelength: np.ndarray
    response: np.ndarray


def model_fluxes(wavelength: np.ndarray, spectra: np.ndarray, curves: Sequence[Curve], z: np.ndarray) -> np.ndarray:
    """`band_fluxes` [Z,T,C], each spectrum in a unit of its own at each redshift."""
    fluxes = band_fluxes(wavelength, spectra, curves, z)
    return fluxes / np.maximum(fluxes.mean(axis=2, keepdims=True), 1e-30)


def band_fluxes(wavelength: np.ndarray, spectra: np.ndarray, curves: Sequence[Curve], z: np.ndarray) -> np.ndarray:
    """f_nu [Z,T,C] in the bands `curves` of spectra F_lambda [T,W] at rest wavelengths [W] (angstrom), redshifted to z
    [Z] through intergalactic hydrogen; photon-counting means, each spectrum in one unit at all redshifts.

    Beyond their ends spectra are 0 in the ultraviolet and fall by the Rayleigh-Jeans law in the infrared.
    """
    ends = min(c.wavelength[0] for c in curves), max(c.wavelength[-1] for c in curves)
    steps = np.arange(np.log(ends[0]), np.log(ends[1]) + STEP, STEP)
    seen, edges = np.exp(steps), np.append(steps, steps[-1] + STEP) - STEP / 2
    response = np.array([shares(curve, edges) for curve in curves])  # <f_nu> of a photon counter
    fluxes = np.empty((len(z), len(spectra), len(curves)))
    for n, redshift in enumerate(z):
        rest = seen / (1 + redshift)
        tail = np.minimum(1, wavelength[-1] / rest) ** 4
        f_lambda = np.array([np.interp(rest, wavelength, row, left=0) for row in spectra]) * tail
        fluxes[n] = (f_lambda * rest**2 * igm_transmission(seen, redshift)) @ response.T
    return fluxes


def shares(curve: Curve, edges: np.ndarray) -> np.ndarray:
    """[W] of its response, in d(ln lambda), between edges [W+1] in ln(wavelength): all of it, however narrow it is."""
    nodes = np.log(curve.wavelength)
    fine = np.union1d(nodes, edges[(edges > nodes[0]) & (edges < nodes[-1])])
    response = np.interp(np.exp(fine), curve.wavelength, curve.response)
    total = np.append(0, np.cumsum(np.diff(fine) * (response[1:] + response[:-1]) / 2))
    return np.diff(np.interp(edges, fine, total)) / total[-1]


def fit(
    flux: np.ndarray, error: np.ndarray, models: np.ndarray, *, combine: bool = True, floor: float = FLOOR
) -> np.ndarray:
    """chi^2 [N,Z] of the best non-negative combination of templates at each redshift, or of the best single one.

    flux, error: [N,C], in any unit; NaN or an error that is not positive: not observed, and counts nothing. models:
    [Z,T,C] of `model_fluxes`. floor: of the error, in units of |flux|, for what templates and zero points do not know.
    """
    flux, weight = observed(flux, error, floor)
    if combine:
        return np.array([[amplitudes(f, w, model)[1] for model in models] for f, w in zip(flux, weight, strict=True)])
    chi2 = np.empty((len(flux), len(models)))
    for n, model in enumerate(models):
        cross, square = np.maximum((weight * flux) @ model.T, 0), weight @ (model**2).T  # [N,T]
        gain = np.divide(cross**2, square, where=square > 0, out=np.zeros_like(cross))
        chi2[:, n] = (flux**2 * weight).sum(axis=1) - gain.max(axis=1)
    return np.maximum(chi2, 0)


def amplitudes(flux: np.ndarray, weight: np.ndarray, model: np.ndarray) -> tuple[np.ndarray, float]:
    """[T] non-negative ones of least chi^2, and that, of one object [C] at one redshift [T,C]."""
    root = np.sqrt(weight)
    best, norm = nnls((model * root).T, flux * root, maxiter=ITERATIONS)
    return best, norm**2


def observed(flux: np.ndarray, error: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Flux, 0 where not observed, and its inverse variance, 0 there."""
    known = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    flux = np.where(known, flux, 0.0)
    return flux, np.where(known, 1 / (np.where(known, error, 1.0) ** 2 + (floor * flux) ** 2), 0.0)


def zero_points(flux: np.ndarray, error: np.ndarray, z: np.ndarray, models: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[C] factors by which fluxes must be multiplied to agree with the templates at the known redshifts z [N]: medians
    of model over flux, iterated, of geometric mean 1. models [Z,T,C] at redshifts `grid` [Z]. Bands seen in fewer than
    20 of the objects, at 5 sigma, keep 1."""
    factor, at = np.ones(flux.shape[1]), np.abs(z[:, None] - grid).argmin(axis=1)
    for _ in range(OFFSET_ROUNDS):
        scaled, weight = observed(flux * factor, error * factor, FLOOR)
        predicted = np.empty_like(scaled)
        for n in range(len(z)):
            predicted[n] = amplitudes(scaled[n], weight[n], models[at[n]])[0] @ models[at[n]]
        sure = (scaled > 5 * error * factor) & (weight > 0) & (predicted > 0)
        for c in np.flatnonzero(sure.sum(axis=0) >= 20):
            factor[c] *= np.median(predicted[sure[:, c], c] / scaled[sure[:, c], c])
        factor /= np.exp(np.log(factor).mean())
    return factor


def repair(
    flux: np.ndarray,
    error: np.ndarray,
    z: np.ndarray,
    models: np.ndarray,
    grid: np.ndarray,
    wavelength: np.ndarray,
    *,
    floor: float = FLOOR,
) -> np.ndarray:
    """Models [Z,T,C] of templates mended by objects of known redshift z [N] (Budavari et al. 2000): each template times
    positive factors at nodes in ln(rest wavelength), linear between them.

    What galaxies at one redshift emit tells how others look at redshifts without labels. flux, error [N,C], models at
    redshifts `grid` [Z] and floor are as in `fit`; wavelength: [C] of the bands, of any unit. In turn amplitudes are
    fitted exactly, and factors by the updates of a non-negative factorisation (Lee & Seung 2001; Blanton & Roweis
    2007), drawn to the mean of their neighbours: where no object has light they go on as where one has. With as many
    templates as bands any object fits at any redshift: give half as many.
    """
    flux, weight = observed(flux, error, floor)
    flux = np.maximum(flux, 0)
    model = models[np.abs(z[:, None] - grid).argmin(axis=1)]
    rest = wavelength / (1 + np.concatenate([z, grid])[:, None])
    between = hats(np.log(rest.ravel()))
    own, every = between[: flux.size], between[flux.size :]
    factor, best = np.ones((between.shape[1], models.shape[1])), np.empty(model.shape[:2])
    for _ in range(REPAIR_ROUNDS):
        for n, bent in enumerate(bend(model, own @ factor)):
            best[n] = amplitudes(flux[n], weight[n], bent)[0]
        part = (best[:, :, None] * model).transpose(0, 2, 1).reshape(flux.size, models.shape[1])  # [NC,T]
        seen = own.T @ (part * (weight * flux).reshape(-1, 1))
        for _ in range(UPDATES):
            total = ((own @ factor) * part).sum(axis=1)
            padded = np.pad(factor, ((1, 1), (0, 0)), "edge")
            beside = (padded[:-2] + padded[2:]) / 2
            factor *= (seen + PULL * beside) / (own.T @ (part * (weight.ravel() * total)[:, None]) + PULL * factor)
    return bend(models, every @ factor)


def hats(x: np.ndarray) -> csr_array:
    """[M,K] weights of nodes NODE apart by which x [M] lies between them."""
    x = (x - x.min()) / NODE
    left, row = x.astype(int), np.arange(len(x))
    right = x - left
    nodes = np.concatenate([left, left + 1])
    return csr_array(
        (np.concatenate([1 - right, right]), (np.concatenate([row, row]), nodes)), shape=(len(x), nodes.max() + 1)
    )


def bend(models: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Models [N,T,C] times factors [NC,T]."""
    n, t, c = models.shape
    return models * factor.reshape(n, c, t).transpose(0, 2, 1)


def redshifted(
    flux: np.ndarray, error: np.ndarray, z: np.ndarray, to: np.ndarray, models: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """[N,C] factors by which flux and error [N,C] of objects at z [N] become those of the same spectra at redshifts
    `to` [N], as bright in the sum of the bands: the ratio of what fits best at z, there and here, so that residuals and
    noise go along (after HAYATE: Tanigawa et al. 2024, MNRAS 530, 2012). NaN for objects that nothing fits.

    models [Z,T,C] at redshifts `grid` [Z], of `band_fluxes`: those of `model_fluxes` have lost how bright a spectrum
    is at one redshift against another."""
    flux, weight = observed(flux, error, FLOOR)
    here, there = (np.abs(redshift[:, None] - grid).argmin(axis=1) for redshift in (z, to))
    now, then = np.empty_like(flux), np.empty_like(flux)
    for n, (h, t) in enumerate(zip(here, there, strict=True)):
        share = amplitudes(flux[n], weight[n], models[h])[0]
        now[n], then[n] = share @ models[h], share @ models[t]
    now, then = (f / np.where(f > 0, f, np.nan).sum(axis=1, keepdims=True) for f in (now, then))
    return then / now


def posterior(chi2: np.ndarray, edges: np.ndarray, prior: np.ndarray | float = 1.0) -> PDF:
    """p(z) = exp(-chi^2 / 2) prior, of chi2 [N,n] at the middles of bins with edges [n+1]; prior [N,n] or 1."""
    mass = np.exp(-0.5 * (chi2 - chi2.min(axis=1, keepdims=True))) * prior * np.diff(edges)
    total = mass.sum(axis=1, keepdims=True)
    flat = np.diff(edges) / (edges[-1] - edges[0])
    return PDF(edges, np.where(total > 0, mass / np.where(total > 0, total, 1), flat))


def magnitude_prior(magnitude: np.ndarray, z: np.ndarray) -> np.ndarray:
    """p(z | I magnitude) [N,n] at redshifts z [n] (Benitez 2000, eqs. 22 to 24, table 1), summed over galaxy types; of
    magnitudes below 20 as at 20, and 1 where the magnitude is not known."""
    faint = np.maximum(np.where(np.isfinite(magnitude), magnitude, 20), 20)[:, None] - 20
    shares = [f * np.exp(-k * faint) for *_, f, k in BENITEZ[:2]]
    shares.append(1 - np.sum(shares, axis=0))
    total = np.zeros((len(magnitude), len(z)))
    for share, (alpha, z0, k, *_) in zip(shares, BENITEZ, strict=True):
        peak = z0 + k * faint
        shape = z**alpha * np.exp(-((z / peak) ** alpha))
        total = total + share * shape / shape.sum(axis=1, keepdims=True)
    return np.where(np.isfinite(magnitude)[:, None], total / total.max(axis=1, keepdims=True), 1.0)
