"""Checkpoints chosen by the risk on validation objects, and applied."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxz import evaluate, predict, select
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import write_overlay
from jaxz.errors import InputError
from jaxz.inference import load_run
from jaxz.photoz import shift
from jaxz.photoz.pdf import PDF
from jaxz.photoz.terms import pdf_terms
from tests.test_correct import EDGES, HELD, SPLITS, Fake
from tests.test_photometry import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = make_dataset(tmp_path_factory.mktemp("select") / "d", n=600, change=SPLITS)
    opened = open_dataset(path)
    rows = opened.select(HELD)
    weight = np.where(opened.column("z")[rows] > 1, 3.0, 0.2)
    write_overlay(opened, "w", rows, {"weight": weight}, {"weight": Column("float32")}, {})
    return path


@pytest.fixture
def selected(dataset, tmp_path, monkeypatch):
    """selected(*options) -> the JSON; three checkpoints of two runs, whose p(z) are biased by 0.05 and more."""
    kept = {"A": [(10, Fake(dataset, 0.1)), (20, Fake(dataset))], "B": [(10, Fake(dataset, -0.15))]}
    monkeypatch.setattr(select, "opened", lambda path, item: kept[path][0][1])
    monkeypatch.setattr(select, "checkpoints", lambda path, model, item: iter(kept[path]))

    def chosen(*options):
        select.main(["A", "B", "--dataset", str(dataset), "--json", str(tmp_path / "s.json"), *options])
        return json.loads((tmp_path / "s.json").read_text())

    return chosen


def test_by_weights_it_is_the_risk_on_all_validation_objects(selected, dataset, capsys):
    found = selected("--weights", "weight", "--overlay", "w")
    opened = open_dataset(dataset, overlays=["w"])
    z, weight = (opened.arrow(HELD, [name])[name].to_numpy().astype(float) for name in ("z", "weight"))
    assert found["effective_sample_size"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    pdf = lambda offset, where: PDF(EDGES, Fake(dataset, offset).predict_dataset(opened, where, ("pdf",))[1]["pdf"])
    for row in found["checkpoints"]:
        offset = {("A", 10): 0.1, ("A", 20): 0.0, ("B", 10): -0.15}[row["run"], row["step"]]
        expected = shift.weighted_cde_loss(pdf(offset, HELD), z, weight, pdf(offset, "split == 'val'"))
        assert row["cde_loss"] == pytest.approx(expected, rel=1e-5)
    losses = [row["cde_loss"] for row in found["checkpoints"]]
    assert losses == sorted(losses) and (found["checkpoints"][0]["run"], found["checkpoints"][0]["step"]) == ("A", 20)
    assert found["checkpoints"][0]["difference"] == found["checkpoints"][0]["difference_error"] == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["20", "A"]


def test_without_weights_it_is_the_loss_of_the_labelled_ones(selected, dataset):
    found = {(row["run"], row["step"]): row for row in selected()["checkpoints"]}
    opened = open_dataset(dataset)
    z = opened.arrow(HELD, ["z"])["z"].to_numpy().astype(float)
    mass = Fake(dataset).predict_dataset(opened, HELD, ("pdf",))[1]["pdf"]
    terms = pdf_terms(PDF(EDGES, mass), z)["cde_loss"]
    assert found["A", 20]["cde_loss"] == pytest.approx(terms.mean(), rel=1e-5)
    assert found["A", 20]["error"] == pytest.approx(terms.std() / len(z) ** 0.5, rel=0.3)  # of a mean; 200 draws


def test_a_resample_draws_numbers_not_densities(selected, monkeypatch):
    seen, bootstrap = [], select.hierarchical_bootstrap
    monkeypatch.setattr(select, "hierarchical_bootstrap", lambda *rest: seen.append(rest[1]) or bootstrap(*rest))
    selected()
    assert {values.ndim for [columns] in seen[0].values() for values in columns.values()} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "weight"], "no column 'weight'"),
        (["--held", "split == 'val' and object_id < 20"], "labelled objects .* count, at least 20"),
        (["--held", "split == 'train'"], "were trained on"),
    ],
)
def test_refusals(selected, options, message):
    with pytest.raises(InputError, match=message):
        selected(*options)


def test_runs_without_a_whole_checkpoint_are_refused(selected, monkeypatch):
    monkeypatch.setattr(select, "checkpoints", lambda *_: iter(()))
    with pytest.raises(InputError, match="RUN: A, B hold no whole checkpoint"):
        selected()


def test_the_checkpoint_of_a_step_is_scored(redshift_run, tmp_path, monkeypatch):
    dataset, run = redshift_run
    kept = {step: model.params for step, model in select.checkpoints(str(run), load_run(run), "params")}
    same = lambda model: jax.tree.all(jax.tree.map(np.array_equal, kept[min(kept)], model.params))
    assert len(kept) > 1 and same(load_run(run, step=min(kept))) and not same(load_run(run))
    scored, copy = [], tmp_path / "arm"
    monkeypatch.setattr(evaluate, "score", lambda workdir, model, dataset: scored.append(model))
    monkeypatch.setattr(evaluate, "write_reconstructions", lambda *rest: None)
    shutil.copytree(run, copy)
    evaluate.main([f"--workdir={copy}", f"--dataset={dataset}", f"--step={min(kept)}"])
    said = json.loads((copy / "evaluated.json").read_text())
    assert same(scored[0]) and (said["step"], said["item"]) == (min(kept), "params")
    with pytest.raises(InputError, match="--step: 9999 is not one of"):
        predict.main([f"--workdir={copy}", f"--dataset={dataset}", f"--out={tmp_path / 'p.parquet'}", "--step=9999"])


def test_a_damaged_checkpoint_is_left_out(redshift_run, tmp_path, caplog):
    _, run = redshift_run
    copy = shutil.copytree(run, tmp_path / "damaged")
    oldest, *others = sorted(int(path.name) for path in (copy / "checkpoints").iterdir())
    (copy / f"checkpoints/{oldest}/files.json").write_text("{}")
    found = [step for step, _ in select.checkpoints(str(copy), load_run(copy), "params")]
    assert found == others and f"checkpoint {oldest} is damaged" in caplog.text


def test_what_keeps_no_checkpoints_is_refused(tmp_path, dataset):
    (tmp_path / "model.safetensors").write_bytes(b"")  # of jaxz.export
    with pytest.raises(InputError, match="RUN: .* holds no checkpoints to choose from"):
        select.main([str(tmp_path), "--dataset", str(dataset)])
