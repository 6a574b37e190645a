"""Metrics of photometric redshifts, with bootstrap errors: an entry each of POINT_METRICS or PDF_METRICS, of which the
scores of a run and the report are made.

Throughout, e = (z_phot - z_true) / (1 + z_true). A key names its convention: sigma_mad is centred on the median,
nmad0 on zero.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
from astropy.stats import biweight_location, biweight_scale
from scipy import stats

from jaxz.photoz.bootstrap import hierarchical_bootstrap
from jaxz.photoz.pdf import PDF
from jaxz.photoz.terms import pdf_terms

MAD_TO_SIGMA, IQR_TO_SIGMA = 1.4826, 1.349  # of a Gaussian, as rounded in the literature
ENOUGH_FOR_ERRORS = 5  # objects: below, a bootstrap error means nothing
LEVELS = np.arange(1, 20) / 20  # of calibration_error
BLOCK = 2_000_000  # numbers held at once by the bootstrap


def residuals(z_phot: np.ndarray, z_true: np.ndarray) -> np.ndarray:
    """Errors e = (z_phot - z_true) / (1 + z_true)."""
    return (z_phot - z_true) / (1 + z_true)


class Sample:
    """The columns of `columns_of` as attributes z_phot, z_true, and with p(z) pit, credibility, crps ..., each [N], or
    [R,N] for a block of resamples; and what several metrics share, found once: [N] or [R,N] like e, [...] like median.
    """

    z_phot: np.ndarray
    z_true: np.ndarray
    pit: np.ndarray
    credibility: np.ndarray
    inside: np.ndarray  # bool: where columns_of was given intervals

    def __init__(self, columns: Mapping[str, np.ndarray]):
        vars(self).update(columns)

    @cached_property
    def e(self) -> np.ndarray:
        return residuals(self.z_phot, self.z_true)

    @cached_property
    def size(self) -> np.ndarray:
        return np.abs(self.e)

    @cached_property
    def median(self) -> np.ndarray:
        return np.median(self.e, axis=-1)

    @cached_property
    def percentiles(self) -> np.ndarray:
        """[4, ...]: e below which 16, 25, 75 and 84 % lie."""
        return np.percentile(self.e, [16, 25, 75, 84], axis=-1)

    @cached_property
    def sigma_iqr(self) -> np.ndarray:
        return (self.percentiles[2] - self.percentiles[1]) / IQR_TO_SIGMA

    @cached_property
    def outlier(self) -> np.ndarray:
        """bool, like e: RAIL's."""
        return self.size > np.maximum(0.06, 3 * self.sigma_iqr)[..., None]

    @cached_property
    def hsc_bias(self) -> np.ndarray:
        return biweight_location(self.e, axis=-1)

    @cached_property
    def hsc_sigma(self) -> np.ndarray:
        return biweight_scale(self.e, axis=-1)

    def mean(self, name: str) -> np.ndarray:
        return getattr(self, name).mean(axis=-1)


@dataclass(frozen=True)
class Metric:
    """A number that N objects are scored by, and how a report shows it. label, meaning: HTML."""

    label: str
    meaning: str
    of: Callable[[Sample], np.ndarray] | None  # along the last axis: [...]; None: it needs more than a Sample
    best: float | None = 0.0  # the value that it should come near, or None where lower is always better
    percent: bool = False
    digits: int = 4  # shown after the point

    def rank(self, value: float) -> float:
        return value if self.best is None else abs(value - self.best)

    def text(self, value: float, error: float | None) -> str:
        """Such as "0.0212 ± 0.0004"."""
        scale, digits = (100, 2) if self.percent else (1, self.digits)
        shown = f"{value * scale:.{digits}f}" + ("" if error is None else f" ± {error * scale:.{digits}f}")
        return shown.replace("-", "−") + ("&nbsp;%" if self.percent else "")


def nmad_eazy(s: Sample) -> np.ndarray:
    """1.48 median(|dz - median(dz)| / (1 + z_true)), dz = z_phot - z_true (Brammer et al. 2008)."""
    dz = s.z_phot - s.z_true
    return 1.48 * np.median(np.abs(dz - np.median(dz, axis=-1, keepdims=True)) / (1 + s.z_true), axis=-1)


