"""Metrics of photometric redshifts, with bootstrap errors.

Throughout, e = (z_phot - z_true) / (1 + z_true). A key names its convention: sigma_mad is centred on the median,
nmad0 on zero. Functions of one sample work along the last axis, so that a block of bootstrap resamples
[R, N] is summarised in one call.
"""

import warnings
from collections.abc import Callable

import numpy as np
from astropy.stats import biweight_location, biweight_scale
from scipy import stats

from jaxz.photoz.bootstrap import hierarchical_bootstrap
from jaxz.photoz.pdf import PDF

MAD_TO_SIGMA, IQR_TO_SIGMA = 1.4826, 1.349  # of a Gaussian, as rounded in the literature
BRIER_BIN = 0.02  # in z
DENSITY_FLOOR = 1e-6  # nll of an object whose p(z) is zero at the truth is -log of this, not infinite
ENOUGH_FOR_ERRORS = 5  # objects: below, a bootstrap error means nothing
LEVELS = np.arange(1, 20) / 20  # of calibration_error
BLOCK = 2_000_000  # numbers held at once by the bootstrap, and by the integrals over p(z)


def residuals(z_phot: np.ndarray, z_true: np.ndarray) -> np.ndarray:
    """e = (z_phot - z_true) / (1 + z_true)."""
    return (z_phot - z_true) / (1 + z_true)


