import csv
import io
import json
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from jaxz import report, report_figures, report_tables
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError
from jaxz.photoz import pdf as densities
from jaxz.photoz.bootstrap import sky_cells
from jaxz.photoz.pdf import PDF, write_qp
from jaxz.report_arms import arms_of
from jaxz.report_data import read_run
from jaxz.results import prediction_table, write_results
from tests.helpers import blobs

ARMS = {  # scatter, bias and outliers of the fake arms; the last entry is where they started
    "direct_vit": (0.030, 0.002, 0.03, ""),
    "mae_finetune": (0.022, 0.001, 0.015, "mae_pretrain"),
    "frozen_probe": (0.038, -0.004, 0.05, "mae_pretrain"),
    "photometry_gbt": (0.031, 0.000, 0.03, ""),
}


def fake_run(root, name, n=1200, seed=1):
    """A run directory with everything that evaluate and train leave."""
    sigma, bias, outliers, start = ARMS[name]
    sky, draw = np.random.default_rng(0), np.random.default_rng([seed, *name.encode()])
    z_true = np.clip(sky.gamma(3, 0.28, n), 0.02, 2.9)
    magnitude = np.clip(19 + 3.2 * z_true**0.6 + sky.normal(0, 0.9, n), 17, 25)
    labelled = magnitude < 22.5
    spread = sigma * (1 + np.clip(magnitude - 21.5, 0, None)) * (1 + z_true)
    z_phot = z_true + bias * (1 + z_true) - 0.05 * np.clip(z_true - 1.5, 0, None) + spread * draw.normal(size=n)
    lost = draw.uniform(size=n) < outliers * np.where(labelled, 0.5, 2)
    z_phot = np.clip(np.where(lost, draw.uniform(0.05, 2.8, n), z_phot), 0.01, 2.95)
    edges = np.linspace(0, 3, 151)
    mass = np.diff(stats.norm.cdf(edges, z_phot[:, None], 0.9 * spread[:, None]), axis=1) + 2e-4
    pdf = PDF(edges, (mass / mass.sum(axis=1, keepdims=True)).astype(np.float32))
    catalog = pa.table({
        "key": [f"obj{i:05d}" for i in range(n)], "object_id": np.arange(n), "ra": sky.uniform(149, 151, n),
        "dec": sky.uniform(1, 3, n), "n_bands": np.full(n, 9), "mag_ref": magnitude.astype(np.float32),
        "coverage_flag": (draw.uniform(size=n) < 0.9).astype(np.int8),
    })  # fmt: skip
    run = base_run(root, name, start, steps=4000, seconds=1500.0)
    truths = {"spec_like": np.where(labelled, z_true, np.nan), "full": z_true}
    write_results(run, name, catalog, pdf, truths)
    return run


