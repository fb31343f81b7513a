"""eem evaluate correlation on two estimates of the same rows, as `eem entropy` leaves them."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import Result
from datasets import load_from_disk
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typer.testing import CliRunner

from eem.evaluate import app
from modeling_eem.data import ROW_MODES, RowFormat
from modeling_eem.data.arrow_files import TOKENIZER_FOLDER, arrow_stream, finish_dataset
from modeling_eem.data.tokenizer import encode_text
from modeling_eem.entropy.statistics import SplitWords, regression
from modeling_eem.evaluation import correlation


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["correlation", *map(str, arguments)])


@pytest.fixture(scope="module")
def estimates(tmp_path_factory: pytest.TempPathFactory, harness_model: Callable[..., Path]) -> dict[str, Path]:
    """Two folders of 80 rows, "causal" = 0.5 "exact" + 1 + noise; "other" is of other rows."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
    parent = tmp_path_factory.mktemp("estimates")
    ids, exact, causal = [], [], []
    for _ in range(80):
        length = int(torch.randint(4, 40, (1,), generator=generator))
        ids.append([0, *torch.randint(2, 300, (length,), generator=generator).tolist()])
        values = 4 / torch.arange(1, length + 1) + torch.rand(length, generator=generator)
        exact.append([math.nan, *values.tolist()])
        causal.append([math.nan, *(0.5 * values + 1 + 0.1 * torch.randn(length, generator=generator)).tolist()])
    for name, values, sha in (("exact", exact, "a"), ("causal", causal, "a"), ("other", exact, "b")):
        schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("token_entropies", pa.list_(pa.float32()))])
        table = pa.table({"input_ids": ids, "token_entropies": values}, schema=schema)
        (parent / name).mkdir()
        with arrow_stream(parent / name / "train" / "data-00000-of-00001.arrow", schema) as writer:
            writer.write_table(table)
        finish_dataset(parent / name, ["train"], schema, name)
        made = {"method": name, "unit": "nats", "rows_sha256": sha}
        (parent / name / "entropies.json").write_text(json.dumps(made))
        tokenizer.save_pretrained(parent / name / TOKENIZER_FOLDER)
    return {folder.name: folder for folder in parent.iterdir()}


