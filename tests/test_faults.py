"""Damage of every kind is refused, masked or harmless; and the check of that can fail."""

import shutil

import numpy as np
import pytest

from benchmarks import faults
from jaxz.data.index import read_index, shard_of, to_parquet


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    faults.make(path)
    return path


@pytest.mark.parametrize("kind", faults.MUTATIONS)
def test_no_damage_is_silent(kind, work, monkeypatch):
    monkeypatch.setattr(faults, "MUTATIONS", {kind: faults.MUTATIONS[kind]})
    found = [faults.trial(work, 7, number) for number in range(4)]
    forged = {"told"} if kind.startswith("compact") else set()
    assert {one["outcome"] for one in found} <= {"refused", "masked", "harmless"} | forged, found
    assert not any(one["left_wrong"] for one in found)
    if kind == "NaN, with its checksum":
        assert [one["outcome"] for one in found] == ["masked"] * 4 and [one["lost"] for one in found] == [1] * 4
    elif forged:
        assert all(one["seen"] for one in found if one["outcome"] != "harmless")
    elif "bit of" not in kind:
        assert all(one["outcome"] == "refused" and one["seen"] for one in found)


def test_other_samples_without_a_word_are_called_silent(work, tmp_path):
    for name in ("z", "object_id"):
        copy = shutil.copytree(work / "rebuildable", tmp_path / name)
        path = copy / "index/00001.parquet"
        table = read_index(path)
        column = table.column_names.index(name)
        path.write_bytes(
            to_parquet(table.set_column(column, name, table[name].take(np.arange(12)[::-1])), shard_of(table))
        )
        assert faults.outcome(copy, work / "rebuildable") == "silent"
    (copy / "quarantine.json").write_text('{"version": 1, "shards": {"00000": [0], "00001": "all"}}')
    assert faults.outcome(copy, work / "rebuildable") == "silent"  # samples are missing


def test_a_payload_that_its_checksum_vouches_for_is_told_only_where_verify_sees_it(work, monkeypatch):
    kind = "compact bits, with checksum"
    monkeypatch.setattr(faults, "MUTATIONS", {kind: faults.MUTATIONS[kind]})
    told = next(n for n in range(20) if faults.trial(work, 3, n)["outcome"] == "told")
    monkeypatch.setattr(faults.verify, "main", lambda argv: None)
    found = faults.trial(work, 3, told)
    assert found["outcome"] == "silent" and found["left_wrong"]
