"""Checkpoints: RUN/checkpoints/<step>/{params, ema, opt, extra, stream, meta}. The only importer of orbax.

    params, ema, opt, extra   arrays, each item restored apart and onto any mesh; empty ones are left out
    stream                    the stream's state, JSON
    meta                      JSON: resolved config, normalisation, versions, a digest of every array and of itself
    files.json                size and crc32 of every file, written once the checkpoint is complete

The digests are of values, the same for every mesh, and always verified. files.json finds damage before Orbax reads it,
also in files that hold no value; a crash may leave the newest checkpoint without it, which is no fault.
"""

import functools
import hashlib
import json
import logging
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxz.errors import InputError
from jaxz.files import replace
from jaxz.optim import path_names
from jaxz.state import TrainState

log = logging.getLogger("jaxz")
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's own notes
ARRAYS = ("params", "ema", "opt", "extra")


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

    def save(self, state: TrainState, stream: dict, meta: dict) -> None:
        """`meta` must be JSON. The arrays are copied before this returns, so that the state may be donated."""
        if self.saving:
            self.finish()
        items = {name: getattr(state, name) for name in ARRAYS if jax.tree.leaves(getattr(state, name))}
        step = int(state.step)
        sealed = seal({**meta, "step": step, "digests": digests(items), "stream": stream})
        arrays = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        json_items = {"stream": ocp.args.JsonSave(stream), "meta": ocp.args.JsonSave(sealed)}
        self.saving = True
        self.manager.save(step, args=ocp.args.Composite(**arrays, **json_items), force=True)

    def finish(self) -> None:
        """Wait for the save under way, and list its files."""
        self.manager.wait_until_finished()
        for step in self.steps():
            listing = self.path / str(step) / "files.json"
            if not listing.exists() and jax.process_index() == 0:
                replace(listing, json.dumps(list_files(listing.parent)).encode())

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict, dict] | None:
        """(state, stream, meta) of the newest checkpoint that is whole; None where there is none at all.

        A damaged one is moved to RUN/damaged and said so. Raises Damaged when none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                items = {name: getattr(abstract, name) for name in ARRAYS if jax.tree.leaves(getattr(abstract, name))}
                restored, meta = self._read(step, items)
            except Damaged as error:
                aside = self.path.parent / "damaged" / str(step)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                shutil.move(self.path / str(step), aside)
                self.manager.reload()
                log.warning(
                    "checkpoint %d is damaged (%s); moved to %s, going on from the one before", step, error, aside
                )
                continue
            state = abstract._replace(**{name: restored.get(name, getattr(abstract, name)) for name in ARRAYS})
            place = abstract.step.sharding
            return state._replace(step=jax.device_put(jnp.int32(step), place)), meta["stream"], meta
        if steps:
            raise Damaged(f"all checkpoints {steps} in {self.path} are damaged; start again in another workdir")
        return None

    def meta(self) -> dict:
        """The meta of the newest checkpoint. Raises InputError where there is no whole one."""
        for step in reversed(self.steps()):
            try:
                return self._meta(step)
            except Damaged as error:
                log.warning("checkpoint %d is damaged (%s); taking the one before", step, error)
        raise InputError(f"{str(self.path.parent)!r} holds no checkpoint; train it first, or name another run")

    def params(self, abstract: dict, item: str = "params") -> dict:
        """The parameters (or, item "ema", their average) of the newest whole checkpoint, placed like `abstract`.

        Only the entries of `abstract` are kept. Raises InputError where that item or a whole checkpoint is missing.
        """
        for step in reversed(self.steps()):
            try:
                if item not in self._meta(step)["digests"]:
                    raise InputError(f"init.item: {item!r} was not kept by {str(self.path.parent)!r}; use 'params'")
                restored, _ = self._read(step, {item: abstract})
                return restored[item]
            except Damaged as error:
                log.warning("checkpoint %d is damaged (%s); taking the one before", step, error)
        raise InputError(f"{str(self.path.parent)!r} holds no whole checkpoint; train it first, or name another run")

    def close(self) -> None:
        if self.saving:
            self.finish()
        self.manager.close()

    def _meta(self, step: int) -> dict:
        listing = self.path / str(step) / "files.json"
        if listing.exists():
            found = list_files(listing.parent)
            try:
                listed = json.loads(listing.read_text())
            except ValueError:
                raise Damaged("files.json is not JSON") from None
            if changed := sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name)):
                raise Damaged(f"{changed[0]} is not as it was saved")
        try:
            sealed = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:
            raise Damaged(f"meta: {type(error).__name__}") from error
        if not isinstance(sealed, dict) or seal({k: v for k, v in sealed.items() if k != "seal"}) != sealed:
            raise Damaged("meta does not match its own digest")
        return sealed

    def _read(self, step: int, abstract: dict) -> tuple[dict, dict]:
        meta = self._meta(step)
        args = {
            name: ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True)
            for name, tree in abstract.items()
        }
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise Damaged(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
        for name in abstract:
            found = digests({name: restored[name]})[name]
            if wrong := [path for path, digest in found.items() if meta["digests"][name].get(path) != digest]:
                raise Damaged(f"{name}/{wrong[0]} does not match its digest")
        return {name: restored[name] for name in abstract}, meta


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
def _digest_tree(tree):
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
