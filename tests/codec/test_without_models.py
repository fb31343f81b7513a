"""A program that only compresses imports neither PyTorch nor transformers; any other finds the models registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODEC_ONLY = {"MODELING_EEM_CODEC_ONLY": "1"}
PRINT_HEAVY = "import sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"


def printed(script: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_compressing_imports_no_model() -> None:
    script = "from modeling_eem.codec import Codec; codec = Codec.default(); codec.compress(b'The sea.'); "
    assert printed(script + PRINT_HEAVY, CODEC_ONLY) == "[]"
    assert printed(script + PRINT_HEAVY, {}) == "['torch', 'transformers']"


def test_the_command_imports_no_model() -> None:
    script = (
        "import sys; from eem.__main__ import main; sys.argv = ['eem', 'compress', '--list', '/dev/null']\n"
        "try: main()\nexcept SystemExit: pass\n"
    )
    assert printed(script + PRINT_HEAVY, {}).splitlines()[-1] == "[]"


@pytest.mark.parametrize("environment", [CODEC_ONLY, {}])
def test_models_are_registered_when_they_are_asked_for(environment: dict[str, str]) -> None:
    script = "import modeling_eem; modeling_eem.EEMConfig; from transformers import AutoConfig; "
    assert printed(script + "print(AutoConfig.for_model('masked_mixer').model_type)", environment) == "masked_mixer"
    script = "from modeling_eem.codec import build_integer_model as b; print(b.__name__)"
    assert printed(script, environment) == "build_integer_model"


def test_the_loader_registers_them_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "masked_mixer", "vocab_size": 8}')
    script = f"from modeling_eem.loading import load_config; print(load_config({str(tmp_path)!r}).vocab_size)"
    assert printed(script, CODEC_ONLY) == "8"
