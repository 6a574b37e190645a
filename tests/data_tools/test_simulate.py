"""The synthetic survey: what is observed, what is written, how the command ends."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from data_tools import inspect, simulate
from data_tools.simulator import bands, population, spectroscopy, survey
from jaxz.data.dataset import open_dataset
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError, run

ROOT = Path(__file__).parents[2]
NAMES = [band.name for band in bands.BANDS]


# --- observations ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observed():
    galaxies = population.galaxies(1, 0, 600)
    return galaxies, survey.observe(galaxies, 1, 0, 32), survey.observe(galaxies, 1, 0, 32, noise=False)


def test_the_noise_is_the_stated_one(observed):
    _, noisy, clean = observed
    faint = clean.image.astype(float).max((2, 3)) < 5  # where float16 does not round
    difference = (noisy.image.astype(float) - clean.image)[faint & noisy.observed]
    assert difference.std() == pytest.approx(1, abs=0.003)  # 1e6 pixels or more
    assert abs(difference.mean()) < 0.005
    assert np.abs(np.corrcoef(difference[:, :, :-1].ravel(), difference[:, :, 1:].ravel())[0, 1]) < 0.005
    one_object = difference.reshape(len(difference), -1)
    assert np.abs(np.corrcoef(one_object[:50])[np.triu_indices(50, 1)]).max() < 0.2  # none is used twice


def test_errors_are_those_of_the_measured_fluxes(observed):
    _, noisy, clean = observed
    pull = ((noisy.flux - clean.flux) / noisy.flux_error)[noisy.observed]
    assert kstest(pull[np.abs(pull) < 10], "norm").pvalue > 1e-3
    assert np.std(pull) == pytest.approx(1, abs=0.05)


def test_aperture_colours_are_those_of_the_galaxies(observed):
    """Unbiased though every band has another PSF; without noise to the float16 of the pixels."""
    _, noisy, clean = observed
    bright = clean.observed & (clean.flux > 50 * clean.flux_error)
    both = bright & bright[:, [bands.REFERENCE]]
    share = clean.flux / clean.true_flux
    ratio = share / share[:, [bands.REFERENCE]]
    assert np.abs(ratio[both] - 1).max() < 3e-3
    true_ratio = clean.true_flux / clean.true_flux[:, [bands.REFERENCE]]
    colour = noisy.flux - true_ratio * noisy.flux[:, [bands.REFERENCE]]
    error = np.hypot(noisy.flux_error, true_ratio * noisy.flux_error[:, [bands.REFERENCE]])
    chosen = noisy.observed.copy()
    chosen[:, bands.REFERENCE] = False
    pull = (colour / error)[chosen]
    assert abs(pull.mean()) < 4 / np.sqrt(len(pull)) and pull.std() == pytest.approx(1, abs=0.05)


def test_the_reference_magnitude_is_nearly_total(observed):
    galaxies, _, clean = observed
    mag = galaxies.mag[:, bands.REFERENCE] + bands.A_OVER_EBV[bands.REFERENCE] * galaxies.ebv
    compact = galaxies.re_disk < 0.3
    missed = (clean.mag_ref - mag)[compact]
    assert missed.min() > -0.01 and missed.max() < 0.25


def test_an_object_is_the_same_however_the_work_is_cut():
    whole, part = (population.galaxies(2, first, count) for first, count in ((80, 60), (97, 21)))
    a, b = survey.observe(whole, 2, 80, 16), survey.observe(part, 2, 97, 16)
    for x, y in ((whole, part), (a, b)):
        for name in x._fields:
            assert np.array_equal(getattr(x, name)[17:38], getattr(y, name), equal_nan=True), name
    other = population.galaxies(3, 80, 60)
    assert not np.any(other.z == whole.z)


def test_redshifts_can_be_learnt_and_the_selection_shows():
    """Gradient boosting on the fluxes: good where labels are, far worse in full, much better with fair labels."""
    count = 8000
    galaxies = population.galaxies(4, 0, count)
    seen = survey.observe(galaxies, 4, 0, 16)
    flux = seen.flux * 10 ** (0.4 * bands.A_OVER_EBV * galaxies.ebv[:, None])
    magnitude = -2.5 / np.log(10) * (np.arcsinh(flux / (2 * np.nanmedian(seen.flux_error, 0))))
    inputs = np.concatenate([magnitude, np.diff(magnitude, axis=1)], 1)
    has_spectrum = spectroscopy.observe(galaxies, seen.mag_ref, 4, 0, "S2", errors=False).taken
    train = np.arange(count) < 0.75 * count
    fair = np.flatnonzero(train)[: np.sum(train & has_spectrum)]

    def scores(rows, test):
        with threadpool_limits(1):  # OpenMP's threads would wait for each other on a busy machine
            model = HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(inputs[rows], galaxies.z[rows])
        error = (model.predict(inputs[test]) - galaxies.z[test]) / (1 + galaxies.z[test])
        return 1.4826 * np.median(np.abs(error - np.median(error))), np.mean(np.abs(error) > 0.15)

    labelled = scores(train & has_spectrum, ~train & has_spectrum)
    full = scores(train & has_spectrum, ~train)
    oracle = scores(fair, ~train)
    assert labelled[0] < 0.05 and labelled[1] < 0.06
    assert full[0] > 1.5 * labelled[0]
    assert full[0] > 1.2 * oracle[0] and full[1] > 2 * oracle[1]


# --- datasets --------------------------------------------------------------------------------------------------------

SMALL = ["--samples", "390", "--size", "16", "--seed", "7", "--samples_per_shard", "30"]  # 13 shards


def command(path, *arguments):
    return [sys.executable, "-m", "data_tools.simulate", str(path), *arguments]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulate") / "dataset"
    done = subprocess.run(command(path, *SMALL, "--workers", "1"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "13/13" in done.stderr
    return path


def test_interrupted_and_with_more_workers_it_is_the_same_dataset(dataset, tmp_path):
    path = tmp_path / "again"
    first = subprocess.Popen(
        command(path, *SMALL, "--workers", "2"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list(path.glob("index/*.parquet")) and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, stderr = first.communicate(timeout=60)
    assert first.returncode == 75 and "Traceback" not in stderr, stderr
    begun = len(list(path.glob("index/*.parquet")))
    assert 0 < begun < 13 and not (path / "dataset.json").exists()
    subprocess.run(command(path, *SMALL, "--workers", "2"), cwd=ROOT, check=True, capture_output=True)
    assert open_dataset(path).manifest == open_dataset(dataset).manifest  # which holds every shard's sha256
    assert not list(path.glob("**/.*"))
    assert not (path / "writing.json").exists()


def test_compact_images_are_the_same_to_half_a_step(dataset, tmp_path):
    raw = open_dataset(dataset)
    plan = {**raw.manifest.provenance["plan"], "encoding": "compact"}
    plan.pop("tool")
    writer = DatasetWriter(tmp_path / "compact", simulate.make_manifest(plan), plan)
    split, _ = simulate.make_splits(plan)
    simulate.write_shard(writer, plan, split[: plan["samples_per_shard"]], 0)
    writer.finish(1, {})
    compact = open_dataset(tmp_path / "compact")
    assert "--encoding compact" in compact.manifest.provenance["command"]
    for row in range(len(compact)):
        a, b = (opened.cutout(row)["image"].astype(float) for opened in (compact, raw))
        assert (np.abs(a - b) <= 0.0626 + np.abs(b) * 2**-11).all() and np.array_equal(a == 0, b == 0)


def test_the_maker_is_named(dataset):
    rows = dict(inspect.overview(open_dataset(dataset)).rows)
    assert rows["made by"] == "data_tools.simulate"


def test_splits_do_not_change_from_version_to_version():
    """Results stand on the splits of the demo: the same arguments, the same objects in each."""
    split, summary = simulate.make_splits({"samples": 20000, "size": 32, "seed": 0})
    assert summary["counts"] == {"gap": 696, "test": 3733, "train": 14655, "val": 916}
    digest = hashlib.sha256("".join(split).encode()).hexdigest()
    assert digest == "b558706dc3c5b7c172ab09698ef334160d4411b4c83d0fb4a77f60ac354c5e68"


def test_pixels_and_columns_do_not_change_from_version_to_version(dataset):
    """Of the default sky and selection. Rounded, so that the last bit of a processor's exp does not matter."""
    found, digest = open_dataset(dataset), hashlib.sha256()
    for row in range(8):
        digest.update(np.rint(np.clip(found.cutout(row)["image"].astype(float), -50, 50)).astype(np.int64).tobytes())
    for column, step in (("z", 1e-3), ("mag_ref", 1e-2), ("flux_r", 1e-2), ("true_flux_Ks", 1e-2), ("ebv", 1e-3)):
        digest.update(np.rint(np.nan_to_num(found.column(column)[:60].astype(float)) / step).astype(np.int64).tobytes())
    digest.update(",".join(map(str, found.manifest.columns)).encode())
    assert digest.hexdigest() == "8db6904cfff08998caca97f7e8ed22ee3a4e876cb7db1213ad0f2035e076e067"


