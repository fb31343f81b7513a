"""The docs say what is true: their commands exist, and their pages run from top to bottom."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[2]
sys.path.append(str(Path(__file__).parent))
from page_runner import blocks  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# Pages whose blocks make all their own inputs; the quickstart's training is run once for all of them.
RUN = ["../README", "tutorial", "bits", "codes", "compress", "entropy", "extend", "generalize", "know", "quantize"]


def _commands() -> Iterator[tuple[str, str]]:
    """(where, command line) of every `eem …` in docs, studies and run files."""
    for page in [*PAGES, *ROOT.glob("studies/*/README.md"), ROOT / "tokenizer/README.md"]:
        for language, text, line in blocks(page.read_text()):
            if language in ("", "bash"):
                for command in re.sub(r"\\\n\s*", "", text).splitlines():
                    if command.lstrip().startswith("eem "):
                        yield f"{page.relative_to(ROOT)}:{line}", command.strip()
    for script in ROOT.glob("studies/*/*.sh"):
        for command in re.findall(r"^ *(eem .*)$", re.sub(r"\\\n\s*", "", script.read_text()), re.MULTILINE):
            yield str(script.relative_to(ROOT)), command
    for file in ROOT.glob("configs/**/*.yaml"):
        for command in re.findall(r"^# +(eem .*)$", file.read_text(), re.MULTILINE):
            yield str(file.relative_to(ROOT)), command


@pytest.mark.parametrize("where, line", list(_commands()))
def test_documented_commands_exist(where: str, line: str) -> None:
    from eem.__main__ import app

    command = get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"{where}: eem has no command {name}"
        command = command.commands[name]
    takes_any = command.context_settings.get("ignore_unknown_options", False)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--") and not takes_any:
            assert word.split("=")[0] in known | {"--help"}, f"{where}: {word} is no option of `eem {line.split()[1]}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_compiles(page: Path) -> None:
    for language, text, line in blocks(page.read_text()):
        if language == "python":
            compile("\n" * (line - 1) + text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, offline_environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    subprocess.run(["eem", "quickstart", "--output", "quickstart"], cwd=folder, env=offline_environment, check=True)
    return folder / "quickstart"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_pages_run_from_top_to_bottom(
    name: str, tmp_path: Path, quickstart: Path, offline_environment: dict[str, str]
) -> None:
    shutil.copytree(quickstart, tmp_path / "quickstart")
    text = (ROOT / "docs" / f"{name}.md").read_text()
    text = text.replace("--output_dir runs/speaking\n", "--output_dir runs/speaking --max_steps 20\n")
    (tmp_path / "page.md").write_text(re.sub(r"^eem quickstart .*\n", "", text, flags=re.MULTILINE))
    runner = [sys.executable, str(Path(__file__).with_name("page_runner.py")), "page.md"]
    done = subprocess.run(runner, cwd=tmp_path, env=offline_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
