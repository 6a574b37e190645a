"""Catalogues whose fluxes are, or are not, those of the images."""

import numpy as np
import pytest
from astropy.table import Table

import jaxz
from data_tools import convert
from data_tools.agreement import flux_ratios
from data_tools.inspect import bands
from jaxz.data.manifest import Band, Column, Manifest
from jaxz.data.writer import DatasetWriter
from tests.data_tools.survey_files import arguments, write_survey


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(the survey's folder, {object_id: flux in r}) as the conversion measures it."""
    folder = write_survey(tmp_path_factory.mktemp("survey") / "field")
    convert.main(arguments(folder, folder.parent / "out", "--size", "16"))
    dataset = jaxz.open_dataset(folder.parent / "out")
    return folder, dict(zip(dataset.column("object_id").tolist(), dataset.column("flux_r").tolist(), strict=True))


def test_shards_that_are_not_there_are_passed_over(tmp_path):
    """A shard without a sample is left out of the dataset, and one that is quarantined as a whole may be gone."""
    names = ("flux_r", "flux_aper_r", "fluxerr_aper_r")
    band = Band("r", 620.0, 100.0, 25.0, 0.2, 1.0, 1.0, 0.8)
    writer = DatasetWriter(tmp_path / "d", Manifest({}, (band,), dict.fromkeys(names, Column("float32"))), {})
    for n, count in enumerate((10, 0, 10)):
        values = dict(zip(names, ([2.0] * count, [1.0] * count, [0.01] * count), strict=True))
        writer.write_shard(n, [f"{n}-{i}" for i in range(count)], {}, values)
    writer.finish(3, {})
    assert flux_ratios(jaxz.open_dataset(tmp_path / "d")) == {"r": 2.0}
    (tmp_path / "d" / "index" / "00002.parquet").unlink()
    (tmp_path / "d" / "quarantine.json").write_text('{"version": 1, "shards": {"00002": "all"}}')
    assert flux_ratios(jaxz.open_dataset(tmp_path / "d")) == {"r": 2.0}


@pytest.mark.parametrize("times", [1.0, 2.0, 3631.0])
def test_a_wrong_unit_or_zero_point_is_told(measured, tmp_path, capsys, times):
    folder, flux = measured
    table = Table.read(folder / "catalog.fits")
    table["FR"] = [times * flux.get(number, np.nan) for number in table["ID"].tolist()]
    table.write(tmp_path / "catalog.fits")
    photometry = '\n[catalog.photometry]\nkind = "total"\nunit = "uJy"\nflux = { r = "FR" }\n'
    (tmp_path / "survey.toml").write_text((folder / "survey.toml").read_text() + photometry)
    argv = arguments(folder, tmp_path / "out", "--size", "16")
    argv[argv.index("--survey") + 1] = str(tmp_path / "survey.toml")
    argv[argv.index("--catalog") + 1] = str(tmp_path / "catalog.fits")
    convert.main(argv)
    told = "bands.r: the catalogue's fluxes are 3.63e+03 times those in the images; check zero_point_ab or the unit"
    assert (told in capsys.readouterr().err) == (times > 3)
    shown = {row[0]: row[-1] for row in bands(jaxz.open_dataset(tmp_path / "out")).rows}
    assert shown["r"] == f"{times:.3g}" and not shown["g"]