def test_a_complete_dataset_is_left_alone(dataset, capsys):
    before = (dataset / "dataset.json").stat().st_mtime_ns
    assert simulate.main([str(dataset), *SMALL]) is None
    assert "complete" in capsys.readouterr().out
    assert (dataset / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="seed"):
        simulate.main([str(dataset), *SMALL, "--seed", "8"])


def test_what_is_written_is_what_was_simulated(dataset):
    found = open_dataset(dataset)
    assert len(found) == 390 and len(found.manifest.shards) == 13
    galaxies = population.galaxies(7, 0, 390)
    seen = survey.observe(galaxies, 7, 0, 16)
    assert np.array_equal(found.column("object_id"), np.arange(390))
    spectra = spectroscopy.observe(galaxies, seen.mag_ref, 7, 0, "S2", errors=False)
    for column, values in survey.columns(galaxies, seen, spectra, 0, found.column("split")).items():
        stored = found.column(column)
        assert list(stored) == list(values) or np.array_equal(stored, values, equal_nan=True), column
    for row in (0, 29, 30, 389):
        assert np.array_equal(found.cutout(row)["image"], seen.image[row])
    for split, count in found.manifest.splits["counts"].items():
        assert np.sum(found.column("split") == split) == count


def test_labels_and_absent_bands_are_said_so(dataset):
    found = open_dataset(dataset)
    labelled = found.column("z_kind") == "spec"
    assert np.array_equal(np.isfinite(found.column("z")), labelled)
    assert np.array_equal(found.column("z_quality") >= 3, labelled)
    bits, field = found.column("bands_observed"), found.column("field")
    for name in set(field):
        assert len(set(bits[field == name])) == 1
    for b, band in enumerate(found.manifest.bands):
        here = (bits >> b) & 1 == 1
        assert np.array_equal(np.isfinite(found.column(f"flux_{band.name}")), here)
        assert np.array_equal(np.isfinite(found.column(f"fluxerr_{band.name}")), here)
    for row in range(0, 390, 13):
        image = found.cutout(row)["image"]
        assert np.array_equal(image.any((1, 2)), (int(bits[row]) >> np.arange(len(NAMES))) & 1 == 1)


