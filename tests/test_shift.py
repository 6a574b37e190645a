"""The command that writes weights and coverage, and training that reads them."""

import json

import numpy as np
import pytest

from jaxz import shift
from jaxz.data.dataset import open_dataset
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError, run
from tests.test_photometry import make_dataset

TRAIN = "split == 'train' and z_kind == 'spec'"


def bright(values):
    """Half of the bright objects are labelled, few of the faint and none of the faintest."""
    draw, magnitude = np.random.default_rng(1).uniform(size=len(values["mag_ref"])), values["mag_ref"]
    chance = np.where(magnitude < 20.2, 0.7, np.where(magnitude < 21, 0.2, 0))
    return np.where(draw < chance, "spec", "none")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    change = {"z_kind": bright, "split": splits}
    return make_dataset(tmp_path_factory.mktemp("shift") / "d", n=1900, change=change)


def splits(values):
    return np.array(["test", "train", "val", "train", "test", *["train"] * 3])[np.arange(len(values["z"])) % 8]


@pytest.fixture(scope="module")
def by_magnitude(dataset):
    """The name of an overlay for the test objects."""
    weigh(dataset, "by_magnitude", "--features", "mag_ref", "--target", "split == 'test'")
    return "by_magnitude"


def weigh(dataset, name, *rest):
    shift.main([str(dataset), "--name", name, "--train", TRAIN, "--target", "split == 'train'", *rest])


@pytest.mark.parametrize("method", ["classifier", "knn"])
def test_weights_and_coverage_of_a_magnitude_limit(dataset, method, capsys):
    weigh(dataset, method, "--features", "flux", "mag_ref", "--method", method)
    said = json.loads(capsys.readouterr().out)
    table = open_dataset(dataset, overlays=[method]).arrow(
        "split == 'train'", ["z_kind", "mag_ref", "weight", "coverage"]
    )
    labelled = np.array(table["z_kind"].to_pylist()) == "spec"
    magnitude, weight, coverage = (table[name].to_numpy() for name in ("mag_ref", "weight", "coverage"))
    assert weight[labelled].mean() == pytest.approx(1) and (weight[~labelled] == 0).all()
    assert said["effective_sample_size"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-3)
    assert said["train"] == labelled.sum() and said["target"] == len(table) and 0.6 < said["auc"] < 1
    within, rare = magnitude < 21, labelled & (magnitude > 20.2)
    ratio = weight[rare].mean() / weight[labelled & ~rare].mean()
    assert 0.7 / 0.2 / 1.5 < ratio < 1.8 * 0.7 / 0.2  # of the chances; the edge stands for what lies beyond, too
    faint = magnitude > 22.3
    assert coverage[faint].mean() < 0.3 and coverage[within].mean() > 0.9 and coverage[labelled].all()
    assert said["uncovered"] == pytest.approx(1 - coverage.mean())


def test_held_out_labels_are_weighted_and_strata_cover_all(dataset, by_magnitude):
    opened = open_dataset(dataset, overlays=[by_magnitude])
    part = lambda where: [opened.arrow(where, [name])[name].to_numpy() for name in ("mag_ref", "weight", "stratum")]
    held, train, test = map(part, ("split == 'val' and z_kind == 'spec'", TRAIN, "split == 'test'"))
    assert [held[1].mean(), train[1].mean()] == pytest.approx([1, 1], rel=1e-6)
    near = np.interp(held[0], np.sort(train[0]), train[1][np.argsort(train[0])])  # of training objects as bright
    assert np.corrcoef(held[1], near)[0, 1] > 0.9
    assert (test[1] == 0).all() and np.isnan(part("split == 'val' and z_kind == 'none'")[2]).all()
    strata = np.concatenate([held[2], train[2], test[2]])
    count = np.bincount(strata.astype(int))
    assert len(count) == 5 and np.ptp(count) <= 2  # fifths of all objects that the overlay names
    mean = [np.concatenate([test[0], train[0]])[np.concatenate([test[2], train[2]]) == n].mean() for n in range(5)]
    assert mean[4] > mean[0] + 0.5  # the last are the faintest
    labels = np.bincount(train[2].astype(int), minlength=5)
    assert labels[4] < labels[0] / 4  # and have few labels


