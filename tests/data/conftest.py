import pytest

from jaxz.data import transport
from tests.data.servers import SHARDS
from tests.helpers import blobs


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("origin") / "d", samples=240, shards=SHARDS)


@pytest.fixture
def impatient(monkeypatch):
    """Tries again at once, and asks no proxy for the local server."""
    monkeypatch.setattr(transport, "PAUSE", 0.002)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
