"""Runs applied to datasets: scores, files, bands matched by name, and what is refused."""

import json
import shutil

import h5py
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

import jaxz
from jaxz import evaluate, export, predict, results, train
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError
from jaxz.photoz.metrics import evaluate_metrics
from jaxz.photoz.pdf import PDF
from tests.helpers import blobs, small_config


@pytest.fixture
def dataset(redshift_run):
    return redshift_run[0]


@pytest.fixture(scope="module")
def run(redshift_run):
    dataset, run = redshift_run
    evaluate.main([f"--workdir={run}", f"--dataset={dataset}"])
    return run


def test_evaluate_scores_the_test_split_alone(run, dataset):
    table = pq.read_table(run / "predictions.parquet")
    truth = jaxz.open_dataset(dataset).arrow("split == 'test'", ["key", "true_z", "z", "z_kind"])
    assert table["key"].to_pylist() == truth["key"].to_pylist()
    report = json.loads((run / "report.json").read_text())["arm"]
    assert set(report) == {"spec_like", "full"}
    z_best, z_true = table["z_best"].to_numpy(), truth["true_z"].to_numpy()
    e = (z_best - z_true) / (1 + z_true)
    expected = 1.4826 * np.median(np.abs(e - np.median(e)))
    assert report["full"]["sigma_mad"]["value"] == pytest.approx(expected, rel=1e-5)
    labelled = np.array(truth["z_kind"].to_pylist()) == "spec"
    assert report["spec_like"]["objects"]["value"] == labelled.sum() == table["test_spec_like"].to_numpy().sum()
    prior = evaluate_metrics(np.full(len(z_true), np.median(z_true)), z_true)  # what knowing nothing gives
    assert report["full"]["sigma_mad"]["value"] < 0.8 * prior["sigma_mad"]["value"]


def test_results_are_readable_by_others(run):
    table, fits = pq.read_table(run / "predictions.parquet"), Table.read(run / "predictions.fits")
    np.testing.assert_array_equal(table["z_best"].to_numpy(), fits["z_best"])
    with h5py.File(run / "pdf.hdf5") as file:
        density, edges = file["data/pdfs"][:], file["meta/bins"][0]
    pdf = PDF(edges, density * np.diff(edges))
    np.testing.assert_allclose(pdf.median(), table["z_median"].to_numpy(), atol=1e-5)


def test_a_model_predicts_batches_and_datasets_alike(run, dataset):
    model, opened = jaxz.load_run(run), jaxz.open_dataset(dataset)
    rows, found = model.predict_dataset(opened, "split == 'test'", ("pdf", "embedding"), batch_size=32)
    batch = next(Stream(Source(opened, columns=("ebv", "bands_observed"), where="split == 'test'"), 8, shuffle=False))
    by_batch = model.predict(batch)
    np.testing.assert_allclose(by_batch["pdf"], found["pdf"][:8], atol=1e-6)
    np.testing.assert_allclose(model.embed(batch), found["embedding"][:8], atol=1e-5)
    np.testing.assert_array_equal(rows[:8], batch["row"])
    np.testing.assert_allclose(found["pdf"].sum(1), 1, rtol=1e-5)


def test_garbage_in_an_absent_band_changes_no_prediction(run, dataset, tmp_path):
    other = blobs(tmp_path / "garbage", samples=400, fill=3e4)
    model = jaxz.load_run(run)
    a, b = (model.predict_dataset(jaxz.open_dataset(d), None, ("pdf",))[1]["pdf"] for d in (dataset, other))
    np.testing.assert_array_equal(a, b)


def test_a_batch_without_its_mask_or_reddening_is_not_taken_for_complete(run, dataset):
    """Bands stored as zeros count as absent; a reddening that is not given is said to be none."""
    model, rows = jaxz.load_run(run), np.arange(0, 40, 5)  # every other one lacks band g, stored as zeros
    opened = jaxz.open_dataset(dataset)
    whole = {"image": np.stack([opened.cutout(int(row))["image"] for row in rows])}
    whole |= {name: opened.column(name)[rows] for name in ("ebv", "bands_observed")}
    told = model.predict(whole)["pdf"]
    without = {name: value for name, value in whole.items() if name != "bands_observed"}
    np.testing.assert_array_equal(model.predict(without)["pdf"], told)
    with pytest.warns(UserWarning, match="no 'ebv'"):
        model.predict({"image": whole["image"]})
    zero = model.predict({**whole, "ebv": np.zeros(len(rows))})["pdf"]
    with pytest.warns(UserWarning, match="'ebv' is NaN for 8 objects: Galactic reddening is not corrected there"):
        np.testing.assert_array_equal(model.predict({**whole, "ebv": np.full(len(rows), np.nan)})["pdf"], zero)
    with pytest.warns(UserWarning):
        np.testing.assert_array_equal(model.predict({"image": whole["image"]})["pdf"], zero)


