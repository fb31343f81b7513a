"""The executor of `eem data prepare` on one machine."""

from pathlib import Path

import pytest

from modeling_eem.data.pipeline import QuietLocalExecutor

KILLED_STEP = """
import os
import signal

from datatrove.pipeline.base import PipelineStep


class Killed(PipelineStep):
    type, name = "TEST", "killed"

    def run(self, data, rank=0, world_size=1):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return data
"""


def test_a_killed_process_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool replaces it, loses its task, and waits for ever."""
    (tmp_path / "killed_step.py").write_text(KILLED_STEP)
    monkeypatch.syspath_prepend(tmp_path)
    from killed_step import Killed  # pyright: ignore[reportMissingImports] - written above

    executor = QuietLocalExecutor([Killed()], tasks=4, workers=2, logging_dir=str(tmp_path / "logs"))
    with pytest.raises(ValueError, match="one of the processes was killed"):
        executor.run()
    done = {path.name for path in (tmp_path / "logs" / "completions").iterdir()}
    assert "00001" not in done and done, "the other tasks are kept"
