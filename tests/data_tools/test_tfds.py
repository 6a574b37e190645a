"""To and from TFDS, without TensorFlow: what its own reader gives is what the dataset holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools import from_tfds, to_tfds, verify
from data_tools.bands import load_bands
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.survey_images import survey_images

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (the extra tfds)")
ROOT = Path(__file__).parents[2]


class Sky(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One feature of every kind that can be imported."""

    VERSION = tfds.core.Version("1.2.3")
    name = "sky"

    def _info(self):
        bytes_ = tfds.features.Encoding.BYTES
        spec = {
            "flux": tfds.features.Tensor(shape=(6, 5, 2), dtype=np.float32),
            "counts": tfds.features.Tensor(shape=(3,), dtype=np.int64),
            "redshift": tfds.features.Tensor(shape=(), dtype=np.float64, encoding=bytes_),
            "id": tfds.features.Scalar(np.int64),
            "good": tfds.features.Scalar(np.bool_),
            "type": tfds.features.ClassLabel(names=["galaxy", "star"]),
            "meta": {"note": tfds.features.Text(), "spectrum": tfds.features.Tensor(shape=(None, 2), dtype=np.float32)},
            "tokens": tfds.features.Sequence(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(spec), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 23), "test": self._generate_examples(23, 30)}

    def _generate_examples(self, first, last):
        for n in range(first, last):
            yield n, example(n)


