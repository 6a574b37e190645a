"""Arrays that join a dataset without touching a shard: layers/NAME, a dataset of its own, without columns, whose shards
have the samples of the base's, row for row (docs/dataset_format.md)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxz.data.columns import short_digest
from jaxz.data.manifest import Array, Shard
from jaxz.errors import InputError

if TYPE_CHECKING:
    from jaxz.data.dataset import Dataset

LAYER_OF = "layer_of"  # in the provenance: what `alignment` gave of the base


def alignment(dataset: "Dataset") -> dict[str, str]:
    """What a layer remembers of its base: digests of the shards, and of the keys in their order."""
    keys = dataset.scan(digested=("key",)).digests["key"]
    return {"shards": short_digest(shard_list(dataset.manifest.shards)), "keys": keys}


def shard_list(shards: Sequence[Shard]) -> bytes:
    """What a layer holds its base to: the names, samples and digests of its shards."""
    return repr([(shard.name, shard.samples, shard.sha256) for shard in shards]).encode()


def check_fits(dataset: "Dataset", layer: "Dataset") -> None:
    """Raises InputError where a layer is of other rows than the dataset's, or has names that are taken."""
    of = layer.manifest.provenance.get(LAYER_OF)
    ours, theirs = ([(shard.name, shard.samples) for shard in each.manifest.shards] for each in (dataset, layer))
    fits = (
        isinstance(of, dict)
        and ours == theirs
        and (
            of.get("shards") == short_digest(shard_list(dataset.manifest.shards))
            or of.get("keys") == alignment(dataset)["keys"]  # reads them all: as where the dataset was encoded anew
        )
    )
    if not fits:
        raise InputError(
            f"layers: {layer.path} was written for other rows than {dataset.path} has; write it again with "
            "`python -m data_tools.add_layer`"
        )
    if taken := sorted((entries(dataset.arrays) | dataset.manifest.columns.keys()) & entries(layer.arrays)):
        raise InputError(
            f"layers: {layer.path} has {taken[0]!r}, and so has {dataset.path}; write it with that renamed"
        )


def entries(arrays: dict[str, Array]) -> set[str]:
    """What a batch carries of the arrays."""
    return {entry for name, array in arrays.items() for entry in array.entries(name)}
