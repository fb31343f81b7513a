"""lm-eval without what it prints of its own: nobody reads it in a log, and commands show progress themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """While this is open, no bars of prompts, bootstraps and data, and no question to git for a commit.

    lm-eval has no argument for these, and outside a repository git complains on stderr.
    """
    from lm_eval.api import task

    from modeling_eem.entropy.hub_dataset import without_dataset_bars

    silent = partial(task.tqdm, disable=True)
    with (
        patch("lm_eval.api.task.tqdm", silent),  # of prompts
        patch("tqdm.tqdm", silent),  # of bootstraps, which import it when they run
        patch("lm_eval.evaluator.get_git_commit_hash", lambda: None),
        without_dataset_bars(),
    ):
        yield
