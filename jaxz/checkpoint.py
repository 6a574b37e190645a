"""Checkpoints: RUN/checkpoints/<step>/{params, ema, opt, extra, stream, meta}. The only importer of orbax.

    params, ema, opt, extra   arrays, each item restored apart and onto any mesh; empty ones are left out
    stream                    the stream's state, JSON
    meta                      JSON: config, normalisation, versions; dtype, shape and digest of every array; a digest of
                              itself
    files.json                size and crc32 of every file, written once the checkpoint is complete

The digests are of values, the same for every mesh, and always verified. files.json finds damage before Orbax reads it,
also in files that hold no value; a crash may leave the newest checkpoint without it, which is no fault.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxz import runtime
from jaxz.errors import InputError, Stopped
from jaxz.files import replace
from jaxz.optim import path_names
from jaxz.state import TrainState

log = logging.getLogger("jaxz")
logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's own notes; its errors are raised as well
ARRAYS = ("params", "ema", "opt", "extra")
FULL = (errno.ENOSPC, errno.EDQUOT)


class Damaged(Exception):
    """A checkpoint's content is not what was saved."""


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous and atomic; `close` waits for it.

    keep: how many stay, for the run that writes them; None only reads, and leaves alone what a running training writes.
    """

    def __init__(self, workdir: Path, keep: int | None = None):
        self.path = Path(workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=keep is not None)
        self.manager = ocp.CheckpointManager(self.path, options=options)
        self.saving = False
        self.damaged: dict[int, Damaged] = {}  # that `meta` and `params` met

    def save(self, state: TrainState, stream: dict, meta: dict) -> None:
        """`meta` must be JSON. The arrays are copied before this returns, so that the state may be donated.

        Raises OSError where the disk is full, of this save or of the one before.
        """
        self.finish()
        items = {name: getattr(state, name) for name in ARRAYS if jax.tree.leaves(getattr(state, name))}
        step = int(state.step)
        sealed = seal({**meta, "step": step, "arrays": layout(items), "digests": digests(items), "stream": stream})
        arrays = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        json_items = {"stream": ocp.args.JsonSave(stream), "meta": ocp.args.JsonSave(sealed)}
        self._check_room(sum(array.nbytes for array in jax.tree.leaves(items)))
        self.saving = True
        with self._told_when_full():
            self.manager.save(step, args=ocp.args.Composite(**arrays, **json_items), force=True)

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and list its files. Raises OSError where the disk is full."""
        if not self.saving:
            return
        with self._told_when_full():
            self.manager.wait_until_finished()
        self.saving = False
        for step in self.steps():
            listing = self.path / str(step) / "files.json"
            if not listing.exists() and runtime.is_first():
                replace(listing, json.dumps(list_files(listing.parent)).encode())

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict, dict] | None:
        """(state, stream, meta) of the newest checkpoint that is whole; None where there is none at all.

        Damaged ones that are newer are moved to RUN/damaged and said so. Raises Damaged when none is whole, and
        InputError where the state has other arrays than the checkpoint; then nothing is moved.
        """
        steps, damaged = self.steps(), {}
        items = {name: getattr(abstract, name) for name in ARRAYS if jax.tree.leaves(getattr(abstract, name))}
        for step in reversed(steps):
            try:
                restored, meta = self._read(step, items)
            except Damaged as error:
                damaged[step] = error
                continue
            self._set_aside(damaged)
            state = abstract._replace(**{name: restored.get(name, getattr(abstract, name)) for name in ARRAYS})
            place = abstract.step.sharding
            return state._replace(step=jax.device_put(jnp.int32(step), place)), meta["stream"], meta
        if damaged:
            raise Damaged(f"{self._none_whole(damaged)}, or start again in another workdir")
        return None

    def _set_aside(self, damaged: dict[int, Damaged]) -> None:
        for step, error in damaged.items() if runtime.is_first() else ():
            aside = unused(self.path.parent / "damaged" / str(step))
            aside.parent.mkdir(exist_ok=True)
            shutil.move(self.path / str(step), aside)
            log.warning("checkpoint %d is damaged (%s); moved to %s, going on from the one before", step, error, aside)
        if damaged:
            runtime.wait_for_all("damaged checkpoints are moved")
            self.manager.reload()

    def _none_whole(self, damaged: dict[int, Damaged]) -> str:
        newest, error = max(damaged.items())
        steps = sorted(damaged)
        return f"all checkpoints {steps} in {self.path} are damaged ({newest}: {error}); restore them from a copy"

    def _pass_over(self, step: int, error: Damaged) -> None:
        if step not in self.damaged:
            log.warning("checkpoint %d is damaged (%s)", step, error)
        self.damaged[step] = error

    def _no_checkpoint(self, tried: list[int]) -> InputError:
        if tried:
            return InputError(self._none_whole({step: self.damaged[step] for step in tried}))
        return InputError(f"{str(self.path.parent)!r} holds no checkpoint; train it first, or name another run")

    def newest(self, step: int | None) -> list[int]:
        """All steps, newest first; or the one wanted, InputError where it is not kept."""
        steps = self.steps()[::-1]
        if step is not None and step not in steps:
            raise InputError(f"--step: {step} is not one of {str(self.path.parent)!r}'s checkpoints, {steps[::-1]}")
        return steps if step is None else [step]

    def meta(self, step: int | None = None) -> dict:
        """The meta of the newest checkpoint, or of `step`. Raises InputError where there is no whole one."""
        for number in (tried := self.newest(step)):
            try:
                return self._meta(number)
            except Damaged as error:
                self._pass_over(number, error)
        raise self._no_checkpoint(tried)

    def params(self, abstract: dict, item: str = "params", step: int | None = None) -> dict:
        """The parameters (or, item "ema", their average) of the newest whole checkpoint, or of `step`, placed like
        `abstract`.

        Only the entries of `abstract` are kept. Raises InputError where that item or a whole checkpoint is missing.
        """
        for number in (tried := self.newest(step)):
            try:
                if item not in self._meta(number)["digests"]:
                    raise InputError(f"--item: {item!r} was not kept by {str(self.path.parent)!r}; use 'params'")
                restored, _ = self._read(number, {item: abstract})
                return restored[item]
            except Damaged as error:
                self._pass_over(number, error)
        raise self._no_checkpoint(tried)

    def whole(self, abstract: dict, item: str) -> Iterator[tuple[int, dict]]:
        """(step, parameters as `params` gives them) of every checkpoint, the oldest first; damaged ones are left out,
        with a warning. Raises InputError where one has no such item."""
        for step in self.steps():
            try:
                restored, _ = self._read(step, {item: abstract})
            except Damaged as error:
                log.warning("checkpoint %d is damaged (%s); left out", step, error)
                continue
            yield step, restored[item]

    def close(self) -> None:
        self.finish()
        with self._told_when_full():
            self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind in (None, Stopped) or jax.process_count() == 1:  # one that fails cannot wait for the others
            self.close()

    def _check_room(self, size: int) -> None:
        """Raises OSError where `size` bytes do not fit on the disk, before Orbax writes pages of tracebacks of it."""
        if runtime.is_first() and shutil.disk_usage(self.path).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    @contextlib.contextmanager
    def _told_when_full(self) -> Iterator[None]:
        """Raises OSError for a full disk or quota, of which Orbax has several errors; what it began is removed."""
        try:
            yield
        except Exception as error:
            told = [code for code in FULL if getattr(error, "errno", None) == code or os.strerror(code) in str(error)]
            if not told:
                raise
            self.saving = False
            for begun in self.path.glob("*.orbax-checkpoint-tmp") if runtime.is_first() else ():
                shutil.rmtree(begun, ignore_errors=True)
            raise OSError(told[0], os.strerror(told[0]), str(self.path)) from None

    def _meta(self, step: int) -> dict:
        fault = fault_in(self.path / str(step)) if runtime.is_first() else ""
        if fault := runtime.from_first(fault):
            raise Damaged(fault)
        sealed = self._orbax(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(sealed, dict) or seal({k: v for k, v in sealed.items() if k != "seal"}) != sealed:
            raise Damaged("meta does not match its own digest")
        return sealed

    def _read(self, step: int, abstract: dict) -> tuple[dict, dict]:
        meta = self._meta(step)
        wanted = layout(abstract)
        for name in abstract:
            saved = meta["arrays"].get(name, {})
            if name in meta["arrays"] and not wanted[name].items() <= saved.items():
                path = next(path for path, kind in wanted[name].items() if saved.get(path) != kind)
                raise InputError(
                    f"{name}/{path} is {saved.get(path, 'absent')} in checkpoint {step} of {str(self.path.parent)!r}, "
                    f"not {wanted[name][path]}; use the model, objectives and optimizer that it was trained with"
                )
            if name not in meta["arrays"]:
                raise InputError(
                    f"{name!r} was not kept in checkpoint {step} of {str(self.path.parent)!r}; use the config it was "
                    "trained with"
                )
        args = {
            name: ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True)
            for name, tree in abstract.items()
        }
        restored = self._orbax(step, **args)
        for name in abstract:
            found = digests({name: restored[name]})[name]
            if wrong := [path for path, digest in found.items() if meta["digests"][name].get(path) != digest]:
                raise Damaged(f"{name}/{wrong[0]} does not match its digest")
        return {name: restored[name] for name in abstract}, meta

    def _orbax(self, step: int, **args: ocp.args.CheckpointArgs) -> Any:
        """Items as Orbax restores them. Its errors are damage only where files.json has not shown that all is whole."""
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            sound = (self.path / str(step) / "files.json").exists()
            if sound or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
                raise
            raise Damaged(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error


def unused(path: Path) -> Path:
    """`path`, or path.1, path.2 ... where it exists."""
    names = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
    return path if not path.exists() else next(name for name in names if not name.exists())


def layout(items: dict) -> dict[str, dict[str, str]]:
    """{item: {path: dtype and shape}}, such as "float32[3,4]"."""
    result = {}
    for item, tree in items.items():
        names = jax.tree.leaves(path_names(tree), is_leaf=lambda x: isinstance(x, str))
        kinds = (f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(tree))
        result[item] = dict(zip(names, kinds, strict=True))
    return result


def fault_in(folder: Path) -> str:
    """What in a checkpoint's files is not as its files.json says, in words; "" for nothing, or without such a file."""
    listing = folder / "files.json"
    if not listing.exists():
        return ""
    found = list_files(folder)
    try:
        listed = json.loads(listing.read_bytes())
    except ValueError:
        return "files.json is not JSON"
    changed = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    return f"{changed[0]} is not as it was saved" if changed else ""


def list_files(folder: Path) -> dict[str, list[int]]:
    """{relative path: [size, crc32]} of every file under `folder` but files.json."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "files.json":
            with open(path, "rb") as file:
                crc = 0
                while block := file.read(1 << 24):
                    crc = zlib.crc32(block, crc)
            result[str(path.relative_to(folder))] = [path.stat().st_size, crc]
    return result


def seal(meta: dict) -> dict:
    """`meta` with the digest of its own canonical JSON."""
    text = json.dumps(meta, sort_keys=True)
    return {**json.loads(text), "seal": hashlib.sha256(text.encode()).hexdigest()}


def digests(items: dict) -> dict[str, dict[str, str]]:
    """{item: {path: 64-bit digest in hex}}, computed where the arrays are, shard by shard."""
    values = jax.device_get(_digest_tree(items))
    result = {}
    for item in items:
        names = jax.tree.leaves(path_names(values[item]), is_leaf=lambda x: isinstance(x, str))
        pairs = jax.tree.leaves(values[item])
        result[item] = {n.rsplit("/", 1)[0]: "" for n in names}
        for name, value in zip(names, pairs, strict=True):
            result[item][name.rsplit("/", 1)[0]] += f"{int(value):08x}"
    return result


@jax.jit
def _digest_tree(tree: dict) -> dict:
    return jax.tree.map(lambda a: {"0": _lane(a, 0x9E3779B9), "1": _lane(a, 0x7F4A7C15)}, tree)


def _lane(array: jax.Array, salt: int) -> jax.Array:
    """uint32 []: the sum over elements of a bijective hash of (bits, place). A sum does not care how the array is split
    over devices, and any one changed element changes it."""
    array = jnp.asarray(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    wide = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, wide).astype(jnp.uint32)
    axes = [
        jax.lax.broadcasted_iota(jnp.uint32, array.shape, d) * jnp.uint32(s) for d, s in enumerate(strides(array.shape))
    ]
    place = functools.reduce(jnp.add, axes, jnp.uint32(0))
    x = bits ^ _mix(place + jnp.uint32(salt))
    return _mix(x).sum(dtype=jnp.uint32)


def strides(shape: tuple[int, ...]) -> list[int]:
    result = [1]
    for n in reversed(shape[1:]):
        result.insert(0, (result[0] * n) % 2**32)
    return result[: len(shape)]


def _mix(x: jax.Array) -> jax.Array:
    """A bijection on uint32 (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
