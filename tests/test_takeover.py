"""Two lives of a job in one run directory: the older ends before it changes anything, the newer finds all whole."""

import numpy as np
import pytest

from jaxz import errors, loop, train
from jaxz.errors import InputError
from tests.helpers import small_config
from tests.multiprocess.test_training import losses


@pytest.mark.long
def test_who_has_been_taken_over_does_not_save(blob_dataset, tmp_path, monkeypatch):
    config = [small_config(tmp_path, blob_dataset, depth=1, redshift=1.0), "--config.train.log_every=20"]
    arguments = [*config, f"--workdir={tmp_path / 'run'}"]
    lock, handed = tmp_path / "run" / ".lock", loop.prefetch

    def handing(*given):
        for n, batch in enumerate(handed(*given), 1):
            if n == 9:
                lock.write_text("a newer life")
            yield batch

    monkeypatch.setattr(loop, "prefetch", handing)
    with pytest.raises(InputError, match="another process has taken over"):
        train.main(arguments)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["7"]
    (tmp_path / "run" / "checkpoints" / "14.orbax-checkpoint-tmp" / "params").mkdir(parents=True)  # left in the middle
    assert train.main(arguments) == errors.OK
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["14", "20", "7"]
    assert train.main([*config, f"--workdir={tmp_path / 'whole'}"]) == errors.OK
    np.testing.assert_array_equal(losses(tmp_path / "run"), losses(tmp_path / "whole"))
