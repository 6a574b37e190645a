"""The tutorials, as a reader would follow them: every block of commands and of Python, in order, in one directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the repository's files are at hand and nothing of it can be overwritten."""
    path = tmp_path_factory.mktemp("tutorials")
    (path / "configs").symlink_to(ROOT / "configs")
    return path


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_tutorial_says_runs(page, folder):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for kind, code in blocks:
        shell = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(shell, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
