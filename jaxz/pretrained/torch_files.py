"""PyTorch's .pth, .pt and .bin files, read without torch: nothing that is in a file is ever run.

The pickles in them are followed by a small machine that knows dicts, lists, tensors and a few inert classes; whatever
else they name is refused. A tensor is read only within the bounds of its storage, a storage only within its file.
"""

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxz.errors import InputError
from jaxz.pretrained.tensors import ITEM, Tensor, damaged, decode, need

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE = 64 << 20  # bytes; that of the largest published checkpoint is below 1 MB
MAX_AXES, MAX_SIZE = 64, 1 << 48  # of a tensor: NumPy's, and numbers
CONVERT = (
    "where you trust its origin convert it once, with PyTorch: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['model'], 'model.safetensors')"
)

PUSHED = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES"}
PUSHED |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
OF_MARKED: dict[str, Callable[[list], object]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}
PUT, GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


@dataclass
class Inert:
    """An object that was not made: of a TorchScript module its attributes are kept, of all else nothing."""

    state: dict


@dataclass(frozen=True)
class Storage:
    """Numbers of one type in a file, of which a tensor shows all or some."""

    dtype: str
    numel: int
    read: Callable[[], bytes]


class Machine:
    """Follows one pickle. `storage(kind, key, numel)` gives the Storage behind a tensor; `limit`: bytes that no tensor
    may exceed, nor twice that all of them; `script`: TorchScript's classes may be named."""

    def __init__(self, storage: Callable[[str, str, int], Storage], limit: int, script: bool = False):
        self.storage, self.limit, self.script, self.total = storage, limit, script, 0
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict = {}

    def run(self, file: IO[bytes]) -> Any:
        """The object of the pickle that begins at the file's position, which ends up behind it."""
        for opcode, value, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, value)
        raise ValueError("it has no end")

    def step(self, op: str, value: Any) -> None:
        stack = self.stack
        if op in PUSHED:
            stack.append(value)
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op in EMPTY:
            stack.append(EMPTY[op]())
        elif op in PUT:
            self.memo[value] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in GET:
            stack.append(self.memo[value])
        elif op in TUPLES:
            stack[-TUPLES[op] :] = [tuple(stack[-TUPLES[op] :])]
        elif op == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif op == "POP":
            stack.pop()
        elif op == "GLOBAL":
            stack.append(Name(*value.split(" ", 1)))
        elif op not in ("PROTO", "FRAME"):
            self.compose(op)

    def to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def compose(self, op: str) -> None:
        """The operations that make or change an object on the stack."""
        if op in OF_MARKED:
            items = self.to_mark()
            self.stack.append(OF_MARKED[op](items))
        elif op in ("APPENDS", "ADDITEMS"):
            items = self.to_mark()
            need(isinstance(self.stack[-1], list), "items are appended to what is no list")
            self.stack[-1].extend(items)
        elif op == "SETITEMS":
            items = self.to_mark()
            self.set_items(self.stack[-1], items)
        elif op == "APPEND":
            item = self.stack.pop()
            need(isinstance(self.stack[-1], list), "an item is appended to what is no list")
            self.stack[-1].append(item)
        elif op == "SETITEM":
            items = [self.stack.pop(), self.stack.pop()][::-1]
            self.set_items(self.stack[-1], items)
        elif op == "STACK_GLOBAL":
            name, module = self.stack.pop(), self.stack.pop()
            need(isinstance(name, str) and isinstance(module, str), "a class without a name")
            self.stack.append(Name(module, name))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(self.call(function, arguments))
        elif op == "BUILD":
            state = self.stack.pop()
            if isinstance(self.stack[-1], Inert) and isinstance(state, dict):
                self.stack[-1].state |= state
        elif op == "BINPERSID":
            self.stack.append(self.persistent(self.stack.pop()))
        else:
            raise ValueError(f"the pickle operation {op} is not one of a checkpoint")

    @staticmethod
    def set_items(target: Any, items: list) -> None:
        need(isinstance(target, dict), "an item is set in what is no dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call in the pickle stands for, for the few that checkpoints make; the others are refused."""
        name = str(function)
        need(isinstance(function, Name) and isinstance(arguments, tuple), "a call of what is no function")
        if name == "collections.OrderedDict":
            return dict(*arguments)
        if name == "torch._utils._rebuild_tensor_v2":
            return self.tensor(*arguments[:4])
        if name == "torch._utils._rebuild_parameter":
            return arguments[0]
        if name == "argparse.Namespace" or (self.script and name.startswith("__torch__.")):
            return Inert({})
        if self.script and function.module == "torch.jit._pickle":
            return arguments[0]  # a typed list
        raise InputError(f"checkpoint: it names {name}, which only running code could make; {CONVERT}")

    def persistent(self, what: Any) -> Storage:
        need(isinstance(what, tuple) and len(what) in (5, 6) and what[0] == "storage", "an unknown kind of storage")
        kind, key, numel = what[1], what[2], what[4]
        need(isinstance(kind, Name) and kind.module == "torch" and kind.name in STORAGES, f"a storage of type {kind}")
        need(len(what) == 5 or what[5] is None, "a view of a storage, as PyTorch before 0.4 wrote")
        need(type(numel) is int and numel >= 0 and isinstance(key, str), "a storage without a size")
        return self.storage(STORAGES[kind.name], key, numel)

    def tensor(self, storage: Storage, offset: int, shape: tuple, stride: tuple) -> Tensor:
        need(isinstance(storage, Storage), "a tensor without a storage")
        need(isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride), "a tensor's shape")
        need(all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)), "a negative size, stride or offset")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        need(last < storage.numel if math.prod(shape) else offset <= storage.numel, "a tensor reaches past its storage")
        size = math.prod(shape) * ITEM[storage.dtype].itemsize
        self.total += size
        need(size <= self.limit and self.total <= 2 * self.limit, "a tensor is larger than its file")
        sizes = math.prod(max(n, 1) for n in shape), *stride  # NumPy must be able to count also what holds nothing
        need(len(shape) <= MAX_AXES and max(sizes) < MAX_SIZE, "a tensor's shape")

        def read() -> np.ndarray:
            flat = decode(storage.read(), storage.dtype)[offset:]
            strides = [s * flat.itemsize for s in stride]
            return np.asarray(np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False), order="C")

        return Tensor(storage.dtype, shape, read)


