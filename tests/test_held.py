"""Held-out objects are those that taught a run nothing, however its dataset is named."""

import shutil

import numpy as np
import pytest

from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import write_overlay
from jaxz.errors import InputError
from jaxz.held import held_out, labels_of, learned_from
from jaxz.inference import load_run
from tests.test_correct import HELD, SPLITS, Fake
from tests.test_photometry import make_dataset

TAUGHT = "split == 'train' and z < 2"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("held") / "d", n=400, change=SPLITS)


@pytest.fixture
def own(path, tmp_path):
    """A copy of the dataset, to change."""
    return open_dataset(shutil.copytree(path, tmp_path / "own"))


def with_sources(path, *sources, rows=None):
    """A run of data.path `path` and these sources, of datasets of these digests."""
    run = Fake(path)
    run.config.data.sources = sources
    run.trained_on = rows or len(sources) * run.trained_on
    return run


def test_those_with_a_sure_label_are_chosen(path):
    dataset = open_dataset(path)
    held = held_out(dataset, [Fake(path)], "split == 'val'", None, 20)
    assert np.array_equal(held.rows, dataset.select(HELD)) and np.array_equal(held.rows, dataset.select(held.where))
    assert np.array_equal(held.z, dataset.column("z")[held.rows]) and (held.weights == 1).all()


def test_what_a_copy_taught_is_refused(path, own):
    assert np.array_equal(learned_from(own, Fake(path)), own.select(TAUGHT))
    with pytest.raises(InputError, match="--held: .* objects of .* were trained on"):
        held_out(own, [Fake(path)], TAUGHT, None, 20)


def test_what_another_source_taught_is_refused(path, tmp_path):
    """Not data.path is the dataset but one of data.sources, of which the run drew some rows."""
    other = open_dataset(make_dataset(tmp_path / "other", n=80, change=SPLITS, seed=1))
    sources = {"name": "a"}, {"name": "b", "path": str(path), "where": "object_id < 100"}
    run = with_sources(other.path, *sources, rows=[other.fingerprint()["rows"], *Fake(path).trained_on])
    dataset = open_dataset(path)
    assert np.array_equal(learned_from(dataset, run), dataset.select(f"{TAUGHT} and object_id < 100"))
    assert len(held_out(dataset, [run], "split == 'train' and object_id >= 100", None, 20).rows)
    shutil.rmtree(other.path)  # of which nothing is asked
    assert len(learned_from(dataset, run))


def test_what_cannot_be_told_is_refused(path, own, tmp_path):
    run = Fake(own.path)
    shutil.move(own.path, tmp_path / "moved")
    with pytest.raises(InputError, match="--dataset: what the run learned of .*moved' cannot be told .* back there"):
        held_out(open_dataset(tmp_path / "moved"), [run], "split == 'val'", None, 20)
    make_dataset(own.path, n=80, change=SPLITS)  # other rows, at the same place
    with pytest.raises(InputError, match="cannot be told .data.path: .* does not hold the rows"):
        held_out(open_dataset(own.path), [run], "split == 'val'", None, 5)
    assert not len(learned_from(open_dataset(make_dataset(tmp_path / "new", n=80, change=SPLITS)), run))


def test_what_taught_the_run_that_it_began_from_is_refused(redshift_run, tmp_path, caplog):
    """A run trained on redshifts, and one that began from it on other objects."""
    dataset, run = redshift_run
    opened, child = open_dataset(dataset), load_run(run)
    own = learned_from(opened, child)
    assert np.array_equal(own, opened.select("split == 'train' and z_kind == 'spec'"))
    child.config.data.where, child.config.init.path = "object_id < 100", str(run)
    assert np.array_equal(learned_from(opened, child), own)
    child.config.init.path = str(tmp_path / "gone")
    assert np.array_equal(learned_from(opened, child), own[own < 100]) and "gone' is not there" in caplog.text


def test_unlabelled_objects_are_held_to_the_same_where_they_are_used(own):
    """Of the split val, where half of those without a sure label taught the run a redshift."""
    unsure = own.select("split == 'val' and z_kind == 'none'")[::2]
    values = {"z": np.full(len(unsure), 0.5), "split": ["train"] * len(unsure)}
    write_overlay(own, "unsure", unsure, values, {"z": Column("float32"), "split": Column("string")}, {})
    run = Fake(own.path)
    run.config.data.overlays = ("unsure",)
    assert len(held_out(own, [run], "split == 'val'", None, 20).rows)
    with pytest.raises(InputError, match=f"{len(unsure)} objects .* were trained on"):
        held_out(own, [run], "split == 'val'", None, 20, unlabelled=True)


def test_weights_are_numbers_of_at_least_0(own):
    rows = own.select(HELD)
    first = lambda value: np.where(np.arange(len(rows)) == 0, value, 1)
    values = {"below": first(-5), "infinite": first(np.inf), "unknown": first(np.nan)}
    write_overlay(own, "w", rows, values, dict.fromkeys(values, Column("float32")), {})
    dataset = open_dataset(own.path, overlays=["w"])
    refused = {"below": "holds -5", "infinite": "holds inf", "z_kind": "holds text", "true_z": "is the truth"}
    for column, message in refused.items():
        with pytest.raises(InputError, match=f"--weights: the column '{column}' {message}"):
            held_out(dataset, [Fake(own.path)], "split == 'val'", column, 20)
    assert held_out(dataset, [Fake(own.path)], "split == 'val'", "unknown", 20).weights[:2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("true_z < 1", "--held: 'true_z < 1' reads 'true_z'"),
        ("split == 'val') or (split == 'test'", "--held: .* is not an expression"),
        ("split == 'test'", "are test objects"),
        ("split == 'val' and object_id < 40", "labelled objects that count, at least 20 are needed"),
    ],
)
def test_filters_that_are_refused(path, given, message):
    with pytest.raises(InputError, match=message):
        held_out(open_dataset(path), [Fake(path)], given, None, 20)


def test_labels_are_those_that_each_source_read(own):
    """One source is read with an overlay that gives some objects a redshift, and takes others theirs."""
    train = own.select("split == 'train'")
    labelled = np.isfinite(own.column("z")[train])
    values = {"z": np.where(labelled, np.nan, 1.2)}
    write_overlay(own, "moved", train, values, {"z": Column("float32")}, {})
    run = with_sources(own.path, {"name": "a"}, {"name": "b", "overlays": ("moved",)})
    rows, z = labels_of(own, run)
    assert np.array_equal(rows, train)
    assert z == pytest.approx(np.where(labelled, own.column("z")[train], 1.2))
    write_overlay(own, "same", train, {"z": np.full(len(train), 1.2)}, {"z": Column("float32")}, {})
    run.config.data.sources = ({"name": "a"}, {"name": "b", "overlays": ("same",)})
    with pytest.raises(InputError, match=f"data.sources: {labelled.sum()} objects have another redshift"):
        labels_of(own, run)
