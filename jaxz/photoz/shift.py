"""Covariate shift between labelled (train) and wanted (target) objects: density-ratio weights and where they end.

Weights w(x) = p_target(x) / p_train(x), of mean 1 over the training objects, correct a loss or an n(z) as long as
p(z|x) is the same for both; they say nothing where the target has no training neighbours (`covered`, docs/shift.md).
Features are any numbers, NaN where not known; all functions work in the space of `common_space`.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.spatial import KDTree
from scipy.special import expit
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, SplineTransformer, StandardScaler

from jaxz.photoz.pdf import PDF
from jaxz.photoz.terms import squared

FOLDS = 5
CORES = -1  # that look for neighbours: all there are, for targets may be tens of millions
MOST_FEATURES = 16  # more become as many principal components
MOST_ROWS = 100_000  # that one classifier learns from
LEAST = 1e-6  # probability of either domain
TAIL = 3  # objects that the largest weight is shared by
FEWEST_NEIGHBOURS = 16  # of weights
COVER_NEIGHBOURS, SHARE = 8, 0.99
COMPONENTS = (1, 2, 3, 4, 6, 8)  # of a mixture of Gaussians ...
MIXED_ROWS = 10_000  # ... that learns from so many of a domain, ...
FEWEST_MIXED = 10  # ... and so many a component


def common_space(train: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N,G] and [M,G] of features [N,F] and [M,F]: in units of the standard deviation over both, unknown ones at the
    median, with whether they are known as features of their own: an object of other bands is another kind of object.

    Raises ValueError where the features do not fit, for fewer than 5 objects, or where all of them are the same.
    """
    train, target = np.asarray(train, np.float64), np.asarray(target, np.float64)
    if train.ndim != 2 or target.ndim != 2 or train.shape[1] != target.shape[1]:
        raise ValueError(f"features {train.shape} and {target.shape} are not [N,F] and [M,F]")
    if min(len(train), len(target)) < FOLDS:
        raise ValueError(f"{len(train)} training and {len(target)} target objects: at least {FOLDS} of each are needed")
    x = np.concatenate([train, target])
    complete = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    x = complete.fit_transform(np.where(np.isfinite(x), x, np.nan))
    x = x[:, np.ptp(x, axis=0) > 0]
    if not x.shape[1]:
        raise ValueError("features: all objects have the same")
    x = StandardScaler().fit_transform(x)
    if x.shape[1] > MOST_FEATURES:
        x = PCA(MOST_FEATURES, random_state=0).fit_transform(x)
        x /= np.sqrt(x.var(axis=0).mean())  # one unit for all: the last components are mostly noise
    return x[: len(train)], x[len(train) :]


def density_ratio_classifier(train: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """[N] weights p_target / p_train, of mean 1, of training features [N,F] for a target [M,F]: the odds p / (1 - p) of
    being a target object under `domain_probability`, `truncated`."""
    return odds(domain_probability(train, target, seed)[: len(train)])


def odds(probability: np.ndarray) -> np.ndarray:
    """[N] weights, of mean 1, of training objects of a probability [N] to be target ones; none above the third largest:
    how high a tail of fewer objects reaches is extrapolated, not measured."""
    weights = probability / (1 - probability)
    return truncated(np.minimum(weights, np.sort(weights)[-TAIL]))


def truncated(weights: np.ndarray) -> np.ndarray:
    """[N] weights of mean 1, at most about sqrt(N) times their mean: what may rest on one object is bounded, at no cost
    to the rate of convergence (Ionides 2008, JCGS 17, 295)."""
    weights = np.minimum(weights, weights.mean() * np.sqrt(len(weights)))
    return weights / weights.mean()


def domain_probability(train: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """[N+M]: the probability that an object of known features is from target [M,F], not from train [N,F].

    Cross-fitted: by classifiers that have not seen the object. The classifiers' out-of-fold logits are combined with
    non-negative coefficients that minimise the log loss (a super learner: van der Laan, Polley & Hubbard 2007), and
    calibrated by a spline. Raises ValueError as `common_space` does.
    """
    x, y = np.concatenate(common_space(train, target)), np.repeat([0, 1], [len(train), len(target)])
    models, draw = classifiers(x.shape[1], seed), np.random.default_rng(seed)
    logits = np.empty((len(x), len(models)))
    for seen, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        seen = draw.permutation(seen)[:MOST_ROWS]
        for n, model in enumerate(models):
            logits[held, n] = model.fit(x[seen], y[seen]).decision_function(x[held])
    logit = combined(logits, y)[:, None]
    # The logit itself beside the spline: the penalty then draws to no calibration, not to no ratio.
    curve = SplineTransformer(5, knots="quantile", extrapolation="linear").fit_transform(logit)
    curve = np.column_stack([10 * logit, curve])
    calibrated = LogisticRegression(C=10, max_iter=1000).fit(curve, y).predict_proba(curve)[:, 1]
    return np.clip(calibrated, LEAST, 1 - LEAST)


def classifiers(features: int, seed: int) -> list:
    """Of smooth log ratios (linear and quadratic, exact between Gaussians; splines; kernels), of rough ones, and of
    mixtures of Gaussians, whose ratio spans too many orders of magnitude for those."""
    logistic = lambda c=1.0: LogisticRegression(C=c, max_iter=200)
    return [
        logistic(),
        make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), logistic()),
        make_pipeline(SplineTransformer(6, extrapolation="linear"), logistic()),
        make_pipeline(Nystroem(gamma=1 / features, n_components=250, random_state=seed), logistic(3.0)),
        HistGradientBoostingClassifier(max_leaf_nodes=8, min_samples_leaf=40, early_stopping=True, random_state=seed),
        MixtureRatio(seed),
    ]


