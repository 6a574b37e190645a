"""Runs corrected from held-out objects, against the functions of arrays on the same predictions."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from scipy.spatial import KDTree

from jaxz import correct, report
from jaxz.config import default
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import write_overlay
from jaxz.data.sampling import Source
from jaxz.errors import InputError
from jaxz.inference import Model
from jaxz.photoz import calibration, clap, shift
from jaxz.photoz.pdf import PDF, read_qp
from jaxz.report_data import read_run
from tests.test_photometry import make_dataset

EDGES = np.linspace(0, 2, 81)
HELD = "split == 'val' and z_kind == 'spec'"
SPLITS = {"split": lambda v: np.array(["test", "train", "val", "train"])[np.arange(len(v["z"])) % 4]}


class Fake(Model):
    """A run whose p(z) is too narrow and biased: a Gaussian around a number from the colours. offset: of the run."""

    edges, members = EDGES, 1

    def __init__(self, path, offset=0.0):
        config = default()
        config.seed, config.data.path = 7, str(path)
        self.config, self.offset, self.objective = config, offset, SimpleNamespace(columns=("z",))
        self.trained_on = [open_dataset(str(path)).fingerprint()["rows"]]

    def guess(self, dataset, rows):
        flux = {band: dataset.column(f"flux_{band}")[rows].astype(float) for band in "ri"}
        return 2 * np.log(flux["i"] / flux["r"]) - 0.6 + 0.05 + self.offset

    def predict_dataset(self, dataset, where, outputs):
        rows = dataset.select(where)
        guess = self.guess(dataset, rows)
        mass = np.diff(stats.norm.cdf(EDGES, guess[:, None], 0.05)) + 1e-9
        found = {"pdf": mass / mass.sum(1, keepdims=True), "latent": np.stack([guess, rows % 13 / 90], 1)}
        return rows, {name: found[name] for name in outputs}

    def source(self, dataset, where):
        return Source(dataset, ("tag",), (), where)

    def predictions(self, stream, outputs):
        for batch in stream:
            rows = batch["row"][batch["valid"]]
            latent = np.stack([self.guess(stream.sources[0].dataset, rows), rows % 13 / 90], 1)
            yield rows, {"latent": latent}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("correct") / "d", n=1200, change=SPLITS)


@pytest.fixture
def corrected(dataset, tmp_path, monkeypatch):
    """corrected(method, *options) -> (catalogue, p(z), scores of NEWRUN), and the runs' fakes by name."""
    fakes = {"RUN": Fake(dataset), "OTHER": Fake(dataset, 0.1)}
    monkeypatch.setattr(correct, "load_run", lambda path, item, step: fakes[path])
    monkeypatch.setattr(correct, "write_results", functools.partial(correct.write_results, resamples=2))

    def made(method, *options, runs=("RUN",), name=""):
        out = tmp_path / (name or method)
        where = ["--dataset", str(dataset), "--method", method, "--out", str(out)]
        correct.main(["--workdir", *runs, *where, *options])
        pdf, _ = read_qp(out / "pdf.hdf5")
        return pq.read_table(out / "predictions.parquet"), pdf, json.loads((out / "report.json").read_text())[out.name]

    made.run = fakes["RUN"]
    return made


def known(run, dataset, where):
    """p(z) of objects as the run has it, and their redshifts."""
    opened = open_dataset(dataset)
    rows, found = run.predict_dataset(opened, where, ("pdf",))
    return PDF(EDGES, found["pdf"]), opened.column("z")[rows].astype(float), rows


def test_pit(corrected, dataset, tmp_path):
    table, pdf, _ = corrected("pit")
    assert not read_run(tmp_path / "pit").transductive
    test, (held, z, _) = known(corrected.run, dataset, "split == 'test'")[0], known(corrected.run, dataset, HELD)
    expected = calibration.recalibrate(test, held.cdf(z))
    assert np.allclose(pdf.probability, expected.probability, atol=1e-6)
    assert table["z_best"].to_numpy() == pytest.approx(expected.median(), abs=1e-5)
    truth = table["z_true"].to_numpy()
    before = abs(np.mean(test.median() - truth))
    assert abs(np.mean(table["z_best"].to_numpy() - truth)) < before / 3  # 0.05 away


