"""What the robustness tests run in a process of its own."""

import os
import resource
import traceback
from pathlib import Path


def work(path: str, note: str, file_limit: int | None = None) -> None:
    """Train a run file; exit with 0, with 2 for what a user is told, with 3 for a traceback, and note what it was."""
    from modeling_eem.training import RunTrainer, prepare_run

    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    code, text = 0, ""
    try:
        trainer = RunTrainer(prepare_run(path))
        trainer.fit()
        trainer.finish()
    except (ValueError, OSError) as error:
        code, text = 2, str(error)
    except BaseException:
        code, text = 3, traceback.format_exc()
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(note).write_text(text)
    os._exit(code)