class MixtureRatio:
    """The log ratio of two densities, each a mixture of Gaussians of its own. The number of components and whether they
    lie along the axes are those of least BIC (Fraley & Raftery 2002, JASA 97, 611, sec. 2.4)."""

    def __init__(self, seed: int):
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> "MixtureRatio":
        self.densities = [self.density(x[y == domain]) for domain in (0, 1)]
        return self

    def density(self, x: np.ndarray) -> GaussianMixture:
        """Of x [N,F], whose rows have no order."""
        x = x[:MIXED_ROWS]
        tried = [
            GaussianMixture(n, covariance_type=shape, reg_covar=1e-3, n_init=2, max_iter=300, random_state=self.seed)
            for shape in ("diag", "full")
            for n in COMPONENTS
            if n == 1 or n * FEWEST_MIXED <= len(x)
        ]
        return min((mixture.fit(x) for mixture in tried), key=lambda mixture: mixture.bic(x))

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        train, target = (density.score_samples(x) for density in self.densities)
        return target - train


def combined(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N]: b + sum_k a_k logits[:, k] of least log loss against y [N] of 0 and 1, a_k >= 0. logits: [N,K]."""
    x, sign, members = np.column_stack([logits, np.ones(len(y))]), 1 - 2 * y, logits.shape[1]

    def loss(a: np.ndarray) -> tuple[float, np.ndarray]:
        wrong = sign * (x @ a)
        return np.logaddexp(0, wrong).mean(), x.T @ (sign * expit(wrong)) / len(y)

    bounds = [(0, None)] * members + [(None, None)]
    return x @ minimize(loss, np.append(np.full(members, 1 / members), 0), jac=True, bounds=bounds).x


def density_ratio_knn(train: np.ndarray, target: np.ndarray, neighbours: int | None = None) -> np.ndarray:
    """[N] weights p_target / p_train, of mean 1, of training features [N,F] for a target [M,F].

    The number of target objects in the ball that reaches to a training object's k-th training neighbour, over k (Lima
    et al. 2008, MNRAS 390, 118, eq. 24), truncated as the classifier's. k is sqrt(N) by default: its noise falls, and
    so does the ball. Raises ValueError as `common_space` does, and where the domains do not meet.
    """
    train, target = common_space(train, target)
    _, radius = training_balls(train, neighbours or max(FEWEST_NEIGHBOURS, round(len(train) ** 0.5)))
    count = KDTree(target).query_ball_point(train, radius, return_length=True, workers=CORES)
    if not count.any():
        raise ValueError("no target object lies near any training object: there are no weights")
    return truncated(count)


def training_balls(train: np.ndarray, neighbours: int) -> tuple[KDTree, np.ndarray]:
    """A tree of [N,G], and the distance of each object to its k-th neighbour there, or to the last one."""
    tree = KDTree(train)
    kth = [min(neighbours + 1, len(train))]  # the first neighbour is itself
    return tree, tree.query(train, kth, workers=CORES)[0][:, 0]


def covered(train: np.ndarray, target: np.ndarray, neighbours: int = COVER_NEIGHBOURS) -> np.ndarray:
    """[M] bool: whether the k-th nearest training object [N,F] of a target object [M,F] is at most as far as 99 % of
    the training objects have theirs: jaxz.coverage's rule, by which a hundredth of objects like the training ones falls
    out in any number of dimensions. Of objects that are not covered no weight and no training label says anything."""
    train, target = common_space(train, target)
    tree, radius = training_balls(train, neighbours)
    distance = tree.query(target, [min(neighbours, len(train))], workers=CORES)[0][:, 0]
    return distance <= np.quantile(radius, SHARE)


def nearest(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[M] int: which of the objects `known` [N,F] each of `wanted` [M,F] is likest to."""
    known, wanted = common_space(known, wanted)
    return KDTree(known).query(wanted, workers=CORES)[1]


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kish 1965): how many equally weighted objects give as large an error of a mean."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def propensity_strata(probability: np.ndarray, strata: int = 5) -> np.ndarray:
    """[N+M] int: the quantile group of each object's probability to be a target one, from 0, the likest to training.

    Within a group training and target objects have about the same features, so one model a group, trained without
    weights, holds for both (StratLearn: Autenrieth et al. 2024). probability: [N+M] of `domain_probability`.
    """
    limits = np.quantile(probability, np.linspace(0, 1, strata + 1)[1:-1])
    return np.searchsorted(limits, probability, side="left")


