"""jaxz.photometry --model template, on datasets of galaxies made from known spectra."""

import json

import numpy as np
import pytest
from astropy.table import Table

from jaxz import photometry, template_fit
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Band, Column
from jaxz.data.overlays import write_overlay
from jaxz.errors import InputError
from jaxz.photoz import spectra, templates
from tests.test_photometry import BANDS, make_dataset


def galaxies(path):
    """A dataset of quiescent galaxies seen through boxes, z 0.3 to 1.1, its g band 0.2 mag too bright."""
    curves = template_fit.filter_curves([Band(b, nm, 100.0, 27.0, 0.2, 2.0, 1.0, 0.8) for b, nm in BANDS.items()], [])
    draw = np.random.default_rng(6)
    z = draw.uniform(0.3, 1.1, 400)
    flux = templates.model_fluxes(spectra.WAVELENGTH, spectra.templates()[:1], curves, z)[:, 0]
    flux = 10 * flux * (1 + 0.02 * draw.normal(size=flux.shape)) * [10**0.08, 1, 1, 1]
    many_band = np.arange(400) % 10 == 1  # a label of another catalogue
    change = {
        "z_kind": lambda v: np.where(many_band, "phot", v["z_kind"]),
        "true_z": lambda v: z,
        "z": lambda v: np.where(v["z_kind"] == "spec", z, np.nan),
    }
    for n, b in enumerate(BANDS):
        change |= {f"flux_{b}": lambda v, n=n: flux[:, n], f"fluxerr_{b}": lambda v, n=n: 0.02 * flux[:, n]}
    return make_dataset(path, n=400, change=change)


