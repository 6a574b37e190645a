"""The tutorials, as a reader would follow them: every block of commands and of Python, in order, in one directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import OPTIMISED

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/tutorials"
GOES_ON = {"first_run": ["pretraining"]}  # pages that use what another has made
FIRST = sorted({path.stem for path in FOLDER.glob("*.md")} - {name for names in GOES_ON.values() for name in names})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the repository's files are at hand and nothing of it can be overwritten."""
    path = tmp_path_factory.mktemp("tutorials")
    (path / "configs").symlink_to(ROOT / "configs")
    return path


@pytest.mark.long
@pytest.mark.parametrize("first", FIRST)
def test_what_a_tutorial_says_runs(first, folder):
    pages = [(FOLDER / f"{name}.md").read_text() for name in (first, *GOES_ON.get(first, ()))]
    found = [re.findall(r"^```(bash|python)\n(.*?)^```", page, re.DOTALL | re.MULTILINE) for page in pages]
    assert all(found)
    blocks = [block for page in found for block in page]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for kind, code in blocks:
        shell = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(shell, cwd=folder, env={**os.environ, **OPTIMISED, **own}, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
