"""Runs of the trainer, in this process."""

import json
from pathlib import Path

from jaxz import errors, train
from jaxz.checkpoint import Checkpoints


def run(*argv) -> None:
    assert train.main([str(a) for a in argv]) == errors.OK


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def digests(workdir: Path) -> dict:
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.meta()["digests"]
    finally:
        checkpoints.close()