def test_template_run(tmp_path, capsys):
    dataset = galaxies(tmp_path / "dataset")
    columns = [spectra.WAVELENGTH, spectra.templates()[0]]  # with more, four bands say little
    Table(columns, names=["wavelength", "old"]).write(tmp_path / "spectra.fits")
    run = ["--dataset", str(dataset), "--workdir", str(tmp_path / "template"), "--model", "template"]
    run += ["--templates", str(tmp_path / "spectra.fits")]
    photometry.main(run)
    said = capsys.readouterr()
    report = json.loads((tmp_path / "template/report.json").read_text())["template"]
    assert report["full"]["sigma_mad"]["value"] < 0.03 and abs(report["full"]["bias_median"]["value"]) < 0.02
    offset = dict(pair.split() for pair in said.err.splitlines()[0].split(": ")[1].split(", "))
    assert float(offset["g"]) - float(offset["i"]) == pytest.approx(0.2, abs=0.05)
    assert json.loads((tmp_path / "template/config.json").read_text())["templates"] == run[-1]
    with pytest.raises(InputError, match="another configuration"):
        photometry.main([*run, "--prior"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "template", "--filters", "g=nothing-g"], "'nothing-g' is no curve of speclite"),
        (["--model", "template", "--filters", "w=hsc2017-g"], "'w=hsc2017-g' is not BAND=CURVE"),
        (["--model", "template", "--templates", "absent.ecsv"], "'absent.ecsv' cannot be read"),
        (["--model", "template", "--repair"], "--repair: [0-9]* sure labels must be at least 50"),
        (["--model", "knn", "--prior"], "'knn' takes no --filters"),
        (["--model", "gbt", "--label", "phot"], "'gbt' takes no --filters"),
        (["--model", "template", "--label", "../phot"], "must be a name of at most 32 letters"),
    ],
)
def test_template_refusals(tmp_path, options, message):
    dataset = make_dataset(tmp_path / "dataset", n=40)
    with pytest.raises(InputError, match=message):
        photometry.main(["--dataset", str(dataset), "--workdir", str(tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_spectra_of_a_table(tmp_path):
    Table([[1000.0, 2000, 3000], [1.0, 2, 3], [3.0, 2, 1]], names=["wavelength", "a", "b"]).write(tmp_path / "t.ecsv")
    wavelength, f_lambda = template_fit.read_spectra(str(tmp_path / "t.ecsv"))
    assert wavelength.tolist() == [1000, 2000, 3000] and f_lambda.tolist() == [[1, 2, 3], [3, 2, 1]]


@pytest.mark.parametrize(
    "columns, message",
    [
        ([[1000.0, 2000]], "a column of wavelengths, then one of F_lambda"),
        ([[1000.0], [1.0]], "a column of wavelengths, then one of F_lambda"),
        ([[1000.0, 2000], [[1.0, 2], [3, 4]]], "a column of wavelengths, then one of F_lambda"),
        ([[1000.0, 900], [1.0, 2]], "the wavelengths must be above 0, and ascend"),
        ([[0.0, 900], [1.0, 2]], "the wavelengths must be above 0, and ascend"),
        ([[1000.0, np.inf], [1.0, 2]], "the wavelengths must be above 0, and ascend"),
        ([[1000.0, 2000], [1.0, 2], [0.0, 0]], "F_lambda must be finite, at least 0, and somewhere more"),
        ([[1000.0, 2000], [1.0, np.inf]], "F_lambda must be finite, at least 0, and somewhere more"),
        ([[1000.0, 2000], [1.0, -1]], "F_lambda must be finite, at least 0, and somewhere more"),
        ([[1000.0, 2000], np.ma.array([1.0, 2], mask=[0, 1])], "F_lambda must be finite, at least 0, and somewhere"),
    ],
)
def test_what_is_no_spectrum_is_refused(tmp_path, columns, message):
    Table(columns, names=["wavelength", "a", "b"][: len(columns)]).write(tmp_path / "t.fits")
    with pytest.raises(InputError, match=f"--templates: .*t.fits.*{message}"):
        template_fit.read_spectra(str(tmp_path / "t.fits"))


def test_labels_for_unlabelled_training_objects(tmp_path, monkeypatch):
    """The overlay names training objects without a sure label alone: near the truth, their errors of its size, and none
    where nothing is measured."""
    monkeypatch.setattr(template_fit, "BLOCK", 64)
    dataset = galaxies(tmp_path / "dataset")
    Table([spectra.WAVELENGTH, spectra.templates()[0]], names=["wavelength", "old"]).write(tmp_path / "spectra.fits")
    run = ["--dataset", str(dataset), "--model", "template", "--templates", str(tmp_path / "spectra.fits"), "--repair"]
    bare = open_dataset(dataset)
    unlabelled = bare.select("split == 'train' and z_kind == 'none'")
    lost, unlabelled = unlabelled[:3], unlabelled[3:]
    errors = {f"fluxerr_{b}": Column("float32") for b in BANDS}
    write_overlay(bare, "infinite", lost, dict.fromkeys(errors, np.full(3, np.inf)), errors, {})
    photometry.main([*run, "--workdir", str(tmp_path / "run"), "--overlay", "infinite", "--label", "phot"])
    assert (tmp_path / "run/evaluated.json").stat().st_mtime_ns >= (
        dataset / "overlays/phot.parquet"
    ).stat().st_mtime_ns
    laid = open_dataset(dataset, overlays=["phot"])
    assert laid.column("z_kind")[lost].tolist() == ["none"] * 3 and np.isnan(laid.column("z_err")[lost]).all()
    named = np.union1d(unlabelled, bare.select("z_kind == 'phot'"))
    assert len(named) > len(unlabelled) and np.array_equal(laid.select("z_kind == 'phot'"), named)
    untouched = np.setdiff1d(np.arange(len(bare)), unlabelled)
    assert np.array_equal(laid.column("z")[untouched], bare.column("z")[untouched], equal_nan=True)
    z, truth, error = (laid.column(name)[unlabelled] for name in ("z", "true_z", "z_err"))
    assert np.median(np.abs(z - truth)) < 0.03
    assert 0.4 < np.mean(np.abs(z - truth) < error) <= 1 and np.median(error) < 0.1
    with pytest.raises(InputError, match="exists; choose another name"):
        photometry.main([*run, "--workdir", str(tmp_path / "again"), "--label", "phot"])
    assert not (tmp_path / "again").exists()
