"""The summary says what NumPy says of the same columns; the page stands alone."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from data_tools import convert, inspect
from data_tools.inspect_page import choose, composite, missing_bands, one_scale, pictures, sky_map
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.survey_files import arguments, write_survey
from tests.helpers import blobs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(blobs(tmp_path_factory.mktemp("inspect") / "blobs <&>", samples=60, shards=2))


@pytest.fixture(scope="module")
def tables(dataset):
    return {section.title: {row[0]: row[1:] for row in section.rows} for section in inspect.summary(dataset)}


def test_counts(dataset, tables):
    assert tables["Dataset"]["samples"] == ("60",) and tables["Dataset"]["shards"] == ("2",)
    size = sum(path.stat().st_size for path in (dataset.path / "shards").iterdir())
    assert tables["Dataset"]["bytes"][0].startswith(f"{size:,} (")
    split = dataset.column("split")
    assert {name: int(row[0]) for name, row in tables["Splits"].items()} == {
        name: int((split == name).sum()) for name in ("train", "test")
    }
    labelled = np.isfinite(dataset.column("z"))
    assert sum(int(row[2]) for row in tables["Splits"].values()) == labelled.sum() == 30
    assert tables["Redshift labels"]["none"] == ("", "30", "", "", "")
    assert tables["Redshift labels"]["spec"][1] == "30"


def test_ranges_and_bands(dataset, tables):
    z = dataset.column("z")[np.isfinite(dataset.column("z"))]
    _, _, known, low, median, high, _ = tables["Columns"]["z"]
    assert known == "50.0%"
    np.testing.assert_allclose([float(low), float(median), float(high)], [z.min(), np.median(z), z.max()], rtol=1e-5)
    assert tables["Columns"]["object_id"][2:6] == ("100.0%", "0", "29.5", "59")
    assert tables["Columns"]["split"][3:5] == ("2 values", "test, train")
    assert [row[7] for row in tables["Bands"].values()] == ["90.0%", "100.0%", "100.0%"]
    assert float(tables["Bands"]["r"][2]) == 27.0
    depth = 23.9 - 2.5 * np.log10(5 * np.median(dataset.column("fluxerr_i")))
    assert float(tables["Bands"]["i"][8]) == pytest.approx(depth, abs=0.006)
    assert tables["Arrays"]["image"][:5] == ("image", "float16", "3 x 16 x 16", "raw", "1,536")


def test_command_line_prints_every_table_whole(dataset, capsys):
    inspect.main([str(dataset.path)])
    said = capsys.readouterr().out
    assert all(title in said for title in ("Dataset", "Arrays", "Bands", "Splits", "Redshift labels", "Columns"))
    assert all(name in said for name in dataset.manifest.columns) and "…" not in said


def odd(path, columns: dict, **values):
    """A dataset of two samples with these columns."""
    writer = DatasetWriter(path, Manifest({}, (), columns), plan={})
    writer.write_shard(0, ["a", "b"], {}, values)
    writer.finish(1, {})
    return str(path)


def test_brackets_in_names_and_units_are_shown(tmp_path, capsys):
    columns = {"flux": Column("float32", "[uJy]", "of [bold] sources [/b]"), "split": Column("string")}
    inspect.main([odd(tmp_path / "a [red] one", columns, flux=[1.0, 2.0], split=["[/i]", "[dim]"])])
    said = capsys.readouterr().out
    assert all(text in said for text in ("[uJy]", "of [bold] sources [/b]", "[/i]", "[dim]", "a [red] one"))


def test_kinds_of_redshift_without_redshifts(tmp_path):
    path = odd(tmp_path / "out", {"z_kind": Column("string")}, z_kind=["spec", "none"])
    assert inspect.labels(open_dataset(path)).rows == [
        ("none", "", "1", "", "", ""),
        ("spec", "", "1", "", "", ""),
    ]


def test_redshifts_of_a_quality_that_is_missing_are_counted(tmp_path):
    columns = {"z_kind": Column("string"), "z": Column("float32"), "z_quality": Column("int32")}
    path = odd(tmp_path / "out", columns, z_kind=["spec", "spec"], z=[0.5, 0.25], z_quality=[3, None])
    assert inspect.labels(open_dataset(path)).rows == [
        ("spec", "3", "1", "0.5", "0.5", "0.5"),
        ("spec", "nan", "1", "0.25", "0.25", "0.25"),
    ]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(dataset, tmp_path):
    inspect.main([str(dataset.path), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.open == [] and "blobs &lt;&amp;&gt;" in text
    assert len(page.sources) == 3  # cutouts, missing bands, histograms: these blobs have no positions
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r"https?://", text)


def test_page_of_a_converted_survey_has_a_map(tmp_path):
    folder = write_survey(tmp_path / "field")
    convert.main(arguments(folder, tmp_path / "out", "--size", "16"))
    inspect.main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert len(Page(text).sources) == 4 and "Map of the splits" in text


def test_matrix_of_missing_bands(tmp_path):
    """Of the synthetic survey the z band lacks a corner."""
    folder = write_survey(tmp_path / "field")
    convert.main(arguments(folder, tmp_path / "out", "--size", "16"))
    dataset = open_dataset(tmp_path / "out")
    (axis,) = missing_bands(dataset).axes
    lacking = int((dataset.column("bands_observed") == 0b011).sum())
    assert lacking > 0
    assert axis.collections[0].get_array().reshape(-1, 3).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["g", "r", "z"]
    shares = [label.get_text().split()[0] for label in axis.get_yticklabels()]
    assert shares == [str(len(dataset) - lacking), str(lacking)]


def test_page_of_objects_without_a_position_and_a_mask_of_all_bands(tmp_path):
    band = Band("r", 620.0, 100.0, 25.0, 0.2, 1.0, 1.0, 0.8)
    arrays = {"image": Array("image", "float32", (1, 8, 8)), "image_mask": Array("mask", "uint8", (8, 8))}
    columns = {"ra": Column("float64"), "dec": Column("float64"), "split": Column("string")}
    writer = DatasetWriter(tmp_path / "out", Manifest(arrays, (band,), columns), plan={})
    values = {"image": np.ones((2, 1, 8, 8), np.float32), "image_mask": np.zeros((2, 8, 8), np.uint8)}
    writer.write_shard(0, ["a", "b"], values, {"ra": [10.0, np.nan], "dec": [2.0, np.nan], "split": ["train", "test"]})
    writer.finish(1, {})
    dataset = open_dataset(tmp_path / "out")
    assert [picture.title for picture in pictures(dataset)] == ["Cutouts", "Map of the splits"]
    assert np.isfinite(sky_map(dataset, "ra", "dec").axes[0].get_aspect())


def test_only_bands_of_one_pixel_scale_make_a_colour():
    bands = [
        Band(str(n), 500.0, 100.0, 25.0, scale, 1.0, 1.0, 0.8) for n, scale in enumerate((1, 0.4, 1.5, 0.401, 0.4))
    ]
    assert one_scale(bands) == [1, 3, 4]


def test_gallery_goes_from_bright_to_faint(dataset):
    rows = choose(dataset)
    magnitude = dataset.column("mag_ref")[rows]
    assert len(set(rows)) == len(rows) <= 12 and (np.diff(magnitude) > 0).all()
    assert np.ptp(magnitude) > 0.9 * np.ptp(dataset.column("mag_ref"))


def test_colours_follow_the_wavelength():
    """Of three sources in bands given in no order, the one bright at 800 nm is red and so on."""
    bands = [Band(str(nm), nm, 100.0, 25.0, 0.2, 1.0, 1.0, 0.8) for nm in (800.0, 400.0, 600.0)]
    images = np.zeros((3, 3, 9, 9), np.float32)
    images[0, 0, 4, 4] = images[1, 1, 4, 4] = images[2, 2, 4, 4] = 1000.0
    rgb = composite(images, np.ones(images.shape, bool), bands)
    assert rgb[:, 4, 4].argmax(-1).tolist() == [0, 2, 1]
    assert ((rgb >= 0) & (rgb <= 1)).all() and (rgb[:, 0, 0] == 0).all()


def test_bad_page_path(dataset, tmp_path):
    with pytest.raises(InputError, match=r"html: .* must be a .html file"):
        inspect.main([str(dataset.path), "--html", str(tmp_path / "page.txt")])
    with pytest.raises(InputError, match=r"html: .* in a directory that exists"):
        inspect.main([str(dataset.path), "--html", str(tmp_path / "nowhere" / "page.html")])
