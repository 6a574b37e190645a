"""shift-v1: labels and subsets by brute force, gap closure and pairing against closed forms."""

import csv
import io
import json

import numpy as np
import pytest

from benchmarks.shift import figures, page, tables
from benchmarks.shift.arms import Arm
from benchmarks.shift.labels import (
    Protocol,
    Subset,
    read_selection,
    subsets,
    write_labels,
)
from benchmarks.shift.scores import gap_closure, predicted, scored
from jaxz import report_data
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError
from jaxz.photoz.binned import equal_bins, residual_curve, residual_slope
from jaxz.photoz.bootstrap import Estimate
from jaxz.photoz.pdf import PDF
from tests.benchmarks.shift_sky import sky


def labels_of(path, name):
    dataset = open_dataset(str(path), overlays=[name])
    return {c: np.asarray(dataset.arrow(columns=[c])[c].to_pylist()) for c in ("z", "z_kind", "draw", "split")}


def test_fewer_labels_are_among_the_more_and_the_test_split_stays_as_it_is(tmp_path):
    path, columns = sky(tmp_path / "sky")
    protocol = Protocol(path)
    whole, half, other = (
        labels_of(path, write_labels(protocol, "survey", *how)) for how in ((1, 0), (0.5, 0), (0.5, 1))
    )
    train, spec = columns["split"] == "train", columns["z_kind"] == "spec"
    assert np.array_equal(whole["z_kind"] == "spec", spec)
    kept = [(found["z_kind"] == "spec") & train for found in (half, other)]
    assert [rows.sum() for rows in kept] == [round(0.5 * (spec & train).sum())] * 2
    assert (spec[kept[0]]).all() and (kept[0] != kept[1]).any()
    assert np.array_equal(half["z_kind"][~train], columns["z_kind"][~train])
    np.testing.assert_allclose(half["z"][kept[0]], columns["z"][kept[0]], rtol=1e-6)
    assert np.isnan(half["z"][train & ~kept[0]]).all()
    assert ((half["draw"][train] >= 0) & (half["draw"][train] < 1)).all()


def test_the_oracle_has_as_many_labels_drawn_from_all(tmp_path):
    path, columns = sky(tmp_path / "sky")
    found = labels_of(path, write_labels(Protocol(path), "oracle", 1.0, 0))
    train, spec = columns["split"] == "train", columns["z_kind"] == "spec"
    chosen = train & (found["z_kind"] == "spec")
    assert chosen.sum() == (train & spec).sum() and (chosen & (columns["mag_ref"] > 24)).any()
    np.testing.assert_allclose(found["z"][chosen], columns["true_z"][chosen], rtol=1e-6)


def test_a_selection_hides_labels_and_scores_what_it_hid(tmp_path):
    path, columns = sky(tmp_path / "sky", truth=False)
    protocol = Protocol(path, "mag_ref < 21", faint=22.0, z_max=2.0)
    found = labels_of(path, write_labels(protocol, "survey", 1.0, 0))
    train, spec, bright = columns["split"] == "train", columns["z_kind"] == "spec", columns["mag_ref"] < 21
    assert np.array_equal((found["z_kind"] == "spec") & train, train & spec & bright)
    oracle = labels_of(path, write_labels(protocol, "oracle", 1.0, 0))["z_kind"] == "spec"
    assert (oracle & train).sum() == (train & spec & bright).sum() and not (oracle & train & ~spec).any()
    keys, cells, z_true, parts = subsets(protocol)
    held = columns["split"] == "test"
    test = np.flatnonzero(held)
    expected = {
        "full": spec,
        "spec_like": spec & bright,
        "hidden": spec & ~bright,
        "faint": spec & (columns["mag_ref"] > 22),
        "beyond": spec & (columns["z"] > np.quantile(columns["z"][train & spec & bright], 0.99)),
        "photometric": ~spec & np.isfinite(columns["z_phot"]),
    }
    for name, members in expected.items():
        assert np.array_equal(test[parts[name].rows], np.flatnonzero(held & members)), name
    truth = np.where(spec, columns["z"], columns["z_phot"])[test]
    np.testing.assert_allclose(z_true, truth, rtol=1e-6)
    assert set(parts["uncovered"].rows) < set(parts["full"].rows)
    assert (columns["mag_ref"][test[parts["uncovered"].rows]].mean()) > columns["mag_ref"][held & spec].mean()
    assert list(keys) == [f"o{n:06d}" for n in test] and len(np.unique(cells)) > 50


