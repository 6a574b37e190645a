import pytest

from tests.helpers import small_config
from tests.training.runs import run


@pytest.fixture(scope="session")
def config(blob_dataset, tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("config"), blob_dataset, mae=0.1, fluxes=1.0, redshift=1.0)


@pytest.fixture(scope="session")
def tiny(blob_dataset, tmp_path_factory):
    """A quick one, for what does not need all objectives: most of a test's time is compiling."""
    return small_config(tmp_path_factory.mktemp("tiny"), blob_dataset, depth=1, redshift=1.0)


@pytest.fixture(scope="session")
def short(tiny, tmp_path_factory):
    """Two steps of the quick one, without an average."""
    workdir = tmp_path_factory.mktemp("runs") / "short"
    run(tiny, f"--workdir={workdir}", "--config.train.steps=2")
    return workdir


@pytest.fixture(scope="session")
def straight(config, tmp_path_factory):
    """20 steps without a break."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    run(config, f"--workdir={workdir}", "--config.train.ema_decay=0.9")
    return workdir
