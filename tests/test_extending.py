"""docs/extending.md as a contributor would follow it: in a copy of the repository every file is written where it says,
and every command is run, all in one process."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxz.data.dataset import open_dataset
from tests.data_tools.survey_files import grid_positions, write_survey
from tests.pretrained.files import dinov2, write_safetensors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
BLOCKS = re.findall(r"^```(bash|python|toml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, code in BLOCKS if kind == "bash" for line in code.replace("\\\n", "").splitlines()]

# Runs the commands of a file, a line each, as `python -m` does; leaves what they printed in printed.json.
DRIVER = """
import contextlib, io, json, runpy, shlex, sys
from pathlib import Path

printed = {}
for command in Path("commands").read_text().splitlines():
    sys.argv, sink = shlex.split(command)[2:], io.StringIO()
    with contextlib.redirect_stdout(sink):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                sys.exit(f"{command} ended with {end.code}")
    printed[command] = sink.getvalue()
Path("printed.json").write_text(json.dumps(printed))
"""
# What the page says of its models: nothing behind the mask enters; the family's file is DINO's under other names.
CHECK = """
import jax, numpy as np
import jaxz
from jaxz.pretrained import load_pretrained

batch = next(jaxz.Stream(jaxz.Source(jaxz.open_dataset("runs/try/dataset")), 4))
image = batch["image"].astype(np.float32)
mask = np.ones(image.shape, bool)
mask[0, 1], mask[1, :, 3:9, 2] = False, False
for name in ("pretrained", "convolutions", "linear"):
    model = jaxz.load_run(f"runs/try/{name}")
    encode = jax.jit(model.objective.encoder)
    one, other = (encode(model.params["encoder"], np.where(mask, image, fill), mask) for fill in (0, 1e9))
    assert all(np.array_equal(a, b) for a, b in zip(one, other)), name
    assert not np.array_equal(one.cls, encode(model.params["encoder"], image, mask | True).cls), name
assert jaxz.load_run("runs/try/linear").config.model.stem == "linear"
found = jaxz.load_run("runs/try/pretrained").predict(batch)["observed_bands"]
assert found.shape == image.shape[:2] and ((found > 0) & (found < 1)).all()
own, dino = (load_pretrained(f"runs/try/{name}.safetensors", arch={"heads": 2}) for name in ("weights", "dino"))
assert jax.tree.structure(own[1]) == jax.tree.structure(dino[1]) and dino[2]["family"] == "dino"
assert all(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(loaded[1]) for loaded in (own, dino))))
"""
PLAIN = {  # names of DINO's files -> those of the page's family
    "cls_token": "summary",
    "pos_embed": "positions",
    "patch_embed.proj": "patches",
    "blocks.": "layers.",
    "norm1": "before",
    "norm2": "between",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}


def plain_name(name: str) -> str:
    for theirs, own in PLAIN.items():
        name = name.replace(theirs, own)
    return name.replace("norm.", "after.")


def place(code: str) -> tuple[str, str | None]:
    """What a block's first line, "# FILE" or "# FILE, in TABLE", names: the file, and the table if there is one."""
    path, table = re.match(r"# (\S+?)(?:, in (\w+))?\n", code).groups()
    return path, table


