"""setup_env.sh, with a stand-in for pip: what it installs, and that HOME stays empty."""

import os
import subprocess
import sys

import pytest

from tests.slurm.lab import ROOT

STAND_IN = f"""#!/bin/bash
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$PIP_CACHE_DIR $TMPDIR $*" >>"$TOLD" ;;
  "-m launch.profile "*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.mark.parametrize(
    ("profile", "extra"),
    [("jean_zay_h100", ["jax[cuda12]=="]), ("jean_zay_v100", ["jax[cuda12]==", "nvidia-cudnn-cu12"]), ("cpu", [])],
)
def test_the_environment_is_made_in_work(tmp_path, profile, extra):
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "home").mkdir()
    environ = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "HOME": str(tmp_path / "home")}
    environ |= {"WORK": str(tmp_path / "work"), "TOLD": str(tmp_path / "told")}
    command = [ROOT / "launch" / "setup_env.sh", profile]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "told").read_text().splitlines()
    installed = [line.split(" install ")[1] for line in lines if " install " in line]
    assert installed[:2] == ["--requirement requirements.txt", "--no-deps --editable ."]
    assert len(installed) == 2 + len(extra)
    assert all(name in line for name, line in zip(extra, installed[2:], strict=True))
    assert all(line.startswith(f"{tmp_path}/work/jaxz_env.cache/pip {tmp_path}/work/jaxz_env.cache ") for line in lines)
    assert not list((tmp_path / "home").iterdir()) and "inodes" in done.stdout


def test_without_a_profile_it_says_how_it_is_used(tmp_path):
    done = subprocess.run([ROOT / "launch" / "setup_env.sh"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "launch/setup_env.sh PROFILE" in done.stderr
