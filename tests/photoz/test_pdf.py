import errno
import math
import os

import h5py
import numpy as np
import pytest
from scipy import optimize, stats

from jaxz.photoz.pdf import PDF, read_qp, write_qp

EDGES = np.array([0.0, 0.5, 1.0, 2.0])


def gaussians(mean, sigma, edges=None):
    edges = np.linspace(-1, 4, 5001) if edges is None else edges
    mass = np.diff(stats.norm.cdf(edges, np.asarray(mean)[:, None], np.asarray(sigma)[:, None]), axis=1)
    return PDF(edges, mass / mass.sum(axis=1, keepdims=True))


def test_by_hand():
    pdf = PDF(EDGES, [[0.2, 0.3, 0.5]])
    assert pdf.mean() == pytest.approx([0.2 * 0.25 + 0.3 * 0.75 + 0.5 * 1.5])
    assert pdf.median() == pytest.approx([1.0])
    assert pdf.mode() == pytest.approx([0.75])  # 0.6 per unit z; the last bin holds more mass, at 0.5 per unit z
    assert pdf.quantile(0.1) == pytest.approx([0.25])
    assert pdf.quantile(0.75) == pytest.approx([1.5])
    assert pdf.cdf(0.25) == pytest.approx([0.1])
    assert pdf.cdf(1.2) == pytest.approx([0.6])
    assert pdf.density([1.2]) == pytest.approx([0.5])
    assert pdf.odds(np.array([1.0])) == pytest.approx([0.12 * 0.6 + 0.12 * 0.5])


def test_outside_of_the_grid():
    pdf = PDF(EDGES, [[0.2, 0.3, 0.5]] * 2)
    assert pdf.cdf([-0.1, 2.5]) == pytest.approx([0, 1])
    assert pdf.density([-0.1, 2.5]) == pytest.approx([0, 0])
    assert pdf.density([0.0, 2.0]) == pytest.approx([0.4, 0.5])


