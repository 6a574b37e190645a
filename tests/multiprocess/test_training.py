"""Runs of 1, 2 and 4 processes: the same samples and losses, stops and failures that all take part in.

All runs of one count share their processes, since starting and compiling is most of the time.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import finish, launch, read_record, record
from jaxz import errors, train
from jaxz.data.dataset import open_dataset
from tests.helpers import blobs, small_config

pytestmark = pytest.mark.long
LIMIT = 300  # seconds: a hang is a failure


def train_in(count: int, folder: Path, runs: list[dict], name: str) -> list[int]:
    """The exit codes of `count` processes that train `runs` (see worker.py) one after another."""
    (folder / f"{name}.json").write_text(json.dumps(runs))
    return finish(launch(count, [folder / f"{name}.json"], folder / f"{name}.log", "tests.multiprocess.worker"), LIMIT)


def rows(workdir: Path, count: int) -> dict[int, list[int]]:
    """{step: the rows of its global batch}."""
    lines = zip(*read_record(Path(f"{workdir}.rows"), count), strict=True)
    return {parts[0]["step"]: [row for part in parts for row in part["rows"]] for parts in lines}


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_the_last(workdir: Path, copy: Path) -> str:
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "20")
    return str(copy)


def damaged(workdir: Path, copy: Path) -> str:
    shutil.copytree(workdir, copy)
    victim = max((copy / "checkpoints" / "20" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    return str(copy)


PARTS = ["--config.train.accumulate=2", "--config.train.members=2"]


@pytest.fixture(scope="module")
def runs(blob_dataset, tmp_path_factory):
    """20 steps without a break of 1 and 4 processes, and of 1 and 2 that train two members with batches in slices; what
    goes on from each other's checkpoints; and at last two that SIGUSR2 to the second ends, on uneven shards with fewer
    rows than a batch."""
    folder = tmp_path_factory.mktemp("processes")
    config = small_config(folder, blob_dataset, depth=1, redshift=1.0)
    few = blobs(folder / "few", samples=18, shards=[1, 2, 15])

    def alone(workdir: Path | str, *more: str) -> None:
        with record(f"{workdir}.rows"):
            assert train.main([config, f"--workdir={workdir}", *more]) == errors.OK

    def run(workdir: Path | str, *more: str, **what) -> dict:
        return {"workdir": str(workdir), "arguments": [config, *more], **what}

    alone(folder / "one")
    alone(folder / "one_in_parts", *PARTS)
    four = [run(folder / "four"), run(without_the_last(folder / "one", folder / "four_from_one"))]
    assert train_in(4, folder, four, "4") == [0] * 4
    alone(without_the_last(folder / "four", folder / "one_from_four"))
    two = [
        run(folder / "two_in_parts", *PARTS),
        run(folder / "stopped", *PARTS, stop=[8, 1, "SIGTERM"]),
        run(folder / "stopped", *PARTS),
        run(damaged(folder / "one_in_parts", folder / "two_in_parts_from_one"), *PARTS),
        run(folder / "uneven", *PARTS, f"--config.data.path={few}", stop=[15, 1, "SIGUSR2"]),
    ]
    assert train_in(2, folder, two, "2") == [errors.REQUEUE] * 2
    return folder


@pytest.mark.parametrize(("name", "one", "count"), [("four", "one", 4), ("two_in_parts", "one_in_parts", 2)])
def test_several_processes_train_as_one(runs, name, one, count):
    found = rows(runs / name, count)
    assert found == rows(runs / one, 1) and list(found) == list(range(1, 21))
    np.testing.assert_allclose(losses(runs / name), losses(runs / one), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "one", "count"),
    [("four_from_one", "one", 4), ("one_from_four", "one", 1), ("two_in_parts_from_one", "one_in_parts", 2)],
)
def test_a_checkpoint_is_gone_on_from_by_another_number_of_processes(runs, name, one, count):
    """Two find the newest damaged, and agree on the one before."""
    found, whole = rows(runs / name, count), rows(runs / one, 1)
    assert found == {step: whole[step] for step in range(15, 21)}
    np.testing.assert_allclose(losses(runs / name), losses(runs / one), rtol=1e-5)
    assert [path.name for path in (runs / name).glob("damaged/*")] == ["20"] * (count == 2)


def test_a_signal_to_one_stops_all_at_the_same_step_and_nothing_is_lost(runs):
    said = [Path(f"{runs}/stopped.stopped.{process}").read_text() for process in range(2)]
    assert said[0] == said[1] and said[0].startswith("SIGTERM at step 10 of 20, saved")  # asked at 8, read 2 later
    whole = runs / "two_in_parts"
    assert rows(runs / "stopped", 2) == rows(whole, 2)
    assert (runs / "stopped" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_only_the_first_writes_and_speaks(runs):
    quiet = (runs / "2.log.1").read_text()
    assert "parameters" not in quiet and "/20" not in quiet
    assert sorted(path.name for path in (runs / "two_in_parts").iterdir()) == sorted(
        path.name for path in (runs / "one").iterdir()
    )


def test_a_signal_to_one_ends_all_with_75(runs):
    """As the exit codes of the last run say."""
    assert "stopped: SIGUSR2 at step 17 of 20, saved" in (runs / "2.log.0").read_text()
    assert max(int(path.name) for path in (runs / "uneven" / "checkpoints").iterdir()) == 17


def test_uneven_shards_with_fewer_rows_than_a_batch_never_hang_and_leave_none_out(runs):
    expected = open_dataset(runs / "few").select("split == 'train'")
    handed = np.concatenate(list(rows(runs / "uneven", 2).values()))
    epochs = len(handed) // len(expected)
    assert len(expected) < 16 and epochs >= 16
    for epoch in handed[: epochs * len(expected)].reshape(epochs, -1):
        np.testing.assert_array_equal(np.sort(epoch), expected)


def test_a_failure_of_one_ends_all(blob_dataset, tmp_path):
    """Also where the others wait for it in a collective operation, and it has a save under way."""
    config = [small_config(tmp_path, blob_dataset, depth=1, redshift=1.0), *PARTS]
    began = time.monotonic()
    run = {"workdir": str(tmp_path / "failed"), "arguments": config, "fail": [9, 1]}
    codes = train_in(2, tmp_path, [run], "fail")
    assert codes[1] == errors.FAILED and codes[0] not in (errors.OK, errors.REQUEUE)
    assert "RuntimeError: this process alone" in (tmp_path / "fail.log.1").read_text()
    assert time.monotonic() - began < 120
