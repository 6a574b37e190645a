"""Tars of other writers: what webdataset reads in them, a dataset made of them holds."""

import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import webdataset as wds

import jaxz
from data_tools import from_webdataset, verify
from jaxz.data.dataset import DataError, open_dataset
from jaxz.errors import InputError
from tests.data_tools.survey_images import survey_images


def npy(array, allow_pickle=False):
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=allow_pickle)
    return sink.getvalue()


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    """members: (name, bytes), or a TarInfo of something else than a file."""
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def import_tars(tars, out, *more):
    return from_webdataset.main([*map(str, tars), "--out", str(out), *more])


@pytest.fixture
def tars(tmp_path):
    """Two tars by webdataset's own writer, with pax headers; keys with folders, too long for a dataset, not ASCII."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"part-{n}.tar" for n in range(2)]
    for n, path in enumerate(paths):
        with wds.TarWriter(str(path)) as tar:
            for i in range(6):
                scalars = {
                    "z": 0.1 * i if i % 2 else None,
                    "n": i,
                    "x": i if i < 3 else i / 4,
                    "name": f"é{i}",
                    "b": i > 2,
                }
                sample = {"__key__": f"{'deep/' * 30}é{n}/s {i}", "image.npy": rng.normal(size=(3, 4, 4)).astype("f4")}
                tar.write(
                    {**sample, "tokens.npy": np.arange(i, dtype="i2"), "json": scalars, "cls": i, "txt": f" id{i}"}
                )
    return paths


@pytest.mark.parametrize("link", [False, True])
def test_the_dataset_holds_what_webdataset_reads(tars, tmp_path, link):
    before = [path.read_bytes() for path in tars]
    assert import_tars(tars, tmp_path / "new", "--rename", "object_id=txt", *["--link"] * link) is None
    assert verify.main([str(tmp_path / "new")]) is None
    assert [path.read_bytes() for path in tars] == before
    dataset, row = open_dataset(tmp_path / "new"), 0
    assert len({key for key in dataset.arrow(columns=["key"])["key"].to_pylist()}) == 12
    types = {name: column.dtype for name, column in dataset.manifest.columns.items()}
    assert (types["n"], types["x"], types["b"], types["name"]) == ("int64", "float64", "bool", "string")
    for path in tars:
        for want in wds.WebDataset(str(path), shardshuffle=False).decode():
            sample = dataset.cutout(row)
            np.testing.assert_array_equal(sample["image"], want["image.npy"])
            np.testing.assert_array_equal(sample["tokens"], want["tokens.npy"])
            z = want["json"].pop("z")
            np.testing.assert_equal(sample["z"], np.nan if z is None else z)
            assert sample["z_kind"] == ("none" if z is None else "spec")
            assert {name: sample[name] for name in want["json"]} == want["json"]
            assert sample["cls"] == want["cls"] and sample["object_id"] == want["txt"].strip()
            assert sample["key_orig"] == want["__key__"]
            row += 1
    assert row == 12
    links = [os.path.samefile(path, tmp_path / "new/shards" / f"{n:05d}.tar") for n, path in enumerate(tars)]
    assert links == [link, link]
    batch = next(jaxz.Stream(jaxz.Source(dataset), 12, shuffle=False, check="crc"))
    assert batch["image"].shape == (12, 3, 4, 4) and batch["tokens_mask"].sum(1).tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_a_datasets_own_tars_are_a_dataset_again(tmp_path, blob_dataset):
    shards = sorted(blob_dataset.glob("shards/*.tar"))
    assert import_tars(shards, tmp_path / "new") is None
    old, new = open_dataset(blob_dataset), open_dataset(tmp_path / "new")
    assert [s.samples for s in new.manifest.shards] == [s.samples for s in old.manifest.shards]
    for row in (0, 41, 95):
        a, b = old.cutout(row), new.cutout(row)
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["key"] == b["key"] == b["key_orig"]
        for name in old.manifest.columns:
            assert b[name] == a[name] or a[name] != a[name]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_header(tmp_path, format):
    long = "a" * 80 if format == tarfile.USTAR_FORMAT else "b" * 180
    folder = tarfile.TarInfo("set")
    folder.type = tarfile.DIRTYPE
    values = np.arange(6.0).reshape(2, 3)
    members = [folder, ("set/__meta__", b"x"), (f"./set/{long}.npy", npy(values)), ("set/2.npy", npy(values + 1))]
    path = write_tar(tmp_path / "a.tar", members, format)
    assert import_tars([path], tmp_path / "new", "--rename", "matrix=npy", "--link") is None
    dataset = open_dataset(tmp_path / "new")
    np.testing.assert_array_equal([dataset.cutout(n)["matrix"] for n in (0, 1)], [values, values + 1])
    assert dataset.column("key_orig").tolist() == [f"set/{long}", "set/2"]


def test_arrays_in_other_orders_and_archives_are_written_anew(tmp_path):
    values = np.arange(2 * 4 * 3, dtype=np.int32).reshape(2, 4, 3)
    sink = io.BytesIO()
    np.savez_compressed(sink, a=values, b=np.float32(1.5))
    members = [("1.cube.npy", npy(np.asfortranarray(values))), ("1.big.npy", npy(values.astype(">i4")))]
    members += [("1.all.npz", sink.getvalue()), ("1.jpg", b"\xff\xd8")]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match="a picture holds no fluxes; decode it to .npy, or --skip jpg"):
        import_tars([path], tmp_path / "new")
    with pytest.raises(InputError, match=r"link: .*1\.cube\.npy has to be decoded"):
        import_tars([path], tmp_path / "new", "--skip", "jpg", "--link")
    assert import_tars([path], tmp_path / "new", "--skip", "jpg", "--channels_last", "cube") is None
    sample = open_dataset(tmp_path / "new").cutout(0)
    np.testing.assert_array_equal(sample["cube"], np.moveaxis(values, 2, 0))
    np.testing.assert_array_equal(sample["big"], values)
    np.testing.assert_array_equal(sample["all_a"], values)
    assert sample["all_b"] == 1.5 and sample["all_b"].shape == () and sample["big"].dtype == np.int32


def test_keys_that_every_tar_has_are_told_apart(tmp_path):
    paths = [
        write_tar(tmp_path / f"{n}.tar", [(f"{i:06d}.npy", npy(np.full(3, 10 * n + i))) for i in range(3)])
        for n in (0, 1)
    ]
    assert import_tars(paths, tmp_path / "new", "--split", "train") is None
    dataset = open_dataset(tmp_path / "new")
    assert dataset.column("key").tolist() == [f"{n:05d}-{i:06d}" for n in (0, 1) for i in range(3)]
    assert dataset.column("key_orig").tolist() == [f"{i:06d}" for i in range(3)] * 2
    assert [dataset.cutout(n)["npy"][0] for n in range(6)] == [0, 1, 2, 10, 11, 12]
    assert dataset.manifest.splits == {"counts": {"train": 6}}


def test_missing_pixels_become_a_mask(tmp_path):
    image = np.ones((2, 4, 4), np.float32)
    image[0, 1, 2], image[1, 3, 3] = np.nan, -np.inf
    path = write_tar(tmp_path / "a.tar", [("1.image.npy", npy(image))])
    with pytest.raises(InputError, match="image holds NaN or inf"):
        import_tars([path], tmp_path / "refused")
    with pytest.raises(InputError, match="holds NaN or inf; leave --link out and use --nan_mask"):
        import_tars([path], tmp_path / "new", "--link")
    assert not (tmp_path / "refused").exists()
    assert import_tars([path], tmp_path / "new", "--nan_mask") is None  # of another plan, in the same place
    dataset = open_dataset(tmp_path / "new")
    sample, bits = dataset.cutout(0), dataset.manifest.arrays["image_mask"].bits
    want = np.where(np.isnan(image), bits["nodata"], 0) + np.where(np.isinf(image), bits["bad"], 0)
    np.testing.assert_array_equal(sample["image_mask"], want)
    np.testing.assert_array_equal(sample["image"], np.where(want, 0, image))


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path):
    members = [
        (f"{i}.{field}", content) for i in range(3) for field, content in (("npy", npy(np.ones(99))), ("cls", b"1"))
    ]
    path = write_tar(tmp_path / "whole.tar", members)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + 512
    content = path.read_bytes()
    for at in [*range(0, end + 1, 512), 100, 700, end - 511, end + 100]:
        (tmp_path / "cut.tar").write_bytes(content[:at])
        with pytest.raises(DataError, match=r"cut\.tar: .* at offset \d+, after \d+ members"):
            import_tars([tmp_path / "cut.tar"], tmp_path / "new")
    (tmp_path / "cut.tar").write_bytes(content[: end + 512])
    assert import_tars([tmp_path / "cut.tar"], tmp_path / "new") is None


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


HUGE = npy(np.ones(4)).replace(b"'shape': (4,), }        ", b"'shape': (4444444444,),}")
GOOD = ("1.npy", npy(np.ones(4)))


def damaged_npz():
    """With a deflate stream that is none."""
    sink = io.BytesIO()
    np.savez_compressed(sink, a=np.arange(100.0))
    return sink.getvalue()[:60] + bytes(4 * [255]) + sink.getvalue()[64:]


DAMAGED = damaged_npz()


def damaged_lzma():
    """With a stream of LZMA that is none: numpy writes no such .npz, and reads it."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy(np.arange(100.0)))
    return sink.getvalue()[:44] + bytes(4 * [255]) + sink.getvalue()[48:]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([GOOD, ("1.pyd", b"")], "is a pickle, which can run code"),
        ([GOOD, ("1.state.PKL", b"")], "is a pickle, which can run code"),
        ([("1.npy", npy(np.array([{}], object), True))], "not plain numbers|no .npy"),
        ([("1.npy", npy(np.array(["a"])))], "holds <U1, not plain numbers"),
        ([("1.npy", HUGE)], r"of shape \(4444444444,\) takes 35555555552 bytes"),
        ([("1.npy", b"\x93NUMPY\x01\x00")], "is no .npy"),
        ([("1.npz", b"PK")], "is no .npz"),
        ([("1.npz", DAMAGED)], "is no .npz .Error -3 while decompressing"),
        ([("1.npz", damaged_lzma())], "is no .npz .Corrupt input data"),
        ([special("1.npy", tarfile.SYMTYPE)], "is no plain file"),
        ([special("1.npy", tarfile.LNKTYPE)], "is no plain file"),
        ([special("1.npy", tarfile.CHRTYPE)], "is no plain file"),
        ([GOOD, ("README", b"")], "has no field"),
        ([GOOD, ("1.npy", npy(np.ones(4)))], "has two members 'npy'"),
        ([GOOD, ("2.npy", npy(np.ones(4))), ("1.cls", b"1")], "do not stand together"),
        ([GOOD, ("1.cls", b"one")], "cls cannot be read"),
        ([GOOD, ("1.json", b'{"a": [1, 2]}')], "'a' is no scalar"),
        ([GOOD, ("1.json", b"[1]")], "holds no object of scalars"),
        ([GOOD, ("1.json", b'{"a": 99999999999999999999}')], "is no 64-bit integer"),
        (
            [GOOD, ("1.json", b'{"a": 1}'), ("2.npy", npy(np.ones(4))), ("2.json", b'{"a": "x"}')],
            "'a' holds .*int.*str",
        ),
        ([GOOD, ("2.npy", npy(np.ones((2, 2))))], "of shapes"),
        ([GOOD, ("2.npy", npy(np.ones(4, "i4")))], "make them alike"),
        ([GOOD, ("2.cls", b"1")], "'npy' is missing in 1 of 2 samples"),
        ([("1.cls", b"1")], "hold no array"),
        ([GOOD, ("1.json", b'{"npy": 1}')], "has 'npy' in another member too"),
        ([GOOD, ("1.json", b'{"a": 1}'), ("1.meta.json", b'{"a": 2}')], "has 'a' in another member too"),
        ([GOOD, ("1.json", b'{"z": "high"}')], "z: the source's is string, no redshift; --rename it"),
        ([GOOD, ("1.bin", b"1")], "is not read; write it as .npy or .json, or --skip bin"),
    ],
)
def test_what_is_refused_and_why(tmp_path, members, match):
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=match):
        import_tars([path], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("link", [[], ["--link"]])
def test_a_tar_without_a_sample_is_no_shard(tmp_path, link):
    paths = [write_tar(tmp_path / f"{n}.tar", members) for n, members in enumerate(([GOOD], [], [("2.npy", GOOD[1])]))]
    assert import_tars(paths, tmp_path / "new", *link) is None
    dataset = open_dataset(tmp_path / "new")
    assert [shard.name for shard in dataset.manifest.shards] == ["00000", "00002"]
    assert dataset.column("key").tolist() == ["1", "2"] and verify.main([str(tmp_path / "new")]) is None


def test_fields_of_json_are_renamed_and_skipped(tmp_path):
    scalars = json.dumps({"a": 1, "b": [1, 2], "key": "mine", "inf": float("inf")}).encode()
    path = write_tar(tmp_path / "a.tar", [GOOD, ("1.json", scalars)])
    assert import_tars([path], tmp_path / "new", "--skip", "b", "--rename", "b=a", "--rename", "name=key") is None
    with pytest.raises(InputError, match="'key_orig' is the key in the tar"):
        import_tars([path], tmp_path / "other", "--skip", "b")
    sample = open_dataset(tmp_path / "new").cutout(0)
    assert (sample["b"], sample["name"], sample["key_orig"]) == (1, "mine", "1") and np.isnan(sample["inf"])
    assert set(sample) == {"key", "npy", "b", "name", "key_orig", "inf"}


def test_damage_to_a_linked_tar_is_found_and_listed(tars, tmp_path, capsys):
    assert import_tars(tars, tmp_path / "new", "--link") is None
    with open(tars[1], "r+b") as file:
        offset = open_dataset(tmp_path / "new").shard_table(1, ["image_offset"])["image_offset"][2].as_py()
        file.seek(offset)
        file.write(b"\xff")
    assert verify.main([str(tmp_path / "new")]) == 1
    assert "shards/00001.tar: image: 1 of 6 samples do not have the checksum" in capsys.readouterr().out
    assert verify.main([str(tmp_path / "new"), "--repair"]) is None
    assert open_dataset(tmp_path / "new").quarantined.tolist() == [8]


def test_names_that_leave_the_folder_are_only_names(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("../../up/1.npy", npy(np.ones(2))), ("/abs/2.npy", npy(np.ones(2)))])
    assert import_tars([path], tmp_path / "new") is None
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar", "new"}
    assert all("/" not in key and "." not in key for key in open_dataset(tmp_path / "new").column("key"))


