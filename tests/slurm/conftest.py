"""One Slurm for all tests here; without root, or without the script that brings it up, they are skipped, loudly."""

import os
import subprocess
import warnings

import pytest

from tests.helpers import blobs, small_config
from tests.slurm.lab import ROOT, Lab

SCRIPTS = ROOT.parent / "shared" / "slurm"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "slurm":
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm():
    """A Slurm that is up, and known to this process and those that it starts."""
    missing = "root" if os.geteuid() else "" if (SCRIPTS / "slurm_up.sh").exists() else f"{SCRIPTS}/slurm_up.sh"
    if missing:
        warnings.warn(f"NOTHING OF SLURM IS TESTED: {missing} is not here", stacklevel=1)
        pytest.skip(f"{missing} is not here")
    was_up = os.path.exists("/run/slurm-lab/lab/env.sh")
    up = [SCRIPTS / "slurm_up.sh", "--nodes", "4"]
    if subprocess.run(up, check=False, timeout=600).returncode:  # on a busy machine some daemon may need longer ...
        subprocess.run(up, check=True, timeout=600)  # ... and is found up, or started again
    os.environ["SLURM_CONF"] = "/run/slurm-lab/lab/slurm.conf"
    os.environ["PYTHONPATH"] = str(ROOT)
    # "closing" is the tests' own; of the others that script makes one partition with a comma in its name
    for name in ("cpu_p1", "prepost", "archive", "closing"):
        subprocess.run(["scontrol", "create", f"PartitionName={name}", "Nodes=ALL", "PriorityTier=10"], check=False)
    yield
    if not was_up:
        subprocess.run([SCRIPTS / "slurm_down.sh"], check=True, timeout=120)


@pytest.fixture(scope="session")
def lab(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return Lab(folder, small_config(folder, blobs(folder / "data"), depth=1, redshift=1.0))
