"""Reads WebDataset tars of other writers: where their samples are, and what the members hold. Nothing is unpickled."""

import hashlib
import io
import json
import lzma
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxz.data.manifest import KEY, SAMPLE_LIMIT
from jaxz.errors import DataError, InputError

BLOCK = 512
PICKLES = {"pyd", "pickle", "pkl", "pth", "pt", "joblib"}
SCALARS = ("json", "cls", "txt", "text", "id")
TEXTS, TEXT_LIMIT = ("txt", "text", "id"), 1 << 20  # bytes
PICTURES = {"jpg", "jpeg", "png", "ppm", "pgm", "webp", "tif", "tiff"}

# What zipfile raises of a damaged archive, or of one that it cannot read
BAD_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, OSError, EOFError, RuntimeError, ValueError
)  # fmt: skip


class Member(NamedTuple):
    field: str  # what follows the first dot of the file's name: image.npy, json, cls
    offset: int  # of the first byte
    size: int


class Header(NamedTuple):
    """Of a .npy: dtype, shape, order of the axes, and bytes before the values."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int


def samples(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each sample of a tar, in order. A key is the path up to the first dot of the file's name, as
    webdataset has it; files whose names begin with "__" are left out.

    Raises DataError where the tar is cut short or damaged, with the offset; InputError for members that are no
    regular files, have no field, or are pickles, and for a sample whose members do not stand together."""
    key: str | None = None
    found: list[Member] = []
    seen: set[str] = set()
    for name, offset, size in members(path):
        folder, _, last = name.rpartition("/")
        stem, dot, field = last.partition(".")
        if last.startswith("__"):
            continue
        if not dot or not stem:
            raise InputError(f"{path}: member {name!r} has no field; a name must be KEY.FIELD, such as 7.image.npy")
        if field.rpartition(".")[2].lower() in PICKLES:
            raise InputError(f"{path}: member {name!r} is a pickle, which can run code; write it as .npy or .json")
        now = f"{folder}/{stem}" if folder else stem
        if now != key:
            if key is not None:
                yield key, found
            if now in seen:
                raise InputError(f"{path}: the members of sample {now!r} do not stand together; sort the tar by name")
            seen.add(now)
            key, found = now, []
        if field in (member.field for member in found):
            raise InputError(f"{path}: sample {now!r} has two members {field!r}; keep one")
        found.append(Member(field, offset, size))
    if key is not None:
        yield key, found


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file of an uncompressed tar; folders are left out."""
    end = path.stat().st_size
    at, count = 0, 0
    cut = lambda why: DataError(f"{path}: {why} at offset {at}, after {count} members; write or copy the tar again")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                last = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if not at < member.offset_data <= member.offset_data + member.size <= end:  # also of negative sizes
                    raise cut(f"{member.name!r} of {member.size} bytes is cut short")
                at, count = last, count + 1
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(f"{path}: member {member.name!r} is no plain file; write it as one")
                yield member.name.removeprefix("./"), member.offset_data, member.size
    except tarfile.ReadError as error:
        raise cut(f"is no tar, or damaged ({error})") from None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise cut(f"is damaged ({error})") from None
    with open(path, "rb") as file:  # a tar that is cut between two members ends as a whole one does for tarfile
        file.seek(at)
        if file.read(BLOCK) != bytes(BLOCK):
            raise cut("has no end of archive, so it is cut short")


def clean_key(key: str) -> str:
    """A dataset's key for a sample; where it is another than its own, a digest keeps it unique."""
    if KEY.fullmatch(key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', key)[-52:]}-{digest}"


def printable(key: str) -> str:
    """Names of a tar need not be UTF-8; a column must be."""
    return key.encode("utf-8", "backslashreplace").decode()


def extension(field: str) -> str:
    return PurePosixPath(f"x.{field}").suffix[1:].lower()


def npy_header(file: BinaryIO, member: Member, where: str) -> Header:
    """The header of a .npy member, checked against its size before anything is allocated. Raises InputError."""
    file.seek(member.offset)
    return header_of(io.BytesIO(file.read(min(member.size, 1 << 16))), member.size, where)


def header_of(start: BinaryIO, size: int, where: str) -> Header:
    try:
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(start)
    except (ValueError, KeyError, SyntaxError, EOFError) as error:
        raise InputError(f"{where} is no .npy ({error}); write it with numpy.save") from None
    if dtype.kind not in "fiub":
        raise InputError(f"{where} holds {dtype}, not plain numbers; write numbers, or --skip it")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != size - start.tell() or nbytes > SAMPLE_LIMIT:
        raise DataError(f"{where} of shape {shape} takes {nbytes} bytes, it has {size - start.tell()}; write it again")
    return Header(dtype, shape, fortran, start.tell())


def read_array(file: BinaryIO, member: Member, where: str) -> np.ndarray:
    """The array of a .npy member, in the machine's byte order and C order."""
    header = npy_header(file, member, where)
    file.seek(member.offset + header.start)
    flat = np.frombuffer(file.read(member.size - header.start), header.dtype)
    shaped = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.asarray(shaped, header.dtype.newbyteorder("="), order="C")


def npz_entries(file: BinaryIO, member: Member, where: str) -> Iterator[tuple[str, Header, Callable[[], np.ndarray]]]:
    """(name, header, read()) of the arrays of a .npz member. Raises InputError for what is none."""
    file.seek(member.offset)
    try:
        archive = zipfile.ZipFile(io.BytesIO(file.read(member.size)))
        for info in archive.infolist():
            if not 0 < info.file_size <= SAMPLE_LIMIT + (1 << 16):
                raise InputError(f"{where}: {info.filename!r} says {info.file_size} bytes; at most {SAMPLE_LIMIT}")
            content = io.BytesIO(archive.read(info))
            entry, inside = f"{where}: {info.filename!r}", Member("", 0, info.file_size)
            header = npy_header(content, inside, entry)
            yield info.filename.removesuffix(".npy"), header, partial(read_array, content, inside, entry)
    except BAD_ZIP as error:
        raise InputError(f"{where} is no .npz ({error}); write it with numpy.savez") from None


def read_scalars(file: BinaryIO, member: Member, where: str) -> dict[str, object]:
    """{column: value} of a .json, .cls or text member; of JSON, a value may be a list or an object. Raises InputError
    for what holds no scalars."""
    if member.size > TEXT_LIMIT:
        raise InputError(f"{where} has {member.size} bytes; scalars take at most {TEXT_LIMIT}; --skip it")
    file.seek(member.offset)
    try:
        text = file.read(member.size).decode()
        if extension(member.field) == "cls":
            return {member.field: whole(text.strip())}
        if extension(member.field) in TEXTS:
            return {member.field: text.strip()}
        values = json.loads(text, parse_int=whole, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read ({error}); write UTF-8 text or JSON") from None
    if not isinstance(values, dict):
        raise InputError(f"{where} holds no object of scalars; write {{name: value}}, or --skip it")
    return values


def whole(text: str) -> int:
    """Raises ValueError for an integer that no column holds."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text} is no 64-bit integer")
    return value
