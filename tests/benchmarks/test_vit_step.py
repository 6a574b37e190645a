"""The FLOPs that the benchmark of steps counts, and what it reports."""

import json
import math

import jax
import pytest

from benchmarks import step, vit_step
from jaxz import objectives
from jaxz.data.prepare import Normalisation
from jaxz.models import build, vit

TINY = {"T": dict(width=32, depth=3, heads=2), "G": dict(width=48, depth=2, heads=2, mlp="swiglu")}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vit, "SIZES", TINY)
    monkeypatch.setattr(vit_step, "DECODER", dict(decoder_width=16, decoder_depth=2, decoder_heads=2))
    monkeypatch.setattr(vit_step, "ROUNDS", 1)
    monkeypatch.setattr(vit_step, "STEPS", 1)


def counted(jaxpr, times=1) -> int:
    """FLOPs of the dot_generals of a jaxpr, brute force."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        inside = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if name in equation.params:
                own = equation.params[name]
                total += counted(getattr(own, "jaxpr", own), inside)
    return total


@pytest.mark.parametrize("objective", ["supervised", "mae"])
@pytest.mark.parametrize("size", TINY)
def test_flops_are_those_of_the_matrix_products(size, objective):
    """Of a batch of 2 less one of 1: what is done once a batch, such as the bands' kernels, is left out."""
    task = vit_step.Task(size, 4, 16, 5, "float32", "xla", objective)
    config, bands = vit_step.config_of(task, 1), vit_step.bands_of(task)
    normalisation = Normalisation(bands, (1.0,) * 5, 16, 0.2, False)
    term = objectives.Objective(build(config.model, bands, 16), config, normalisation)
    params, extra = jax.eval_shape(term.init, jax.random.key(0))
    loss = lambda params, batch: term.loss(params, {}, extra, batch, jax.random.key(0), 0)[0]
    of = lambda count: counted(jax.make_jaxpr(loss)(params, vit_step.batch_of(task, count)).jaxpr)
    assert of(2) - of(1) == vit_step.forward_flops(task)


def test_each_objective_is_reported(tmp_path, capsys, monkeypatch):
    report = tmp_path / "report.json"
    monkeypatch.setattr(vit_step, "peak_flops", lambda device: 1e12)
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


def test_chips_are_found_by_their_names():
    assert vit_step.peak_flops("NVIDIA H100 80GB HBM3") == vit_step.peak_flops("NVIDIA H200") == 989e12
    assert vit_step.peak_flops("NVIDIA H100 PCIe") == 756e12 and vit_step.peak_flops("cpu") is None
