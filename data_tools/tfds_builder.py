"""A jaxz dataset as a TFDS builder: written as ArrayRecord, without TensorFlow (the extra `tfds`)."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_tools.selection import batches, reading
from jaxz.data.dataset import Dataset
from jaxz.data.manifest import Manifest


class JaxzDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS is untyped
    """Rows of a dataset as TFDS splits, in order; arrays as Tensor, [C,H,W] where they are images, scalars as Tensor of
    no axes and Text, and `key`. splits: {name of a TFDS split: int64 rows [N]}."""

    def __init__(self, dataset: Dataset, splits: dict[str, np.ndarray], *, name: str, version: str, data_dir: str):
        self.dataset, self.rows, self.name = dataset, splits, name
        self.VERSION = tfds.core.Version(version)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        manifest = self.dataset.manifest
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}, written by jaxz. Bands: {describe_bands(manifest)}",
            features=tfds.features.FeaturesDict(features(manifest)),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict({"columns": described(manifest)}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(rows) for split, rows in self.rows.items()}

    def _generate_examples(self, rows: np.ndarray) -> Iterator[tuple[int, dict]]:
        with reading(self.dataset) as stream:
            for some, arrays, scalars in batches(stream, rows):
                values = {**arrays, **scalars}
                values = {name: values[name] for name in self.info.features}
                for n, row in enumerate(some.tolist()):
                    yield row, {name: of_one(column[n]) for name, column in values.items()}


def of_one(value: object) -> object:
    """A value as TFDS takes it."""
    return str(value) if isinstance(value, np.str_) else value


def features(manifest: Manifest) -> dict[str, tfds.features.FeatureConnector]:
    """{name: feature}. A compact array is float32, a variable one is padded and has its <name>_mask."""
    found: dict[str, tfds.features.FeatureConnector] = {"key": tfds.features.Text()}
    for name, column in manifest.columns.items():
        text = column.dtype == "string"
        found[name] = tfds.features.Text() if text else exact((), column.dtype)
    for name, array in manifest.arrays.items():
        found[name] = exact(array.full_shape, "float32" if array.compact else array.dtype)
        if array.max is not None:  # one axis varies
            found[f"{name}_mask"] = exact((array.max,), "bool")
    return found


def exact(shape: tuple[int, ...], dtype: str) -> tfds.features.Tensor:
    """As bytes: TFDS stores lists of numbers as float32 else, which moves a position in float64 by milliarcseconds."""
    return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=tfds.features.Encoding.BYTES)


def described(manifest: Manifest) -> dict[str, dict[str, str]]:
    """{column: its unit and description}, for which features have no place."""
    return {name: {"unit": column.unit, "description": column.description} for name, column in manifest.columns.items()}


def describe_bands(manifest: Manifest) -> str:
    """The units of the images, in words: TFDS has no place for them."""
    bands = (f"{band.name} (AB zero point {band.zero_point_ab:.4f})" for band in manifest.bands)
    return ", ".join(bands) or "none"