def label_shift(probability: np.ndarray, prior: np.ndarray, steps: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """p(z) [M,n] of target objects, adapted, and the target's n(z) [n], where p(x|z) is that of training and n(z) not.

    probability: [M,n] of a calibrated model whose training set had the n(z) `prior` [n]. Expectation-maximisation
    (Saerens, Latinne & Decaestecker 2002, eq. 2.9) until no bin of n(z) moves by 1e-6 of itself or 1e-9. An object
    that only bins without training objects explain is as likely anywhere as n(z) says.
    """
    known = prior > 0  # a bin without training objects says nothing, and stays empty
    ratio = np.divide(probability, prior, where=known, out=np.zeros_like(probability, dtype=np.float64))
    found = np.where(known, prior / prior.sum(), 0)
    for _ in range(steps):
        adapted = ratio * found
        total = adapted.sum(axis=1, keepdims=True)
        adapted = np.where(total > 0, adapted / np.where(total > 0, total, 1), found)
        found, last = adapted.mean(axis=0), found
        if (np.abs(found - last) <= 1e-6 * last + 1e-9).all():
            break
    return adapted, found


class Cells(NamedTuple):
    """Per k-means cell [K]: the mean residual of its training objects, its error, and their number; and the cell of
    every target object [M]. bias and error are NaN in cells of too few: those are not calibrated."""

    bias: np.ndarray
    error: np.ndarray
    labelled: np.ndarray
    target: np.ndarray


def calibrate_cells(
    train: np.ndarray, residual: np.ndarray, target: np.ndarray, cells: int, seed: int, fewest: int = 5
) -> Cells:
    """Calibration per cell of feature space, after Masters et al. 2015 with k-means in place of a map; at most as many
    cells as target objects.

    train: [N,F], with residual [N], such as (z_phot - z_spec) / (1 + z_spec) of held-out predictions; target: [M,F],
    which the cells divide. (z_phot - bias[cell]) / (1 + bias[cell]) is then free of bias in calibrated cells.
    """
    train, target = common_space(train, target)
    cells = min(cells, len(target))
    means = MiniBatchKMeans(cells, n_init=3, random_state=seed, batch_size=4096).fit(target)
    cell = means.predict(train)
    labelled = np.bincount(cell, minlength=cells)
    enough = np.where(labelled >= max(fewest, 2), labelled, np.nan)
    bias = np.bincount(cell, residual, cells) / enough
    scatter = np.bincount(cell, (residual - bias[cell]) ** 2, cells) / (enough - 1)
    return Cells(bias, np.sqrt(scatter / enough), labelled, means.predict(target))


def weighted_cde_loss(train: PDF, z_true: np.ndarray, weights: np.ndarray, target: PDF) -> float:
    """The risk of p(z) on the target, to choose models by: E_target[int p^2 dz] - 2 E_train[w p(z_true)] (Freeman,
    Izbicki & Lee 2017, MNRAS 468, 4556, eq. 7), from held-out objects, the smaller the better."""
    return float(squared(target).mean() - 2 * np.average(train.density(z_true), weights=weights))
