"""The command that moves labelled photometry to other redshifts, and training that reads it."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import redshifted
from jaxz.config import default
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError, run
from jaxz.photoz.spectra import WAVELENGTH, templates
from jaxz.photoz.templates import Curve, band_fluxes
from jaxz.train import make_sources
from tests.test_photometry import BANDS, make_dataset

TRAIN = "split == 'train' and z_kind == 'spec'"
COLUMNS = ["z", *(f"{kind}_{band}" for kind in ("flux", "fluxerr") for band in BANDS)]


CURVES = [Curve(10 * (nm + np.array([-50.0, 50.0])), np.ones(2)) for nm in BANDS.values()]


def old_galaxy(z):
    """[N,C]: its fluxes at redshifts z [N], as bright in the sum of the bands."""
    flux = band_fluxes(WAVELENGTH, templates()[:1], CURVES, z)[:, 0]
    return 100 * flux / flux.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    change = {f"flux_{b}": lambda values, n=n: old_galaxy(values["true_z"])[:, n] for n, b in enumerate(BANDS)}
    change |= {f"fluxerr_{b}": lambda values, b=b: 0.03 * values[f"flux_{b}"] for b in BANDS}
    return make_dataset(tmp_path_factory.mktemp("redshifted") / "d", n=400, change=change)


def columns(dataset, where, *overlays):
    table = open_dataset(dataset, overlays=overlays).arrow(where, COLUMNS)
    return {name: table[name].to_numpy() for name in COLUMNS}


def move(dataset, name, *rest):
    redshifted.main([str(dataset), "--name", name, "--where", TRAIN, *rest])


def test_it_moves_labels_and_fluxes_alone_of_the_objects_named(dataset, capsys):
    move(dataset, "moved", "--scatter", "0.1")
    said = json.loads(capsys.readouterr().out)
    before, after = (columns(dataset, TRAIN, *names) for names in ((), ("moved",)))
    there = np.isfinite(after["z"])
    assert said["objects"] == len(there) and said["moved"] == there.sum() > 0.9 * len(there)
    step = np.log1p(after["z"][there]) - np.log1p(before["z"][there])
    assert step.std() == pytest.approx(0.1, rel=0.2) and abs(step.mean()) < 0.03
    expected = old_galaxy(after["z"][there])
    for n, band in enumerate(BANDS):
        for kind, share in (("flux", 1), ("fluxerr", 0.03)):  # the models' steps in redshift are 0.004
            np.testing.assert_allclose(after[f"{kind}_{band}"][there], share * expected[:, n], rtol=0.03)
    before, after = (columns(dataset, "split == 'test'", *names) for names in ((), ("moved",)))
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in COLUMNS)


def test_without_scatter_all_stays_where_it_was(dataset):
    move(dataset, "still", "--scatter", "0")
    before, after = (columns(dataset, TRAIN, *names) for names in ((), ("still",)))
    for name in COLUMNS:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6)


def test_a_source_reads_an_overlay_of_its_own(dataset):
    move(dataset, "source", "--scatter", "0.1")
    config = ConfigDict(default())
    config.data.update(dict(path=str(dataset), where="z_kind == 'spec'"))
    config.data.sources = (dict(name="labelled"), dict(name="moved", overlays=("source",)))
    plain = open_dataset(dataset)
    sources = make_sources(config, plain, (), {"z"})
    assert sources[0].dataset is plain
    for source, overlays in zip(sources, ((), ("source",)), strict=True):
        expected = columns(dataset, TRAIN, *overlays)["z"]
        found = source.dataset.arrow(TRAIN, ["z"])["z"].to_numpy()
        assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("none", [-99, 99])
def test_a_number_that_stands_for_no_redshift_is_refused(tmp_path, none):
    make_dataset(tmp_path / "d", n=200, change={"z": lambda values: np.where(values["z_kind"] == "spec", none, 0.5)})
    with pytest.raises(InputError, match="chooses .* objects, 0 of them with a redshift above -1 and below 20"):
        move(tmp_path / "d", "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "z > 1e3"], "chooses 0 objects"),
        (["--where", ""], "of them with a redshift"),
        (["--where", "z > 1e3 or split == 'test'"], "chooses 0 objects"),
        (["--where", "true_z > 0.3"], "reads 'true_z', the truth of a simulation"),
        (["--where", TRAIN, "--seed", "-1"], "--seed: -1 must lie in 0.."),
        (["--where", TRAIN, "--scatter", "nan"], "--scatter: nan must lie in 0..1"),
        (["--where", TRAIN, "--scatter", "5"], "--scatter: 5.0 must lie in 0..1"),
        (["--where", TRAIN, "--filters", "q=sdss2010-r"], "'q=sdss2010-r' is not BAND=CURVE"),
        (["--where", TRAIN, "--name", "../x"], "name"),
    ],
)
def test_what_cannot_be_moved_is_refused(dataset, arguments, message, capsys):
    name = [] if "--name" in arguments else ["--name", "refused"]
    with pytest.raises(SystemExit) as stop:
        run(lambda argv: redshifted.main([str(dataset), *name, *arguments]), [])
    assert stop.value.code == 2 and message in capsys.readouterr().err
