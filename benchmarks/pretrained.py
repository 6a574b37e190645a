"""Published weights: what importing them takes, and what becomes of damaged files.

    python -m benchmarks.pretrained make FILE.safetensors [--name dinov2_vitl14]    # random weights of a DINOv2
    python -m benchmarks.pretrained time FILE [FILE ...] [--json FILE]   # seconds, peak memory over the file size
    python -m benchmarks.pretrained damage FILE [--count 500] [--json FILE]    # each mutation loads equal or is refused

Of a .safetensors file the header is mutated: the format has no checksum of the numbers.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import arms
from benchmarks.measure import cpu_seconds, peak_bytes
from jaxz import errors
from jaxz.errors import InputError
from jaxz.models import published
from jaxz.models.functional import Functional
from jaxz.models.tower import ImageTower
from jaxz.pretrained import load_pretrained
from jaxz.pretrained.families.dinov2 import hugging_face_tensors
from jaxz.pretrained.formats import open_checkpoint, write_safetensors


def make(path: Path, name: str) -> None:
    config = ConfigDict(published.SETTINGS | published.model(name) | {"normalisation": "asinh"})
    tower = Functional(lambda rngs: ImageTower(published.image_settings(config, 3), rngs=rngs))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    params = jax.tree.map(lambda a: 0.02 * rng.standard_normal(a.shape, np.float32), shapes)
    write_safetensors(path, hugging_face_tensors(params))


def load(path: Path) -> dict:
    """What importing takes of this process, which is to be new."""
    before, cpu, began = peak_bytes(), cpu_seconds(), time.perf_counter()
    _, params, _ = load_pretrained(path)
    jax.block_until_ready(params)
    took = {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}
    return took | {"bytes": open_checkpoint(path).nbytes, "peak": peak_bytes(), "before": before}


def mutated(content: bytes, rng, end: int) -> bytes:
    """One to three of the first `end` bytes changed, or, one time in ten, cut short."""
    if rng.random() < 0.1:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for at in rng.integers(end, size=rng.integers(1, 4)):
        changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed)


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def outcome(path: Path, wanted: dict[str, np.ndarray]) -> str:
    """ "renamed": all that has a name of the file's is equal; strict loading refuses the rest."""
    try:
        found = values(path)
    except InputError:
        return "refused"
    except Exception as error:
        return f"CRASHED: {type(error).__name__}"
    same = lambda name: found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name])
    if not all(same(name) for name in found.keys() & wanted.keys()):
        return "DIFFERENT"
    return "equal" if found.keys() == wanted.keys() else "renamed"


def damage(path: Path, count: int) -> Counter[str]:
    """{outcome: how many} of seeded mutations."""
    content, wanted, found = path.read_bytes(), values(path), Counter()
    safetensors = path.suffix == ".safetensors"
    end = 8 + int.from_bytes(content[:8], "little") if safetensors else len(content)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        for seed in range(count):
            copy.write_bytes(mutated(content, np.random.default_rng(seed), end))
            found[outcome(copy, wanted)] += 1
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "time", "load", "damage"):
        command = commands.add_parser(name)
        command.add_argument("path", type=Path, nargs="+" if name == "time" else None)
    commands.choices["make"].add_argument("--name", default="dinov2_vitl14")
    commands.choices["damage"].add_argument("--count", type=int, default=500)
    for name in ("time", "damage"):
        commands.choices[name].add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.command == "make":
        make(options.path, options.name)
    elif options.command == "load":
        print(json.dumps(load(options.path)))
    elif options.command == "damage":
        found = damage(options.path, options.count)
        print(f"{options.path}: {', '.join(f'{n} {name}' for name, n in found.most_common())}")
        keep(options.json, found)
        return errors.FAILED if any(name.isupper() or "CRASHED" in name for name in found) else errors.OK
    else:
        took = [timed(path) for path in options.path]
        for path, one in zip(options.path, took, strict=True):
            print(f"{path}: {told(one)}")
        keep(options.json, took)
    return errors.OK


def keep(path: Path | None, found) -> None:
    if path:
        path.write_text(json.dumps(found, indent=1))


def timed(path: Path) -> dict:
    if not path.exists():
        return {"error": "not run: weights absent"}
    return arms.run([sys.executable, "-m", "benchmarks.pretrained", "load", str(path)])


def told(took: dict) -> str:
    if "error" in took:
        return took["error"]
    size, peak = took["bytes"], took["peak"]
    return (
        f"{took['seconds']:.1f} s ({took['cpu']:.1f} s of CPU), {size / 1e9:.2f} GB, "
        f"peak {peak / 1e9:.2f} GB, {peak / size:.2f} of the file "
        f"({(peak - took['before']) / size:.2f} without what was there before)"
    )


if __name__ == "__main__":
    errors.run(main)
