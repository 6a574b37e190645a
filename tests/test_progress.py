"""Work shared among processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxz import errors
from jaxz.progress import Pool

ROOT = Path(__file__).parents[1]


def wait(folder: str, number: int) -> int:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60 if number < 0 else 0)
    return number * 2


def test_results_are_in_order_whatever_the_workers(tmp_path):
    jobs = [(str(tmp_path), number) for number in range(7)]
    for workers in (1, 2):
        with Pool(workers) as pool:
            assert pool.map(wait, jobs, "work") == [0, 2, 4, 6, 8, 10, 12]


def kill(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_the_system_killed_is_a_sentence(capsys):
    def main(argv: list[str]) -> None:
        with Pool(2) as pool:
            pool.map(kill, [(0,), (1,)], "shards")

    with pytest.raises(SystemExit) as end:
        errors.run(main, [])
    assert end.value.code == errors.FAILED
    assert "failed: shards: a worker process was killed" in capsys.readouterr().err


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = "from tests.test_progress import wait; from jaxz.progress import Pool\nif __name__ == '__main__':\n"
    code += f"    with Pool(2) as pool: pool.map(wait, [({str(tmp_path)!r}, -1)] * 2, 'work')"
    script = tmp_path.parent / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=environment)
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        alive = [pid for pid in workers if running(pid)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
