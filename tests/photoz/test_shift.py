import numpy as np
import pytest
from scipy import optimize, stats

from jaxz.photoz import shift
from jaxz.photoz.pdf import PDF


def gaussians(dimensions, seed, rows=2500):
    """Training and target features, and the true density ratio: target means lie 0.8 away, and it is narrower."""
    draw, mean = np.random.default_rng(seed), np.full(dimensions, 0.8 / dimensions**0.5)
    train, target = draw.normal(size=(rows, dimensions)), mean + 0.9 * draw.normal(size=(rows, dimensions))
    log_ratio = stats.norm.logpdf(train, mean, 0.9) - stats.norm.logpdf(train)
    return train, target, np.exp(log_ratio.sum(1))


def plateau(dimensions, seed, rows=4000):
    """Labelled with a chance that falls along one feature to 3 % and no further."""
    draw, chance = np.random.default_rng(seed), lambda x: 0.03 + 0.97 / (1 + np.exp(2 * x[:, 0] - x[:, 1]))
    everything = draw.normal(size=(20 * rows, dimensions))
    train = everything[draw.uniform(size=len(everything)) < chance(everything)][:rows]
    return train, draw.normal(size=(rows, dimensions)), 1 / chance(train)


def mixed(dimensions, seed, rows=4000):
    """Three clumps in training and target, of other shares there, and moved by 0.75: no classifier of few terms."""
    draw = np.random.default_rng(seed)
    means, sigma = 2.4 / dimensions**0.5 * draw.normal(size=(3, dimensions)), draw.uniform(0.5, 1, 3)
    shares, move = draw.dirichlet(np.full(3, 3.0), 2), draw.normal(size=dimensions)
    middles = means, means + 0.75 * move / np.linalg.norm(move)

    def drawn(kind):
        clump = draw.choice(3, rows, p=shares[kind])
        return middles[kind][clump] + sigma[clump, None] * draw.normal(size=(rows, dimensions))

    def density(x, kind):
        each = [stats.norm.pdf(x, m, s).prod(1) for m, s in zip(middles[kind], sigma, strict=True)]
        return shares[kind] @ each

    train, target = drawn(0), drawn(1)
    return train, target, density(train, 1) / density(train, 0)


HEAVY = 8  # times the mean: where true weights are larger, a few objects decide the correlation
TOYS = [
    *[(mixed, 4, seed, 1500) for seed in range(3)],
    *[(mixed, 8, seed, 4000) for seed in range(3)],
    *[(kind, 4, seed, 1500) for kind in (gaussians, plateau) for seed in range(2)],
]


@pytest.mark.parametrize(("kind", "dimensions", "seed", "rows"), TOYS)
def test_classifier_weights_follow_the_true_ratio(kind, dimensions, seed, rows):
    """Of consecutive skies: their logarithms of all to 0.95, themselves where no true weight is HEAVY, else to 0.9."""
    train, target, true = kind(dimensions, seed, rows)
    found = shift.density_ratio_classifier(train, target, seed=0)
    assert np.corrcoef(np.log(found), np.log(true))[0, 1] > 0.95
    assert np.corrcoef(found, true)[0, 1] > (0.95 if true.max() < HEAVY * true.mean() else 0.9)
    assert found.mean() == pytest.approx(1)
    unweighted, weighted = train.mean(0) - target.mean(0), np.average(train, 0, found) - target.mean(0)
    assert np.linalg.norm(weighted) < np.linalg.norm(unweighted) / 2


def test_classifier_sees_that_a_band_is_missing_and_nothing_behind_it():
    draw = np.random.default_rng(0)
    train, target = draw.normal(size=(800, 2)), draw.normal(size=(800, 2))
    train[:200, 1] = np.nan
    target[:400, 1] = np.nan
    found = shift.density_ratio_classifier(train, target, seed=1)
    assert found[:200].mean() == pytest.approx(2, rel=0.15)
    assert found[200:].mean() == pytest.approx(2 / 3, rel=0.1)
    train[:200, 1] = np.inf
    assert np.array_equal(found, shift.density_ratio_classifier(train, target, seed=1))


