import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from scipy import stats

from jaxz import catalog_fluxes, photometry, results
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from jaxz.photoz.metrics import evaluate_metrics, pit_ks
from jaxz.photoz.pdf import PDF, read_qp
from jaxz.photoz.terms import crps

BANDS = {"g": 480.0, "r": 620.0, "i": 770.0, "z": 900.0}
SHARED = photometry.Path(__file__).parents[1] / "../shared/data/rail_dc2_9816_sim"


def make_dataset(path, n=1200, change=None, columns=(), seed=0, extra=None):
    """Fluxes whose colours follow redshift, 3 % noise, band g absent for every seventh object; half are labelled."""
    kinds = {"object_id": "int64", "ra": "float64", "dec": "float64", "split": "string", "z_kind": "string",
             "z": "float32", "mag_ref": "float32", "true_z": "float32"}  # fmt: skip
    kinds |= {f"{kind}_{b}": "float32" for kind in ("flux", "fluxerr") for b in BANDS}
    draw, rows = np.random.default_rng(seed), np.arange(n)
    z = draw.uniform(0.1, 1.6, n)
    bright = 10 ** draw.uniform(0.5, 2, n)
    values = {
        "object_id": rows, "ra": draw.uniform(0, 10, n), "dec": draw.uniform(-5, 5, n),
        "split": np.where(rows % 4 == 0, "test", "train"),
        "z_kind": np.where(draw.uniform(size=n) < 0.5, "spec", "none"),
        "mag_ref": 23.9 - 2.5 * np.log10(bright), "true_z": z,
    }  # fmt: skip
    values["z"] = np.where(values["z_kind"] == "spec", z, np.nan)
    for number, band in enumerate(BANDS):
        flux = bright * np.exp(number * (0.3 + 0.5 * z)) * (1 + 0.03 * draw.normal(size=n))
        values[f"flux_{band}"] = np.where((band == "g") & (rows % 7 == 0), np.nan, flux)
        values[f"fluxerr_{band}"] = np.where(np.isnan(values[f"flux_{band}"]), np.nan, 0.03 * flux)
    for name, value in (change or {}).items():
        values[name] = value(values)
    kinds = {name: kind for name, kind in kinds.items() if name not in columns} | (extra or {})
    bands = tuple(Band(name, nm, 100.0, 27.0, 0.2, 2.0, 1.0, 0.8) for name, nm in BANDS.items())
    arrays = {"tag": Array("vector", "int16", (1,), "index")}
    manifest = Manifest(arrays, bands, {name: Column(kind) for name, kind in kinds.items()})
    writer = DatasetWriter(path, manifest, plan={})
    keys = [f"o{i:05d}" for i in rows]
    writer.write_shard(0, keys, {"tag": np.zeros((n, 1), np.int16)}, {name: values[name] for name in kinds})
    writer.finish(1, {})
    return path


def test_asinh_magnitudes():
    softening = np.array([0.01, 0.02])
    flux = np.array([[100.0, 1.0], [0.0, 0.0], [-0.01, np.nan]])
    found = catalog_fluxes.asinh_magnitudes(flux, softening)
    assert found[0] == pytest.approx(23.9 - 2.5 * np.log10(flux[0]), abs=2e-3)  # bright: Pogson's magnitude
    assert found[1] == pytest.approx(23.9 - 2.5 * np.log10(softening))
    assert found[2, 0] == pytest.approx(23.9 - 2.5 * np.log10(0.01) + 2.5 / np.log(10) * np.arcsinh(0.5))
    assert np.isnan(found[2, 1])


def test_a_reddening_that_is_none_counts_as_unknown(tmp_path):
    ebv = np.tile([0.0, np.nan, -99, 1e30, 0.1], 8)
    path = make_dataset(tmp_path / "d", n=40, change={"ebv": lambda v: ebv}, extra={"ebv": "float32"})
    dataset = open_dataset(path)
    _, flux, error = catalog_fluxes.load(dataset, "z > -1 or isnull(z)", list(dataset.manifest.bands), [])
    stored = np.stack([dataset.column(f"flux_{band}") for band in BANDS], 1)
    factor = np.where(ebv == 0.1, 10 ** (0.4 * 0.1 * 2.0), 1.0)[:, None]
    np.testing.assert_allclose(flux, stored * factor, rtol=1e-6)
    assert np.isfinite(error[:, 1:]).all()


def test_features_are_a_magnitude_and_colours():
    flux = np.array([[10.0, 20.0, 40.0], [10.0, np.nan, 40.0]])
    found = catalog_fluxes.features(flux, np.full(3, 1e-4), reference=2)
    colour = 2.5 * np.log10(2)
    assert found[0] == pytest.approx([23.9 - 2.5 * np.log10(40), colour, colour, 2 * colour, colour], abs=1e-6)
    assert np.isfinite(found[1]).tolist() == [True, False, False, True, False]