def test_an_interrupted_import_goes_on(tars, tmp_path, monkeypatch):
    for link in ([], ["--link"]):
        assert import_tars(tars, tmp_path / f"whole{link}", *link) is None
        monkeypatch.setattr(
            from_webdataset, "read_tar", lambda *a, real=from_webdataset.read_tar: real(*a) if a[-1] == 0 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            import_tars(tars, tmp_path / f"new{link}", "--workers", "1", *link)
        monkeypatch.undo()
        assert not (tmp_path / f"new{link}" / "dataset.json").exists()
        assert import_tars(tars, tmp_path / f"new{link}", *link) is None
        whole, new = (
            json.loads((tmp_path / f"{name}{link}" / "dataset.json").read_text()) for name in ("whole", "new")
        )
        assert new["shards"] == whole["shards"] and new["arrays"] == whole["arrays"]


def test_reals_that_float32_holds_stay_float32_and_positions_float64(tmp_path):
    """A dataset's own tars: meta.json writes the shortest text of the float64 that each number is."""
    source = open_dataset(survey_images(tmp_path / "old", ra=np.full(40, 10.5), depth=np.full(40, 0.1)))
    tars = sorted((tmp_path / "old" / "shards").glob("*.tar"))
    assert import_tars(tars, tmp_path / "new", "--skip", "image_mask.npy") is None
    old, new = source.manifest.columns, open_dataset(tmp_path / "new").manifest.columns
    for name in ("z", "ra", "dec", "depth"):
        assert new[name].dtype == old[name].dtype == ("float32" if name == "z" else "float64")
    assert (new["ra"].unit, new["depth"].unit) == ("deg", "")
