"""Covariate shift between labelled (train) and wanted (target) objects: density-ratio weights and where they end.

Weights w(x) = p_target(x) / p_train(x), of mean 1 over the training objects, correct a loss or an n(z) as long as p(z|x)
is the same for both; they say nothing where the target has no training neighbours: see `covered` and docs/shift.md.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, SplineTransformer, StandardScaler

FOLDS = 5
MOST_FEATURES = 16  # of the classifier, principal components of more
MOST_ROWS = 50_000  # that one classifier learns from
LEAST = 1e-6  # probability of either domain


def density_ratio_classifier(train: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """[N] weights p_target / p_train, of mean 1, of training features [N,F] for a target [M,F] (NaN: not known).

    The odds p / (1 - p) N / M of being a target object under `domain_probability`, at most sqrt(N) times their mean,
    where truncation costs no rate of convergence (Ionides 2008, JCGS 17, 295, sec. 2).
    """
    p = domain_probability(train, target, seed)[: len(train)]
    return truncated(p / (1 - p))


def truncated(weights: np.ndarray) -> np.ndarray:
    """[N] weights, at most sqrt(N) times their mean, then of mean 1."""
    weights = np.minimum(weights, weights.mean() * np.sqrt(len(weights)))
    return weights / weights.mean()


def domain_probability(train: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """[N+M]: the probability that an object of known features is from target [M,F], not from train [N,F].

    Cross-fitted: by classifiers that have not seen the object. The classifiers' out-of-fold logits are combined with
    non-negative coefficients that minimise the log loss (a super learner: van der Laan, Polley & Hubbard 2007), which
    calibrates them too. Raises ValueError for too few objects, or features that do not fit.
    """
    train, target = np.asarray(train, np.float64), np.asarray(target, np.float64)
    if (
        train.ndim != 2
        or target.ndim != 2
        or train.shape[1] != target.shape[1]
        or min(map(len, (train, target))) < FOLDS
    ):
        raise ValueError(f"features {train.shape} and {target.shape} are not [N,F] and [M,F] of {FOLDS} rows at least")
    x, y = np.concatenate([train, target]), np.repeat([0, 1], [len(train), len(target)])
    x = np.where(np.isfinite(x), x, np.nan)
    logits = np.empty((len(x), len(classifiers(x, seed))))
    draw = np.random.default_rng(seed)
    for seen, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        seen = draw.permutation(seen)[: 2 * MOST_ROWS]
        for n, model in enumerate(classifiers(x, seed)):
            logits[held, n] = model.fit(x[seen], y[seen]).decision_function(x[held])
    return np.clip(expit(combined(logits, y)), LEAST, 1 - LEAST)


def classifiers(x: np.ndarray, seed: int) -> list:
    """Smooth log ratios (linear, quadratic: exact between Gaussians; additive splines; kernels) and rough ones (trees)."""
    reduced = [PCA(MOST_FEATURES, whiten=True, random_state=seed)] if x.shape[1] > MOST_FEATURES else []

    def linear(*expansion):
        filled = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return make_pipeline(
            filled, StandardScaler(), *reduced, *expansion, StandardScaler(), LogisticRegression(max_iter=300)
        )

    return [
        linear(),
        linear(PolynomialFeatures(2, include_bias=False)),
        linear(SplineTransformer(6, extrapolation="linear")),
        linear(Nystroem(gamma=0.5 / min(x.shape[1], MOST_FEATURES), n_components=150, random_state=seed)),
        HistGradientBoostingClassifier(
            learning_rate=0.06, max_leaf_nodes=8, min_samples_leaf=40, early_stopping=True, random_state=seed
        ),
    ]


def combined(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N]: b + sum_k a_k logits[:, k] of least log loss against y [N] of 0 and 1, a_k >= 0. logits: [N,K]."""
    x = np.column_stack([logits, np.ones(len(y))])
    sign = 1 - 2 * y

    def loss(a):
        s = sign * (x @ a)
        return np.logaddexp(0, s).mean(), x.T @ (sign * expit(s)) / len(y)

    members = logits.shape[1]
    start = np.append(np.full(members, 1 / members), 0)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * members + [(None, None)])
    return x @ best.x