def test_residual_pdf_is_calibrated():
    """Points drawn about the truth as the training residuals were: PIT is uniform, CRPS that of the known Gaussian."""
    draw = np.random.default_rng(2)
    z_train, z_test = draw.uniform(0.5, 1.5, (2, 8000))
    z_fold, z_point = (z + 0.04 * (1 + z) * draw.normal(size=z.size) for z in (z_train, z_test))
    pdf = photometry.residual_pdf(z_point, z_fold, z_train, np.linspace(0, 3, 301))
    middle = np.abs(z_point - 1) < 0.3  # at the ends the residuals depend on the point estimate within a group
    assert pit_ks(pdf[middle].cdf(z_test[middle])) < 0.03
    sigma = 0.04 * (1 + z_test[middle])
    x = (z_point[middle] - z_test[middle]) / sigma
    ideal = sigma * (x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi))
    assert crps(pdf[middle], z_test[middle]).mean() == pytest.approx(ideal.mean(), rel=0.03)


def test_residual_pdf_off_the_grid_is_still_a_density():
    e = np.random.default_rng(3).normal(0, 0.01, 60)
    pdf = photometry.residual_pdf(np.array([0.5, 9.0, -3.0]), 0.5 + 1.5 * e, np.full(60, 0.5), np.linspace(0, 1, 21))
    assert pdf.median()[0] == pytest.approx(0.5, abs=0.05)
    assert pdf.median()[1:] == pytest.approx(0.5)  # nothing is known: even over the grid


def test_residual_pdf_of_equal_points():
    z_train = np.random.default_rng(4).uniform(0.4, 0.6, 300)
    pdf = photometry.residual_pdf(np.array([0.2, 0.5]), np.full(300, 0.5), z_train, np.linspace(0, 1, 101))
    assert pdf.median()[1] == pytest.approx(np.median(z_train), abs=0.01)


@pytest.mark.parametrize("model", ["knn", "gbt"])
def test_run_directory(tmp_path, model, capsys):
    dataset, run = make_dataset(tmp_path / "dataset"), tmp_path / f"photometry_{model}"
    photometry.main(["--dataset", str(dataset), "--workdir", str(run), "--model", model])
    assert {path.name for path in run.iterdir()} == {
        "config.json", "predictions.parquet", "pdf.hdf5", "report.json", "compute.json", "evaluated.json"
    }  # fmt: skip
    table = pq.read_table(run / "predictions.parquet")
    pdf, ancil = read_qp(run / "pdf.hdf5")
    index = open_dataset(dataset).arrow("split == 'test'", ["key", "z_kind", "true_z", "flux_g"])
    assert table["key"].to_pylist() == ancil["key"].tolist() == index["key"].to_pylist()
    assert table["test_full"].to_pylist() == [True] * 300
    assert table["test_spec_like"].to_pylist() == [kind == "spec" for kind in index["z_kind"].to_pylist()]
    assert table["z_best"].to_numpy() == pytest.approx(pdf.median(), abs=1e-6)
    assert table["n_bands"].to_pylist() == [3 if np.isnan(f) else 4 for f in index["flux_g"].to_numpy()]

    truth = index["true_z"].to_numpy().astype(float)
    scores = json.loads((run / "report.json").read_text())[run.name]
    e = (table["z_best"].to_numpy() - truth) / (1 + truth)
    assert scores["full"]["eta_15"]["value"] == pytest.approx(np.mean(abs(e) > 0.15))
    assert scores["full"]["objects"]["value"] == 300
    assert scores["full"]["sigma_mad"]["value"] < 0.04  # of labels scattered by 0.2: the colours were learnt
    assert scores["spec_like"]["objects"]["value"] == sum(table["test_spec_like"].to_pylist())
    assert json.loads((run / "compute.json").read_text())["seconds"] > 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " on full: " in line)
    sigma, eta = (scores["full"][metric] for metric in ("sigma_mad", "eta_15"))
    told = [f"{score['value']:.4f} +- {score['error']:.4f}" for score in (sigma, eta)]
    assert line.endswith(f" on full: sigma_mad {told[0]}, eta_15 {told[1]}")


def predicted(path):
    catalog, pdf = photometry.predict(open_dataset(path), "knn", seed=0)
    return catalog["key"].to_pylist(), pdf.probability


def test_truth_and_test_labels_do_not_reach_training(tmp_path):
    def shuffled(name):
        return lambda v: np.where(v["split"] == "test", 0.123, v[name])

    plain = predicted(make_dataset(tmp_path / "plain"))
    for number, change in enumerate(({"true_z": lambda v: v["true_z"][::-1]}, {"z": shuffled("z")})):
        other = predicted(make_dataset(tmp_path / f"other{number}", change=change))
        assert other[0] == plain[0]
        assert np.array_equal(other[1], plain[1])


