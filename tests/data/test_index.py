"""No bit of an index can change what is read of it, and older indices, which have no checksums, still open."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.index import read_index


def test_a_flipped_bit_is_refused_or_changes_nothing(blob_dataset, tmp_path):
    copy = shutil.copytree(blob_dataset, tmp_path / "copy")
    path, truth = copy / "index/00001.parquet", open_dataset(blob_dataset)
    columns = ("key", *truth.manifest.columns, "image_offset", "image_size", "image_crc32")
    expected, content = repr(truth._index(1, columns).to_pylist()), path.read_bytes()
    draw, refused = np.random.default_rng(0), 0
    for at in draw.choice(len(content), 800, replace=False):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            assert repr(open_dataset(copy)._index(1, columns).to_pylist()) == expected, at
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 400  # most of the file is values


def test_an_index_without_checksums_opens(blob_dataset, tmp_path):
    copy = shutil.copytree(blob_dataset, tmp_path / "copy")
    for path in copy.glob("index/*"):
        pq.write_table(read_index(path), path, compression="zstd")
    for name in ("z", "object_id"):
        np.testing.assert_array_equal(open_dataset(copy).column(name), open_dataset(blob_dataset).column(name))


def test_an_index_of_another_shard_is_refused(blob_dataset, tmp_path):
    copy = shutil.copytree(blob_dataset, tmp_path / "copy")
    shutil.copy(blob_dataset / "index/00000.parquet", copy / "index/00001.parquet")
    with pytest.raises(DataError, match=r"00001.parquet was written for another tar"):
        open_dataset(copy).column("z")