def test_neighbour_weights_equal_counts_by_brute_force_and_follow_the_ratio():
    train, target, true = gaussians(2, 3)
    found = shift.density_ratio_knn(train, target)
    assert np.corrcoef(found, true)[0, 1] > 0.95
    scale = np.concatenate([train, target]).std(0)
    distance = lambda b: np.sqrt((((train[:100, None] - b) / scale) ** 2).sum(2))
    radius = np.partition(distance(train), 20, axis=1)[:, 20]
    count = (distance(target) <= radius[:, None]).sum(1)
    found = shift.density_ratio_knn(train, target, 20)[:100]
    assert found / found.mean() == pytest.approx(count / count.mean())
    with pytest.raises(ValueError, match="no target object lies near"):
        shift.density_ratio_knn(train[:50], train[:50] + 100)


def test_no_weight_is_above_the_third_largest():
    draw = np.random.default_rng(0)
    ratio = np.exp(draw.normal(size=400))
    found = shift.odds(ratio / (1 + ratio))
    kept = np.argsort(ratio)[:-2]
    assert found[kept] / found[kept].mean() == pytest.approx(ratio[kept] / ratio[kept].mean())
    assert found.max() == found[kept].max() and found.mean() == pytest.approx(1)


def test_one_object_carries_sqrt_n_at_most():
    weights = shift.truncated(np.append(np.ones(99), 1e9))
    assert weights.mean() == pytest.approx(1)
    assert weights.max() / 100 > 0.9  # of the sum: truncated at sqrt(N) times the mean, here of one object


@pytest.mark.parametrize(
    ("train", "target", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "not \\[N,F\\] and \\[M,F\\]"),
        (np.zeros((4, 2)), np.zeros((9, 2)), "4 training and 9 target"),
        (np.zeros((9, 2)), np.zeros((9, 2)), "the same"),
    ],
)
def test_refuses_what_cannot_be_compared(train, target, message):
    with pytest.raises(ValueError, match=message):
        shift.density_ratio_classifier(train, target, 0)


def test_coverage_ends_with_the_training_objects():
    draw = np.random.default_rng(4)
    train = draw.uniform(size=(2000, 2))
    inside, outside = 0.05 + 0.9 * draw.uniform(size=(500, 2)), draw.uniform(1.3, 2, (500, 2))
    found = shift.covered(train, np.concatenate([inside, outside]))
    assert found[:500].mean() > 0.98 and not found[500:].any()


def test_all_cores_look_for_neighbours(monkeypatch):
    """Of tens of millions of targets in ten dimensions one would look for hours."""
    asked = []

    class Tree(shift.KDTree):
        def query(self, x, k=1, *, workers=1):
            asked.append(workers)
            return super().query(x, k, workers=workers)

        def query_ball_point(self, x, r, *, workers=1, return_length=False):
            asked.append(workers)
            return super().query_ball_point(x, r, workers=workers, return_length=return_length)

    monkeypatch.setattr(shift, "KDTree", Tree)
    train, target = np.random.default_rng(7).normal(size=(2, 40, 2))
    shift.density_ratio_knn(train, target), shift.covered(train, target), shift.nearest(train, target)
    assert asked == [-1] * 5


@pytest.mark.parametrize("dimensions", [2, 10])
def test_coverage_loses_a_hundredth_of_objects_like_the_training_ones(dimensions):
    draw = np.random.default_rng(5)
    train, target = draw.normal(size=(2, 3000, dimensions))
    assert shift.covered(train, target).mean() == pytest.approx(0.99, abs=0.007)


def test_coverage_against_brute_force():
    train, target = np.random.default_rng(6).normal(size=(2, 60, 3))
    a, b = shift.common_space(train, target)
    apart = lambda x: np.sort(np.linalg.norm(x[:, None] - a, axis=2), axis=1)
    limit = np.quantile(apart(a)[:, 8], 0.99)  # the first is the object itself
    assert np.array_equal(shift.covered(train, target), apart(b)[:, 7] <= limit)


def test_effective_sample_size():
    assert shift.effective_sample_size(np.ones(7)) == 7
    assert shift.effective_sample_size(np.array([1, 1, 0, 0])) == 2
    assert shift.effective_sample_size(np.array([3, 1])) == 1.6