@pytest.mark.parametrize(
    "bad", [{}, {"img": np.zeros((1, 3, 16, 16))}, np.zeros((3, 16, 16)), np.zeros((1, 2, 16, 16))]
)
def test_a_batch_of_another_shape_is_refused(run, bad):
    batch = bad if isinstance(bad, dict) else {"image": bad}
    with pytest.raises(
        InputError, match=r"batch: image is .*, it must be \[B, 3, 16, 16\]: the bands \['g', 'r', 'i'\]"
    ):
        jaxz.load_run(run).predict(batch)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ebv", [20, 0], r"batch: ebv of 20 must be E\(B-V\) in mag, from -0.1 to 10"),
        ("ebv", [0, -1], "batch: ebv of -1 must be"),
        ("ebv", [0.1], r"batch: ebv is \(1,\), it must be \[2\], as many as image has objects"),
        ("bands_observed", [[7, 7]], r"batch: bands_observed is \(1, 2\), it must be \[2\]"),
        ("image_mask", np.zeros((2, 3, 8, 8)), r"batch: image_mask is .*, it must be \(2, 3, 16, 16\) as image is"),
        ("bands_observd", [7, 7], "batch: 'bands_observd' is not read; leave it out. Did you mean 'bands_observed'?"),
        ("image", np.zeros((0, 3, 16, 16)), "batch: image holds no object"),
    ],
)
def test_a_batch_that_is_wrong_is_refused(run, name, value, message):
    with pytest.raises(InputError, match=message):
        jaxz.load_run(run).predict({"image": np.ones((2, 3, 16, 16)), "ebv": np.zeros(2), name: value})


def test_outputs_are_names(run, dataset):
    with pytest.raises(InputError, match=r"outputs: 'pdf' must be a tuple of names; write \('pdf',\)"):
        jaxz.load_run(run).predict_dataset(jaxz.open_dataset(dataset), None, "pdf")


def test_a_band_of_one_number_counts_as_not_observed(run, dataset):
    """With a mask or not: the same as without its bit in bands_observed."""
    model, opened, rows = jaxz.load_run(run), jaxz.open_dataset(dataset), np.arange(1, 17, 2)
    image = np.stack([opened.cutout(int(row))["image"] for row in rows])
    batch = {"image": image, "ebv": np.zeros(8), "bands_observed": np.full(8, 5, np.uint32)}
    expected = model.predict(batch)
    constant = image.copy()
    constant[:4, 1], constant[4:, 1] = 0, -7.5
    found = model.predict({**batch, "image": constant, "bands_observed": np.full(8, 7, np.uint32)})
    for name in ("pdf", "embedding", "n_bands", "brightness"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["n_bands"].tolist() == [2] * 8
    constant[:, 1, 3, 3] = 1  # a pixel that differs
    assert model.predict({**batch, "image": constant, "bands_observed": np.full(8, 7)})["n_bands"].tolist() == [3] * 8


def test_few_objects_have_no_error():
    assert results.shown({"value": 0.5, "error": 0.25}) == "0.5000 +- 0.2500"
    assert results.shown({"value": 0.5, "error": None}) == "0.5000"
    assert results.shown({"value": None, "error": None}) == "unknown (no objects)"


@pytest.mark.parametrize("name", ["out.parquet", "out.fits"])
def test_predict_writes_a_catalog_and_pdfs(run, dataset, tmp_path, name, capsys):
    predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path / name}", "--where=z > 1"])
    count = len(jaxz.open_dataset(dataset).select("z > 1"))
    table = Table.read(tmp_path / name) if name.endswith("fits") else pq.read_table(tmp_path / name).to_pandas()
    assert len(table) == count and {"key", "z_best", "z_l68", "odds", "n_bands"} <= set(table.columns)
    assert (tmp_path / "out.hdf5").exists()
    told = f"{count} objects -> {tmp_path / name}, p(z) in {tmp_path / 'out.hdf5'}, by checkpoint 120\n"
    assert told in capsys.readouterr().out
    if name.endswith("fits"):
        header = fits.getheader(tmp_path / name, 1)
        place = table.colnames.index("odds") + 1
        assert header[f"TCOMM{place}"] == "mass of p(z) within 0.06 (1 + z_best) of z_best"
    else:
        metadata = pq.read_schema(tmp_path / name).field("z_best").metadata
        assert metadata[b"description"] == b"redshift: the median of p(z)"