def test_a_stream_draws_by_them(dataset, by_magnitude):
    opened = open_dataset(dataset, overlays=[by_magnitude])
    source = Source(opened, ("tag",), ("mag_ref", "weight"), where=TRAIN, weights="weight")
    stream = Stream(source, 64)
    drawn = np.concatenate([next(stream)["mag_ref"] for _ in range(30)])
    stream.close()
    table = opened.arrow(TRAIN, ["mag_ref", "weight"])
    magnitude, weight = table["mag_ref"].to_numpy(), table["weight"].to_numpy()
    assert drawn.mean() == pytest.approx(np.average(magnitude, weights=weight), abs=0.05)


def test_embeddings_are_those_of_the_run(dataset, by_magnitude, monkeypatch):
    class Run:
        def predict_dataset(self, dataset, where, outputs):
            return dataset.select(where), {
                "embedding": np.asarray(dataset.arrow(where, ["mag_ref"])["mag_ref"])[:, None]
            }

    monkeypatch.setattr(shift, "load_run", lambda path: {"RUN": Run()}[path])
    weigh(dataset, "by_run", "--features", "embedding", "--workdir", "RUN", "--target", "split == 'test'")
    each = (open_dataset(dataset, overlays=[name]) for name in ("by_run", by_magnitude))
    found = [opened.arrow(TRAIN, ["weight"])["weight"].to_numpy() for opened in each]
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--features", "true_z"], "'true_z' is neither"),
        (["--features", "embedding"], "name its directory"),
        (["--features", "flux", "--name", "../up"], "not a path"),
        (["--features", "flux", "--train", "z == 9"], "'z == 9' chooses 0 objects"),
        (["--features", "flux", "--target", "nothing == 9"], "nothing"),
        (["--features", "flux", "--held", "true_z < 1"], "--held: 'true_z < 1' reads 'true_z'"),
        (["--features", "flux", "--held", "z > 0) or (z < 1"], "--held: 'z > 0) or (z < 1' is not an expression"),
        (["--features", "flux", "--target", ""], "--target: '' is not an expression"),
        (["--features", "flux", "--seed", "-1"], "--seed: -1 must lie in 0..4294967295"),
    ],
)
def test_refusals(dataset, rest, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run(lambda argv: weigh(dataset, "refused", *rest), [])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (dataset / "overlays/refused.parquet").exists()


def test_held_out_objects_far_from_the_target_have_no_weights(dataset, monkeypatch):
    """Neighbours alone: a classifier's odds are never 0."""
    even = lambda train, target, seed: np.full(len(train) + len(target), 0.5)
    monkeypatch.setattr(shift.shift, "domain_probability", even)
    near, far = "mag_ref > 21", "split == 'val' and mag_ref < 20"
    with pytest.raises(InputError, match="--held: no target object lies near any of its objects"):
        where = ["--train", f"split == 'train' and {near}", "--target", f"split == 'test' and {near}", "--held", far]
        weigh(dataset, "far", "--features", "mag_ref", "--method", "knn", *where)


def test_objects_without_a_name_of_their_own_are_refused_before_the_work(tmp_path, monkeypatch):
    """Held-out ones too."""
    ids = lambda v: np.where(v["split"] == "val", 0, np.arange(len(v["split"])))
    path = make_dataset(tmp_path / "d", n=400, change={"split": splits, "object_id": ids})
    monkeypatch.setattr(shift, "domains", None)
    with pytest.raises(InputError, match="stands more than once"):
        weigh(path, "twice", "--features", "flux", "--held", "split == 'val'", "--target", "split == 'test'")


def test_an_overlay_is_not_replaced(dataset):
    (dataset / "overlays").mkdir(exist_ok=True)
    (dataset / "overlays/taken.parquet").write_text("")
    with pytest.raises(InputError, match="choose another name"):
        weigh(dataset, "taken", "--features", "mag_ref")