def test_strata_balance_features():
    train, target, _ = gaussians(2, 5)
    probability = shift.domain_probability(train, target, 0)
    stratum = shift.propensity_strata(probability)
    assert np.bincount(stratum).tolist() == [1000] * 5
    assert (np.diff([probability[stratum == n].mean() for n in range(5)]) > 0).all()
    first, second = stratum[:2500], stratum[2500:]
    gaps = [np.abs(train[first == n].mean(0) - target[second == n].mean(0)).max() for n in range(5)]
    assert np.mean(gaps) < 0.35 * np.abs(train.mean(0) - target.mean(0)).max()


def test_label_shift_finds_the_target_n_of_z():
    draw, edges = np.random.default_rng(6), np.linspace(0, 1, 6)
    prior, wanted = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.1, 0.2, 0.3, 0.3])
    z = draw.choice(5, 20000, p=wanted)
    x = z + 0.5 * draw.normal(size=len(z))
    likelihood = stats.norm.pdf(x[:, None], np.arange(5), 0.5)
    posterior = lambda p: likelihood * p / (likelihood * p).sum(1, keepdims=True)
    adapted, found = shift.label_shift(posterior(prior), prior)
    assert found == pytest.approx(wanted, abs=0.02)
    minus_log = lambda a: -np.log(likelihood @ np.exp(a - np.logaddexp.reduce(a))).mean()
    best = optimize.minimize(minus_log, np.zeros(5), tol=1e-9).x  # the n(z) of most likelihood
    assert found == pytest.approx(np.exp(best - np.logaddexp.reduce(best)), abs=1e-3)
    assert np.allclose(adapted, posterior(found), atol=1e-4)
    assert len(PDF(edges, adapted)) == len(z)


def test_label_shift_leaves_alone_what_training_never_had():
    adapted, found = shift.label_shift(np.array([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]]), np.array([0.5, 0.0, 0.5]))
    assert found[1] == 0 and found.sum() == pytest.approx(1)
    assert adapted[1] == pytest.approx(found, abs=1e-5)  # only an empty bin explains it: nothing is known


def test_cells_know_their_bias_and_where_they_know_none():
    draw, centres = np.random.default_rng(7), np.array([[0, 0], [9, 0], [0, 9]])
    target_kind, train_kind = draw.integers(0, 3, 900), draw.integers(0, 2, 400)
    target, train = (centres[kind] + draw.normal(size=(len(kind), 2)) for kind in (target_kind, train_kind))
    residual = np.array([0.02, -0.05])[train_kind] + 0.01 * draw.normal(size=400)
    cells = shift.calibrate_cells(train, residual, target, cells=3, seed=0)
    bias, error = cells.bias[cells.target], cells.error[cells.target]
    for kind in (0, 1):
        own = residual[train_kind == kind]
        assert bias[target_kind == kind] == pytest.approx(own.mean())
        assert error[target_kind == kind] == pytest.approx(own.std(ddof=1) / len(own) ** 0.5)
    assert np.isnan(bias[target_kind == 2]).all() and sorted(cells.labelled)[0] == 0


def test_there_are_no_more_cells_than_targets():
    draw = np.random.default_rng(0)
    cells = shift.calibrate_cells(draw.normal(size=(500, 2)), np.full(500, 0.3), draw.normal(size=(6, 2)), 20, seed=0)
    assert len(cells.bias) == 6 and cells.labelled.sum() == 500
    assert cells.bias[cells.labelled >= 5] == pytest.approx(0.3)


def test_weighted_risk_chooses_the_model_that_fits_the_target():
    """In closed form of Gaussians: E[int p^2] - 2 E[p(z)] of N(m, s) under truth N(0, 1)."""
    edges, z = np.linspace(-6, 6, 601), np.linspace(-6, 6, 2000)  # labelled evenly, wanted as N(0, 1)
    weights = stats.norm.pdf(z)
    for mean, sigma in ((0, 1), (1, 1), (0, 2)):
        mass = np.diff(stats.norm.cdf(edges, mean, sigma))
        pdf = PDF(edges, np.tile(mass / mass.sum(), (len(z), 1)).astype(np.float32))
        true = 1 / (2 * sigma * np.pi**0.5) - 2 * stats.norm.pdf(0, mean, (1 + sigma**2) ** 0.5)
        assert shift.weighted_cde_loss(pdf, z, weights, pdf[:10]) == pytest.approx(true, abs=0.01)
