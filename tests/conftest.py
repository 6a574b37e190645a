import pytest

from jaxz import runtime

runtime.set_xla_flags()


@pytest.fixture(scope="session")
def blob_dataset(tmp_path_factory):
    from tests.helpers import blobs

    return blobs(tmp_path_factory.mktemp("data") / "blobs")