def example(n):
    rng = np.random.default_rng(n)
    return {
        "flux": rng.normal(size=(6, 5, 2)).astype(np.float32),
        "counts": rng.integers(-(2**62), 2**62, 3),
        "redshift": rng.uniform(),
        "id": int(rng.integers(2**62)),
        "good": bool(n % 2),
        "type": n % 2,
        "meta": {"note": f"é{n}", "spectrum": rng.normal(size=(n % 4, 2)).astype(np.float32)},
        "tokens": list(range(n % 3)),
    }


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Sky(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


MAPPED = ["--rename", "image=flux", "--rename", "z=redshift", "--rename", "object_id=id", "--channels_last", "flux"]
LONGEST = ["--max", "meta/spectrum=3", "--max", "tokens=4"]


def test_every_feature_is_there_exactly(sky, tmp_path):
    arguments = [str(sky), "--out", str(tmp_path / "new"), *MAPPED, *LONGEST, "--samples_per_shard", "8"]
    assert from_tfds.main([*arguments, "--dry_run"]) is None and not (tmp_path / "new").exists()
    assert from_tfds.main(arguments) is None and verify.main([str(tmp_path / "new")]) is None
    dataset, seen = open_dataset(tmp_path / "new"), set()
    assert dataset.manifest.arrays["image"].kind == "image" and dataset.manifest.splits["counts"] == {
        "test": 7,
        "train": 23,
    }
    wanted = {example(n)["id"]: n for n in range(30)}
    for row in range(30):
        sample = dataset.cutout(row)
        n = wanted[sample["object_id"]]
        want = example(n)
        seen.add(n)
        np.testing.assert_array_equal(sample["image"], np.moveaxis(want["flux"], 2, 0))
        np.testing.assert_array_equal(sample["counts"], want["counts"])
        np.testing.assert_array_equal(sample["tokens"], want["tokens"])
        np.testing.assert_array_equal(sample["meta_spectrum"], want["meta"]["spectrum"])
        assert sample["meta_spectrum"].dtype == np.float32 and sample["counts"].dtype == np.int64
        assert (sample["z"], sample["z_kind"], sample["good"]) == (want["redshift"], "spec", want["good"])
        assert (sample["type"], sample["meta_note"]) == (["galaxy", "star"][n % 2], want["meta"]["note"])
        assert sample["split"] == ("train" if n < 23 else "test")
    assert seen == set(range(30))
    assert dataset.manifest.provenance["source"]["name"] == "sky/1.2.3"
    assert dataset.manifest.provenance["source"]["channels_last"] == ["flux"]


def test_an_interrupted_import_goes_on_to_the_same_bytes(sky, tmp_path, monkeypatch):
    arguments = [str(sky), "--skip", "meta/spectrum", "--skip", "tokens", "--samples_per_shard", "4", "--workers", "1"]
    assert from_tfds.main([*arguments, "--out", str(tmp_path / "whole")]) is None
    real = from_tfds.read_shard
    monkeypatch.setattr(from_tfds, "read_shard", lambda *a: real(*a) if a[-1].start < 9 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        from_tfds.main([*arguments, "--out", str(tmp_path / "new")])
    monkeypatch.undo()
    assert len(list((tmp_path / "new").glob("index/*.parquet"))) == 3
    assert from_tfds.main([*arguments, "--out", str(tmp_path / "new")]) is None
    whole, new = ({p.name: p.read_bytes() for p in (tmp_path / name).rglob("0*")} for name in ("whole", "new"))
    assert new == whole
    ids = [f"{split}-{n}" for split, count in (("train", 23), ("test", 7)) for n in range(count)]
    assert open_dataset(tmp_path / "new").column("object_id").tolist() == ids


def test_what_does_not_fit_is_refused(sky, tmp_path):
    for more, match in (
        ([], "'meta/spectrum' is .*say how long it may be with --max meta/spectrum=N"),
        (["--max", "flux=3"], "must be FIELD=N of a field with a variable axis"),
        ([*LONGEST, "--channels_last", "counts"], "'counts' is no field of three axes"),
        ([*LONGEST, "--skip", "nope"], "skip: 'nope' is no field of the source"),
        (
            ["--max", "meta/spectrum=2", "--max", "tokens=4"],
            "max: 'meta/spectrum' has 3 entries in a sample of .*; give --max",
        ),
    ):
        with pytest.raises(InputError, match=match):
            from_tfds.main([str(sky), "--out", str(tmp_path / "new"), *more])
    with pytest.raises(InputError, match="'no_such_dataset' is no TFDS dataset"):
        from_tfds.main(["no_such_dataset", "--out", str(tmp_path / "none"), "--data_dir", str(tmp_path)])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("encoding", ["raw", "compact"])
def test_tfds_reads_what_a_dataset_holds(tmp_path, encoding):
    source = open_dataset(survey_images(tmp_path / "old", encoding=encoding))
    arguments = [str(source.path), "--out", str(tmp_path), "--name", "cutouts", "--where", "flags < 30"]
    assert to_tfds.main([*arguments, "--dry_run"]) is None and not (tmp_path / "cutouts").exists()
    assert to_tfds.main(arguments) is None
    builder = tfds.builder_from_directory(tmp_path / "cutouts" / "1.0.0")
    for split in ("train", "test"):
        rows = source.select(f"flags < 30 and split == '{split}'")
        found = builder.as_data_source(split)
        assert len(found) == len(rows)
        for row, got in zip(rows, found, strict=True):
            for name, value in source.cutout(int(row)).items():
                value = value.encode() if isinstance(value, str) else value
                np.testing.assert_array_equal(got[name], value, name)
    with pytest.raises(InputError, match="exists; give another --version"):
        to_tfds.main(arguments)
    with pytest.raises(InputError, match="name: 'My-Sky' must match"):
        to_tfds.main([*arguments[:-4], "--name", "My-Sky"])


@pytest.mark.parametrize("split", ["hold out", "all", "a/b"])
def test_a_split_that_tfds_cannot_name_is_refused(tmp_path, split):
    writer = DatasetWriter(tmp_path / "d", Manifest({}, (), {"split": Column("string")}), {})
    writer.write_shard(0, ["a", "b", "c"], {}, {"split": ["train", split, "val-2"]})
    writer.finish(1, {})
    dataset = open_dataset(tmp_path / "d")
    with pytest.raises(InputError, match=f"split: '{split}' cannot be a split of TFDS"):
        to_tfds.rows_of_splits(dataset, np.arange(3))
    assert [*to_tfds.rows_of_splits(dataset, np.array([0, 2]))] == ["train", "val-2"]


def test_there_and_back_it_is_the_same(tmp_path):
    source = open_dataset(survey_images(tmp_path / "old"))
    assert to_tfds.main([str(source.path), "--out", str(tmp_path), "--name", "sky", "--version", "2.0.0"]) is None
    assert from_tfds.main([str(tmp_path / "sky/2.0.0"), "--out", str(tmp_path / "new")]) is None
    new = open_dataset(tmp_path / "new")
    assert load_bands(tmp_path / "sky/2.0.0/bands.toml")[0] == source.manifest.bands
    for name, column in source.manifest.columns.items():
        assert new.manifest.columns[name].unit == column.unit and new.manifest.columns[name].dtype == column.dtype
    assert new.manifest.columns["z"].description == "redshift"
    where = {key: row for row, key in enumerate(source.column("key").tolist())}
    for row, key in enumerate(new.column("key_orig").tolist()):
        a, b = source.cutout(where[key]), new.cutout(row)
        for name in ("image", "image_mask", "features", *source.manifest.columns):
            np.testing.assert_array_equal(b[name], a[name], name)


def test_tensorflow_is_never_imported(sky, tmp_path):
    code = (
        "import sys; from data_tools import from_tfds; "
        f"from_tfds.main([{str(sky)!r}, '--out', {str(tmp_path / 'new')!r}, *{LONGEST}]); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
