"""Several sources in one batch, and stages: held against the single streams that they are made of."""

import json

import numpy as np
import pytest

from jaxz.data.dataset import open_dataset
from jaxz.data.mixture import Stage
from jaxz.data.order import derive
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError
from tests.data.batches import assert_same, take
from tests.helpers import blobs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Labelled rows and all rows of one dataset, and another dataset whose labels are not asked for."""
    one = open_dataset(blobs(tmp_path_factory.mktemp("one") / "d", 60, seed=1))
    two = open_dataset(blobs(tmp_path_factory.mktemp("two") / "d", 45, seed=2, shards=2))
    return (
        Source(one, columns=("z", "object_id"), where="z_kind == 'spec'", name="labelled"),
        Source(one, columns=("object_id",), window=1, name="all"),
        Source(two, columns=("z", "object_id"), name="other"),
    )


STAGES = (Stage((1, 0, 0), 3), Stage((1, 2, 1), 9), Stage((0.3, 0, 0.7)))
COUNTS = [[16, 0, 0]] * 3 + [[4, 8, 4]] * 9 + [[5, 0, 11]] * 18


def test_a_mixture_is_its_single_streams_side_by_side(sources):
    batches = take(Stream(sources, 16, stages=STAGES, seed=5), len(COUNTS))
    assert [np.bincount(b["source"], minlength=3).tolist() for b in batches] == COUNTS
    assert all((np.diff(b["source"]) >= 0).all() for b in batches)  # one run of entries each
    for s, source in enumerate(sources):
        alone = iter(Stream(source, 1, seed=int(derive(5, s)) if s else 5))
        for batch in batches:
            for slot in np.flatnonzero(batch["source"] == s):
                single = next(alone)
                for name in ("image", "row", "epoch", "position", "object_id"):
                    np.testing.assert_array_equal(batch[name][slot], single[name][0])
                wanted = single["z"][0] if "z" in single else np.float32(np.nan)
                np.testing.assert_equal(batch["z"][slot], wanted)


def test_sources_draw_independently_of_each_other(sources):
    """Also of the same rows: else a batch would hold each sample twice."""
    batch = next(Stream((sources[0],) * 2, 40, seed=5))
    first, second = batch["row"][:20], batch["row"][20:]
    assert (first != second).sum() > 15 and set(batch["position"][:20]) == set(batch["position"][20:])


def test_a_mixture_is_elastic_and_resumes(sources):
    make = lambda **more: Stream(sources, 16, stages=STAGES, seed=5, **more)
    straight = take(make(), 30)
    parts = [take(make(local=part, threads=1), 30) for part in (slice(0, 6), slice(6, 16))]
    assert_same([{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*parts, strict=True)], straight)
    for stop in (0, 2, 3, 11, 12, 25):
        first = make(local=slice(0, 8))
        take(first, stop)
        state = json.loads(json.dumps(first.state()))
        assert state["step"] == stop and state["stage"] == (stop >= 3) + (stop >= 12)
        resumed = make()
        resumed.restore(state)
        assert_same(take(resumed, 30 - stop), straight[stop:])


def test_a_state_without_a_step_is_of_one_source(sources):
    stream = Stream(sources[0], 8, seed=1)
    take(stream, 5)
    old = {name: value for name, value in stream.state().items() if name != "step"}
    again = Stream(sources[0], 8, seed=1)
    again.restore(old)
    assert again.state() == stream.state()


def test_fetch_gives_rows_by_number(sources):
    stream = Stream(sources, 16, seed=5)
    for s, source in enumerate(sources):
        rows = np.array([7, 0, 41, 7])
        batch = stream.fetch(rows, s)
        for slot, row in enumerate(rows):
            np.testing.assert_array_equal(batch["image"][slot], source.dataset.cutout(int(row))["image"])
            assert batch["object_id"][slot] == row and batch["row"][slot] == row
    with pytest.raises(InputError, match="rows: -1..3"):
        stream.fetch(np.array([-1, 3]))


@pytest.mark.parametrize(
    "stages, message",
    [
        ((Stage((1, 2)),), "stages\\[0\\].ratios"),
        ((Stage((1, 0, 1), 5),), "must be absent from the last stage"),
        ((Stage((1, 0, 1)), Stage((1, 1, 1))), "stages\\[0\\].steps: None"),
        ((Stage((0, 0, 0)),), "ratios"),
        ((Stage((1, float("nan"), 0)),), "ratios"),
        ((Stage((1, 1, 1000)),), "without a place in a batch of 16"),
    ],
)
def test_stages_that_do_not_fit_are_refused(sources, stages, message):
    with pytest.raises(InputError, match=message):
        Stream(sources, 16, stages=stages)


def test_sources_that_cannot_share_a_batch_are_refused(sources, tmp_path):
    larger = open_dataset(blobs(tmp_path / "d", 20, size=24))
    with pytest.raises(InputError, match="has other arrays or bands"):
        Stream((sources[0], Source(larger)), 16)
    with pytest.raises(InputError, match="just one where epochs are counted"):
        Stream(sources, 16, epochs=1)
    with pytest.raises(InputError, match="'object_id' is not in every source"):
        Stream((sources[0], Source(sources[1].dataset)), 16)
    state = Stream(sources, 16).state()
    with pytest.raises(InputError, match="had 3 source"):
        Stream(sources[:2], 16).restore(state)
