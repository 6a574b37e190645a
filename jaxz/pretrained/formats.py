"""What a user has on disk, a file or a directory, as named tensors; nothing in it is run or trusted.

safetensors (one file or several with an index), directories of Hugging Face and open_clip, and PyTorch's files.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxz.errors import InputError
from jaxz.files import read_json, replacing
from jaxz.pretrained.tensors import ITEM, Tensor, damaged, decode, need
from jaxz.pretrained.torch_files import read_torch, unwrap

MAX_HEADER = 100 << 20  # bytes, safetensors' own limit

# Weights by their names in a directory, the first that is there, each with the file that describes the model.
WEIGHTS = {
    "model.safetensors": "config.json",
    "model.safetensors.index.json": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
    "pytorch_model.bin": "config.json",
    "pytorch_model.bin.index.json": "config.json",
    "open_clip_pytorch_model.bin": "open_clip_config.json",
}
PREFIXES = ("module.", "backbone.", "dinov2.", "dinov2_with_registers.", "dinov3_vit.")  # of wrappers


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their names less those of wrappers, the files that they are in, and what describes them."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    config: dict = field(default_factory=dict)  # of config.json or open_clip_config.json, empty where there is none
    wrapper: str = ""  # the name under which the state dict was found

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The tensors of a file or directory, without reading them yet, under their names less those of wrappers.

    Raises InputError where there are none, where a file is damaged, would run code or reaches outside the directory.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"path: {str(path)!r} is not there; name a checkpoint's file or directory")
    if path.is_dir():
        name = next((name for name in WEIGHTS if (path / name).is_file()), None)
        if name is None:
            raise InputError(f"path: {str(path)!r} has none of {', '.join(WEIGHTS)}; name the file with the weights")
        path = path / name
    described = path.with_name(WEIGHTS.get(path.name, "none"))
    config = read_json(described, "the model's config") if described.is_file() else {}
    files = indexed(path) if path.name.endswith(".index.json") else (path,)
    tensors: dict[str, Tensor] = {}
    for file in files:
        part, wrapper = read_tensors(file)
        for name, tensor in part.items():
            name = bare(name)
            if name in tensors:
                raise InputError(f"{file}: the tensor {name!r} comes twice; fetch the checkpoint again")
            tensors[name] = tensor
    return Checkpoint(tensors, files, config, wrapper)


def bare(name: str) -> str:
    """A tensor's name without those of wrappers."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of one file, and the name under which they were found in it."""
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return read_safetensors(path), ""
    with damaged(path, "a PyTorch checkpoint"):  # a dict may hold itself
        return unwrap(read_torch(path))


def indexed(path: Path) -> tuple[Path, ...]:
    """The files of an index, all of which lie beside it and hold what it says."""
    index = read_json(path, "the index of a checkpoint")
    with damaged(path, "the index of a checkpoint"):
        mapping = index["weight_map"]
        need(isinstance(mapping, dict) and bool(mapping), "it maps no tensors")
        for name in mapping.values():
            need(isinstance(name, str) and Path(name).name == name and "\\" not in name, f"{name!r} is no file name")
        files = tuple(path.with_name(name) for name in sorted(set(mapping.values())))
        for file in files:
            need(file.is_file(), f"{file.name!r} is missing")
            held = set(read_tensors(file)[0])
            wanted = {name for name, where in mapping.items() if where == file.name}
            need(held == wanted, f"{file.name!r} does not hold the tensors that it says: {sorted(held ^ wanted)[:3]}")
    return files


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file: the header's length in 8 bytes, a JSON header, the tensors without gaps.

    Raises InputError where header and file do not agree.
    """
    with damaged(path, "safetensors"):
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            need(2 <= length <= min(MAX_HEADER, size - 8), "its header is longer than the file")
            header = json.loads(file.read(length), object_pairs_hook=unique)
        need(isinstance(header, dict), "its header is no object")
        header.pop("__metadata__", None)
        start, end, tensors = 8 + length, 0, {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            need(entry["dtype"] in ITEM, f"{name!r} is of type {entry['dtype']}")
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            need(all(type(n) is int and n >= 0 for n in (*shape, first, last)), f"{name!r} has no whole sizes")
            need(first == end and last - first == math.prod(shape) * ITEM[entry["dtype"]].itemsize, f"{name!r} is off")
            end = last
            tensors[name] = stored(path, start + first, entry["dtype"], shape)
        need(start + end == size, f"it has {size} bytes, not {start + end}")
    return tensors


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write float32 arrays as a .safetensors file, complete or not at all."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays are to begin at a multiple of 8
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, "<f4").data)


def unique(pairs: list) -> dict:
    """The pairs of a JSON object as a dict. Raises ValueError where a name comes twice."""
    need(len({name for name, _ in pairs}) == len(pairs), "a name comes twice")
    return dict(pairs)


def stored(path: Path, start: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose bytes begin at `start` of a .safetensors file."""

    def read() -> np.ndarray:
        with damaged(path, "safetensors"), open(path, "rb") as file:
            file.seek(start)
            return decode(file.read(math.prod(shape) * ITEM[dtype].itemsize), dtype).reshape(shape)

    return Tensor(dtype, shape, read)
