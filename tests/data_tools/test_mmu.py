"""The Multimodal Universe's HDF5 layout, read and written: against h5py, brute force and the way back."""

import shutil

import h5py
import numpy as np
import pytest

from data_tools import from_mmu, to_mmu, verify
from data_tools.bands import bands_toml, load_bands
from data_tools.splits import assign_splits
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from tests.data_tools.survey_images import survey_images

BANDS = """
pixel_scale_arcsec = 0.168
width_nm = 130.0
psf_fwhm_arcsec = 0.7

[[bands]]
name = "r"
source = "hsc-r"
wavelength_nm = 620.0
zero_point_ab = 27.0
a_over_ebv = 2.7
sky_sigma = 0.04

[[bands]]
name = "g"
source = "hsc-g"
wavelength_nm = 480.0
zero_point_ab = 27.0
a_over_ebv = 3.7
sky_sigma = 0.02
"""


def rows_by_id(dataset):
    return {one: row for row, one in enumerate(dataset.arrow(columns=["object_id"])["object_id"].to_pylist())}


@pytest.mark.parametrize("encoding", ["raw", "compact"])
def test_there_and_back_every_pixel_flag_and_scalar_is_the_same(tmp_path, encoding):
    measured = np.random.default_rng(8).uniform(0.3, 2, (2, 40)).astype(np.float32)
    measured[0, ::3] = np.nan
    own = {"psf_fwhm_g": measured[0], "sky_sigma_g": measured[1]}
    source = survey_images(tmp_path / "old", encoding=encoding, **own)
    assert to_mmu.main([str(source), "--out", str(tmp_path / "sky")]) is None
    arguments = ["--bands", str(tmp_path / "sky/bands.toml"), "--out", str(tmp_path / "new")]
    assert from_mmu.main([str(tmp_path / "sky"), *arguments, "--samples_per_shard", "16"]) is None
    assert verify.main([str(tmp_path / "new")]) is None
    old, new = open_dataset(source), open_dataset(tmp_path / "new")
    assert new.manifest.bands == old.manifest.bands and len(new) == len(old) == 40
    assert new.manifest.arrays["image_mask"] == old.manifest.arrays["image_mask"]
    where = rows_by_id(old)
    for object_id, row in rows_by_id(new).items():
        a, b = old.cutout(where[object_id]), new.cutout(row)
        np.testing.assert_array_equal(a["image"].astype(np.float16), b["image"])  # float16 is raw's encoding
        np.testing.assert_array_equal(a["image_mask"], b["image_mask"])
        np.testing.assert_array_equal(a["features"], b["features"])
        for name, column in old.manifest.columns.items():
            np.testing.assert_equal(b[name], a[name], name)
            told = new.manifest.columns[name]
            assert name == "bands_observed" or (told.unit, told.dtype) == (column.unit, column.dtype)
            assert told.description == column.description or not column.description


def test_the_files_are_what_mmu_loaders_expect(tmp_path):
    source = open_dataset(survey_images(tmp_path / "old"))
    assert to_mmu.main([str(source.path), "--out", str(tmp_path / "sky"), "--where", "dec > 0"]) is None
    where, seen = rows_by_id(source), 0
    for path in (tmp_path / "sky").glob("healpix=*/001-of-001.hdf5"):
        with h5py.File(path) as file:
            assert set(file["healpix"][:]) == {int(path.parent.name.removeprefix("healpix="))}
            assert file["image_array"].dtype == np.float32 and file["image_mask"].dtype == bool
            assert file["image_band"].dtype.kind == "S" and file["image_scale"].dtype == np.float32
            for n, object_id in enumerate(file["object_id"][:]):
                sample, seen = source.cutout(where[object_id.decode()]), seen + 1
                assert [name.decode() for name in file["image_band"][n]] == ["g", "r", "i"]
                np.testing.assert_array_equal(file["image_array"][n], sample["image"].astype(np.float32))
                np.testing.assert_array_equal(file["image_mask"][n], sample["image_mask"] == 0)
                np.testing.assert_array_equal(file["image_ivar"][n], sample["image_mask"] == 0)  # sky_sigma is 1
                assert file["ra"][n] == sample["ra"] and file["dec"][n] > 0
    assert seen == len(source.select("dec > 0"))


