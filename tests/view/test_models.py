"""Which models the page takes, and what it asks them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_eem.files import short_names
from modeling_eem.view.models import ViewedModel, check_methods, default_methods, load_viewed


def test_each_kind_of_model_is_known_by_its_folder(viewed: dict[str, ViewedModel]) -> None:
    assert list(viewed) == ["eem", "causal", "codec"]
    assert [model.name for model in viewed.values()] == ["eem-16", "llama-16", "codec"]
    assert default_methods(list(viewed.values())) == ["exact", "causal", "stored"]
    assert not any(model.training for model in (viewed["eem"].model, viewed["causal"].model))


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["runs/a/eem", "runs/b/eem", "runs/causal"]) == ["a/eem", "b/eem", "causal"]
    assert short_names(["gpt2", "org/gpt2"]) == ["gpt2", "org/gpt2"]


def test_methods_that_no_model_has_are_refused(viewed: dict[str, ViewedModel]) -> None:
    models = [viewed["causal"]]
    check_methods(models, ["causal"])
    with pytest.raises(ValueError, match="have no method 'exact', only causal"):
        check_methods(models, ["causal", "exact"])
    with pytest.raises(ValueError, match="takes two models: use eem entropy"):
        check_methods(models, ["teacher"])


def test_folders_that_the_page_cannot_use_are_refused_in_one_line(
    tmp_path: Path, harness_model: Callable[..., Path], model_folders: list[str]
) -> None:
    with pytest.raises(ValueError, match="named twice"):
        load_viewed([model_folders[0], model_folders[0]])
    with pytest.raises(OSError, match="nowhere does not exist"):
        load_viewed([str(tmp_path / "nowhere")])
    bare = shutil.copytree(harness_model("llama"), tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_viewed([str(bare)])


def test_a_token_classifier_is_known_by_its_architecture(tmp_path: Path, harness_model: Callable[..., Path]) -> None:
    from transformers import AutoModelForTokenClassification

    folder = shutil.copytree(harness_model("llama"), tmp_path / "regression")
    AutoModelForTokenClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForTokenClassification"]
    (model,) = load_viewed([str(folder)])
    assert model.kind == "token_classifier" and model.methods == ("regression",)
