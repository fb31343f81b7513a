"""What libraries print of their own, and that they print it again afterwards."""

import subprocess
import sys

import lm_eval.api.task
import lm_eval.evaluator
import tqdm

from modeling_eem.evaluation.quiet import quiet_lm_eval


def test_lm_eval_is_as_it_was_afterwards() -> None:
    before = tqdm.tqdm, lm_eval.api.task.tqdm, lm_eval.evaluator.get_git_commit_hash
    with quiet_lm_eval():
        assert list(tqdm.tqdm(range(3), desc="rows")) == [0, 1, 2] and tqdm.tqdm([]).disable
        assert lm_eval.evaluator.get_git_commit_hash() is None
    assert before == (tqdm.tqdm, lm_eval.api.task.tqdm, lm_eval.evaluator.get_git_commit_hash)


def test_importing_this_package_prints_nothing() -> None:
    """With bitsandbytes, which warns on a CPU, and which the trainer of transformers imports where peft is."""
    code = (
        "import logging, modeling_eem.evaluation.quantization as q; q._bitsandbytes()\n"
        "assert logging.getLogger('bitsandbytes.backends.cpu.ops').level == logging.NOTSET"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