def test_a_wrong_selection_is_refused(tmp_path):
    path = tmp_path / "s.toml"
    for text, said in (("where = 1\nfaint = 22\nz_max = 2", "where"), ("wher = ''", "where"), ("where = ''", "faint")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_selection(path)


def constant(value):
    """An Estimate without error."""
    return Estimate(value, np.full(4000, value))


def test_gap_closure_against_closed_forms():
    assert gap_closure(constant(0.5), constant(0.4), constant(0.25)).value == pytest.approx(0.4)
    assert gap_closure(constant(0.5), constant(0.6), constant(0.25)).value == pytest.approx(-0.4)
    assert gap_closure(constant(0.5), constant(0.4), constant(0.5)) is None
    draws = np.random.default_rng(0).normal(size=4000)
    ends = Estimate(1.0, 1 + 0.35 * draws), constant(0.0)  # a gap of 2.9 errors
    assert gap_closure(ends[0], constant(0.5), ends[1]) is None
    # m = m_none / 2 in every resample: what the arms share leaves no error
    found = gap_closure(Estimate(1.0, 1 + 0.2 * draws), Estimate(0.5, 0.5 + 0.1 * draws), ends[1])
    assert found.value == pytest.approx(0.5) and found.error < 1e-12
    # closure = 1 - x, x of error 0.1
    found = gap_closure(constant(1.0), Estimate(0.5, 0.5 + 0.1 * draws), ends[1])
    assert found.error == pytest.approx(0.1 * draws.std(ddof=1))


EDGES = np.linspace(0, 3, 301)


def prediction(z_phot, z_true):
    """Of p(z) in one bin at each redshift; the point stays where it was in the bin."""
    bins = np.clip(np.digitize(z_phot, EDGES) - 1, 0, 299)
    return predicted(PDF(EDGES, np.eye(300, dtype=np.float32)[bins]), z_true) | {"z_phot": z_phot}


def toy():
    """Three arms whose residuals are the same up to a factor, 1, 0.7 and 0.5: sigma_mad closes 0.6 of the gap."""
    draw, cells = np.random.default_rng(1), np.arange(400) // 8
    z = draw.uniform(0.3, 1.5, 400)
    e = [draw.normal(0, 0.05, 400) for _ in range(3)]
    make = lambda factor: [prediction(z + factor * one * (1 + z), z) for one in e]
    arms = {"matched": make(1.0), "mae": make(0.7), "oracle": make(0.5)}
    rows = {"full": np.arange(400), "spec_like": np.arange(0, 400, 2), "few": np.arange(3)}
    return arms, cells, {name: Subset(name, own) for name, own in rows.items()}


TABLE = {"matched": Arm("matched"), "mae": Arm("mae"), "oracle": Arm("oracle", labels="oracle")}


def test_arms_are_paired_and_the_tables_say_so(tmp_path):
    arms, cells, parts = toy()
    scores = scored(arms, cells, parts)
    assert list(scores) == ["full", "spec_like"]  # three objects are too few
    compared = tables.compare(scores, TABLE)
    closure = compared["full", "mae", "sigma_mad"].closure
    assert closure.value == pytest.approx(0.6) and closure.error < 1e-6
    curve = lambda c: residual_curve(c["z_phot"], c["z_true"], c["z_phot"], equal_bins(c["z_true"]))
    slopes = [residual_slope(curve(run))[0] for run in arms["mae"]]
    assert scores["full"]["mae"]["slope_z_phot"].value == pytest.approx(np.mean(slopes))
    difference = compared["full", "mae", "sigma_mad"].difference
    sigma = scores["full"]["matched"]["sigma_mad"]
    assert difference.value == pytest.approx(-0.3 * sigma.value) and difference.error == pytest.approx(
        0.3 * sigma.error
    )
    assert tables.spec_like_loss(scores, compared, "mae").value == pytest.approx(-0.3)
    rows = list(csv.DictReader(io.StringIO(tables.csv_of(scores, compared))))
    [row] = [r for r in rows if (r["arm"], r["subset"], r["metric"]) == ("mae", "full", "sigma_mad")]
    assert float(row["closure"]) == pytest.approx(0.6)
    assert tables.json_of(scores, compared)["mae"]["full"]["sigma_mad"]["closure"] == pytest.approx(0.6)
    text = tables.text(scores, compared, parts)
    assert "2 errors and more: mae (" in text and "-30.0 ±" in text
    assert "mae closes most of the gap, 0.60 ± 0.00, at -30.0 ± 0.0 % in sigma_mad on spec_like." in text
    # the page, from these and from what is in a run's directory
    for n, name in enumerate(arms):
        path = tmp_path / f"{name}_0"
        path.mkdir()
        (path / "config.json").write_text("{}" if n else json.dumps({"init": {"path": str(tmp_path / "mae_0")}}))
        (path / "compute.json").write_text(json.dumps({"seconds": 600.0, "images": 1}))
        lines = [json.dumps({"step": n, "loss": 2.0 if n <= 90 else 1.0}) for n in range(1, 101)]
        (path / "metrics.jsonl").write_text("\n".join(lines))
    of = {name: [report_data.read_run(tmp_path / f"{name}_0")] * 2 for name in arms}
    found = {1.0: [{"train": 200, "effective_sample_size": 40.0, "auc": 0.9}] * 3}
    told = page.Told(
        "a sky",
        of,
        {"matched_0": 2e9, "mae_0": 1e9},
        found,
        {"matched": [{100: 1.0, 75: 1.2}, {100: 1.1, 75: 1.2}], "mae": [{100: 1.0, 75: 1.2}, {100: 1.2, 75: 1.0}]},
        {"mae": {0.5: 1.25, 1.0: 1.125}},
        {"dino": "weights absent"},
    )
    html = page.html(arms | {"mae+weights": arms["mae"]}, cells, parts, scores, compared, told)
    assert "<th>matched</th><td>3e+09</td><td>1.000</td><td>20.0 min" in html  # with what it began from
    assert "matched -0.150 ± 0.050, mae +0.000 ± 0.200. Beyond 2 errors it still fell for: matched; it rose" in html
    assert "<td>1.200 (σ 0.000)</td><td>1.050 (σ 0.071)</td><td>-0.150 ± 0.050, since 75%</td>" in html
    assert "<th>mae</th><td>1.250</td><td>1.125</td><td>1</td>" in html
    assert html.count("data:image/png") == 6 and html.count("<th>mae+weights</th>") == 1  # the biases
    assert "<b>dino</b>: not run: weights absent" in html
    assert "are worth 40" in html
    assert "0.60 ± 0.00" in html


def table_of(**closed):
    """{(subset, arm, metric): Comparison} of arms that close so much, with an error, of a gap of 0.5 from 1."""
    draws = np.random.default_rng(0).normal(size=4000)

    def beside(baseline, share, error):
        closure = Estimate(share, share + error * draws)
        return tables.Comparison(baseline, constant(1.0), Estimate(-0.5 * share, -0.5 * closure.draws), closure)

    ends = {"matched": beside("matched", 0.0, 0.0), "oracle": beside("matched", 1.0, 0.0)}
    ends |= {name: beside(*what) for name, what in closed.items()}
    return {("full", name, "eta_15"): what for name, what in ends.items()}


def test_the_verdict_names_no_loser_no_baseline_and_no_arm_of_fewer_labels():
    told = lambda losses={}, **closed: tables.finding("full", "eta_15", table_of(**closed), losses)
    nothing = "eta_15 on full: below matched by 2 errors and more: none; no arm closes the gap by more than 2 errors."
    assert told() == nothing
    assert told(mae=("matched", -0.6, 0.1)) == nothing and told(mae=("matched", 0.6, 0.4)) == nothing
    assert told(**{"mae@1%": ("matched@1%", 0.9, 0.1)}) == nothing
    arms = dict(mae=("matched", 0.4, 0.1), semi=("matched", 0.8, 0.1))
    found = told({"semi": constant(0.04)}, **arms)
    assert "none" not in found and "mae (-0.2000" in found
    assert found.endswith("semi closes most of the gap, 0.80 ± 0.10, at +4.0 ± 0.0 % in sigma_mad on spec_like.")
    assert told({"semi": constant(0.06)}, **arms).endswith("on spec_like: more than 5 %, so no success.")
    none = {key: beside._replace(closure=None) for key, beside in table_of(**arms).items()}
    assert tables.finding("full", "eta_15", none, {}).endswith("there is no gap beyond 3 errors.")


def test_of_one_seed_nothing_is_judged_beyond_errors():
    [told] = page.converged({"mae": [{75: 1.2, 100: 1.0}]})
    assert "mae -0.200. Of one seed" in told and "Beyond 2 errors" not in told
    [told] = page.converged({"mae": [{75: 1.2, 100: 1.0}, {75: 1.2, 100: 1.01}]})
    assert "Beyond 2 errors it still fell for: mae; it rose for: none." in told


def test_figures_have_few_arms_and_every_arm_stands_beside_itself_by_weights():
    names = [
        "photometry",
        "matched",
        "matched+lds",
        "mae",
        "matched+weights",
        "mae+weights",
        "matched@1%",
        "a+weights",
    ]
    assert list(figures.groups(names).values()) == [
        ["photometry", "matched", "mae"],
        ["matched", "matched+weights"],
        ["mae", "mae+weights"],
    ]
