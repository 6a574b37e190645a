"""Multi-band sky cutouts -> ViT pretraining -> photometric redshifts, in JAX.

Importing this package does not import jax; `open_dataset` and `Stream` need only numpy and pyarrow.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "open_dataset": "jaxz.data.dataset",
    "Source": "jaxz.data.sampling",
    "Stage": "jaxz.data.mixture",
    "Stream": "jaxz.data.stream",
    "load_run": "jaxz.inference",
}


__all__ = ["Source", "Stage", "Stream", "load_run", "open_dataset"]


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxz' has no attribute {name!r}")