def rms_clipped(s: Sample) -> np.ndarray:
    """Root mean square of e without RAIL's outliers; NaN where nothing is left."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.sum(np.where(s.outlier, 0, s.e**2), axis=-1) / np.sum(~s.outlier, axis=-1))


def r2(s: Sample) -> np.ndarray:
    """1 - sum (z_phot - z_true)^2 / sum (z_true - mean)^2; NaN for one truth only."""
    scatter = np.sum((s.z_true - s.z_true.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scatter > 0, 1 - np.sum((s.z_phot - s.z_true) ** 2, axis=-1) / scatter, np.nan)


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


def coverage_68(s: Sample) -> np.ndarray:
    """Of the intervals of the catalogue, where `columns_of` was given them, else of the central ones of p(z)."""
    inside = s.inside if hasattr(s, "inside") else (s.pit >= 0.16) & (s.pit <= 0.84)
    return inside.mean(axis=-1)


def nz_bias(s: Sample) -> np.ndarray:
    """(mean of the stacked p(z) - mean z_true) / (1 + mean z_true)."""
    mean = s.mean("z_true")
    return (s.mean("pdf_mean") - mean) / (1 + mean)


POINT_METRICS = {  # of point estimates
    "bias_mean": Metric("mean bias", "mean of e; moved by outliers", lambda s: s.mean("e")),
    "bias_median": Metric("median bias", "median of e: above 0, redshifts are overestimated", lambda s: s.median),
    "sigma_mad": Metric(
        "σ<sub>MAD</sub>",
        "scatter of e: 1.4826 × the median distance from the median; blind to outliers",
        lambda s: MAD_TO_SIGMA * np.median(np.abs(s.e - s.median[..., None]), axis=-1),
    ),
    "eta_15": Metric(
        "η<sub>0.15</sub>",
        "outliers: the fraction with |e| above 0.15",
        lambda s: (s.size > 0.15).mean(axis=-1),
        percent=True,
    ),
    "eta_05": Metric(
        "η<sub>0.05</sub>", "the fraction with |e| above 0.05", lambda s: (s.size > 0.05).mean(axis=-1), percent=True
    ),
    "sigma_68": Metric(
        "σ<sub>68</sub>",
        "half of the range that holds the middle 68 % of e",
        lambda s: (s.percentiles[3] - s.percentiles[0]) / 2,
    ),
    "sigma_iqr": Metric("σ<sub>IQR</sub>", "interquartile range of e / 1.349", lambda s: s.sigma_iqr),
    "nmad0": Metric(
        "NMAD about 0",
        "1.4826 × the median |e|: scatter and bias together",
        lambda s: MAD_TO_SIGMA * np.median(s.size, axis=-1),
    ),
    "nmad_eazy": Metric("NMAD (EAZY)", "1.48 × the median of |Δz − median Δz| / (1 + z)", nmad_eazy),
    "outlier_rail": Metric(
        "outliers (RAIL)",
        "fraction with |e| above max(0.06, 3 σ<sub>IQR</sub>)",
        lambda s: s.mean("outlier"),
        percent=True,
    ),
    "hsc_loss": Metric(  # Tanaka et al. 2018, PASJ 70, S9
        "HSC loss",
        "mean of 1 − 1/(1 + (e/0.15)²): 0 perfect, 1 hopeless",
        lambda s: (1 - 1 / (1 + (s.e / 0.15) ** 2)).mean(axis=-1),
    ),
    "hsc_bias": Metric("biweight bias", "biweight location of e (Beers et al. 1990)", lambda s: s.hsc_bias),
    "hsc_sigma": Metric("biweight scatter", "biweight scale of e (Beers et al. 1990)", lambda s: s.hsc_sigma),
    "hsc_outlier": Metric(
        "biweight outliers",
        "fraction further than 2 biweight scatters from the bias",
        lambda s: (np.abs(s.e - s.hsc_bias[..., None]) > 2 * s.hsc_sigma[..., None]).mean(axis=-1),
        percent=True,
    ),
    "rms": Metric(
        "rms", "root mean square of e; ruled by the worst outliers", lambda s: np.sqrt((s.e**2).mean(axis=-1))
    ),
    "rms_clipped": Metric("clipped rms", "the same without the outliers (RAIL)", rms_clipped),
    "r2": Metric("R²", "share of the variance of the true redshift that is explained", r2, best=1.0),
}
PDF_METRICS = {  # of p(z)
    "pit_ks": Metric(
        "PIT KS",
        "largest departure of PIT = CDF(true z) from uniform; 0: p(z) is calibrated",
        lambda s: pit_ks(s.pit),
        digits=3,
    ),
    "pit_cvm": Metric(
        "PIT CvM",
        "Cramér–von Mises statistic of the PIT; grows with the number of objects",
        lambda s: pit_cvm(s.pit),
        digits=2,
    ),
    "pit_ad": Metric(
        "PIT AD", "Anderson–Darling statistic of the PIT; weighs its ends", lambda s: pit_ad(s.pit), None, digits=2
    ),
    "pit_outlier_rate": Metric(
        "PIT outliers",
        "fraction with PIT below 10⁻⁴ or above 0.9999",
        lambda s: ((s.pit < 1e-4) | (s.pit > 0.9999)).mean(axis=-1),
        percent=True,
    ),
    "coverage_68": Metric(
        "68 % coverage", "fraction inside the 68 % interval; more: p(z) too wide", coverage_68, 0.68, percent=True
    ),
    "coverage_hpd_68": Metric(
        "68 % HPD",
        "fraction inside the smallest region of 68 %",
        lambda s: (s.credibility <= 0.68).mean(axis=-1),
        0.68,
        percent=True,
    ),
    "coverage_hpd_95": Metric(
        "95 % HPD",
        "fraction inside the smallest region of 95 %",
        lambda s: (s.credibility <= 0.95).mean(axis=-1),
        0.95,
        percent=True,
    ),
    "ece": Metric(
        "calibration error",
        "mean |coverage − level| of the smallest regions of 5 to 95 %",
        lambda s: calibration_error(s.credibility),
        digits=3,
    ),
    "nz_bias": Metric("n(z) bias", "relative error of the mean redshift of the stacked p(z)", nz_bias),
    "crps": Metric(
        "CRPS",
        "distance between p(z) and the true redshift, in redshift; rewards sharp and honest p(z)",
        lambda s: s.mean("crps"),
        None,
    ),
    "wasserstein": Metric(
        "W<sub>1</sub>", "mean distance of p(z)'s mass from the true redshift", lambda s: s.mean("wasserstein"), None
    ),
    "cde_loss": Metric("CDE loss", "∫p² dz − 2 p(true z), mean", lambda s: s.mean("cde_loss"), None, digits=3),
    "brier": Metric(
        "Brier", "squared error of the probabilities of bins of 0.02, 0 to 2", lambda s: s.mean("brier"), None
    ),
    "nll": Metric("NLL", "mean of −log p(true z)", lambda s: s.mean("nll"), None, digits=3),
}


def main_metrics(z_phot: np.ndarray, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """bias_median, sigma_mad and eta_15 alone, of z_phot and z_true [..., N] -> {name: [...]}."""
    main = {name: POINT_METRICS[name] for name in ("bias_median", "sigma_mad", "eta_15")}
    return measured(main, {"z_phot": z_phot, "z_true": z_true})


def measured(metrics: Mapping[str, Metric], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: [...]} of those metrics that a Sample of columns [..., N] is enough for."""
    sample = Sample(columns)
    return {name: metric.of(sample) for name, metric in metrics.items() if metric.of is not None}


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


