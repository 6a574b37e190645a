"""The FLOPs that the benchmark of steps counts, and what it reports."""

import json
import types

import pytest

from benchmarks import step, vit_step
from jaxz.models import vit

TINY = {"T": dict(width=32, depth=3, heads=2), "G": dict(width=48, depth=2, heads=2, mlp="swiglu")}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vit, "SIZES", TINY)
    monkeypatch.setattr(vit_step, "DECODER", dict(decoder_width=16, decoder_depth=2, decoder_heads=2))
    monkeypatch.setattr(vit_step, "ROUNDS", 1)
    monkeypatch.setattr(vit_step, "STEPS", 1)


def blocks(tokens: int, width: int, depth: int, hidden: int) -> int:
    """Of depth blocks: four projections, the MLP's inputs and outputs, and attention, 2 a multiplication."""
    return depth * 2 * (tokens * (4 * width**2 + width * hidden) + 2 * tokens**2 * width)


@pytest.mark.parametrize("objective", ["supervised", "mae"])
@pytest.mark.parametrize("size, hidden", [("T", 2 * 128), ("G", 3 * 128)])
def test_flops_are_those_of_the_matrix_products(size, hidden, objective):
    """Counted by hand for 16 patches of 4 x 4 x 5."""
    width, depth = TINY[size]["width"], TINY[size]["depth"]
    expected = 2 * 16 * width * (5 * 16 + 16 + 5)  # colours, mean and presence
    if objective == "supervised":
        expected += blocks(16, width, depth, hidden) + 2 * width * 150
    else:  # the encoder sees a quarter
        expected += (
            blocks(4, width, depth, hidden) + 2 * 4 * width * 16 + blocks(16, 16, 2, 2 * 64) + 2 * 16 * 16 * 5 * 16
        )
    assert vit_step.forward_flops(vit_step.Task(size, 4, 16, 5, "float32", "auto", objective)) == expected


@pytest.mark.long
def test_each_objective_is_reported(tmp_path, capsys, monkeypatch):
    report = tmp_path / "report.json"
    peak = types.SimpleNamespace(peak={"float32": 1e12}.get)
    monkeypatch.setattr(vit_step, "find_device", lambda kind: peak)
    command = "--size T --patch 4 --image 8 --bands 3 --batch 2 --objective supervised,mae --json"
    step.main([*command.split(), str(report)])
    rows, shown = json.loads(report.read_text()), capsys.readouterr().out
    assert [row["objective"] for row in rows] == ["supervised", "mae"]
    for row in rows:
        assert set(row["by_batch"]) == {"2"} and row["batch"] == 2 and row["library"] == "jaxz"
        task = vit_step.Task(*(row[name] for name in vit_step.Task._fields))
        flops = 3 * vit_step.forward_flops(task) * row["images_per_second"]
        assert row["mfu"] == pytest.approx(flops / 1e12)
        assert f"{row['images_per_second']:.1f}" in shown


def test_a_batch_that_does_not_fit_is_passed_over():
    def arm(task, size):
        if size > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return lambda: 0.5

    chosen = vit_step.best(arm, None, [1, 2, 4])
    assert chosen.batch == 2 and chosen.by_batch == {1: 2.0, 2: 4.0, 4: None}
    with pytest.raises(MemoryError, match="no batch of"):
        vit_step.best(arm, None, [8])
