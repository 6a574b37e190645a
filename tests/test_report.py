"""The page of a report, and what is written beside it."""

import csv
import json
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from jaxz import report, report_figures
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError
from jaxz.photoz import pdf as densities
from jaxz.photoz.pdf import PDF
from jaxz.report_data import read_run
from jaxz.results import prediction_table
from tests.helpers import blobs
from tests.report_runs import ARMS, arm, base_run, fake_reconstructions, fake_run, scores


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fake_reconstructions(base_run(root, "mae_pretrain"))
    return [root / "mae_pretrain", *(fake_run(root, name) for name in ARMS)]


@pytest.fixture(scope="module")
def rendered(runs):
    out = runs[0].parent / "compared.html"
    report.main([*map(str, runs), "--out", str(out)])
    return out


def test_page_is_self_contained(rendered):
    text = rendered.read_text()
    assert "Photometric redshifts: 4 arms compared" in text
    assert "<script" not in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]{30})', text))
    assert not re.search(r'(href|src)="(?!#|data:)', text)
    assert "$" not in re.sub(r'src="[^"]*"', "", text)
    shown = ("Estimated against true redshift", "Bias, scatter and outliers", "Calibration", "Redshift distribution")
    for title in (
        *shown,
        "Bias, scatter and outliers by conditions",
        "p(z) of a few",
        "Training loss",
        "Reconstructions by mae_pretrain",
    ):
        assert f"<h3>{title}" in text


def test_json_and_csv_hold_every_number(runs, rendered):
    merged = json.loads(rendered.with_suffix(".json").read_text())
    assert list(merged) == list(ARMS)
    for run in runs[1:]:
        for test_set, own in json.loads((run / "report.json").read_text())[run.name].items():
            for metric, score in own.items():
                found = merged[run.name][test_set][metric]
                assert found["value"] == score["value"]
                assert found["error"] == pytest.approx(score["error"], rel=0.02), metric  # of the same cells
    with open(rendered.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(metrics) for sets in merged.values() for metrics in sets.values())
    one = next(r for r in rows if (r["arm"], r["test_set"], r["metric"]) == ("mae_finetune", "full", "crps"))
    assert float(one["value"]) == merged["mae_finetune"]["full"]["crps"]["value"]


@pytest.mark.parametrize(
    ("shown", "out"), [(("one", "two"), "report.html"), (("two",), "report.html"), (("one",), "config.html")]
)
def test_a_page_in_a_run_replaces_nothing_of_it(tmp_path, shown, out):
    run = arm(tmp_path, "one", scores(0.03, 0.001)).path
    arm(tmp_path, "two", scores(0.04, 0.001))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match=r"--out: .* lies in a run directory"):
        report.main([*(str(tmp_path / name) for name in shown), "--out", str(run / out)])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("own", [scores(0.03, 0.001), {}])
def test_a_run_may_hold_its_own_page(tmp_path, own):
    """With what it started from, which has no scores; its report.json stays as it is, also after a renaming."""
    arm(tmp_path, "pretrain", {})
    run = arm(tmp_path, "one", own).path.rename(tmp_path / "renamed")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    report.main([str(run), str(tmp_path / "pretrain"), "--out", str(run / "report.html")])
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {"report.html", "report.csv"}


def test_a_name_with_dollars_is_no_mathematics(tmp_path):
    run = fake_run(tmp_path, "direct_vit", n=60)
    odd = run.rename(tmp_path / "lr$\\alpha_{$")
    report.main([str(odd), "--out", str(tmp_path / "r.html")])


def test_the_main_scores_are_printed(tmp_path, capsys):
    own = {"sigma_mad": {"value": 0.0212, "error": 0.0004}, "eta_15": {"value": 0.051, "error": None}}
    arm(tmp_path, "one", {"full": own})
    report.main([str(tmp_path / "one"), "--out", str(tmp_path / "r.html")])
    assert capsys.readouterr().out.splitlines()[:3] == [
        "every test object:",
        "     sigma_mad        eta_15  bias_median",
        "one  0.0212 ± 0.0004  5.10 %  –",
    ]


def test_what_keeps_arms_from_being_ranked_is_printed_too(tmp_path, capsys):
    arm(tmp_path, "unscored", {})
    report.main([str(tmp_path / "unscored"), "--out", str(tmp_path / "r.html")])
    lines = capsys.readouterr().out.splitlines()
    assert "None of these runs has been scored yet: python -m jaxz.evaluate compares them on a test set." in lines


def test_a_catalogue_takes_less_room_than_its_densities(monkeypatch):
    draw = np.random.default_rng(4)
    pdf = PDF(np.linspace(0, 3, 301), draw.dirichlet(np.ones(300), 4000).astype(np.float32))
    catalog = pa.table({"key": [f"k{i}" for i in range(4000)]})
    whole = prediction_table(catalog, pdf, {})
    monkeypatch.setattr(densities, "BLOCK", 300)
    tracemalloc.start()
    parts = prediction_table(catalog, PDF(pdf.edges, pdf.probability), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pdf.probability.nbytes
    for name in set(whole.column_names) - {"key"}:
        assert np.allclose(parts[name], whole[name], rtol=1e-6, equal_nan=True)


def test_cutouts_come_from_the_dataset(tmp_path, monkeypatch):
    dataset = blobs(tmp_path / "dataset", samples=24)
    arm = replace(read_run(base_run(tmp_path, "arm", steps=10)), dataset=str(dataset))
    drawn = []
    blank = report_figures.plots.new_figure(1, 1)
    monkeypatch.setattr(report_figures.plots, "cutout_gallery", lambda *arguments: drawn.append(arguments) or blank)
    assert report_figures.cutouts(arm, ["blob000010", "blob000003"], ["x", "y"]).startswith(b"\x89PNG")
    images, observed, bands, _ = drawn[0]
    assert observed.tolist() == [[False, True, True], [True, True, True]]  # every tenth blob lacks band g
    assert bands == ["g", "r", "i"]
    stored = open_dataset(dataset).cutout(3)["image"].astype(float)
    assert np.sinh(images[1]) * 3 == pytest.approx(stored, abs=1e-2)
    assert report_figures.cutouts(arm, ["nowhere"], ["x"]) is None
    assert report_figures.cutouts(replace(arm, dataset=str(tmp_path / "gone")), [], []) is None


def test_command_line(tmp_path):
    command = [sys.executable, "-c", "import sys, jaxz.report\nassert 'jax' not in sys.modules\n"
               "jaxz.errors.run(jaxz.report.main)", str(tmp_path / "none")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: RUN:")
    assert len(done.stderr.splitlines()) == 1
