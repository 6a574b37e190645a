"""What a run measures of itself: rates, stalls, use of the peak, memory, traces; and when garbage is collected."""

import contextlib
import gc
import json
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import objectives, perf, train
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.flops import matmul_flops
from jaxz.hardware import Device
from jaxz.mesh import make_mesh
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.perf import Garbage, Meter
from jaxz.state import abstract_state
from tests.helpers import small_config

CONFIG = ConfigDict(dict(model=dict(dtype="float32"), train=dict(batch_size=8)))


@pytest.fixture
def known(monkeypatch):
    """A device of 1 GFLOP/s."""
    device = Device("toy", "cpu", 1e9, 1e9, 1e9, 1e9, 1e9)
    monkeypatch.setattr(perf, "find_device", lambda kind: device)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told to."""
    now = [100.0]
    monkeypatch.setattr(perf.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_rates_leave_out_the_compiling_and_count_waiting_for_data(known, clock):
    meter = Meter(CONFIG, make_mesh(1, 1))
    meter.know(lambda batch: 3e8, {})
    clock(50)  # compiling
    meter.count(compiled=True)
    assert meter.read() == {}
    for _ in range(4):
        with meter.stall():
            clock(0.1)
        clock(0.4)
        meter.count(compiled=False)
    values = meter.read()
    assert values["perf/images_per_s"] == pytest.approx(16) and values["perf/data_stall"] == pytest.approx(0.2)
    assert values["perf/mfu"] == pytest.approx(0.6)  # 0.3 of the device's second, twice a second
    assert 0.01 < values["perf/memory_peak_gib"] < 1000
    assert meter.read() == {}  # all of it was read


def test_what_a_device_can_do_must_be_known_to_say_how_much_of_it_is_used():
    meter = Meter(CONFIG, make_mesh(1, 1))
    meter.know(lambda batch: pytest.fail("asked for nothing"), {})
    meter.count(compiled=False)
    assert "perf/mfu" not in meter.read()


def test_garbage_waits_for_its_step_and_is_collected_again_afterwards():
    class Cycle:
        alive = 0

        def __init__(self):
            self.itself = self
            Cycle.alive += 1

        def __del__(self):
            Cycle.alive -= 1

    with Garbage() as garbage:
        for _ in range(5000):
            Cycle()
        garbage.collect(perf.COLLECT_EVERY - 1)
        assert Cycle.alive == 5000
        garbage.collect(perf.COLLECT_EVERY)
        assert Cycle.alive == 0
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_run_writes_its_performance_apart_and_a_trace_of_some_steps(blob_dataset, tmp_path, known):
    """metrics.jsonl holds nothing that depends on the clock."""
    config = small_config(tmp_path, blob_dataset, depth=1, redshift=1.0)
    began = time.time()
    train.main([config, f"--workdir={tmp_path / 'run'}", "--config.train.steps=5", "--config.train.profile=(2,3)"])
    lines = [json.loads(line) for line in (tmp_path / "run/perf.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    for line in lines:
        assert 16 / (time.time() - began) < line["perf/images_per_s"] < 1e6 and 0 <= line["perf/data_stall"] <= 1
        assert np.isfinite(line["perf/mfu"]) and line["perf/mfu"] > 0
    assert "perf" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert len(list((tmp_path / "run/profile").rglob("*.xplane.pb"))) == 1


def test_model_flops_leave_out_what_is_computed_again_and_count_every_member(blob_dataset, tmp_path):
    """Twice to thrice the forward pass: nothing needs the gradient of the first layer's pixels."""
    argument, dataset = small_config(tmp_path, blob_dataset, redshift=1.0), open_dataset(blob_dataset)
    normalisation = Normalisation.create(dataset.manifest, (), 3.0, False)

    def flops(*changes):
        config = parse([argument, *(f"--config.{change}" for change in changes)])
        encoder = build(config.model, normalisation.bands, normalisation.size)
        objective = objectives.Objective(encoder, config, normalisation)
        prepare = Prepare(dataset.manifest, normalisation, config.augment, objective.views)
        optimizer = make_optimizer(config.optim, 100, jax.eval_shape(objective.init, jax.random.key(0))[0])
        abstract = abstract_state(objective, optimizer, config, make_mesh(1, 1))
        with contextlib.closing(
            Stream(Source(dataset, prepare.arrays, (*prepare.columns, *objective.columns)), 16)
        ) as stream:
            found = perf.training_flops(config, normalisation, prepare, abstract, next(stream))
        params = jax.eval_shape(encoder.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((16, 3, 16, 16), "float32")
        return found, matmul_flops(encoder, params, image, image)

    plain, forward = flops()
    assert 2.5 * forward < plain < 3.1 * forward  # and the head
    assert flops("model.remat=block")[0] == plain
    assert flops("train.members=2")[0] == 2 * plain
