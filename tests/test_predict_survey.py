"""A whole survey predicted: in parts, interrupted, shared; objects that no training object is like; a notebook."""

import json
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from scipy.spatial import distance

import jaxz
from jaxz import coverage, evaluate, predict
from jaxz.batches import completed
from jaxz.data import writer
from jaxz.data.manifest import Column
from jaxz.data.overlays import write_overlay
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError, Stopped
from jaxz.photoz.pdf import read_qp
from tests.helpers import blobs

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "using_a_model.ipynb"


@pytest.fixture
def dataset(redshift_run):
    return redshift_run[0]


@pytest.fixture
def run(redshift_run):
    return redshift_run[1]


@pytest.fixture(scope="module")
def model(redshift_run):
    model = jaxz.load_run(redshift_run[1])
    predict.know_coverage(model, redshift_run[1])
    return model


def survey(model, dataset, where=None):
    return Stream(model.source(jaxz.open_dataset(dataset), where), 32, shuffle=False, epochs=1)


def in_parts(model, dataset, out, part=(1, 1), where=None, form="parquet"):
    with survey(model, dataset, where) as stream:
        predict.write_parts(model, stream, out, None, part, form, predict.OBJECTS)
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("part-*")}


def test_an_interrupted_prediction_goes_on_to_the_same_bytes(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OBJECTS", 60)  # of batches of 32: 64
    whole = in_parts(model, dataset, tmp_path / "whole")
    write, held = predict.write, []

    def stumble(model, dataset, blocks, *paths):
        held.append(sum(len(rows) for rows, _ in blocks))
        if len(held) == 4:
            raise KeyboardInterrupt
        return write(model, dataset, blocks, *paths)

    monkeypatch.setattr(predict, "write", stumble)
    with pytest.raises(Stopped, match="3 of 7 parts are written; run the same command again to go on$"):
        in_parts(model, dataset, tmp_path / "resumed")
    (tmp_path / "resumed/catalog/part-00001.parquet").unlink()  # killed between its two files
    assert in_parts(model, dataset, tmp_path / "resumed") == whole and len(whole) == 14
    assert held == [64, 64, 64, 64, 64, 64, 64, 64, 16]
    monkeypatch.setattr(predict, "write", write)
    for n in (3, 1, 2):
        shared = in_parts(model, dataset, tmp_path / "shared", (n, 3))
    assert shared == whole
    with pytest.raises(InputError, match="holds another prediction .*; where: None -> 'z > 1'"):
        in_parts(model, dataset, tmp_path / "whole", where="z > 1")


def test_parts_in_fits_are_those_in_parquet_and_are_not_mixed(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OBJECTS", 192)
    in_parts(model, dataset, tmp_path / "parquet")
    whole = in_parts(model, dataset, tmp_path / "fits", form="fits")
    for n in range(3):
        plain = pq.read_table(tmp_path / f"parquet/catalog/part-{n:05d}.parquet")
        table = Table.read(tmp_path / f"fits/catalog/part-{n:05d}.fits")
        assert table.colnames == plain.column_names and len(table) == len(plain)
        for name in table.colnames:
            values = [np.nan if value is None else value for value in table[name].tolist()]
            np.testing.assert_array_equal(values, plain[name].to_pylist())
            unit = (plain.schema.field(name).metadata or {}).get(b"unit", b"").decode()
            assert (table[name].unit or "") == unit
    (tmp_path / "fits/catalog/part-00001.fits").unlink()
    assert in_parts(model, dataset, tmp_path / "fits", form="fits") == whole
    with pytest.raises(InputError, match="holds another prediction .*format: 'fits' -> 'parquet'"):
        in_parts(model, dataset, tmp_path / "fits")
    claim = tmp_path / "parquet/predict.json"
    said = json.loads(claim.read_text())
    assert said.pop("format") == "parquet"
    claim.write_text(json.dumps(said))  # as it was when there was no other
    in_parts(model, dataset, tmp_path / "parquet")


def test_a_share_is_counted_and_others_may_begin_beside_it(run, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "OBJECTS", 64)
    command = [f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path}", "--batch_size=32", "--part=2/2"]
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="holds no predict.json but something else"):
        predict.main(command)
    (tmp_path / "mine").rename(tmp_path / ".predict.json.77.tmp")  # of a process that began just before
    predict.main(command)
    flags = pq.read_table(tmp_path / "catalog")["coverage_flag"].to_numpy()
    assert len(flags) == 16 + 3 * 64
    assert capsys.readouterr().out == (
        f"{len(flags)} objects -> {tmp_path}, by checkpoint 120\n"
        f"{(flags == 0).sum()} of them without training objects near (coverage_flag 0)\n"
    )
    predict.main([*command[:2], f"--out={tmp_path / 'one'}", "--objects_per_part=500", "--part=1/2"])
    said = capsys.readouterr()
    assert "part 1/2 has none of the 1 part(s) of 512 objects; see --objects_per_part" in said.err
    assert said.out == f"0 objects -> {tmp_path / 'one'}, by checkpoint 120\n"


def test_an_interrupted_first_part_begins_anew(model, dataset, tmp_path, monkeypatch):
    def stumble(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "write", stumble)
    with pytest.raises(Stopped, match="0 of 1 parts are written; .* with the next one from its start; smaller parts"):
        in_parts(model, dataset, tmp_path / "d")


def test_parts_are_the_file(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OBJECTS", 64)
    in_parts(model, dataset, tmp_path / "parts")
    with survey(model, dataset) as stream:
        predict.write_file(model, stream, tmp_path / "file.parquet", None)
    parts, file = pq.read_table(tmp_path / "parts/catalog"), pq.read_table(tmp_path / "file.parquet")
    assert parts.schema.equals(file.schema, check_metadata=True) and parts.to_pandas().equals(file.to_pandas())
    assert parts["key"].to_pylist() == jaxz.open_dataset(dataset).arrow()["key"].to_pylist()
    whole, ancil = read_qp(tmp_path / "file.hdf5")
    pieces = [read_qp(path) for path in sorted((tmp_path / "parts/pdf").iterdir())]
    np.testing.assert_array_equal(np.concatenate([pdf.probability for pdf, _ in pieces]), whole.probability)
    assert np.concatenate([own["key"] for _, own in pieces]).tolist() == ancil["key"].tolist()


# What is done to one object each, in a survey of others like the training objects.
GARBAGE = 3e4


def lack(*bands):
    def alter(image, columns, n):
        image[n, list(bands)] = GARBAGE
        columns["bands_observed"][n] = 7 & ~sum(1 << band for band in bands)

    return alter


def times(*factors):
    def alter(image, columns, n):
        image[n] *= np.array(factors, np.float16)[:, None, None]

    return alter


def put(value, rows=slice(None)):
    def alter(image, columns, n):
        image[n, :, rows] = value

    return alter


ODD = {
    "lacks half of its bands": lack(0, 1),
    "lacks all bands": lack(0, 1, 2),
    "is NaN": put(np.nan),
    "is NaN but for its rim": put(np.nan, slice(2, 14)),
    "is infinite": put(np.inf),
    "is negative": times(-1, -1, -1),
    "is negative in a band": times(1, -1, 1),
    "is far brighter": times(300, 300, 300),
    "is of an unknown colour": times(20, 1, 1),
    "is all zeros": put(0),
    "is all one number": put(5),
    "is of another unit": times(1e-3, 1e-3, 1e-3),
    "is saturated": put(65504.0),
}


def test_odd_objects_are_flagged_and_never_crash(run, model, tmp_path, monkeypatch):
    """By the command, from a dataset on disk, with the NaN that other programs write, to the catalogue."""
    encode = writer.encode
    monkeypatch.setattr(
        writer, "encode", lambda value, *rest: (encode(np.nan_to_num(value), *rest)[0], value.tobytes())
    )
    numbers = {name: 21 * n + 7 for n, name in enumerate(ODD)}  # of the test split

    def alter(image, columns):
        for name, n in numbers.items():
            ODD[name](image, columns, n)

    other = blobs(tmp_path / "odd", samples=300, seed=1, alter=alter)
    predict.main([f"--workdir={run}", f"--dataset={other}", f"--out={tmp_path / 'survey'}"])
    table = pq.read_table(tmp_path / "survey/catalog").to_pandas()
    pdf, _ = read_qp(tmp_path / "survey/pdf/part-00000.hdf5")
    assert np.isfinite(pdf.probability).all() and np.isfinite(table[["z_best", "z_l68", "odds"]]).all(axis=None)
    for name, n in numbers.items():
        assert table["coverage_flag"][n] == 0, name
    shown = {name: int(table["n_bands"][numbers[name]]) for name in ODD}
    blank = ("lacks all bands", "is NaN", "is infinite", "is all zeros", "is all one number", "is saturated")
    assert shown["lacks half of its bands"] == 1 and not any(shown[name] for name in blank)
    usual = np.setdiff1d(np.arange(300), list(numbers.values()))
    assert (table["coverage_flag"][usual] == 1).mean() > 0.9
    evaluate.score(tmp_path / "scored", model, jaxz.open_dataset(other))
    scored = pq.read_table(tmp_path / "scored/predictions.parquet").to_pandas()
    same = scored.merge(table, on="key", suffixes=("", "_predicted"))
    assert len(same) == len(scored) and (scored["coverage_flag"] == 0).any() and (scored["coverage_flag"] == 1).any()
    for name in ("coverage_flag", "n_bands"):
        assert (same[name] == same[f"{name}_predicted"]).all(), name


def test_without_training_objects_coverage_is_not_known(run, model, tmp_path, capsys):
    bare = jaxz.load_run(run)
    bare.coverage = None
    bare.config.data.path = str(tmp_path / "gone")
    predict.know_coverage(bare, tmp_path)
    assert "coverage_flag will be -1, not known: dataset " in capsys.readouterr().err
    batch = {"image": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32), "ebv": np.zeros(2)}
    batch["bands_observed"] = np.array([7, 0], np.uint32)
    assert bare.predict(batch)["coverage_flag"].tolist() == [-1, 0]


def test_training_objects_are_kept_with_the_run_for_its_parameters_alone(run, model):
    again = jaxz.load_run(run)
    assert all(map(np.array_equal, *jax.device_get((again.coverage, model.coverage))))
    assert len(model.coverage.embedding) == len(
        jaxz.open_dataset(model.config.data.path).select("split == 'train' and z_kind == 'spec'")
    )
    assert coverage.load(run / "coverage.npz", "other") is None


def test_training_objects_are_what_the_sources_draw_each_once(run, tmp_path):
    """With the overlays that training has: a path may be written otherwise. Never of other rows than it had."""
    here = jaxz.open_dataset(blobs(tmp_path / "d"))
    z, train = here.column("z"), here.column("split") == "train"
    rows = np.flatnonzero(train)
    moved = {"near": 0.5, "far": np.where(rows % 3 == 0, 99, 0.7)}
    for name, values in moved.items():
        write_overlay(here, name, rows, {"z": np.broadcast_to(values, len(rows))}, {"z": Column("float32")}, {})
    model = jaxz.load_run(run)
    data = model.config.data
    data.update(path=f"{here.path}/", overlays=["near"])
    data.sources = [
        dict(path=str(here.path), where="object_id < 50"),  # near ...
        dict(path=f"{tmp_path}/./d", where="object_id > 40"),
        dict(overlays=["far"]),
        dict(overlays=[]),
    ]
    model.trained_on = 4 * [here.fingerprint()["rows"]]
    near, far, own = model.training_rows()
    np.testing.assert_array_equal(near[1], rows)
    np.testing.assert_array_equal(far[1], rows[rows % 3 > 0])
    np.testing.assert_array_equal(own[1], np.flatnonzero(train & np.isfinite(z)))
    assert [list(dataset.column("z")[:2] == 0.5) for dataset, _ in (near, far, own)] == [[True] * 2, *[[False] * 2] * 2]
    assert model.open_dataset(f"{tmp_path}/./d").column("z")[rows].tolist() == [0.5] * len(rows)
    model.trained_on[2] = "other"
    with pytest.raises(InputError, match="data.path: .*d/' does not hold the rows that the run was trained on"):
        model.learn_coverage()


def test_covered_is_what_brute_force_says():
    draw = np.random.default_rng(0)
    embedding, bright = draw.normal(size=(500, 4)).astype(np.float32), draw.normal(size=(500, 3)).astype(np.float32)
    bright[:250, 2] = np.nan  # which half of them lack
    known = coverage.coverage_of(embedding, bright)
    new, shown = draw.normal(size=(200, 4)).astype(np.float32), draw.normal(size=(200, 3)).astype(np.float32)
    new[:50] *= 3
    shown[50:100] *= 3
    shown[100:120, 0] = np.nan  # which none of them lacks
    filled = lambda x: np.column_stack(
        [np.nan_to_num((x - np.nanmean(bright, 0)) / np.nanstd(bright, 0)), np.isfinite(x) / scale]
    )
    share = (np.isfinite(bright).sum(0) + 1) / 502
    scale = np.sqrt(share * (1 - share))
    expected = np.ones(200, bool)
    for train_x, x in ((embedding, new), (filled(bright), filled(shown))):
        own = np.sort(distance.cdist(train_x, train_x), axis=1)[:, 8]
        expected &= np.sort(distance.cdist(x, train_x), axis=1)[:, 7] <= np.quantile(own, 0.99)
    found = np.asarray(known.flag(new, shown))
    bright_of = lambda x: np.nanmean((x - np.nanmean(bright, 0)) / np.nanstd(bright, 0), axis=1)
    expected &= bright_of(shown) >= np.quantile(bright_of(bright), 0.001)
    assert (found == expected).mean() > 0.99  # rounding at the edge
    assert not found[100:120].any() and 0.1 < found[:100].mean() < 0.9 and found[120:].mean() > 0.9


def test_what_is_fainter_than_the_training_objects_is_not_covered():
    """Though it has neighbours among them: their faint end lies closer to it than their bright end to one another."""
    draw = np.random.default_rng(0)
    bright = draw.exponential(size=(2000, 1)).astype(np.float32) * np.array([1, 2, 3], np.float32)
    known = coverage.coverage_of(bright, bright)
    faintest = np.sort(bright[:, 0])[:5]
    wanted = np.array([0, 0.5 * faintest[0], 2 * faintest[-1], 1], np.float32)[:, None] * np.array(
        [1, 2, 3], np.float32
    )
    assert known.flag(wanted, wanted).tolist() == [0, 0, 1, 1]
    wanted[:, 1] = np.nan  # as all training objects have it
    assert known.flag(wanted[:, [0, 0, 0]], wanted).tolist() == [0, 0, 0, 0]


def test_a_damaged_sample_of_training_objects_is_refused_in_a_sentence(tmp_path):
    draw, path = np.random.default_rng(0), tmp_path / "coverage.npz"
    whole = coverage.coverage_of(*(draw.normal(size=(40, n)).astype(np.float32) for n in (4, 3)))
    coverage.save(path, whole, "parameters")
    assert all(map(np.array_equal, coverage.load(path, "parameters"), whole))
    kept = bytearray(path.read_bytes())
    damaged = [b"", b"text", bytes(kept[:1000]), bytes(kept[:200] + b"damage" + kept[206:])]
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    damaged.append(path.read_bytes())
    for name, value in (("embedding", np.zeros(40)), ("brightness", whole.embedding), ("limits", np.zeros(3))):
        coverage.save(path, whole._replace(**{name: np.asarray(value, np.float32)}), "parameters")
        damaged.append(path.read_bytes())
    coverage.save(path, whole._replace(limits=np.array(["a", "b"])), "parameters")
    for content in (*damaged, path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"coverage.npz: is no sample of training objects \(.*\); delete it"):
            coverage.load(path)


def test_few_training_objects_say_nothing():
    with pytest.raises(InputError, match="31 training objects with a redshift must be at least 32"):
        coverage.coverage_of(np.zeros((31, 2)), np.zeros((31, 2)))


def test_another_survey_s_stamps_give_the_same_redshifts(model, dataset):
    """Four times the numbers, three magnitudes of arithmetic: other names, order, zero points and size."""
    opened = jaxz.open_dataset(dataset)
    [batch] = Stream(Source(opened, columns=("ebv", "bands_observed"), where="z > 1.4"), 64, shuffle=False, epochs=1)
    expected = model.predict(batch)
    manifest = opened.manifest
    band = lambda b: {**vars(b), "name": f"HSC-{b.name}", "zero_point_ab": b.zero_point_ab + 2.5 * np.log10(4)}
    bands = [band(b) for b in manifest.bands[::-1]]
    image = np.full((64, 3, 21, 21), GARBAGE, np.float32)
    image[:, :, 2:18, 2:18] = 4 * batch["image"][:, ::-1]
    text = json.loads(manifest.to_json()) | {"bands": bands, "shards": []}
    text["arrays"]["image"] |= {"shape": [3, 21, 21], "dtype": "float32"}
    other = type(manifest).from_json(json.dumps(text))
    reverse = np.array([int(f"{bits:03b}"[::-1], 2) for bits in batch["bands_observed"]], np.uint32)
    batch = {"image": image, "ebv": batch["ebv"], "bands_observed": reverse}
    found = model.predict(batch, other, {f"HSC-{name}": name for name in ("g", "r", "i")})
    np.testing.assert_allclose(found["pdf"], expected["pdf"], atol=1e-5)
    assert found["n_bands"].tolist() == expected["n_bands"].tolist()


def test_a_catalog_s_fluxes_go_by_the_model_s_names(model):
    batch = {"image": np.zeros((2, 3, 16, 16)), "flux_HSC-G": np.array([1.0, 2.0])}
    found = completed(batch, model.training_units, False, {"flux_g": "flux_HSC-G", "flux_r": "flux_r"})
    assert found["flux_g"].tolist() == [1, 2] and np.isnan(found["flux_r"]).all()


def test_the_checkpoint_of_a_step_is_loaded(run, model):
    earlier = jaxz.load_run(run, step=112)
    same = jax.tree.map(np.array_equal, *jax.device_get((earlier.params, model.params)))
    assert not any(jax.tree.leaves(same["redshift"]))
    assert earlier.coverage is None  # that is of the newest
    with pytest.raises(InputError, match=r"--step: 5 is not one of .*, \[112, 119, 120\]"):
        jaxz.load_run(run, step=5)


def test_the_notebook_runs(run, dataset, monkeypatch):
    matplotlib.use("agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"RUN": str(run), "DATASET": str(dataset)}
    np.testing.assert_allclose(names["pdf"].probability.sum(1), 1, rtol=1e-5)
    assert names["embedding"].shape == (8, 32)