def test_empty_bins_do_not_attract_quantiles():
    pdf = PDF(EDGES, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert pdf.median() == pytest.approx([0.75, 0.25, 1.5])
    assert pdf.quantile(1.0) == pytest.approx([1.0, 0.5, 2.0])


def test_quantile_inverts_cdf():
    mass = np.random.default_rng(1).dirichlet(np.full(40, 0.3), 300)
    pdf = PDF(np.linspace(0, 3, 41), mass)
    for q in (0.025, 0.16, 0.5, 0.84, 0.975):
        assert np.allclose(pdf.cdf(pdf.quantile(q)), q, atol=1e-12)


def test_gaussian_closed_forms():
    mean, sigma = np.array([0.4, 1.1, 2.0]), np.array([0.05, 0.1, 0.2])
    pdf = gaussians(mean, sigma)
    assert np.allclose(pdf.mean(), mean, atol=1e-6)
    assert np.allclose(pdf.median(), mean, atol=1e-6)
    assert np.allclose(pdf.mode(), mean, atol=1e-3)
    assert np.allclose(pdf.interval(0.68), stats.norm.interval(0.68, mean, sigma), atol=1e-5)
    assert np.allclose(pdf.odds(), 2 * stats.norm.cdf(0.06 * (1 + mean) / sigma) - 1, atol=1e-5)
    assert np.allclose(pdf.density(mean + sigma), stats.norm.pdf(1) / sigma, rtol=1e-2)


@pytest.mark.parametrize(
    ("edges", "mass", "message"),
    [
        (EDGES, [[0.5, 0.5]], "not .n\\+1. and"),
        (EDGES, [[0.2, 0.2, 0.2]], "no probabilities"),
        (EDGES, [[1.5, -0.5, 0.0]], "no probabilities"),
        (EDGES, [[np.nan, 0.5, 0.5]], "no probabilities"),
        ([0, 1, 1, 2], [[0.2, 0.3, 0.5]], "ascend"),
    ],
)
def test_refuses_what_is_no_density(edges, mass, message):
    with pytest.raises(ValueError, match=message):
        PDF(edges, mass)


def risk_of(pdf, row, z):
    """The expected loss by Gauss-Legendre quadrature in each bin."""
    x, weight = np.polynomial.legendre.leggauss(12)
    nodes = pdf.centres[:, None] + pdf.widths[:, None] / 2 * x
    loss = 1 - 1 / (1 + ((z - nodes) / (1 + nodes) / 0.15) ** 2)
    return np.sum(pdf.probability[row][:, None] / 2 * weight * loss)


def test_the_risk_based_point_is_where_the_expected_loss_is_least():
    mass = np.random.default_rng(4).dirichlet(np.full(60, 0.1), 12)
    pdf = PDF(np.linspace(0, 3, 61), mass)
    grid = np.linspace(0, 3, 151)
    for row, found in enumerate(pdf.risk()):
        start = grid[np.argmin([risk_of(pdf, row, z) for z in grid])]
        bounds = (max(start - 0.02, 0), min(start + 0.02, 3))
        expected = optimize.minimize_scalar(
            lambda z, row=row: risk_of(pdf, row, z), bounds=bounds, method="bounded", options={"xatol": 1e-9}
        ).x
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_risk_based_point_of_qp():
    pytest.importorskip("qp", reason="qp-prob is an optional peer")
    from qp.metrics.array_metrics import quick_rbpe

    edges, parts = np.linspace(0, 3, 601), ((0.55, 0.5, 0.1), (0.45, 1.0, 0.05))
    gaussian = lambda z, mean, sigma: math.exp(-(((z - mean) / sigma) ** 2) / 2) / sigma / math.sqrt(2 * math.pi)
    smooth = lambda z: sum(weight * gaussian(z, mean, sigma) for weight, mean, sigma in parts)
    pdf = PDF(edges, sum(weight * gaussians([mean], [sigma], edges).probability for weight, mean, sigma in parts))
    peer = quick_rbpe(smooth, (0.0, 2.0), (0.2, 1.3))
    assert pdf.risk() == pytest.approx([peer], abs=5e-5)  # its steps are 1e-5, our bins 5e-3


def test_credibility_by_hand():
    pdf = PDF([0, 1, 2, 4, 5], [[0.2, 0.4, 0.2, 0.2]] * 5)  # densities 0.2, 0.4, 0.1, 0.2
    assert pdf.credibility(np.array([1.25, 0.5, 4.5, 3.0, 6.0])) == pytest.approx([0.1, 0.5, 0.7, 0.9, 1.0])


def test_file_round_trip(tmp_path):
    pdf = gaussians([0.4, 1.1, 2.0], [0.05, 0.1, 0.2], np.linspace(-1, 4, 101))
    write_qp(tmp_path / "pdf.hdf5", pdf, {"key": np.array(["a", "bb", "c-1"]), "z": np.arange(3.0)})
    found, ancil = read_qp(tmp_path / "pdf.hdf5")
    assert np.array_equal(found.edges, pdf.edges)
    assert np.allclose(found.probability, pdf.probability, atol=1e-15)
    assert ancil["key"].tolist() == ["a", "bb", "c-1"]
    assert ancil["z"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["pdf.hdf5"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "pdf.hdf5", []

    def sync(file):
        assert not path.exists()
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", sync)
    write_qp(path, gaussians([0.4], [0.05]), {})
    assert synced == [(path.stat().st_ino, path.stat().st_size)]


def test_what_cannot_be_written_names_the_file_and_leaves_nothing(tmp_path):
    pdf = PDF(EDGES, [[0.2, 0.3, 0.5]])
    (tmp_path / "taken").mkdir()
    for name in ("absent/pdf.hdf5", "taken"):
        with pytest.raises(OSError) as refused:
            write_qp(tmp_path / name, pdf, {})
        assert refused.value.filename == str(tmp_path / name)
        assert refused.value.errno in (errno.ENOENT, errno.EISDIR)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_refuses_other_files(tmp_path):
    (tmp_path / "text").write_text("no hdf5")
    with pytest.raises(ValueError, match="no qp file"):
        read_qp(tmp_path / "text")
    with h5py.File(tmp_path / "interp", "w") as file:
        file["meta/pdf_name"] = np.array([b"interp"])
    with pytest.raises(ValueError, match="only 'hist'"):
        read_qp(tmp_path / "interp")


def test_qp_reads_the_file_and_agrees(tmp_path):
    qp = pytest.importorskip("qp", reason="qp-prob is an optional peer")
    mass = np.random.default_rng(2).dirichlet(np.full(30, 0.5), 20)
    pdf, z = PDF(np.linspace(0, 3, 31), mass), np.random.default_rng(3).uniform(0, 3, 20)
    write_qp(tmp_path / "pdf.hdf5", pdf, {"key": np.array([f"k{i}" for i in range(20)])})
    ensemble = qp.read(str(tmp_path / "pdf.hdf5"))
    assert ensemble.ancil["key"][3] == "k3"
    assert np.allclose(ensemble.cdf(z[:, None]).ravel(), pdf.cdf(z), atol=1e-12)
    assert np.allclose(ensemble.pdf(z[:, None]).ravel(), pdf.density(z), atol=1e-12)
    assert np.allclose(ensemble.ppf(0.16).ravel(), pdf.quantile(0.16), atol=1e-12)
    assert np.allclose(ensemble.mean().ravel(), pdf.mean(), atol=1e-2)  # qp integrates on a grid of its own
