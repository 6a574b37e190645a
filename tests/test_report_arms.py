"""What the report says of arms: which are one, who leads, by how much, and at what cost."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from jaxz import report, report_tables
from jaxz.photoz.bootstrap import sky_cells
from jaxz.photoz.pdf import PDF
from jaxz.report_arms import arms_of
from jaxz.report_data import read_run
from jaxz.results import write_results
from tests.report_runs import arm, base_run, scores


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