def test_microjansky_add_up_from_the_pixels_and_the_manifest(dataset):
    """Zero points by hand: bright compact galaxies, pixel sums against their true total flux."""
    found = open_dataset(dataset)
    bright = np.flatnonzero((found.column("true_mag_i") < 22.5) & (found.column("true_re_arcsec") < 0.5))
    assert len(bright) >= 5
    band = found.manifest.bands[bands.REFERENCE]
    for row in bright:
        sample = found.cutout(int(row))
        total = sample["image"][bands.REFERENCE].astype(float).sum()
        flux = total * 10 ** (-0.4 * (band.zero_point_ab - 23.9))
        noise = 16 * 10 ** (-0.4 * (band.zero_point_ab - 23.9))
        assert flux < sample["true_flux_i"] + 4 * noise
        assert flux > 0.8 * sample["true_flux_i"] - 4 * noise


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--samples", "0"], "samples"),
        (["--size", "30"], "size"),
        (["--size", "12"], "size"),
        (["--size", "1000"], "size"),
        (["--seed", "-1"], "seed"),
        (["--workers", "0"], "workers"),
        (["--sky", "real"], "sky"),
        (["--selection", "S4"], "selection"),
        (["--samples_per_shard", "0"], "samples_per_shard"),
        (["--sample_size", "3"], "sample_size"),
        (["--samples", "many"], "samples"),
    ],
)
def test_bad_arguments_end_in_a_sentence(arguments, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(simulate.main, [str(tmp_path / "dataset"), *arguments])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()


def test_a_directory_with_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("do not overwrite")
    with pytest.raises(SystemExit) as stop:
        run(simulate.main, [str(tmp_path)])
    assert stop.value.code == 2 and "exists" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