def test_absent_flux_holds_nothing(tmp_path):
    """A test object without any flux still gets a density, and a broad one."""
    blank = {f"flux_{b}": lambda v, b=b: np.where(np.arange(1200) == 4, np.nan, v[f"flux_{b}"]) for b in BANDS}
    keys, probability = predicted(make_dataset(tmp_path / "dataset", change=blank))
    assert np.isfinite(probability[keys.index("o00004")]).all()


@pytest.mark.parametrize("model", ["knn", "gbt"])
@pytest.mark.parametrize("kind", ["zero error", "no error", "one object"])
def test_a_band_without_errors_or_of_one_object_is_left_out(tmp_path, monkeypatch, model, kind):
    def alone(v):
        first = np.flatnonzero((v["split"] == "train") & (v["z_kind"] == "spec") & np.isfinite(v["flux_z"]))[0]
        return np.where(np.arange(400) == first, v["flux_z"], np.nan)  # four of five folds do not have it

    change = {
        "zero error": {"fluxerr_r": lambda v: np.zeros(400)},
        "no error": {"fluxerr_r": lambda v: np.full(400, np.nan)},
        "one object": {"flux_z": alone},
    }[kind]
    trees = photometry.HistGradientBoostingRegressor
    monkeypatch.setattr(
        photometry, "HistGradientBoostingRegressor", lambda max_iter, **rest: trees(max_iter=30, **rest)
    )
    dataset = open_dataset(make_dataset(tmp_path / "d", n=400, change=change))
    _, pdf = photometry.predict(dataset, model, 0)
    z = dataset.column("true_z")[dataset.select("split == 'test'")]
    assert np.corrcoef(pdf.median(), z)[0, 1] > 0.8


@pytest.mark.parametrize("z", [-9.99, -1, np.nan])
def test_labels_without_a_redshift_are_refused(tmp_path, z):
    path = make_dataset(tmp_path / "d", n=400, change={"z": lambda v: np.where(np.isfinite(v["z"]), z, v["z"])})
    with pytest.raises(InputError, match="'spec' training objects have none above -1; set their z_kind to 'none'"):
        photometry.predict(open_dataset(path), "gbt", 0)