def test_healpix_cells_are_nested_of_nside_16(tmp_path):
    """By the definition: the 256 cells of base cells 0 and 1 end at the north pole, those of 0 begin on the equator."""
    positions = {"ra": np.array([45.0, 135.0, 45.0]), "dec": np.array([89.99, 89.99, 0.01])}
    source = survey_images(tmp_path / "old", samples=3, shards=1, **positions)
    assert to_mmu.main([str(source), "--out", str(tmp_path / "sky")]) is None
    assert {path.name for path in (tmp_path / "sky").glob("healpix=*")} == {"healpix=255", "healpix=511", "healpix=0"}


def mmu_file(path, bands, seed, count=5, size=6, **more):
    """A file as the layout says, without jaxz; returns what is in it."""
    rng = np.random.default_rng(seed)
    shape = (count, bands.shape[1], size, size)
    values = {
        "object_id": np.arange(count) + 100 * seed,
        "ra": rng.uniform(30, 31, count),
        "dec": rng.uniform(-1, 1, count),
        "healpix": np.full(count, seed),
        "image_band": np.char.encode(bands),
        "image_array": rng.normal(0, 0.03, shape).astype(np.float32),
        "image_ivar": rng.uniform(500, 3000, shape).astype(np.float32),
        "image_mask": rng.random(shape) < 0.9,
        "image_psf_fwhm": rng.uniform(0.5, 1, shape[:2]).astype(np.float32),
        "image_scale": np.full(shape[:2], 0.168, np.float32),
        "Z": rng.uniform(0, 1, count).astype(">f4"),
        "TYPE": np.array([b"EXP", b"DEV", b"", b"PSF", b"SER"])[:count],
        **more,
    }
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for name, column in values.items():
            file[name] = column
    return values


@pytest.fixture
def survey(tmp_path):
    """Two files whose rows name their bands in different orders, of which some are missing or unknown here."""
    orders = [["hsc-g", "hsc-r", "hsc-y"], ["hsc-r", "hsc-g", "hsc-y"], ["hsc-y", "hsc-z", "hsc-g"]]
    bands = np.array([orders[n % 3] for n in range(5)])
    root, files = tmp_path / "pdr3", []
    for seed in (1, 2):
        files.append(mmu_file(root / f"healpix={seed}" / "001-of-001.hdf5", bands, seed))
    with h5py.File(root / "healpix=1" / "001-of-001.hdf5", "r+") as file:
        file["image_array"][0, 0, 2, 3], file["image_array"][0, 1, 1, 1] = np.nan, np.inf
        file["image_ivar"][1, 0, 0, 0] = 0
        file["image_psf_fwhm"][1, 0] = 0
        files[0] = {name: file[name][:] for name in file}
    (tmp_path / "bands.toml").write_text(BANDS)
    return root, files


def command(survey, tmp_path, *more):
    return [str(survey[0]), "--bands", str(tmp_path / "bands.toml"), "--out", str(tmp_path / "new"), *more]


