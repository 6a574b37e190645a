"""Peaks of devices and clusters, from hardware.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from jaxz.errors import InputError, suggest

FILE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True)
class Device:
    """Peaks of dense matrix multiplication in FLOP/s by dtype (0: the device has none), memory in bytes, its bandwidth
    and that of the links inside a node, one direction, in bytes/s."""

    name: str
    kind: str
    memory: float
    bandwidth: float
    link: float
    float32: float
    float16: float
    bfloat16: float = 0.0

    def peak(self, dtype: str) -> float:
        return getattr(self, dtype)


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `per_node` devices; network: bytes/s between nodes for each device, one direction."""

    name: str
    nodes: int
    per_node: int
    device: Device
    network: float

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node


def devices() -> list[Device]:
    return [Device(**entry) for entry in tomllib.loads(FILE.read_text())["devices"]]


def find_device(kind: str) -> Device | None:
    """By JAX's device_kind, such as "NVIDIA H100 80GB HBM3"; None for one that is not in the file."""
    return next((device for device in devices() if device.kind == kind), None)


def parse_cluster(text: str) -> Cluster:
    """NAME:NODESxDEVICES, such as jean_zay_h100:4x4. Raises InputError for another form, an unknown cluster or more
    devices a node than it has."""
    known = tomllib.loads(FILE.read_text())["clusters"]
    name, _, shape = text.partition(":")
    nodes, _, per_node = shape.partition("x")
    if name not in known:
        raise InputError(f"--cluster: {name!r} is not one of {', '.join(known)}.{suggest(name, known)}")
    if not (nodes.isdecimal() and per_node.isdecimal() and int(nodes) and int(per_node)):
        raise InputError(f"--cluster: {text!r} must be NAME:NODESxDEVICES, such as {name}:4x{known[name]['devices']}")
    entry = known[name]
    if int(per_node) > entry["devices"]:
        raise InputError(
            f"--cluster: {text!r} asks for more than the {entry['devices']} devices of a node; use more nodes"
        )
    device = next(device for device in devices() if device.name == entry["device"])
    return Cluster(name, int(nodes), int(per_node), device, entry["network"])
