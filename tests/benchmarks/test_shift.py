"""shift-v1: labels and subsets by brute force, gap closure and pairing against closed forms, a tiny run of it all."""

import csv
import io
import json

import numpy as np
import pytest

from benchmarks.shift import __main__ as shift
from benchmarks.shift import page, runs, tables
from benchmarks.shift.arms import SIZES, Arm, image_arms, weighted
from benchmarks.shift.labels import Protocol, Subset, labels_name, read_selection, subsets, weights_name, write_labels
from benchmarks.shift.scores import gap_closure, predicted, scored
from jaxz.config import parse, validate
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.staging import place_of
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from jaxz.photoz.bootstrap import Estimate
from jaxz.photoz.pdf import PDF

BANDS, OBJECTS = ("g", "r", "i"), 600


def sky(path, truth=True):
    """One-pixel cutouts whose colours say the redshift; bright ones have labels, a few test objects a photometric z."""
    bands = tuple(Band(b, 480.0 + 150 * n, 100.0, 23.9, 0.2, 1.0, 0.01, 0.8) for n, b in enumerate(BANDS))
    kinds = dict.fromkeys(("z", "z_err", "mag_ref", "ebv", "z_phot"), "float32") | {"z_kind": "string"}
    kinds |= {"object_id": "int64", "ra": "float64", "dec": "float64", "split": "string"}
    kinds |= {f"{kind}_{band}": "float32" for kind in ("flux", "fluxerr") for band in BANDS}
    kinds |= {"true_z": "float32"} if truth else {}
    image = Array("image", "float32", (len(BANDS), 1, 1), encoding="index")
    manifest = Manifest(arrays={"image": image}, bands=bands, columns={n: Column(k) for n, k in kinds.items()})
    writer, draw, ids = DatasetWriter(path, manifest, plan={}), np.random.default_rng(0), np.arange(OBJECTS)
    z, magnitude = draw.uniform(0.1, 1.5, OBJECTS), draw.uniform(18, 25, OBJECTS)
    labelled = (magnitude < 23) & (draw.uniform(size=OBJECTS) < 0.8)
    flux = 10 ** (-0.4 * (magnitude - 23.9))[:, None] * np.stack([1 / (1 + z), np.ones(OBJECTS), 1 + z], 1)
    columns = {
        "object_id": ids,
        "ra": ids % 30 + 0.5,
        "dec": ids // 30 % 20 + 0.5,
        "split": np.where(ids % 3 == 0, "test", "train"),
        "z_kind": np.where(labelled, "spec", "none"),
        "z": np.where(labelled, z, np.nan),
        "z_err": np.where(labelled, 1e-3, np.nan),
        "mag_ref": magnitude,
        "ebv": np.zeros(OBJECTS),
        "z_phot": np.where(ids % 2 == 0, z, np.nan),
        "true_z": z,
        **{f"flux_{band}": flux[:, n] for n, band in enumerate(BANDS)},
        **{f"fluxerr_{band}": np.full(OBJECTS, 0.01) for band in BANDS},
    }
    own = {name: values for name, values in columns.items() if name in kinds}
    writer.write_shard(0, [f"o{n:06d}" for n in ids], {"image": flux[:, :, None, None].astype(np.float32)}, own)
    writer.finish(1, {})
    return path, columns


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
    test = np.flatnonzero(~train)
    expected = {
        "full": spec,
        "spec_like": spec & bright,
        "faint": spec & (columns["mag_ref"] > 22),
        "beyond": spec & (columns["z"] > np.quantile(columns["z"][train & spec & bright], 0.99)),
        "photometric": ~spec & np.isfinite(columns["z_phot"]),
    }
    for name, members in expected.items():
        assert np.array_equal(test[parts[name].rows], np.flatnonzero(~train & members)), name
    truth = np.where(spec, columns["z"], columns["z_phot"])[test]
    np.testing.assert_allclose(z_true, truth, rtol=1e-6)
    assert set(parts["uncovered"].rows) < set(parts["full"].rows)
    assert (columns["mag_ref"][test[parts["uncovered"].rows]].mean()) > columns["mag_ref"][~train & spec].mean()
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
    assert "2 errors and more: mae (" in text and "mae closes most of the gap, 0.60" in text and "-30.0 ±" in text
    # the page, from these and from what is in a run's directory
    paths = {}
    for name in arms:
        paths[name] = tmp_path / f"{name}_0"
        paths[name].mkdir()
        (paths[name] / "config.json").write_text("{}")
        lines = [json.dumps({"step": n, "loss": 2.0 if n <= 90 else 1.0}) for n in range(1, 101)]
        (paths[name] / "metrics.jsonl").write_text("\n".join(lines))
    found = {1.0: [{"train": 200, "effective_sample_size": 40.0, "auc": 0.9}] * 3}
    html = page.html(arms, cells, parts, scores, compared, found, paths, "a sky")
    assert html.count("data:image/png") == 3 and "are worth 40" in html and "-50.0 %" in html
    assert "0.60 ± 0.00" in html


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_the_table_makes_a_config(size, tmp_path):
    arms = SIZES[size]().arms
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    for arm in arms:
        place_of("overlays", weights_name(labels_name(Protocol(tmp_path), arm.labels, arm.fraction, 1000)))
        assert not arm.start or arm.start in names[: names.index(arm.name)]  # run before
        if arm.config:
            validate(parse(runs.training_arguments(Protocol(tmp_path), arm, 0, ["labels"], tmp_path)))


def test_an_arm_without_its_weights_is_not_run(tmp_path, capsys):
    arms = [Arm("a"), Arm("b", "published_probe", weights="b.pth")]
    assert runs.runnable(arms, tmp_path) == arms[:1]
    assert "b: not run: weights absent" in capsys.readouterr().out


@pytest.mark.long
def test_a_tiny_benchmark_from_end_to_end_goes_on_where_it_was(tmp_path):
    path, _ = sky(tmp_path / "sky")
    small = ("train.steps=4", "train.members=2", "train.batch_size=32", "train.log_every=1", "model.width=16")
    first, last = (
        Arm(n, "baseline_photometry", small, labels=own) for n, own in (("matched", "survey"), ("oracle", "oracle"))
    )
    before = Arm("before", "baseline_photometry", small, scored=False)
    arms = [Arm("knn"), first, last, before, weighted(Arm("after", "baseline_photometry", small, start="before"))]
    found = shift.compare(tmp_path, Protocol(path), arms, [0, 1], tmp_path)
    assert list(found) == ["knn", "matched", "oracle", "after+weights"]
    assert 0 < found["knn"]["full"]["sigma_mad"]["value"] < found["matched"]["full"]["sigma_mad"]["value"]
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert shift.compare(tmp_path, Protocol(path), arms, [0, 1], tmp_path) == found
    assert written == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert (tmp_path / "shift.html").read_text().count("data:image/png") == 3


def test_image_arms_cost_the_same():
    """In steps of direct training, of which masked autoencoding costs 2/3 and semi-supervised training 8/3."""
    arms = image_arms(1000)
    steps = {name: int(next(f for f in arm.fields if "train.steps" in f).split("=")[1]) for name, arm in arms.items()}
    cost = {"matched": steps["matched"], "oracle": steps["oracle"], "semi": 8 / 3 * steps["semi"]}
    cost |= {"mae": steps["mae"] + 2 / 3 * steps["pretrain_mae"], "fluxes": steps["fluxes"] + steps["pretrain_fluxes"]}
    assert all(value == pytest.approx(2000, rel=0.01) for value in cost.values())