def test_bands_go_by_their_names_and_missing_ones_are_masked(survey, tmp_path, capsys):
    arguments = command(survey, tmp_path, "--rename", "z=Z", "--samples_per_shard", "3")
    assert from_mmu.main([*arguments, "--dry_run"]) is None
    assert '"bands_left_out": [\n  "hsc-y",\n  "hsc-z"\n ]' in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert from_mmu.main(arguments) is None and verify.main([str(tmp_path / "new")]) is None
    dataset = open_dataset(tmp_path / "new")
    bits = dataset.manifest.arrays["image_mask"].bits
    sigmas = {"hsc-r": 0.04, "hsc-g": 0.02}
    for row in range(10):
        file, n = survey[1][row // 5], row % 5
        sample, names = dataset.cutout(row), [name.decode() for name in file["image_band"][n]]
        assert sample["object_id"] == file["object_id"][n] and sample["TYPE"] == file["TYPE"][n].decode()
        assert sample["z"] == file["Z"][n] and sample["z_kind"] == "spec" and sample["survey"] == "pdr3"
        for c, name in enumerate(("hsc-r", "hsc-g")):
            if name not in names:
                assert (sample["image_mask"][c] == bits["nodata"]).all() and not sample["image"][c].any()
                assert not sample["bands_observed"] >> c & 1 and np.isnan(sample[f"psf_fwhm_{'rg'[c]}"])
                continue
            b = names.index(name)
            value, good = file["image_array"][n, b], file["image_mask"][n, b] & (file["image_ivar"][n, b] > 0)
            want = np.where(~good, bits["bad"], 0) + np.where(np.isnan(value), bits["nodata"], 0)
            want = want | np.where(np.isinf(value), bits["bad"], 0)
            np.testing.assert_array_equal(sample["image_mask"][c], want)
            stored = np.where(want, 0, value / np.float32(sigmas[name]))
            np.testing.assert_allclose(sample["image"][c], stored, rtol=2**-11, atol=1e-7)  # float16's rounding
            psf = file["image_psf_fwhm"][n, b]
            np.testing.assert_equal(sample[f"psf_fwhm_{'rg'[c]}"], psf if psf else np.nan)
            sigma = 1 / np.sqrt(np.median(file["image_ivar"][n, b][want == 0])) / sigmas[name]
            assert sample[f"sky_sigma_{'rg'[c]}"] == pytest.approx(sigma, rel=1e-6)
    # a magnitude is the same before and after: m = zp - 2.5 log10(value)
    [r, g] = dataset.manifest.bands
    assert g.zero_point_ab - 2.5 * np.log10(1 / 0.02) == pytest.approx(27.0) and r.sky_sigma == g.sky_sigma == 1
    assert dataset.manifest.splits["rule"] == "hash" and dataset.manifest.splits["healpix_order"] == 9
    whole = assign_splits(dataset.column("ra"), dataset.column("dec"), gap_arcsec=6 * 2**0.5 * 0.168, order=9, seed=0)[
        0
    ]
    assert dataset.column("split").tolist() == whole.tolist()  # row by row, as all at once


def test_one_mask_for_all_bands(tmp_path):
    bands = np.array([["hsc-g", "hsc-r"]] * 3)
    mask = np.random.default_rng(0).random((3, 6, 6)) < 0.5
    mmu_file(tmp_path / "s" / "healpix=1" / "a.hdf5", bands, 1, count=3, image_mask=mask)
    (tmp_path / "bands.toml").write_text(BANDS)
    from_mmu.main([str(tmp_path / "s"), "--bands", str(tmp_path / "bands.toml"), "--out", str(tmp_path / "new")])
    dataset = open_dataset(tmp_path / "new")
    for n in range(3):
        for plane in dataset.cutout(n)["image_mask"]:
            np.testing.assert_array_equal(plane == 0, mask[n])


def test_bright_pixels_are_clipped_and_said_to_be(tmp_path):
    bands = np.array([["hsc-g", "hsc-r"]])
    image = np.full((1, 2, 6, 6), 1e5, np.float32)
    mmu_file(
        tmp_path / "s" / "healpix=1" / "a.hdf5", bands, 1, 1, image_array=image, image_mask=np.ones((1, 6, 6), bool)
    )
    (tmp_path / "bands.toml").write_text(BANDS)
    from_mmu.main([str(tmp_path / "s"), "--bands", str(tmp_path / "bands.toml"), "--out", str(tmp_path / "new")])
    sample = open_dataset(tmp_path / "new").cutout(0)
    assert (sample["image"] == 65504).all() and (sample["image_mask"] == 2).all()


def test_an_interrupted_import_goes_on_to_the_same_bytes(survey, tmp_path, monkeypatch):
    arguments = command(survey, tmp_path, "--samples_per_shard", "3", "--workers", "1")
    assert from_mmu.main(arguments) is None
    whole = {p.name: p.read_bytes() for p in (tmp_path / "new").rglob("0*")}
    shutil.rmtree(tmp_path / "new")
    real, calls = from_mmu.Rows.shard, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(from_mmu.Rows, "shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_mmu.main(arguments)
    assert 0 < len(list((tmp_path / "new").glob("index/*"))) < 4 and not (tmp_path / "new/dataset.json").exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match="seed: 1, but .* was begun with 0"):
        from_mmu.main([*arguments, "--seed", "1"])
    assert from_mmu.main(arguments) is None
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").rglob("0*")} == whole


def test_an_interrupted_export_goes_on(tmp_path):
    source = survey_images(tmp_path / "old")
    arguments = [str(source), "--out", str(tmp_path / "sky")]
    assert to_mmu.main(arguments) is None
    files = sorted((tmp_path / "sky").glob("healpix=*/*"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    files[3].unlink()
    assert to_mmu.main(arguments) is None
    assert files[3].exists() and all(path.stat().st_mtime_ns == before[path][1] for path in files if path != files[3])
    with pytest.raises(InputError, match="holds an export of other rows"):
        to_mmu.main([*arguments, "--rows", "0:3"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(InputError, match="exists and is no export"):
        to_mmu.main([str(source), "--out", str(tmp_path / "mine")])


def test_what_does_not_fit_is_refused(survey, tmp_path):
    arguments, toml = command(survey, tmp_path), tmp_path / "bands.toml"

    def refused(match, change=("", ""), more=(), kind=InputError):
        toml.write_text(BANDS.replace(*change))
        with pytest.raises(kind, match=match):
            from_mmu.main([*arguments, *more])
        shutil.rmtree(tmp_path / "new", ignore_errors=True)

    refused(r"bands.r.pixel_scale_arcsec: 0.2 is not the files' 0.168", ("0.168", "0.2"))
    refused(r"none of \['des-r', 'des-g'\] is a band of the files", ("hsc-", "des-"))
    refused(r"bands\[0\].a_over_ebv: is missing", ("a_over_ebv = 2.7\n", ""))
    refused(r"bands\[0\].a_ebv is not a known field. Did you mean 'a_over_ebv'", ("a_over_ebv = 2.7", "a_ebv = 2.7"))
    refused(r"bands.r.sky_sigma: must be positive", ("0.04", "0.0"))
    refused(r"names .* must be unique", ('"g"', '"r"'))
    refused("rename: 'nope' is no field", more=["--rename", "z=nope"])
    refused("rename: fields 'TYPE' and 'Z' are both 'Z'", more=["--rename", "Z=TYPE"])
    refused("a column cannot be called 'image' here", more=["--rename", "image=Z"])
    refused("skip: 'image_ivar' belongs to the image", more=["--skip", "image_ivar"])
    refused("cells .* lower the order|gap_arcsec", more=["--split_order", "17"])
    path = survey[0] / "healpix=2" / "001-of-001.hdf5"
    with h5py.File(path, "r+") as file:
        names = file["image_band"][:]
        file["image_band"][2] = [b"hsc-g", b"hsc-z", b"hsc-g"]
    refused("row 7 names 'hsc-g' twice", kind=DataError)
    with h5py.File(path, "r+") as file:
        file["image_band"][:] = names
        file["ra"][1] = np.nan
    refused("row 6 has no position")
    with h5py.File(path, "r+") as file:
        file["ra"][1] = 30
        del file["Z"]
    refused("'Z' is not as in .*healpix=1")
    path.write_bytes(path.read_bytes()[:5000])
    refused("healpix=2.* cannot be read as HDF5", kind=DataError)
    with pytest.raises(InputError, match="has no healpix="):
        from_mmu.main([str(tmp_path), *arguments[1:]])


def test_files_that_point_elsewhere_or_hold_objects_are_refused(survey, tmp_path):
    path, secret = survey[0] / "healpix=2" / "001-of-001.hdf5", tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["values"] = np.arange(5)
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource(secret, "values", (5,))
    (tmp_path / "raw").write_bytes(bytes(40))
    put = {
        "an external link": lambda file: file.update({"more": h5py.ExternalLink(str(secret), "values")}),
        "a soft link": lambda file: file.update({"more": h5py.SoftLink("/Z")}),
        "a virtual field": lambda file: file.create_virtual_dataset("more", layout),
        "an external file": lambda file: file.create_dataset(
            "more", (5,), "i8", external=[(str(tmp_path / "raw"), 0, 40)]
        ),
        "a group": lambda file: file.create_group("more"),
        "a compound": lambda file: file.create_dataset("more", (5,), [("a", "i4"), ("b", "i4")]),
    }
    for what, change in put.items():
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match="'more' is no field of the file itself|'more' holds .* neither numbers"):
            pytest.fail(f"{what} was read: {from_mmu.main(command(survey, tmp_path))}")
        with h5py.File(path, "r+") as file:
            del file["more"]
    for file in survey[0].glob("*/*"):
        with h5py.File(file, "r+") as file:
            file["more"] = h5py.ExternalLink(str(secret), "values")
    with pytest.raises(InputError, match="skip: 'less' is no field"):
        from_mmu.main(command(survey, tmp_path, "--skip", "less"))
    assert from_mmu.main(command(survey, tmp_path, "--skip", "more")) is None


def test_an_image_of_another_layout_is_refused(survey, tmp_path):
    path = survey[0] / "healpix=1" / "001-of-001.hdf5"
    shutil.rmtree(survey[0] / "healpix=2")
    for name, values in (
        ("image_mask", np.ones((5, 3, 3))),
        ("image_psf_fwhm", np.ones(5)),
        ("image_array", np.ones(5)),
    ):
        with h5py.File(path, "r+") as file:
            before = file[name][:]
            del file[name]
            file[name] = values
        with pytest.raises(InputError, match="a row does not fit image_array's"):
            from_mmu.main(command(survey, tmp_path))
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = before
    assert from_mmu.main(command(survey, tmp_path)) is None


def test_numbers_that_stand_for_no_redshift_are_no_labels(tmp_path):
    bands = np.array([["hsc-g", "hsc-r"]] * 5)
    z = np.array([0.5, -99, np.nan, 99, 1.5])
    mmu_file(tmp_path / "s" / "healpix=1" / "a.hdf5", bands, 1, count=5, Z=z)
    (tmp_path / "bands.toml").write_text(BANDS)
    more = ["--rename", "z=Z", "--z_kind", "grism"]
    from_mmu.main([str(tmp_path / "s"), "--bands", str(tmp_path / "bands.toml"), "--out", str(tmp_path / "new"), *more])
    dataset = open_dataset(tmp_path / "new")
    np.testing.assert_array_equal(dataset.column("z"), np.float32([0.5, np.nan, np.nan, np.nan, 1.5]))
    assert dataset.column("z_kind").tolist() == ["grism", "none", "none", "none", "grism"]


def test_infinite_numbers_of_columns_are_missing(tmp_path):
    bands, magnitudes = np.array([["hsc-g"]] * 5), np.array([20, np.inf, 21, -np.inf, np.nan], np.float32)
    mmu_file(tmp_path / "pdr3" / "healpix=1" / "001-of-001.hdf5", bands, 1, MAG=magnitudes)
    (tmp_path / "bands.toml").write_text(BANDS)
    assert from_mmu.main(command((tmp_path / "pdr3", ()), tmp_path)) is None
    np.testing.assert_array_equal(open_dataset(tmp_path / "new").column("MAG"), [20, np.nan, 21, np.nan, np.nan])


def test_a_survey_without_a_row_is_refused(tmp_path):
    mmu_file(tmp_path / "pdr3" / "healpix=1" / "001-of-001.hdf5", np.empty((0, 1), "U5"), 1, count=0)
    (tmp_path / "bands.toml").write_text(BANDS)
    with pytest.raises(InputError, match="source: the 1 files of .* have no rows; name another survey"):
        from_mmu.main(command((tmp_path / "pdr3", ()), tmp_path))


def test_bands_survive_their_file(tmp_path):
    bands = tuple(Band(f'b"{n}', 500.0 + n, 100, 25.123456789, 0.2, 3, 1e-9, 0.0) for n in range(3))
    (tmp_path / "b.toml").write_text(bands_toml(bands))
    assert load_bands(tmp_path / "b.toml") == (bands, tuple(band.name for band in bands))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[bands]", "bands: '.*b.toml' cannot be read"),
        ("width_nm = 130.0", "bands: '.*b.toml' lists none; add a \\[\\[bands\\]\\] section"),
        (
            BANDS.replace("sky_sigma", "sky_sigme"),
            "bands\\[0\\].sky_sigme is not a known field. Did you mean 'sky_sigma'",
        ),
        (BANDS.replace("sky_sigma = 0.02", ""), "bands\\[1\\].sky_sigma: is missing in"),
        (BANDS.replace("wavelength_nm = 480.0", "wavelength_nm = -1"), "bands\\[1\\].wavelength_nm"),
        (BANDS.replace('name = "g"', 'name = "r"'), "bands: names \\['r', 'r'\\] in .* must be unique"),
    ],
)
def test_a_file_of_bands_that_is_wrong_is_refused(text, message, tmp_path):
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_bands(tmp_path / "b.toml")