def test_conformal_intervals_are_what_is_scored(corrected, dataset):
    table, pdf, scores = corrected("conformal")
    test, (held, z, _) = known(corrected.run, dataset, "split == 'test'")[0], known(corrected.run, dataset, HELD)
    assert np.allclose(pdf.probability, test.probability, atol=1e-6)
    truth = table["z_true"].to_numpy().astype(float)
    for name, level in (("68", 0.68), ("95", 0.95)):
        low, high = calibration.conformal_intervals(test, held, z, level)
        ends = [table[f"z_{end}{name}"].to_numpy() for end in "lu"]
        assert np.allclose(ends, (low, high), atol=1e-6)
        assert np.mean((ends[0] <= truth) & (truth <= ends[1])) > level - 0.06
    low, high = (table[f"z_{end}68"].to_numpy() for end in "lu")
    assert scores["full"]["coverage_68"]["value"] == np.mean((low <= truth) & (truth <= high))
    assert table["pdf_width"].to_numpy() == pytest.approx((high - low) / 2)
    assert np.mean([(test.cdf(truth) > 0.16) & (test.cdf(truth) < 0.84)]) < 0.6  # of p(z)


def test_weights_of_the_held_out_objects_count(corrected, dataset):
    opened = open_dataset(dataset)
    rows = opened.select(HELD)
    weight = np.random.default_rng(0).exponential(size=len(rows))
    weights = {"weight": weight, "few": np.arange(len(rows)) < 50}
    columns = {name: Column("float32") for name in weights}
    if not (dataset / "overlays/w.parquet").exists():
        write_overlay(opened, "w", rows, weights, columns, {})
    _, pdf, _ = corrected("pit", "--weights", "weight", "--overlay", "w")
    test, (held, z, _) = known(corrected.run, dataset, "split == 'test'")[0], known(corrected.run, dataset, HELD)
    expected = calibration.recalibrate(test, held.cdf(z), weight.astype(np.float32).astype(float))
    assert np.allclose(pdf.probability, expected.probability, atol=1e-6)
    table, _, _ = corrected("conformal", "--weights", "weight", "--overlay", "w")
    own = np.full(len(test), weight.max())
    ends = calibration.conformal_intervals(test, held, z, 0.68, weight, own)
    assert table["z_l68"].to_numpy() == pytest.approx(ends[0], abs=1e-5)
    with pytest.raises(InputError, match="chooses 50 labelled objects that count, at least 100 .* --folds"):
        corrected("pit", "--weights", "few", "--overlay", "w", name="other")


def test_label_shift(corrected, dataset):
    _, pdf, _ = corrected("label_shift")
    test, _, _ = known(corrected.run, dataset, "split == 'test'")
    _, z, _ = known(corrected.run, dataset, "split == 'train' and z < 2")
    expected, _ = shift.label_shift(test.probability, np.histogram(z, EDGES)[0].astype(float))
    assert np.allclose(pdf.probability, expected, atol=1e-5)
    with corrected.run.config.unlocked():
        corrected.run.config.redshift = dict(logit_adjust=1.0)
    with pytest.raises(InputError, match="logit_adjust is set"):
        corrected("label_shift", name="other")


def test_cells_take_their_residual_away(corrected):
    """Estimates that are off by the same large part of 1 + z are not off any more."""

    def guess(dataset, rows):
        z = dataset.column("true_z")[rows].astype(float)
        return z + 0.12 * (1 + z)

    corrected.run.guess = guess
    table, _, _ = corrected("cells")
    truth = table["z_true"].to_numpy().astype(float)
    assert (table["z_best"].to_numpy() - truth) / (1 + truth) == pytest.approx(0, abs=0.004)


def with_tests(path, count, **change):
    """A dataset in which so many objects are test ones, half of the others validation ones."""

    def split(values):
        number = np.arange(len(values["z"]))
        return np.where(number < count, "test", np.where(number % 2, "train", "val"))

    return make_dataset(path, n=900, change={"split": split, **change})


def test_cells_of_few_test_objects(corrected, tmp_path):
    table, _, _ = corrected("cells", "--dataset", str(with_tests(tmp_path / "six", 6)))  # 9 cells by the held-out ones
    assert len(table) == 6
    with pytest.raises(InputError, match="--dataset: 3 test objects, but cells divides them and needs 5"):
        corrected("cells", "--dataset", str(with_tests(tmp_path / "three", 3)), name="none")


@pytest.mark.parametrize(("where", "whose"), [("test", "test"), ("val", "held-out")])
def test_lin_z_phot_needs_magnitudes(corrected, tmp_path, where, whose):
    path = make_dataset(
        tmp_path / "d",
        n=900,
        change=SPLITS | {"mag_ref": lambda v: np.where(v["split"] == where, np.nan, v["mag_ref"])},
    )
    with pytest.raises(InputError, match=f"lin_z_phot needs mag_ref, which no {whose} object has"):
        corrected("lin_z_phot", "--dataset", str(path))


