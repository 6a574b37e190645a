"""The commands and recipes of docs/labels_and_layers.md, as they are written there, on a smaller survey."""

import importlib
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np

from data_tools import simulate
from jaxz.progress import Pool

PAGE = Path(__file__).parents[2] / "docs/labels_and_layers.md"
SMALLER = {
    "--samples 2000": "--samples 240",
    "--samples 1500": "--samples 180",
    "--size 32": "--size 16",
    "[:300]": "[:90]",
}


def run_commands(block: str, names: dict) -> None:
    """Runs `python -m MODULE ...` and `python - <<END` in this process."""
    for command in re.findall(r"python - <<END\n.*?\nEND|python -m .*", block, re.DOTALL if "<<END" in block else 0):
        if command.startswith("python - "):
            exec(command.removeprefix("python - <<END\n").removesuffix("\nEND"), names)
        else:
            for line in command.splitlines():
                _, _, module, *argv = shlex.split(line)
                assert importlib.import_module(module).main(argv) is None, line


def test_the_page_works_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulate, "Pool", lambda *_: Pool(1))
    page = PAGE.read_text()
    for full, smaller in SMALLER.items():
        page = page.replace(full, smaller)
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    names: dict = {}
    for block in blocks:
        if block.startswith("python"):
            run_commands(block, names)
        elif not block.startswith("DATASET/"):  # the overview
            exec(block, names)
    assert "DATASET/layers/deep" in (told := capsys.readouterr().out) and '"missing": 60' in told
    joined, table = names["joined"], names["table"]
    np.testing.assert_array_equal(joined.cutout(7)["embedding"], np.load("embeddings.npz")["embedding"][7])
    assert [band.name for band in joined.layers["deep"].manifest.bands] == [b.name for b in joined.manifest.bands]
    assert set(table["object_id"]) == set(names["dataset"].select("z_kind == 'spec' and z < 0.5")) and len(table) > 9
    assert next(names["stream"])["embedding"].shape == (256, 384)
