"""Cards of checkpoints: what the Hub reads is read back, and every sentence holds for the kind of model."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from modeling_eem.report.checkpoint_card import CheckpointFacts, checkpoint_card, hub_datasets

FACTS = CheckpointFacts(
    name="sea-eem",
    kind="eem",
    model_type="eem",
    num_parameters=8_980_000,
    context=256,
    code_size=16,
    code_bits=128.0,
    held_out={"bits_per_byte": 2.288731234, "cross_entropy": 5.699},
    held_out_name="held out/addresses.jsonl",
    training={"steps": "180", "loss": "cross_entropy"},
    train_data=["hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT", "/home/me/corpus/addresses.jsonl"],
    licence="apache-2.0",
    language="en",
    base_model="someone/tiny-mixer",
    entropies="method exact, unit nats, model someone/teacher, measured on fineweb-edu",
    comparison={"xz": 2.922},
    figures={"learning curve": "learning_curve.png"},
)
KINDS = ["causal", "eem", "autoencoder", "regression"]


def test_the_hub_reads_back_what_was_said() -> None:
    text = str(checkpoint_card(FACTS))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["language"] == "en" and front["library_name"] == "transformers"
    assert front["datasets"] == ["HuggingFaceFW/fineweb-edu"] and front["base_model"] == "someone/tiny-mixer"
    assert front["pipeline_tag"] == "text-generation" and front["tags"] == ["eem"]
    name, results = model_index_to_eval_results(front["model-index"])
    assert name == "sea-eem"
    assert {result.metric_type: result.metric_value for result in results} == {
        "bits_per_byte": 2.288731,
        "cross_entropy": 5.699,
    }
    assert {(result.dataset_type, result.dataset_name) for result in results} == {
        ("held-out-addresses.jsonl", "held out/addresses.jsonl")
    }
    read = ModelCard(text)
    assert read.data.to_dict() == checkpoint_card(FACTS).data.to_dict()
    assert [result.unique_identifier for result in read.data.eval_results] == [r.unique_identifier for r in results]
    assert ModelCard(str(read)).data.to_dict() == read.data.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_hold_for_the_kind(kind: str) -> None:
    has_code = kind in ("eem", "autoencoder")
    facts = replace(FACTS, kind=kind, code_size=16 if has_code else 0, code_bits=128.0 if has_code else 0.0)
    text = str(checkpoint_card(facts))
    assert re.search(r"^# sea-eem: \w", text, re.MULTILINE)
    assert ("16 numbers, 128 bits" in text) == has_code
    assert ("encoder" in text) == has_code
    assert "The entropies that it was trained towards: method exact" in text
    assert "2.289 bits per byte" in text and re.search(r"\| xz +\| +2\.9220 \|", text)
    assert "/home/me" not in text and "addresses.jsonl" in text
    assert "whole rows only" not in text
    assert ("whole rows only" in str(checkpoint_card(replace(facts, meets_prefixes=False)))) == (kind == "eem")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("location", [".", "someone/sea-eem"])
def test_the_snippet_asks_nothing_and_names_no_folder_of_this_machine(kind: str, location: str) -> None:
    code = re.search(
        r"```python\n(.*?)```", str(checkpoint_card(replace(FACTS, kind=kind, location=location))), re.DOTALL
    )[1]
    ast.parse(code)
    assert code.count("from_pretrained(name, trust_remote_code=True)") == 2 and f'name = "{location}"' in code


def test_a_local_base_model_and_a_code_without_a_format_are_told_in_words() -> None:
    facts = replace(FACTS, base_model="/home/me/runs/first", code_bits=None, entropies=None, train_data=["a.txt"])
    card = checkpoint_card(facts)
    assert "base_model" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
    assert "Training went on from first." in card.text and "no storage format" in card.text
    assert "trained towards" not in card.text and "bits as they are stored" not in card.text


def test_data_sets_of_the_hub() -> None:
    names = ["hf://datasets/a/b/c.parquet", "hf://datasets/a/b@main/d", "text.jsonl", "hf://datasets/a/c"]
    assert hub_datasets(names) == ["a/b", "a/c"]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    card = checkpoint_card(replace(FACTS, licence=None, language=None, base_model=None, held_out={}))
    assert {"license", "language", "base_model", "model-index"}.isdisjoint(card.data.to_dict())
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
