"""What made a file: versions and commit."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what numbers depend on, and the commit ("" outside of a checkout)."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"python": platform.python_version(), **found, "commit": commit}