def test_lin_z_phot_subtracts_the_bias(corrected, dataset):
    _, pdf, _ = corrected("lin_z_phot")
    test, _, rows = known(corrected.run, dataset, "split == 'test'")
    held, z, own = known(corrected.run, dataset, HELD)
    magnitude = open_dataset(dataset).column("mag_ref").astype(float)
    low, high = np.floor(magnitude[[*rows, *own]].min() * 2) / 2, np.floor(magnitude[[*rows, *own]].max() * 2) / 2 + 0.5
    cells = np.linspace(0, 2, 41), np.linspace(low, high, round(2 * (high - low)) + 1)
    train = held.median(), z, magnitude[own]
    wanted = calibration.subtract_phot_bias(test.median(), magnitude[rows], train, *cells)
    inside = (test.median() > 0.3) & (test.median() < 1.5)
    assert (pdf.mean() - test.mean())[inside] == pytest.approx((wanted - test.median())[inside], abs=2e-5)


def test_strata_are_each_of_their_run(corrected, dataset, tmp_path):
    opened = open_dataset(dataset)
    rows = opened.select("split == 'test'")
    if not (dataset / "overlays/s.parquet").exists():
        write_overlay(opened, "s", rows, {"stratum": np.arange(len(rows)) % 2}, {"stratum": Column("int8")}, {})
    table, pdf, _ = corrected("strata", "--overlay", "s", runs=("RUN", "OTHER"))
    each = [known(run, dataset, "split == 'test'")[0].probability for run in (Fake(dataset), Fake(dataset, 0.1))]
    assert np.allclose(pdf.probability, np.where(np.arange(len(rows))[:, None] % 2, each[1], each[0]), atol=1e-6)
    assert table["key"].to_pylist() == opened.arrow("split == 'test'", ["key"])["key"].to_pylist()
    assert read_run(tmp_path / "strata").transductive  # by the strata of test objects
    with pytest.raises(InputError, match="150 test objects are in no stratum below 1"):
        corrected("strata", "--overlay", "s", name="other")
    write_overlay(opened, "high", rows, {"stratum": 1 + np.arange(len(rows)) % 2}, {"stratum": Column("int8")}, {})
    with pytest.raises(InputError, match="150 test objects are in no stratum below 2"):  # stratum 0 has none
        corrected("strata", "--overlay", "high", runs=("RUN", "OTHER"), name="other")


def test_clap_is_the_harmonic_mean_of_its_runs(corrected, dataset, monkeypatch):
    quick = lambda pool, pdf, wanted, seed: pdf[KDTree(pool[seed:]).query(wanted)[1] + seed]  # in place of an MLP
    monkeypatch.setattr(clap, "refit", quick)
    _, pdf, _ = corrected("clap", runs=("RUN", "OTHER"))
    opened, members = open_dataset(dataset), []
    for seed, run in enumerate((Fake(dataset), Fake(dataset, 0.1))):
        latent = lambda where, run=run: run.predict_dataset(opened, where, ("latent",))[1]["latent"]
        train, z = "split == 'train' and z < 2", opened.column("z").astype(float)
        parts = train, HELD, "split == 'train' and not isfinite(z)", "split == 'test'"
        of_train, held, pool, test = map(latent, parts)
        drawn = [row for row, _ in run.predictions(correct.Stream(run.source(opened, parts[2]), 256, epochs=1), ())]
        pool = pool[np.searchsorted(opened.select(parts[2]), np.concatenate(drawn))]
        z_train, z_held = z[opened.select(train)], z[opened.select(HELD)]
        pit = clap.adaptive_neighbours(of_train, z_train, held, EDGES)[0].cdf(z_held)
        raw = clap.adaptive_neighbours(of_train, z_train, pool, EDGES)[0]
        members.append(clap.refit(pool, clap.recalibrate_locally(raw, pool, held, pit), test, seed))
    assert np.allclose(pdf.probability, clap.harmonic_mean(members).probability, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "runs", "message"),
    [
        ("pit", ["--held", "split == 'val' and object_id < 99"], 1, "chooses .* --folds"),
        ("pit", ["--held", "split == 'test'"], 1, "are test objects"),
        ("cells", ["--held", "split != 'test'"], 1, "were trained on"),
        ("pit", [], 2, "2 runs, but pit corrects one"),
        ("cells", ["--weights", "mag_ref"], 1, "cells takes none"),
        ("pit", ["--weights", "none"], 1, "no column 'none'"),
        ("label_shift", ["--held", "split == 'val'"], 1, "--held: label_shift needs no held-out objects"),
        ("strata", ["--held", "split == 'val'"], 2, "--held: strata needs no held-out objects"),
    ],
)
def test_refusals(corrected, tmp_path, method, options, runs, message):
    with pytest.raises(InputError, match=message):
        corrected(method, *options, runs=("RUN", "OTHER")[:runs])
    assert not (tmp_path / method).exists()