def test_tables_and_plots(estimates: dict[str, Path], tmp_path: Path) -> None:
    result = _run("--entropies", estimates["exact"], estimates["causal"], "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "correlation.md",
        "correlation.json",
        "scatter-exact-causal.png",
        "index.png",
    }
    content = json.loads((tmp_path / "out" / "correlation.json").read_text())
    (fit,) = content["regressions"]
    assert (fit["x"], fit["y"]) == ("exact", "causal")
    assert fit["slope"]["value"] == pytest.approx(0.5, abs=0.02)
    assert fit["slope"]["low"] < 0.5 < fit["slope"]["high"] and fit["intercept"]["low"] < 1 < fit["intercept"]["high"]
    assert fit["r_squared"]["value"] > 0.95
    mean = content["index"]["exact"]["mean"]
    assert mean[0] > 0.9 > mean[3] > mean[20], "entropies fall along the row"
    assert content["words"]["exact"]["words"] > 0
    assert content["provenance"]["command"]
    markdown = (tmp_path / "out" / "correlation.md").read_text()
    assert "Words of several tokens" in markdown and "](scatter-exact-causal.png)" in markdown
    for name in ("scatter-exact-causal.png", "index.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_padding_changes_no_point(estimates: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, stored with padding: of many rows some are drawn, and they must be the same ones."""
    monkeypatch.setattr(correlation, "POINTS", 300)
    padded = tmp_path / "padded"
    shutil.copytree(estimates["causal"], padded)
    plain = load_from_disk(str(padded))["train"]
    longest = max(map(len, plain["input_ids"])) + 9
    schema = pa.schema([
        ("input_ids", pa.list_(pa.int32())), ("attention_mask", pa.list_(pa.int8())),
        ("token_entropies", pa.list_(pa.float32())),
    ])  # fmt: skip
    table = pa.table(
        {
            "input_ids": [[*ids, *[0] * (longest - len(ids))] for ids in plain["input_ids"]],
            "attention_mask": [[1] * len(ids) + [0] * (longest - len(ids)) for ids in plain["input_ids"]],
            "token_entropies": [[*row, *[math.nan] * (longest - len(row))] for row in plain["token_entropies"]],
        },
        schema=schema,
    )
    with arrow_stream(padded / "train" / "data-00000-of-00001.arrow", schema) as writer:
        writer.write_table(table)
    finish_dataset(padded, ["train"], schema, "padded")
    exact, *others = correlation.open_folders([estimates["exact"], estimates["causal"], padded])
    fits = [correlation.regress_folders(exact, other) for other in others]
    expected, found = (correlation.scatter_points(exact, other, fit.tokens) for other, fit in zip(others, fits))
    np.testing.assert_array_equal(found, expected)
    assert 200 < len(expected[0]) < 600


def test_the_first_rows_length_changes_no_number_of_points(
    estimates: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "POINTS", 300)
    folders = [Path(shutil.copytree(estimates[name], tmp_path / name)) for name in ("exact", "causal")]
    for folder in folders:
        rows = load_from_disk(str(folder))["train"].to_list()
        table = pa.Table.from_pylist([{name: values[:2] for name, values in rows[0].items()}, *rows[1:]])
        with arrow_stream(folder / "train" / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
        finish_dataset(folder, ["train"], table.schema, "short")
    result = _run("--entropies", *folders, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    x, y = correlation.open_folders(folders)
    assert 200 < len(correlation.scatter_points(x, y, correlation.regress_folders(x, y).tokens)[0]) < 600


def test_an_estimate_is_not_compared_with_itself(estimates: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "exact"
    twin.symlink_to(estimates["exact"])
    result = _run("--entropies", estimates["exact"], estimates["causal"], twin, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "at least two different folders" in result.stderr


def test_bad_input_is_one_line(estimates: dict[str, Path], tmp_path: Path) -> None:
    for folders, message in (
        ([estimates["exact"]], "at least two different folders"),
        ([estimates["exact"], estimates["other"]], "hold different token ids"),
        ([estimates["exact"], tmp_path], "holds no finished entropies"),
    ):
        result = _run("--entropies", *folders, "--output", tmp_path / "out")
        assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_the_regression_is_that_of_the_rows(estimates: dict[str, Path], tmp_path: Path) -> None:
    """Two batches of arrow rows or one: the command reads the same pairs."""
    from modeling_eem.evaluation.correlation import open_folders, regress_folders

    x, y = open_folders([estimates["exact"], estimates["causal"]])
    rows = [folder.rows.with_format("numpy")["token_entropies"][:] for folder in (x, y)]
    assert regress_folders(x, y) == regression(zip(*rows))


def test_each_pair_has_a_plot_of_its_own(estimates: dict[str, Path], tmp_path: Path) -> None:
    """Also where two names joined are two other names joined."""
    names = {"a-b": "exact", "c": "causal", "a": "exact", "b-c": "causal"}
    folders = [shutil.copytree(estimates[source], tmp_path / name) for name, source in names.items()]
    result = _run("--entropies", *folders, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    markdown = (tmp_path / "out" / "correlation.md").read_text()
    plots = re.findall(r"\]\((scatter-[^)]*)\)", markdown)
    assert len(plots) == len(set(plots)) == 6 and all((tmp_path / "out" / plot).is_file() for plot in plots)
    result = _run("--entropies", *[tmp_path / f"folder-{number}" for number in range(8)], "--output", tmp_path / "no")
    assert result.exit_code == 2 and "a plot holds 7 estimates, not 8" in result.stderr


def _open(folder: Path, columns: dict[str, list], tokenizer: PreTrainedTokenizerBase) -> correlation.EntropyFolder:
    folder.mkdir(exist_ok=True)
    table = pa.table(columns)
    with arrow_stream(folder / "train" / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    finish_dataset(folder, ["train"], table.schema, "cut")
    (folder / "entropies.json").write_text(json.dumps({"method": "x", "unit": "nats", "rows_sha256": "c"}))
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    return correlation.EntropyFolder.open(folder, "cut")


@pytest.mark.parametrize("documents, words", [([0, 0, 1], 5), ([0, 1, 2], 7), (None, 7)])
def test_a_word_that_two_rows_share_is_no_word(
    documents: list[int] | None, words: int, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The first row ends with " remar", the second is the rest of its document, "kable indomitable"."""
    tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
    whole = encode_text(tokenizer, "unbelievable remarkable indomitable")
    cut = len(encode_text(tokenizer, "unbelievable remar"))
    columns: dict[str, list] = {"input_ids": [[0, *part] for part in (whole[:cut], whole[cut:], whole)]}
    columns["token_entropies"] = [[math.nan, *[1.0] * (len(row) - 1)] for row in columns["input_ids"]]
    if documents is not None:
        columns["document_ids"] = [[number] * len(row) for number, row in zip(documents, columns["input_ids"])]
    assert _open(tmp_path, columns, tokenizer).words().words == words


@pytest.mark.parametrize("mode", ["windows", "pack"])
def test_a_cut_word_alone_is_missing_however_rows_are_made(
    mode: str, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Two documents, the first cut in its second word. A token's value is its id, so sums tell which words count."""
    tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
    texts = ["unbelievable remarkable axes", "fox"]
    cut = 1 + len(encode_text(tokenizer, "unbelievable remar"))

    def words(name: str, length: int, given: list[str]) -> SplitWords:
        ids = [encode_text(tokenizer, text) for text in given]
        rows = list(ROW_MODES[mode](enumerate(ids), RowFormat.from_tokenizer(tokenizer, length)))
        kept = ("input_ids", "document_ids", *(["position_ids"] if mode == "pack" else []))
        columns = {column: [row[column] for row in rows] for column in kept}
        assert mode == "windows" or len({*rows[-1]["document_ids"]}) == len(texts)
        columns["token_entropies"] = [list(map(float, row["input_ids"])) for row in rows]
        return _open(tmp_path / name, columns, tokenizer).words()

    found = words("cut", cut, texts)
    texts = ["unbelievable", " axes", "fox"]
    expected = words("whole", 100, texts)
    assert found.words == expected.words == 3
    assert (found.first.value, found.later.value) == pytest.approx((expected.first.value, expected.later.value))