def read_torch(path: Path) -> Any:
    """The object that a .pth, .pt or .bin file holds: nested dicts and lists of Tensors, which are read when asked for.
    A TorchScript archive gives its state dict.

    Raises InputError for a file that is damaged, is none of PyTorch's, or names anything but tensors and containers.
    """
    with damaged(path, "a PyTorch checkpoint"), open(path, "rb") as file:
        start = file.read(4)
        if start == b"PK\x03\x04":
            return read_zip(path)
        need(start[:1] == b"\x80", "it begins like none")
        return read_legacy(path)


def read_zip(path: Path) -> Any:
    """A file since PyTorch 1.6: a zip archive with one pickle and a file for each storage."""
    archive = zipfile.ZipFile(path)  # stays open for the tensors, which are read later
    entries = {entry.filename: entry for entry in archive.infolist()}
    need(len(entries) == len(archive.infolist()), "two entries have one name")
    [pickle] = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    root = pickle.removesuffix("data.pkl")
    need(entries[pickle].file_size <= MAX_PICKLE, "its pickle is too large")
    if f"{root}byteorder" in entries:
        need(content(archive, entries[f"{root}byteorder"]) == b"little", "its numbers are not little-endian")

    def storage(dtype: str, key: str, numel: int) -> Storage:
        need(f"{root}data/{key}" in entries, f"the storage {key!r} is missing")
        entry = entries[f"{root}data/{key}"]
        need(entry.file_size == numel * ITEM[dtype].itemsize, f"the storage {key!r} has {entry.file_size} bytes")

        def read() -> bytes:
            with damaged(path, "a PyTorch checkpoint"):
                return content(archive, entry)

        return Storage(dtype, numel, read)

    script = f"{root}constants.pkl" in entries
    machine = Machine(storage, path.stat().st_size, script)
    found = machine.run(io.BytesIO(content(archive, entries[pickle])))
    return flatten(found, "") if script else found


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry; zipfile compares their checksum."""
    name = entry.filename
    need(entry.compress_type == zipfile.ZIP_STORED, f"{name!r} is compressed, which PyTorch never does")
    need(entry.file_size == entry.compress_size, f"{name!r} has two sizes")
    need(entry.header_offset + entry.file_size <= archive.start_dir, f"{name!r} is longer than the file")
    return archive.read(entry)


def flatten(module: Any, prefix: str) -> dict[str, Tensor]:
    """The state dict of a TorchScript module."""
    need(isinstance(module, Inert), "its root is no module")
    found = {}
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Inert):
            found |= flatten(value, f"{prefix}{name}.")
    return found


def read_legacy(path: Path) -> Any:
    """A file from before PyTorch 1.6: pickles of a magic number, a version, the system, the object and the storages'
    keys, then each storage as its number of elements and its bytes."""
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[str, tuple[str, int]] = {}
    starts: dict[str, int] = {}

    def storage(dtype: str, key: str, numel: int) -> Storage:
        need(storages.setdefault(key, (dtype, numel)) == (dtype, numel), f"the storage {key!r} has two sizes")
        return Storage(dtype, numel, lambda: view[starts[key] : starts[key] + numel * ITEM[dtype].itemsize])

    machines = [Machine(storage, len(view)) for _ in range(5)]
    magic, _, system, found, keys = (machine.run(view) for machine in machines)  # type: ignore[arg-type]  # mmap reads
    need(magic == LEGACY_MAGIC, "it begins like none")
    need(isinstance(system, dict) and system.get("little_endian") is True, "its numbers are not little-endian")
    need(isinstance(keys, list) and sorted(keys) == sorted(storages), "its storages are not those of its tensors")
    for key in keys:
        dtype, numel = storages[key]
        need(int.from_bytes(view.read(8), "little", signed=True) == numel, f"the storage {key!r} has another size")
        starts[key] = view.tell()
        need(starts[key] + numel * ITEM[dtype].itemsize <= len(view), f"it ends within the storage {key!r}")
        view.seek(numel * ITEM[dtype].itemsize, 1)
    return found


def unwrap(found: Any) -> tuple[dict[str, Tensor], str]:
    """The state dict within what a file held, and the name that it had there ("" for none): of DINO's training
    checkpoints the teacher's.

    Raises InputError where there is none.
    """
    for name in ("teacher", "model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            return unwrap(found[name])[0], name
    if isinstance(found, dict):
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors, ""
    raise InputError("path: the file holds no state dict of tensors; name one that holds a model's weights")