def main_metrics(z_phot: np.ndarray, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """bias_median, sigma_mad and eta_15 as point_metrics has them, alone."""
    e = residuals(z_phot, z_true)
    median = np.median(e, axis=-1)
    return {
        "bias_median": median,
        "sigma_mad": MAD_TO_SIGMA * np.median(np.abs(e - median[..., None]), axis=-1),
        "eta_15": (np.abs(e) > 0.15).mean(axis=-1),
    }


def point_metrics(z_phot: np.ndarray, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of point estimates [..., N] -> {name: [...]}.

    bias_mean, bias_median     mean and median of e
    sigma_mad                  1.4826 median|e - median(e)|
    nmad0                      1.4826 median|e|
    nmad_eazy                  1.48 median(|dz - median(dz)| / (1 + z_true)), dz = z_phot - z_true (Brammer et al. 2008)
    sigma_68, sigma_iqr        half the 16-84 % range of e; its interquartile range / 1.349
    eta_05, eta_15             fraction with |e| > 0.05, 0.15
    outlier_rail               fraction with |e| > max(0.06, 3 sigma_iqr) (LSST-DESC RAIL)
    hsc_loss                   mean of 1 - 1 / (1 + (e / 0.15)^2) (Tanaka et al. 2018, PASJ 70, S9)
    hsc_bias, hsc_sigma        biweight location and scale of e (Beers et al. 1990; Tanaka et al. 2018)
    hsc_outlier                fraction with |e - hsc_bias| > 2 hsc_sigma
    rms, rms_clipped           sqrt(mean(e^2)), of all and without those that outlier_rail counts
    r2                         1 - sum (z_phot - z_true)^2 / sum (z_true - mean)^2; undefined for one truth only
    """
    e = residuals(z_phot, z_true)
    size = np.abs(e)
    p16, p25, p75, p84 = np.percentile(e, [16, 25, 75, 84], axis=-1)
    sigma_iqr = (p75 - p25) / IQR_TO_SIGMA
    scatter = np.sum((z_true - z_true.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    outlier = size > np.maximum(0.06, 3 * sigma_iqr)[..., None]
    dz = z_phot - z_true
    off_median = np.abs(dz - np.median(dz, axis=-1, keepdims=True)) / (1 + z_true)
    hsc_bias, hsc_sigma = biweight_location(e, axis=-1), biweight_scale(e, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rms_clipped = np.sqrt(np.sum(np.where(outlier, 0, e**2), axis=-1) / np.sum(~outlier, axis=-1))
        r2 = np.where(scatter > 0, 1 - np.sum(dz**2, axis=-1) / scatter, np.nan)
    return {
        "bias_mean": e.mean(axis=-1),
        **main_metrics(z_phot, z_true),
        "nmad0": MAD_TO_SIGMA * np.median(size, axis=-1),
        "nmad_eazy": 1.48 * np.median(off_median, axis=-1),
        "sigma_68": (p84 - p16) / 2,
        "sigma_iqr": sigma_iqr,
        "eta_05": (size > 0.05).mean(axis=-1),
        "outlier_rail": outlier.mean(axis=-1),
        "hsc_loss": (1 - 1 / (1 + (e / 0.15) ** 2)).mean(axis=-1),
        "hsc_bias": hsc_bias,
        "hsc_sigma": hsc_sigma,
        "hsc_outlier": (np.abs(e - hsc_bias[..., None]) > 2 * hsc_sigma[..., None]).mean(axis=-1),
        "rms": np.sqrt((e**2).mean(axis=-1)),
        "rms_clipped": rms_clipped,
        "r2": r2,
    }


def pit_ks(pit: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distance of PIT values [..., N] from the uniform distribution."""
    pit, n = np.sort(pit, axis=-1), pit.shape[-1]
    above = np.arange(1, n + 1) / n - pit
    return np.maximum(above.max(axis=-1), (1 / n - above).max(axis=-1))


def pit_cvm(pit: np.ndarray) -> np.ndarray:
    """Cramer-von Mises statistic of PIT values [..., N]: 1 / (12 N) + sum ((2i - 1) / (2N) - pit_i)^2."""
    pit, n = np.sort(pit, axis=-1), pit.shape[-1]
    return 1 / (12 * n) + np.sum((np.arange(1, 2 * n, 2) / (2 * n) - pit) ** 2, axis=-1)


def pit_ad(pit: np.ndarray) -> np.ndarray:
    """Two-sample Anderson-Darling statistic (Scholz & Stephens 1987, eq. 7, normalised) of PIT values [..., N] and N
    even steps from 0 to 1, as qp has it: the larger, the farther from uniform. NaN for a single value."""
    n = pit.shape[-1]
    if n < 2:
        return np.full(pit.shape[:-1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of significance levels, which are not asked for
        of_one = lambda row: stats.anderson_ksamp([row, np.linspace(0, 1, n)]).statistic
        return np.apply_along_axis(of_one, -1, pit)


def calibration_error(credibility: np.ndarray) -> np.ndarray:
    """Expected calibration error: the mean of |coverage(a) - a| of the highest-density regions of the levels a = 0.05,
    0.10 ... 0.95. credibility: [..., N] of the truths (PDF.credibility)."""
    return np.mean([np.abs((credibility <= level).mean(axis=-1) - level) for level in LEVELS], axis=0)


def crps(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] continuous ranked probability score, the integral of (CDF(z) - [z >= z_true])^2 dz, in redshift.

    Exact for the piecewise-linear CDF (Gneiting & Raftery 2007, JASA 102, 359, eq. 20); past the grid it is 0 or 1.
    """
    return _distance_from_step(pdf, z_true, lambda a, b: (a * a + a * b + b * b) / 3)


def wasserstein(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] the integral of |CDF(z) - [z >= z_true]| dz = E|z - z_true|, in redshift: distance of p(z) from the truth."""
    return _distance_from_step(pdf, z_true, lambda a, b: (a + b) / 2)


def _distance_from_step(pdf: PDF, z_true: np.ndarray, mean: Callable) -> np.ndarray:
    """[N] integral of m(CDF) below z_true and of m(1 - CDF) above; mean(a, b) is m's mean over a linear rise a to b."""
    result = np.empty(len(pdf))
    step = max(1, BLOCK // len(pdf.edges))
    for start in range(0, len(pdf), step):
        part = pdf[start : start + step]
        z = np.asarray(z_true[start : start + step], np.float64)
        inside = np.clip(z, pdf.edges[0], pdf.edges[-1])
        rows, bins, at = np.arange(len(part)), part.locate(z)[0], part.cdf(z)
        low, high = part.cumulative[:, :-1], part.cumulative[:, 1:]
        columns = np.arange(low.shape[1])
        whole = np.where(columns < bins[:, None], mean(low, high), mean(1 - low, 1 - high)) * pdf.widths
        whole[rows, bins] = mean(low[rows, bins], at) * (inside - pdf.edges[bins])
        whole[rows, bins] += mean(1 - at, 1 - high[rows, bins]) * (pdf.edges[bins + 1] - inside)
        result[start : start + step] = whole.sum(axis=1) + np.abs(z - inside)
    return result


def brier(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] Brier scores over bins of fixed width, from 0 to 2: those of the grid would depend on how fine it is."""
    first, last = np.floor(pdf.edges[0] / BRIER_BIN + 1e-9), np.ceil(pdf.edges[-1] / BRIER_BIN - 1e-9)
    edges = np.clip(BRIER_BIN * np.arange(first, last + 1), pdf.edges[0], pdf.edges[-1])
    bins = np.clip(np.searchsorted(pdf.edges, edges, side="right") - 1, 0, len(pdf.widths) - 1)
    part = (edges - pdf.edges[bins]) / pdf.widths[bins]
    mass = np.diff(pdf.cumulative[:, bins] + part * pdf.probability[:, bins], axis=1)
    place = np.floor(np.asarray(z_true, np.float64) / BRIER_BIN).astype(int) - int(first)
    inside = (place >= 0) & (place < mass.shape[1])
    hit = np.where(inside, mass[np.arange(len(mass)), np.clip(place, 0, mass.shape[1] - 1)], 0)
    return (mass**2).sum(axis=1) - 2 * hit + 1


def pdf_terms(pdf: PDF, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """The `block_terms` of all objects, computed block by block to bound the memory."""
    z_true = np.asarray(z_true, np.float64)
    ends = np.cumsum([len(block) for block in pdf.blocks()])[:-1]
    terms = [block_terms(*part) for part in zip(pdf.blocks(), np.split(z_true, ends), strict=True)]
    return {name: np.concatenate([part[name] for part in terms]) for name in terms[0]}


def block_terms(pdf: PDF, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """What the metrics of p(z) need of each object, {name: [N]}: averages are then cheap to resample.

    pit        CDF(z_true), linear inside the bin
    credibility  mass of the smallest region that holds z_true
    crps, wasserstein
    cde_loss   integral of p^2 dz - 2 p(z_true) (Izbicki & Lee 2017, EJS 11, 2800)
    brier      sum over bins b of 0.02 in z of (P_b - [z_true in b])^2, from 0 to 2 (Brier 1950), whatever the grid is
    nll        -log max(p(z_true), 1e-6)
    pdf_mean   expectation of z
    """
    square = np.einsum("ij,ij,j->i", pdf.probability, pdf.probability, 1 / pdf.widths)
    at_truth = pdf.density(z_true)
    return {
        "pit": pdf.cdf(z_true),
        "credibility": pdf.credibility(z_true),
        "crps": crps(pdf, z_true),
        "wasserstein": wasserstein(pdf, z_true),
        "cde_loss": square - 2 * at_truth,
        "brier": brier(pdf, z_true),
        "nll": -np.log(np.maximum(at_truth, DENSITY_FLOOR)),
        "pdf_mean": pdf.mean(),
    }


def pdf_metrics(z_true: np.ndarray, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics of p(z) from the `block_terms` [..., N] -> {name: [...]}.

    pit_ks, pit_cvm, pit_ad  distances of the PIT values from uniform
    pit_outlier_rate    fraction with PIT < 1e-4 or > 0.9999
    coverage_68         fraction with the truth in the central 68 % interval, or in that of the catalogue (`columns_of`)
    coverage_hpd_68, coverage_hpd_95  fraction with the truth in the smallest region of that mass
    ece                 expected calibration error of such regions
    nz_bias             (mean of the stacked p(z) - mean z_true) / (1 + mean z_true)
    and the means of crps, wasserstein, cde_loss, brier, nll
    """
    pit, mean = terms["pit"], z_true.mean(axis=-1)
    inside = terms.get("inside", (pit >= 0.16) & (pit <= 0.84))
    return {
        "pit_ks": pit_ks(pit),
        "pit_cvm": pit_cvm(pit),
        "pit_ad": pit_ad(pit),
        "pit_outlier_rate": ((pit < 1e-4) | (pit > 0.9999)).mean(axis=-1),
        "coverage_68": inside.mean(axis=-1),
        "coverage_hpd_68": (terms["credibility"] <= 0.68).mean(axis=-1),
        "coverage_hpd_95": (terms["credibility"] <= 0.95).mean(axis=-1),
        "ece": calibration_error(terms["credibility"]),
        "nz_bias": (terms["pdf_mean"].mean(axis=-1) - mean) / (1 + mean),
        **{name: terms[name].mean(axis=-1) for name in ("crps", "wasserstein", "cde_loss", "brier", "nll")},
    }


def columns_of(
    z_phot: np.ndarray,
    z_true: np.ndarray,
    pdf: PDF | None = None,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """{name: [N]}: all that the metrics of N objects are made of, whichever of them are drawn. interval: the ends
    [N] of the intervals whose coverage counts, where they are not the central 68 % of p(z)."""
    columns = {"z_phot": np.asarray(z_phot, np.float64), "z_true": np.asarray(z_true, np.float64)}
    columns |= {} if pdf is None else pdf_terms(pdf, columns["z_true"])
    return columns | ({} if interval is None else {"inside": (z_true >= interval[0]) & (z_true <= interval[1])})


def all_metrics(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics of `columns_of` [..., N] -> {name: [...]}, those of p(z) where it has them."""
    points = point_metrics(columns["z_phot"], columns["z_true"])
    return points | (pdf_metrics(columns["z_true"], columns) if "pit" in columns else {})


def evaluate_metrics(
    z_phot: np.ndarray,
    z_true: np.ndarray,
    pdf: PDF | None = None,
    *,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    cells: np.ndarray | None = None,
    metrics: Callable = all_metrics,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Every metric with its bootstrap error: {name: {"value": x, "error": s}}; also `objects`, the count.

    metrics: another function like `all_metrics`, for fewer of them. z_phot, z_true: [N] finite redshifts; pdf: their N
    densities, or None for the point metrics only; interval: as columns_of takes it; cells: [N] the sky cell of each,
    which are drawn whole (jaxz.photoz.bootstrap); None draws objects one by one.
    What is undefined (no objects; r2 of a single truth; errors of fewer than 5 objects) is None.
    Raises ValueError for other shapes or numbers that are not finite.
    """
    arrays = {"z_phot": np.asarray(z_phot, np.float64), "z_true": np.asarray(z_true, np.float64)}
    n = len(arrays["z_true"])
    if arrays["z_phot"].shape != (n,) or (pdf is not None and len(pdf) != n):
        raise ValueError(f"z_phot {arrays['z_phot'].shape}, z_true {(n,)} and pdf must be of the same objects")
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} of {n} values are not finite")
    if n == 0:  # the names are needed all the same: take them from one object at its truth
        names = metrics(columns_of([1.0], [1.0], None if pdf is None else PDF([0, 1, 2], [[0.5, 0.5]])))
        return {name: {"value": None, "error": None} for name in names} | {"objects": {"value": 0, "error": 0}}
    arrays = columns_of(**arrays, pdf=pdf, interval=interval)
    values, errors = metrics(arrays), {}
    if cells is not None:
        found = hierarchical_bootstrap(metrics, {"": [arrays]}, cells, resamples=resamples, seed=seed)[""]
        errors = {name: estimate.error for name, estimate in found.items()}
    elif n >= ENOUGH_FOR_ERRORS and resamples > 1:
        errors = _bootstrap(metrics, arrays, n, resamples, seed)
    number = {name: {"value": _finite(v), "error": _finite(errors.get(name))} for name, v in values.items()}
    return number | {"objects": {"value": n, "error": 0}}


def _bootstrap(metrics: Callable, arrays: dict, n: int, resamples: int, seed: int) -> dict[str, float]:
    """{name: standard deviation of the metric over resamples of the objects}, many of them at once."""
    generator, step = np.random.default_rng(seed), max(1, BLOCK // n)
    blocks = []
    for start in range(0, resamples, step):
        rows = generator.integers(0, n, (min(step, resamples - start), n))
        blocks.append(metrics({name: values[rows] for name, values in arrays.items()}))
    return {name: np.std(np.concatenate([block[name] for block in blocks]), ddof=1) for name in blocks[0]}


def _finite(value) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