def test_a_corrected_run_is_an_arm_of_the_report(corrected, tmp_path, monkeypatch):
    _, _, own = corrected("conformal")
    corrected("pit")
    monkeypatch.setattr(report, "pictures", lambda *rest: [])  # which are drawn of any run
    report.main([*(str(tmp_path / name) for name in ("conformal", "pit")), "--out", str(tmp_path / "page.html")])
    found = json.loads((tmp_path / "page.json").read_text())
    assert found.keys() == {"conformal", "pit"}
    for test_set, metrics in own.items():
        for name, score in metrics.items():
            assert found["conformal"][test_set][name]["value"] == score["value"]
    assert found["conformal"]["full"]["coverage_68"]["error"] > 0
    config = json.loads((tmp_path / "pit/config.json").read_text())
    assert (config["method"], config["seed"], config["held"]) == ("pit", 7, "split == 'val'")
    assert config["init"] == {"path": str(Path("RUN").resolve()), "item": "params", "step": None}
    cost = json.loads((tmp_path / "pit/compute.json").read_text())
    assert cost["images"] == 0 and cost["seconds"] > 0 and cost["devices"].startswith("1 x ")


def test_the_scores_before_and_after_are_told(corrected, tmp_path, monkeypatch, capsys):
    _, _, after = corrected("pit")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("RUN: not scored on this dataset")
    assert f"pit on full: sigma_mad {after['full']['sigma_mad']['value']:.4f} +- " in told[-1]
    run = tmp_path / "RUN"
    run.mkdir()
    before = {"full": {"sigma_mad": {"value": 0.5, "error": 0.25}, "eta_15": {"value": 0.125, "error": None}}}
    (run / "report.json").write_text(json.dumps({"RUN": before}))
    scored = json.loads((tmp_path / "pit/evaluated.json").read_text())
    (run / "evaluated.json").write_text(json.dumps(scored | {"item": "params"}))
    monkeypatch.chdir(tmp_path)
    corrected("pit", name="again")
    assert capsys.readouterr().out.splitlines()[0] == "RUN on full: sigma_mad 0.5000 +- 0.2500, eta_15 0.1250"
    corrected("pit", "--step", "10", name="step")  # of another checkpoint than was scored
    assert capsys.readouterr().out.splitlines()[0].startswith("RUN: not scored")


def test_the_checkpoint_that_was_chosen_is_corrected(corrected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(correct, "load_run", lambda *of: asked.append(of) or corrected.run)
    corrected("pit", "--step", "10", "--item", "ema")
    assert asked == [("RUN", "ema", 10)]
    assert json.loads((tmp_path / "pit/config.json").read_text())["init"].items() >= {"item": "ema", "step": 10}.items()
    with pytest.raises(InputError, match="another configuration"):
        corrected("pit", "--step", "20")


def test_a_directory_is_claimed_before_the_work(corrected, dataset, tmp_path, monkeypatch):
    """Of two commands into one directory the second is refused; the first, interrupted, goes on when given again."""

    def meanwhile(task):
        with pytest.raises(InputError, match="another configuration"):
            corrected("label_shift", name="claimed")
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setitem(correct.METHODS, "pit", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            corrected("pit", name="claimed")
    assert [path.name for path in (tmp_path / "claimed").iterdir()] == ["config.json"]
    write = correct.write_results

    def written(out, *rest, **more):
        assert (out / "compute.json").exists()  # report.json, which stands for a whole run, is written here
        return write(out, *rest, **more)

    monkeypatch.setattr(correct, "write_results", written)
    corrected("pit", name="claimed")
    corrected("pit", "--dataset", f"{dataset.parent}/./{dataset.name}/", name="claimed")  # the same, written otherwise
    assert json.loads((tmp_path / "claimed/evaluated.json").read_text())["dataset"] == str(dataset.resolve())


def test_a_dataset_with_nothing_to_correct_is_refused(corrected, tmp_path):
    with pytest.raises(InputError, match="--dataset: .* has no object of the split 'test'"):
        corrected("label_shift", "--dataset", str(with_tests(tmp_path / "none", 0)))
    labelled = make_dataset(tmp_path / "all", n=400, change=SPLITS | {"z": lambda v: v["true_z"]})
    with pytest.raises(InputError, match="--method: clap learns from training objects without a redshift"):
        corrected("clap", "--dataset", str(labelled))


def test_label_shift_of_several_labelled_sources_is_refused(corrected, dataset):
    corrected.run.config.data.sources = ({"name": "a", "where": "z < 1"}, {"name": "b", "where": "z >= 1"})
    corrected.run.trained_on *= 2
    with pytest.raises(InputError, match="2 of data.sources have redshifts"):
        corrected("label_shift")
    corrected.run.config.data.sources = ({"name": "a"}, {"name": "b", "where": "z_kind == 'none'"})
    corrected("label_shift")