@pytest.mark.long
def test_an_ensemble_predicts_the_mean_and_its_spread(run, dataset, tmp_path):
    """Which begins with one pretrained model, goes on from its checkpoint, and is refused as the beginning of one."""
    config, workdir = small_config(tmp_path, dataset, depth=1, redshift=1.0), tmp_path / "members"
    arguments = [config, f"--workdir={workdir}", f"--config.init.path={run}", "--config.train.members=3"]
    train.main([*arguments, "--config.train.steps=4", "--config.checkpoint.every=2"])
    model = jaxz.load_run(workdir)
    opened = jaxz.open_dataset(dataset)
    rows, found = model.predict_dataset(opened, "split == 'test'", ("pdf", "embedding"))
    assert found["pdf"].shape == (len(rows), 3, 150) and found["embedding"].shape == (len(rows), 3, 32)
    evaluate.main([f"--workdir={workdir}", f"--dataset={dataset}"])
    table = pq.read_table(workdir / "predictions.parquet")
    best = [PDF(model.edges, found["pdf"][:, m]).median() for m in range(3)]
    np.testing.assert_allclose(table["z_spread"].to_numpy(), np.std(best, axis=0), atol=1e-6)
    mean = PDF(model.edges, found["pdf"].mean(1))
    np.testing.assert_allclose(table["z_best"].to_numpy(), mean.median(), atol=1e-6)
    assert np.std(best, axis=0).min() > 0
    same_export(workdir, tmp_path / "model")
    with pytest.raises(InputError, match="init.path: .* holds 3 members; set train.members=3"):
        train.main([config, f"--workdir={tmp_path / 'x'}", f"--config.init.path={workdir}"])
    assert not (tmp_path / "x").exists()


def test_a_run_without_redshifts_gives_reconstructions_and_embeddings(dataset, tmp_path):
    config = small_config(tmp_path, dataset, depth=1, mae=1.0)
    train.main([config, f"--workdir={tmp_path / 'mae'}", "--config.train.steps=2"])
    evaluate.main([f"--workdir={tmp_path / 'mae'}", f"--dataset={dataset}"])
    with np.load(tmp_path / "mae" / "reconstructions.npz") as saved:
        assert saved["image"].shape == saved["reconstruction"].shape == saved["hidden"].shape == (6, 3, 16, 16)
        assert saved["bands"].tolist() == ["g", "r", "i"]
        assert saved["hidden"][saved["observed"]].mean() == 0.5  # of the patches, the same of each
    predict.main([f"--workdir={tmp_path / 'mae'}", f"--dataset={dataset}", f"--out={tmp_path / 'e.parquet'}"])
    assert np.stack(pq.read_table(tmp_path / "e.parquet")["embedding"].to_numpy()).shape == (400, 32)
    (tmp_path / "e.hdf5").touch()  # not of them, who have no p(z)
    predict.main([f"--workdir={tmp_path / 'mae'}", f"--dataset={dataset}", f"--out={tmp_path / 'e.fits'}"])
    assert Table.read(tmp_path / "e.fits")["embedding"].shape == (400, 32)


def same_export(run, out) -> dict:
    """The config.json of an exported run, whose parameters are the run's to the bit."""
    export.main([str(run), "--out", str(out)])
    wanted, found = jax.device_get((jaxz.load_run(run).params, jaxz.load_run(out).params))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))
    return json.loads((out / "config.json").read_text())