def all_metrics(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics of `columns_of` [..., N] -> {name: [...]}, those of p(z) where it has them."""
    return measured(POINT_METRICS | (PDF_METRICS if "pit" in columns else {}), columns)


class Score(TypedDict):
    """A metric and its error; None where they are not defined."""

    value: float | None
    error: float | None


Metrics = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # like `all_metrics`


def evaluate_metrics(
    z_phot: np.ndarray,
    z_true: np.ndarray,
    pdf: PDF | None = None,
    *,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    cells: np.ndarray | None = None,
    metrics: Metrics = all_metrics,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Score]:
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
        one = np.ones(1)
        names = metrics(columns_of(one, one, None if pdf is None else PDF(np.arange(3), np.full((1, 2), 0.5))))
        return {name: Score(value=None, error=None) for name in names} | {"objects": Score(value=0, error=0)}
    columns = columns_of(**arrays, pdf=pdf, interval=interval)
    errors: dict[str, float] = {}
    if cells is not None:
        found = hierarchical_bootstrap(metrics, {"": [columns]}, cells, resamples=resamples, seed=seed)[""]
        errors = {name: estimate.error for name, estimate in found.items()}
    elif n >= ENOUGH_FOR_ERRORS and resamples > 1:
        errors = _bootstrap(metrics, columns, n, resamples, seed)
    measures = metrics(columns)
    scores = {name: Score(value=_finite(v), error=_finite(errors.get(name))) for name, v in measures.items()}
    return scores | {"objects": Score(value=n, error=0)}


def _bootstrap(
    metrics: Metrics, columns: Mapping[str, np.ndarray], n: int, resamples: int, seed: int
) -> dict[str, float]:
    """{name: standard deviation of the metric over resamples of the objects}, many of them at once."""
    generator, step = np.random.default_rng(seed), max(1, BLOCK // n)
    blocks = []
    for start in range(0, resamples, step):
        rows = generator.integers(0, n, (min(step, resamples - start), n))
        blocks.append(metrics({name: values[rows] for name, values in columns.items()}))
    return {name: float(np.std(np.concatenate([block[name] for block in blocks]), ddof=1)) for name in blocks[0]}


def _finite(value: float | np.ndarray | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
