import importlib.metadata
import os
import tempfile

import pytest

# Compiled programs are shared by the tests, the workers that run them and the processes that they start, and where the
# directory is given by several runs of pytest: compiling is most of their time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxz-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Their machine code is not optimised, nor emitted by way of MLIR, which takes a quarter of that time; partitioning over
# devices is as ever.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# (XLA ends a process over a flag that it does not know.)
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()

# Two workers with two threads each would wait for one another, spinning: three times as slow. Each has a core where
# there are as many, on Linux.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) == int(os.environ["PYTEST_XDIST_WORKER_COUNT"]):
        os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))]})

from jaxz import runtime  # imports jax, which reads these variables

runtime.set_xla_flags()


# Files that take minutes; begun first, so that the other worker has something to do until the end.
LONGEST = ("test_tutorials", "test_mesh", "test_training", "test_journey", "test_resume", "test_train", "test_predict")


@pytest.hookimpl(trylast=True)  # after the order was drawn
def pytest_collection_modifyitems(items):
    place = {f"{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def blob_dataset(tmp_path_factory):
    from tests.helpers import blobs

    return blobs(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture(scope="session")
def redshift_run(tmp_path_factory):
    """(a dataset of 400 blobs, a tiny run trained on it that predicts redshifts and reconstructs)."""
    from jaxz import train
    from tests.helpers import blobs, small_config

    folder = tmp_path_factory.mktemp("redshift_run")
    dataset = blobs(folder / "d", samples=400)
    config = small_config(folder, dataset, depth=1, mae=0.1, redshift=1.0)
    arguments = [f"--workdir={folder / 'arm'}", "--config.train.steps=120", "--config.optim.lr=3e-3"]
    assert train.main([config, *arguments]) == 0
    return dataset, folder / "arm"