def test_an_exported_run_is_the_run(run, tmp_path):
    said = same_export(run, tmp_path / "model")
    model = jaxz.load_run(run)
    assert said["model_type"] == "jaxz" and said["jaxz"]["normalisation"] == json.loads(
        json.dumps(model.normalisation.to_json())
    )
    model.learn_coverage()
    here, there = jax.device_get((model.coverage, jaxz.load_run(tmp_path / "model").coverage))
    assert all(map(np.array_equal, here, there))
    card = (tmp_path / "model/README.md").read_text()
    assert "| r | 620 |" in card and "transformers" not in card


def test_a_model_that_is_none_is_refused(run, dataset, tmp_path):
    for path, message in {tmp_path / "no": "is no directory; name one", run: "a run is given by --workdir"}.items():
        with pytest.raises(InputError, match=message):
            predict.main([f"--model={path}", f"--dataset={dataset}", f"--out={tmp_path / 'x.fits'}"])


@pytest.mark.parametrize("own", [[], {}, {"config": {"data": {}, "losses": {}, "model": {}}}])
def test_an_exported_config_that_was_damaged_is_a_sentence(tmp_path, own):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "jaxz", "jaxz": own}))
    with pytest.raises(InputError, match="config.json: is not as jaxz.export wrote it|was not written by a training"):
        jaxz.inference.load_exported(tmp_path)


def test_a_folder_is_no_file_to_overwrite(tmp_path):
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(
        InputError, match="--out: .*folder.fits' is a directory; name a file"
    ):  # before it has predicted
        predict.main([f"--workdir={tmp_path}", "--dataset=no", f"--out={tmp_path / 'folder.fits'}", "--overwrite"])


def test_what_does_not_fit_is_refused(run, dataset, tmp_path):
    with pytest.raises(InputError, match="no run directory with checkpoints"):
        jaxz.load_run(tmp_path)
    with pytest.raises(InputError, match=r"must end in .parquet or .fits"):
        predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path / 'x.csv'}"])
    (tmp_path / "there.hdf5").write_bytes(b"mine")
    with pytest.raises(
        InputError,
        match="--out: .*there.hdf5', where p.z. of there.fits goes, exists; name another file, or add --overwrite",
    ):
        predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path / 'there.fits'}"])
    assert (tmp_path / "there.hdf5").read_bytes() == b"mine"
    for argument, message in {
        "--band_map=HSC-G": "--band_map: 'HSC-G' must be DATASETS=MODELS",
        "--band_map=u=g": "band_map: 'u' is no band of the dataset",
        "--part=3/2": "--part: '3/2' must be I/N",
        "--part=1/2": "--part: shares the parts of a directory",
        "--objects_per_part=5": "--objects_per_part: 5 must be 1 or more, with a directory as --out",
        "--format=fits": "--format: is of a directory's parts",
    }.items():
        with pytest.raises(InputError, match=message):
            predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path / 'x.fits'}", argument])
    with pytest.raises(InputError, match=r"holds no predict.json but something else"):
        predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={run}"])
    with pytest.raises(InputError, match="--overwrite: is for a file"):
        predict.main([f"--workdir={run}", f"--dataset={dataset}", f"--out={tmp_path / 'new'}", "--overwrite"])
    with pytest.raises(FileNotFoundError, match="/proc/x.fits"):  # before it has opened the run
        predict.main([f"--workdir={tmp_path}", f"--dataset={dataset}", "--out=/proc/x.fits"])
    with pytest.raises(InputError, match="'ema' was not kept"):
        jaxz.load_run(run, "ema")


def test_damaged_checkpoints_are_told_once_each(run, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "run")
    steps = sorted((tmp_path / "run/checkpoints").iterdir(), key=lambda path: int(path.name))

    def damage(folder):
        content = folder / "meta/metadata"
        content.write_bytes(content.read_bytes()[:-1])

    damage(steps[-1])
    assert jaxz.load_run(tmp_path / "run").step == int(steps[-2].name)
    assert [record.getMessage().split(" (")[0] for record in caplog.records if "damaged" in record.getMessage()] == [
        f"checkpoint {steps[-1].name} is damaged"
    ]
    for folder in steps[:-1]:
        damage(folder)
    with pytest.raises(InputError, match=r"all checkpoints \[.*\] in .* are damaged \(.*\); restore them from a copy"):
        jaxz.load_run(tmp_path / "run")
