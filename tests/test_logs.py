"""metrics.jsonl: each step once, whatever a crash left."""

import json

import pytest

from jaxz.errors import InputError
from jaxz.logs import Metrics


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    for step in range(1, 6):
        metrics.write(step, {"loss": step / 3})
    metrics.close()
    return path


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("unfinished", ["", '{"step": 6, "lo', "\0\0\0", '{"step": 2, "loss": 1.0}'])
def test_going_on_cuts_later_lines_and_an_unfinished_one(path, unfinished):
    path.write_text(path.read_text() + unfinished)
    metrics = Metrics(path, 3)
    metrics.write(4, {"loss": 0.5})
    metrics.close()
    assert steps(path) == [1, 2, 3, 4]


@pytest.mark.parametrize("garbage", ["null", "{}", "[1]", '{"step": "a"}', '{"step": true}', "garbage", "", "\xff"])
@pytest.mark.parametrize("line", [1, 5])
def test_a_damaged_line_is_named_and_nothing_is_cut(path, line, garbage):
    lines = path.read_bytes().splitlines()
    lines[line - 1] = garbage.encode("latin-1")
    path.write_bytes(before := b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=rf"metrics.jsonl, line {line}: no object with a step"):
        Metrics(path, 3)
    assert path.read_bytes() == before