def test_labels_without_any_photometry_are_refused(tmp_path):
    change = {f"fluxerr_{band}": lambda v: np.full(400, -1.0) for band in BANDS}
    with pytest.raises(InputError, match="no labelled training object has a flux with an error above 0"):
        photometry.predict(open_dataset(make_dataset(tmp_path / "d", n=400, change=change)), "gbt", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["fluxerr_g", "fluxerr_r", "fluxerr_i"]}, "fewer than two bands"),
        ({"change": {"z_kind": lambda v: np.full(1200, "none")}}, "0 training objects"),
        ({"change": {"split": lambda v: np.full(1200, "train")}}, "no object is 'test'"),
        ({"change": {"z": lambda v: np.full(1200, np.nan)}}, "have none"),
    ],
)
def test_refuses_datasets_without_what_it_needs(tmp_path, options, message):
    make_dataset(tmp_path / "dataset", **options)
    with pytest.raises(InputError, match=message):
        photometry.main(["--dataset", str(tmp_path / "dataset"), "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_refuses_another_configuration(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    dataset = make_dataset(tmp_path / "dataset")
    with pytest.raises(InputError, match="another configuration"):
        photometry.main(["--dataset", str(dataset), "--workdir", str(tmp_path / "run")])


def test_a_directory_is_claimed_before_the_fit(tmp_path, monkeypatch):
    """And given up where the fit is refused."""
    command = ["--dataset", str(make_dataset(tmp_path / "d", n=400)), "--workdir", str(tmp_path / "new/run")]

    def meanwhile(*_):
        with pytest.raises(InputError, match="another configuration"):
            photometry.main([*command, "--model", "knn", "--seed", "1"])
        raise InputError("no fit")

    monkeypatch.setattr(photometry, "predict", meanwhile)
    with pytest.raises(InputError, match="no fit"):
        photometry.main([*command, "--model", "knn"])
    assert not (tmp_path / "new").exists()


def test_test_sets(tmp_path):
    labelled = make_dataset(tmp_path / "labelled", columns=["true_z"])
    assert list(results.test_sets(open_dataset(labelled))) == ["spec_like"]
    with pytest.raises(InputError, match="split: the dataset has no such column"):
        results.test_sets(open_dataset(make_dataset(tmp_path / "whole", columns=["split"])))
    with pytest.raises(InputError, match="neither labels"):
        results.test_sets(open_dataset(make_dataset(tmp_path / "dark", columns=["z", "true_z"])))


def test_a_band_that_many_lack_is_no_reference(tmp_path, monkeypatch):
    """The brightest band is absent for a third: colours against it would be lost with it."""
    seen = []
    lose = lambda values: np.where(np.arange(1200) % 3 == 0, np.nan, values["flux_z"])
    dataset = open_dataset(make_dataset(tmp_path / "dataset", change={"flux_z": lose}))
    monkeypatch.setattr(photometry, "features", lambda f, s, reference: seen.append(reference) or np.nan_to_num(f))
    photometry.predict(dataset, "knn", 0)
    assert {list(BANDS)[reference] for reference in seen} <= {"r", "i"}


def test_unsure_labels_are_neither_trained_on_nor_scored(tmp_path):
    columns = {"z", "z_kind", "z_quality", "split"}
    assert results.sure_labels(columns) == "z_kind == 'spec' and z_quality >= 3"
    assert results.sure_labels(columns - {"z_quality"}) == "z_kind == 'spec'"


def test_scores_on_another_dataset_are_not_replaced(tmp_path):
    one, other = (open_dataset(make_dataset(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 1)))
    run = tmp_path / "run"
    photometry.main(["--dataset", str(one.path), "--workdir", str(run), "--model", "knn"])
    results.claim_scores(run, one, overwrite=False)
    with pytest.raises(InputError, match=r"holds the scores on '.*a'; add --overwrite"):
        results.claim_scores(run, other, overwrite=False)
    assert results.claim_scores(run, other, overwrite=True)["dataset"] == str(other.path)


def test_truths_follow_the_keys(tmp_path):
    dataset = open_dataset(make_dataset(tmp_path / "dataset"))
    truths = results.truths_of(dataset, pa.chunked_array([["o00008", "o00001"], ["o00004", "elsewhere"]]))
    true_z = dataset.column("true_z")
    assert truths["full"][[0, 2]] == pytest.approx([true_z[8], true_z[4]])
    assert np.isnan(truths["full"][[1, 3]]).all()  # in training, and in no dataset


def test_write_results_also_as_fits(tmp_path):
    edges = np.linspace(0, 1, 11)
    pdf = PDF(edges, np.random.default_rng(5).dirichlet(np.ones(10), 8))
    catalog = pa.table({"key": [f"k{i}" for i in range(8)], "ra": np.arange(8.0), "ignored": np.arange(8)})
    truth = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, np.nan, np.nan])
    report = results.write_results(tmp_path / "run", "arm", catalog, pdf, {"few": truth}, fits=True, resamples=20)
    table, fits = pq.read_table(tmp_path / "run/predictions.parquet"), Table.read(tmp_path / "run/predictions.fits")
    assert table.column_names == fits.colnames
    assert "ignored" not in fits.colnames
    for name in ("z_best", "z_l68", "odds", "test_few", "z_true"):
        assert np.array_equal(np.asarray(fits[name]), table[name].to_numpy(), equal_nan=name == "z_true")
    direct = evaluate_metrics(pdf.median()[:6], truth[:6], pdf[:6], resamples=20)
    assert report == {"arm": {"few": direct}} == json.loads((tmp_path / "run/report.json").read_text())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the simulated DC2 photometry is not beside the repository")
def test_dc2_anchors():
    """LSST DC2 photometry of the RAIL project: untuned neighbours reach sigma_mad 0.025 and 3 % of outliers."""

    def read(name):
        with h5py.File(SHARED / f"test_dc2_{name}_9816.hdf5") as file:
            magnitude, error = (
                [file[f"photometry/{kind}_{b}_lsst"][:] for b in "ugrizy"] for kind in ("mag", "mag_err")
            )
            z = file["photometry/redshift"][:]
        flux = 10 ** (-0.4 * (np.where(np.abs(magnitude) < 90, magnitude, np.nan).T - 23.9))
        return flux, flux * np.transpose(error) * np.log(10) / 2.5, z

    (flux, error, z), (flux_test, _, z_test) = read("training"), read("validation")
    softening = np.nanmedian(error, axis=0)
    x, x_test = (catalog_fluxes.features(f, softening, 3) for f in (flux, flux_test))
    z_fold = photometry.out_of_fold("knn", x, z, seed=0)
    z_point = photometry.make_model("knn", 0).fit(x, z).predict(x_test)
    pdf = photometry.residual_pdf(z_point, z_fold, z, np.linspace(0, 3.6, 301))
    found = {k: v["value"] for k, v in evaluate_metrics(pdf.median(), z_test, pdf, resamples=0).items()}
    assert found["sigma_mad"] == pytest.approx(0.0246, rel=0.05)
    assert found["eta_15"] == pytest.approx(0.030, abs=0.004)
    assert found["pit_ks"] < 0.02
    assert found["coverage_68"] == pytest.approx(0.68, abs=0.015)
