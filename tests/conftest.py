import os
import tempfile

import pytest

# Compiled programs are shared by the tests and the processes that they start: compiling is most of their time.
CACHE = tempfile.TemporaryDirectory(prefix="jaxz-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Their machine code is not optimised, which takes half of that time; partitioning over devices is as ever.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxz import runtime  # noqa: E402  imports jax, which reads these variables

runtime.set_xla_flags()


@pytest.fixture(scope="session")
def blob_dataset(tmp_path_factory):
    from tests.helpers import blobs

    return blobs(tmp_path_factory.mktemp("data") / "blobs")