def write_block(folder: Path, code: str) -> None:
    """A file of the page, or entries, which come at the beginning of their table."""
    path, table = place(code)
    target = folder / path
    if not table:
        assert not target.exists(), path
        target.write_text(code)
        return
    before = f"\n{table} = {{"
    assert target.read_text().count(before) == 1
    start, end = target.read_text().split(before)
    comment, entries = end.split("\n", 1)
    target.write_text(f"{start}{before}{comment}\n{code}{entries}")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """(the copy, what each command printed), with the files that the reader is to have."""
    folder = tmp_path_factory.mktemp("extending") / "repository"
    for name in ("jaxz", "data_tools", "launch", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    for kind, code in BLOCKS:
        if kind != "bash":
            write_block(folder, code)
    write_survey(folder / "runs/try/tiles")
    arrays = {n: a for n, a in dinov2().items() if ".ls" not in n and n != "mask_token"}
    write_safetensors(folder / "runs/try/dino.safetensors", arrays)
    write_safetensors(folder / "runs/try/weights.safetensors", {plain_name(n): a for n, a in arrays.items()})
    (folder / "commands").write_text("\n".join(COMMANDS))
    (folder / "follow.py").write_text(DRIVER + CHECK)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "follow.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return folder, json.loads((folder / "printed.json").read_text())


def printed_by(followed, module: str) -> str:
    [text] = [text for command, text in followed[1].items() if command.startswith(f"python -m {module} ")]
    return text


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "objective"),
    [
        ("pretrained", "observed_bands"),
        ("laplace", "redshift_laplace"),
        ("convolutions", "observed_bands"),
        ("linear", "observed_bands"),
    ],
)
def test_an_objective_a_head_a_backbone_and_a_stem_are_trained(followed, run, objective):
    lines = [json.loads(line) for line in (followed[0] / "runs/try" / run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line[f"{objective}/loss"] for line in lines if f"{objective}/loss" in line}
    assert losses.keys() == {1, 2, 3} and np.isfinite(list(losses.values())).all()


@pytest.mark.long
def test_a_metric_is_in_the_scores_and_in_the_report(followed):
    run = followed[0] / "runs/try/laplace"
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    table = table[table.test_full]
    found = json.loads((run / "report.json").read_text())["laplace"]["full"]
    expected = np.mean(np.abs(table.z_best - table.z_true) > 0.1 * (1 + table.z_true))
    assert found["objects"]["value"] == len(table) > 20 and 0 < expected < 1
    assert found["eta_10"]["value"] == pytest.approx(expected, abs=1e-12) and found["eta_10"]["error"] > 0
    page = (followed[0] / "runs/try/report.html").read_text()
    assert "η<sub>0.10</sub></th>" in page and "the fraction with |e| above 0.10" in page


@pytest.mark.long
def test_a_family_is_recognised(followed):
    found = json.loads(printed_by(followed, "jaxz.pretrained"))
    assert found["family"] == "plain_vit" and found["layout"] == "plain"
    assert found["unexpected"] == found["missing"] == [] and found["model"]["width"] == 16


@pytest.mark.long
def test_a_survey_is_converted(followed):
    dataset = open_dataset(followed[0] / "runs/try/survey")
    assert [band.name for band in dataset.manifest.bands] == ["r"]
    assert len(dataset) > 0.9 * len(grid_positions()[0])
    image = dataset.cutout(0)["image"]
    assert image.shape == (1, 16, 16) and image.argmax() == 8 * 16 + 8  # the lit pixel in the middle


@pytest.mark.long
def test_a_cluster_has_its_script(followed):
    script = printed_by(followed, "launch.slurm")
    for line in ("--partition=gpu", "--nodes=2", "--gres=gpu:2", "--mail-type=END"):
        assert f"\n#SBATCH {line}\n" in script


def test_its_python_files_pass_the_linter_where_they_go():
    blocks = [(*place(code), code) for kind, code in BLOCKS if kind == "python"]
    files = {path: code for path, table, code in blocks if not table}
    assert {Path(path).parts[0] for path in files} == {"jaxz", "configs"}
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename"]
    for path, code in files.items():
        done = subprocess.run([*ruff, path, "-"], cwd=ROOT, input=code, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_page_points_to_is_there():
    rows = re.findall(r"^\| .* \| (.*) \|$", PAGE, re.MULTILINE)[1:]
    named = [path for row in rows for path in re.findall(r"`((?:jaxz|data_tools|launch|configs)/[\w/.]*)`", row)]
    assert len(named) > 15 and not [path for path in named if not (ROOT / path).exists()]
    assert all(shlex.split(command)[:2] == ["python", "-m"] for command in COMMANDS)