def base_run(root, name, start="", steps=20000, seconds=9000.0):
    """A run directory that has been trained but not evaluated."""
    run = root / name
    run.mkdir()
    config = {"train": {"steps": steps, "batch_size": 128}, "init": {"path": str(root / start) if start else ""}}
    (run / "config.json").write_text(json.dumps(config | {"data": {"path": str(root / "dataset")}}))
    cost = {"steps": steps, "batch_size": 128, "images": 128 * steps, "seconds": seconds}
    (run / "compute.json").write_text(json.dumps(cost | {"parameters": 5_500_000, "devices": "1 cpu"}))
    draw = np.random.default_rng(list(name.encode()))
    lines = [{"step": s, "loss": 0.5 + 3 * np.exp(-s / 900) + 0.1 * draw.normal()} for s in range(10, steps + 1, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def fake_reconstructions(run, n=3, c=5, size=32):
    """Round galaxies, half of their patches hidden, the third band of the first absent."""
    draw, (y, x) = np.random.default_rng(3), np.mgrid[:size, :size] - size / 2
    width = draw.uniform(2, 5, (n, 1, 1, 1))
    truth = 3 * draw.uniform(0.3, 1, (n, c, 1, 1)) * np.exp(-(x**2 + y**2) / (2 * width**2))
    hidden = np.repeat(np.repeat(draw.uniform(size=(n, c, size // 8, size // 8)) < 0.6, 8, axis=2), 8, axis=3)
    observed = np.ones((n, c), bool)
    observed[0, 2] = False
    image = (truth + 0.15 * draw.normal(size=truth.shape)).astype(np.float32)
    np.savez(run / "reconstructions.npz", image=image, reconstruction=truth.astype(np.float32), hidden=hidden,
             observed=observed, bands=np.array(list("ugriz"[:c])))  # fmt: skip


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


def arm(tmp_path, name, scores, **files):
    (tmp_path / name).mkdir()
    for file, content in {"config": {}, "report": {name: scores}, **files}.items():
        (tmp_path / name / f"{file}.json").write_text(json.dumps(content))
    return read_run(tmp_path / name)


def scores(value, error, test_set="full", metric="sigma_mad"):
    return {test_set: {metric: {"value": value, "error": error}}}


def test_verdict_names_a_winner_beyond_the_errors(tmp_path):
    arms = [arm(tmp_path, "slow", scores(0.05, 0.003)), arm(tmp_path, "fast", scores(0.03, 0.004))]
    text, *_, errors = report_tables.verdict(arms, arms)
    assert "for slow and fast, without predictions, from both errors as if independent" in errors
    assert "<b>fast</b> has the lowest" in text
    assert "4.0 errors of the difference ahead of slow" in text  # 0.02 / hypot(0.003, 0.004)


@pytest.mark.parametrize(("first", "second"), [((0.0, 0.0), (0.0, 0.0)), ((0.03, None), (0.031, None))])
def test_without_errors_there_is_no_winner(tmp_path, first, second):
    arms = [arm(tmp_path, name, scores(*entry)) for name, entry in (("a", first), ("b", second))]
    text = report_tables.verdict(arms, arms)[0]
    assert "do not differ within the errors" in text and "inf" not in text


def test_differences_of_arms_on_the_same_objects_are_paired(tmp_path):
    """Two arms that share most of their errors: the difference is known far better than either."""
    draw, n = np.random.default_rng(1), 800
    z, shared = draw.uniform(0.2, 1.5, n), 0.05 * np.clip(draw.standard_t(3, n), -8, 8)
    z_phot = [z + (1 + z) * (shared + own * draw.normal(size=n)) for own in (0.002, 0.012)]
    order, edges = draw.permutation(n), np.linspace(-0.9, 4, 491)
    for name, point, rows in (("a", z_phot[0], np.arange(n)), ("b", z_phot[1], order)):  # another order of rows
        run = base_run(tmp_path, name, steps=10)
        pdf = PDF(edges, np.diff(stats.norm.cdf(edges, point[rows, None], 0.01)))
        write_results(run, name, pa.table({"key": [f"k{i}" for i in rows]}), pdf, {"full": z[rows]})
    first, second = arms_of([read_run(tmp_path / name) for name in "ab"])
    paired = report_tables.paired_error(first, second, "full", "sigma_mad")
    mad = lambda e: 1.4826 * np.median(np.abs(e - np.median(e)))
    e = [(p - z) / (1 + z) for p in z_phot]
    brute = [mad(e[0][rows]) - mad(e[1][rows]) for rows in np.random.default_rng(5).integers(0, n, (2000, n))]
    assert paired == pytest.approx(np.std(brute), rel=0.2)
    alone = [one.scores["full"]["sigma_mad"]["error"] for one in (first, second)]
    assert paired < 0.6 * np.hypot(*alone)
    assert "independent" not in report_tables.verdict([first, second], [first, second])[-1]


def seeded(root, name, seed, z_phot, z, lr=0.1, **start):
    """A run directory of a recipe and a seed, scored on objects along the sky."""
    run = base_run(root, name, steps=10)
    (run / "config.json").write_text(json.dumps({"seed": seed, "optim": {"lr": lr}, "init": start}))
    n = len(z)
    catalog = pa.table({"key": [f"k{i}" for i in range(n)], "ra": np.arange(n) / 50 + 10, "dec": np.full(n, 0.1)})
    edges = np.linspace(-0.5, 3, 351)
    pdf = PDF(edges, np.diff(stats.norm.cdf(edges, z_phot[:, None], 0.05)))
    write_results(run, name, catalog, pdf, {"full": z}, resamples=2)
    return read_run(run)


def test_runs_that_differ_in_their_seed_alone_are_an_arm_with_the_error_between_them(tmp_path):
    draw, n, effects = np.random.default_rng(0), 300, (-0.02, 0.0, 0.035)
    z, noise = draw.uniform(0.2, 1.5, n), 0.05 * draw.normal(size=n)
    runs = [seeded(tmp_path, f"a{s}", s, z + (1 + z) * (noise + e), z) for s, e in enumerate(effects)]
    runs += [seeded(tmp_path, f"b{s}", s, z + (1 + z) * (noise + e + 0.01), z, lr=0.2) for s, e in enumerate(effects)]
    runs.append(seeded(tmp_path, "again", 0, z, z))  # the recipe and seed of another: a copy is no second seed
    first, second, copy = arms = arms_of(runs)
    assert [(arm.name, len(arm.seeds)) for arm in arms] == [("a0", 3), ("b0", 3), ("again", 1)]
    score = first.scores["full"]["bias_mean"]
    assert score["value"] == pytest.approx(np.mean([run.scores["full"]["bias_mean"]["value"] for run in runs[:3]]))
    cells = np.unique(sky_cells(np.arange(n) / 50 + 10, np.full(n, 0.1)), return_inverse=True)[1]
    sums = np.bincount(cells, noise - noise.mean())
    expected = np.hypot(np.std(effects, ddof=1) / 3**0.5, np.sqrt((sums**2).sum()) / n)
    assert score["error"] == pytest.approx(expected, rel=0.15)
    assert copy.scores["full"]["bias_mean"]["error"] < 1e-4
    assert report_tables.paired_error(first, second, "full", "bias_mean") < 0.1 * score["error"]  # which they share
    slope = first.scores["full"]["slope_z_true"]  # of what predictions alone tell
    assert abs(slope["value"]) < 4 * slope["error"] and "macro" in report_tables.score_table(
        arms, ["macro_sigma_mad"], dict.fromkeys(("a0", "b0", "again"), "red")
    )
    assert "training seeds of <b>a0</b> (3 seeds) and <b>b0</b> (3 seeds)" in report_tables.verdict(arms, runs)[-1]
    colours = dict.fromkeys(("a0", "b0", "again"), "red")
    assert "a0 (3 seeds)</th>" in report_tables.score_table(arms, ["bias_mean"], colours)
    assert "positions are not known) and seeds." in report.page(arms, arms, [], colours)
    assert "positions are not known). " in report.page([copy], [copy], [], colours)


def test_runs_from_pretrainings_of_other_seeds_are_an_arm(tmp_path):
    z = np.linspace(0.1, 1, 20)
    for s in (0, 1):
        arm(tmp_path, f"pretrain{s}", {}, config={"seed": s, "losses": {"mae": 1}})
    arm(tmp_path, "other", {}, config={"seed": 0, "losses": {"dino": 1}})
    starts = ("pretrain0", "pretrain1", "other")
    runs = [seeded(tmp_path, f"r{s}", s, z, z, path=str(tmp_path / start)) for s, start in enumerate(starts)]
    assert [len(one.seeds) for one in arms_of(runs)] == [2, 1]


def test_a_run_without_scores_that_none_started_from_is_named(tmp_path):
    before, lost = arm(tmp_path, "pretrain", {}), arm(tmp_path, "lost", {})
    tuned = arm(tmp_path, "tuned", scores(0.03, 0.001), config={"init": {"path": str(before.path)}})
    assert "Not scored: <b>lost</b>." in report_tables.verdict([tuned], [before, lost, tuned])


def test_arms_scored_on_different_objects_are_not_ranked(tmp_path):
    for name in "ab":
        run = base_run(tmp_path, name, steps=10)
        pdf = PDF(np.linspace(0, 3, 31), np.full((20, 30), 1 / 30))
        catalog = pa.table({"key": [f"{name}{i}" for i in range(20)]})
        write_results(run, name, catalog, pdf, {"full": np.linspace(0.1, 2, 20)})
    arms = [read_run(tmp_path / name) for name in "ab"]
    assert "different objects, so they are not ranked" in report_tables.verdict(arms, arms)[0]
    assert "<b>" not in report_tables.score_table(arms, ["sigma_mad"], {"a": "red", "b": "blue"})


def test_a_transductive_arm_is_named(tmp_path):
    """In the verdict and in the tables, also where only the run that it started from was."""
    before = arm(tmp_path, "pretrain", {}, config={"data": {"transductive": True}})
    arms = [arm(tmp_path, "tuned", scores(0.03, 0.001), config={"init": {"path": str(before.path)}})]
    arms.append(arm(tmp_path, "clean", scores(0.04, 0.001)))
    assert any("transductive): <b>tuned</b>." in sentence for sentence in report_tables.verdict(arms, arms))
    colours = {"tuned": "red", "clean": "blue"}
    for table in (report_tables.score_table(arms, ["sigma_mad"], colours), report_tables.compute_table(arms, colours)):
        assert "</span>tuned (transductive)</th>" in table and "</span>clean</th>" in table


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


def test_verdict_calls_no_winner_within_the_errors(tmp_path):
    arms = [arm(tmp_path, "a", scores(0.034, 0.003)), arm(tmp_path, "b", scores(0.03, 0.004)),
            arm(tmp_path, "c", scores(0.09, 0.004))]  # fmt: skip
    text = report_tables.verdict(arms, arms)[0]
    assert "<b>b</b> (0.0300 ± 0.0040) and <b>a</b> (0.0340 ± 0.0030) do not differ within the errors" in text
    assert "has the lowest" not in text
    assert "<b>c</b>" not in text


@pytest.mark.parametrize(
    ("metric", "values", "winner"),
    [
        ("bias_median", (-0.02, 0.01), 1),
        ("coverage_68", (0.9, 0.6), 1),
        ("r2", (0.8, 0.7), 0),
        ("nll", (-2.0, -1.0), 0),
    ],
)
def test_best_is_bold(tmp_path, metric, values, winner):
    arms = [arm(tmp_path, str(i), scores(v, 0.001, metric=metric)) for i, v in enumerate(values)]
    table = report_tables.score_table(arms, [metric], {"0": "red", "1": "blue"})
    assert re.findall(r"(\d)</th><td><b>", table) == [str(winner)]


@pytest.mark.parametrize(
    ("values", "bold"),
    [
        ((0.030, 0.031, 0.05), ["0", "1"]),
        ((0.030, 0.031, 0.032), []),  # none differs
        ((-0.030, 0.031, 0.05), ["0", "1"]),  # as far from 0, on the other side
    ],
)
def test_all_that_do_not_differ_from_the_best_are_bold(tmp_path, values, bold):
    arms = [arm(tmp_path, str(i), scores(v, 0.003, metric="bias_median")) for i, v in enumerate(values)]
    table = report_tables.score_table(arms, ["bias_median"], dict.fromkeys("012", "red"))
    assert re.findall(r"(\d)</th><td><b>", table) == bold


def test_the_main_scores_are_printed(tmp_path, capsys):
    own = {"sigma_mad": {"value": 0.0212, "error": 0.0004}, "eta_15": {"value": 0.051, "error": None}}
    arm(tmp_path, "one", {"full": own})
    report.main([str(tmp_path / "one"), "--out", str(tmp_path / "r.html")])
    assert capsys.readouterr().out.splitlines()[:3] == [
        "every test object:",
        "     sigma_mad        eta_15  bias_median",
        "one  0.0212 ± 0.0004  5.10 %  –",
    ]


def test_cost_includes_what_a_run_started_from(tmp_path):
    pretrain = arm(tmp_path, "pretrain", {}, compute={"images": 9000, "seconds": 7000})
    middle = {"init": {"path": str(pretrain.path)}}
    arm(tmp_path, "middle", {}, config=middle, compute={"images": 500, "seconds": 90})
    last = arm(
        tmp_path, "last", {}, config={"init": {"path": str(tmp_path / "middle")}}, compute={"images": 60, "seconds": 8}
    )
    assert [parent.name for parent in last.parents] == ["middle", "pretrain"]
    assert last.total("images") == 9560
    assert last.total("seconds") == 7098


def corrected_runs(tmp_path, seed, rate=0.1):
    """What is made of two runs of one pretraining, the second of which stands for two strata."""
    before = arm(tmp_path, f"before_{seed}", {}, config={"seed": seed}, compute={"images": 9000, "seconds": 7000})
    start = {"seed": seed, "init": {"path": str(before.path)}}
    first, second = (
        arm(tmp_path, f"{n}_{seed}", {}, config=start | {"lr": rate * n}, compute={"images": 50, "seconds": 8})
        for n in (1, 2)
    )
    made = {"seed": seed, "init": {"path": str(first.path)}, "others": 2 * [str(second.path)], "method": "strata"}
    return arm(
        tmp_path, f"strata_{seed}", scores(0.03, 0.001), config=made, compute={"seconds": 1, "devices": "1 x cpu"}
    )


def test_corrections_of_several_runs_and_seeds_are_one_arm(tmp_path):
    runs = [corrected_runs(tmp_path, seed) for seed in (0, 1)] + [corrected_runs(tmp_path, 2, rate=0.2)]
    assert [[run.name for run in one.seeds] for one in arms_of(runs)] == [["strata_0", "strata_1"], ["strata_2"]]


def test_cost_includes_each_run_that_a_correction_names_once(tmp_path):
    run = corrected_runs(tmp_path, 0)
    assert [parent.name for parent in run.parents] == ["1_0", "before_0", "2_0"]
    assert run.total("images") == 9000 + 2 * 50 and run.total("seconds") == 7000 + 2 * 8 + 1
    assert "strata_0 saw 9.1 k images, all of 1_0 and 2_0, which it corrects, in" in report_tables.cost([run], ["full"])
    assert "<td>1_0, before_0, 2_0</td>" in report_tables.compute_table([run], {"strata_0": "red"})


def test_runs_that_start_from_each_other_end(tmp_path):
    arm(tmp_path, "a", {}, config={"init": {"path": str(tmp_path / "b")}}, compute={"images": 1})
    b = arm(tmp_path, "b", {}, config={"init": {"path": str(tmp_path / "a")}}, compute={"images": 2})
    assert b.total("images") == 3


def test_sparse_runs_still_make_a_page(tmp_path):
    undefined = {"spec_like": {"sigma_mad": {"value": None, "error": None}, "objects": {"value": 0, "error": 0}}}
    arm(tmp_path, "bare", {})
    arm(tmp_path, "undefined", undefined)
    arm(tmp_path, "other<set>", scores(0.03, None, "faint & far"))
    out = tmp_path / "r.html"
    report.main([str(tmp_path / name) for name in ("bare", "undefined", "other<set>")] + ["--out", str(out)])
    text = out.read_text()
    assert "faint &amp; far" in text
    assert "other&lt;set&gt;" in text
    report.main([str(tmp_path / "bare"), "--out", str(out)])
    assert "None of these runs has been scored" in out.read_text()


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_handful_of_objects_makes_a_page(tmp_path, n):
    run = base_run(tmp_path, "tiny", steps=10)
    catalog = pa.table({"key": [f"k{i}" for i in range(n)], "mag_ref": np.full(n, np.nan, np.float32)})
    pdf = PDF(np.linspace(0, 3, 31), np.full((n, 30), 1 / 30))
    write_results(run, "tiny", catalog, pdf, {"full": np.linspace(0.5, 1, n), "spec_like": np.full(n, np.nan)})
    report.main([str(run), "--out", str(tmp_path / "r.html")])
    assert f"{n} objects" in (tmp_path / "r.html").read_text()


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


def test_pdf_of_other_objects_is_refused(tmp_path):
    run = base_run(tmp_path, "mixed", steps=10)
    pdf = PDF([0.0, 1.0, 2.0], np.full((2, 2), 0.5))
    write_results(run, "mixed", pa.table({"key": ["a", "b"]}), pdf, {})
    write_qp(run / "pdf.hdf5", pdf, {"key": np.array(["b", "a"])})
    with pytest.raises(InputError, match="different objects"):
        read_run(run)


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


def test_a_line_being_written_is_left_out(tmp_path):
    run = base_run(tmp_path, "mae_pretrain", steps=50)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "lo')
    assert read_run(run).steps.tolist() == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_refuses_what_is_no_run(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no run directory"):
        report.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "r.html")])
    assert not list(tmp_path.glob("r.*"))


def npz(**change):
    """The bytes of a reconstructions.npz of two objects in three bands, with other arrays or (None) without."""
    arrays = dict.fromkeys(("image", "reconstruction", "hidden"), np.zeros((2, 3, 4, 4)))
    arrays |= {"observed": np.ones((2, 3), bool), "bands": np.array(["g", "r", "i"])} | change
    sink = io.BytesIO()
    np.savez(sink, **{name: values for name, values in arrays.items() if values is not None})
    return sink.getvalue()


def parquet(**change):
    """The bytes of a predictions.parquet, with other columns or (None) without."""
    columns = {"key": ["a"], "z_best": [0.5], "z_true": [0.5], "test_full": [True]} | change
    sink = io.BytesIO()
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), sink)
    return sink.getvalue()


DAMAGE = [
    ("predictions.parquet", b"PAR1 and no more", "damaged: its predictions cannot be read"),
    ("predictions.parquet", parquet(z_true=None), "predictions.parquet: column 'z_true' is missing"),
    ("predictions.parquet", parquet(key=None), "predictions.parquet: column 'key' is missing"),
    ("predictions.parquet", parquet(z_best=["x"]), "column 'z_best' is object"),
    ("predictions.parquet", parquet(test_full=[7]), "column 'test_full' is int64"),
    ("reconstructions.npz", npz(hidden=None), "reconstructions.npz cannot be read .*hidden"),
    ("reconstructions.npz", npz(observed=np.ones(5, bool)), "reconstructions.npz cannot be read .*do not fit"),
    ("report.json", b'{"damaged": [1]}', "'damaged' does not hold metrics by test set"),
    ("report.json", b'{"damaged": {"full": {"objects": {"value": NaN}}}}', "'damaged' does not hold metrics"),
    *(
        ("metrics.jsonl", line + b'\n{"step": 1, "loss": 2}\n', "line 1: no object with step")
        for line in (b"null", b"{}", b"[1]")
    ),
    ("compute.json", b"{", "compute.json.* is not JSON"),
    ("compute.json", b'{"images": "many"}', "images is 'many', not a number"),
    ("config.json", b"[1]", "config.json.* is not a JSON object"),
    ("config.json", b'{"data": "x"}', "data is 'x', not a group of fields"),
    ("config.json", b'{"init": 5}', "init is 5, not a group of fields"),
    ("report.json", b'{"damaged": 5}', "'damaged' does not hold metrics by test set"),
    ("report.json", b'{"damaged": {"full": {"rms": {"value": "x"}}}}', "'damaged' does not hold metrics by test set"),
    ("metrics.jsonl", b'\xff\n{"step": 1, "loss": 2}\n', "metrics.jsonl, line 1: no object with step and loss"),
    ("metrics.jsonl", b'{"step": 1, "loss": "x"}\n{"step": 2, "loss": 2}\n', "line 1: no object with step and loss"),
    ("reconstructions.npz", b"PK and no more", "reconstructions.npz cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_any_damaged_file_is_one_sentence(tmp_path, name, content, message):
    run = base_run(tmp_path, "damaged", steps=50)
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_run(run)


def test_a_start_that_is_no_path_is_not_found(tmp_path):
    assert arm(tmp_path, "one", {}, config={"init": {"path": 5}}, compute={"steps": 7}).parents == ()
    report.main([str(tmp_path / "one"), "--out", str(tmp_path / "r.html")])
    assert "5 (not found)" in (tmp_path / "r.html").read_text()


def test_command_line(tmp_path):
    command = [sys.executable, "-c", "import sys, jaxz.report\nassert 'jax' not in sys.modules\n"
               "jaxz.errors.run(jaxz.report.main)", str(tmp_path / "none")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: RUN:")
    assert len(done.stderr.splitlines()) == 1
