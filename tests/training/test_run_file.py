"""Run files: what they merge, cast and refuse; and what the quickstart's two share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, PreTrainedConfig

from modeling_eem import (
    EEMAutoencoder,
    EEMAutoencoderConfig,
    EEMConfig,
    EEMForCausalLM,
    MaskedMixerConfig,
    MaskedMixerForCausalLM,
)
from modeling_eem.training import (
    DataArguments,
    RunArguments,
    TokenWeightedTrainingArguments,
    build_config,
    build_model,
    read_run_file,
    training_flops,
)

ROOT = Path(__file__).parents[2]
ARGUMENTS = (DataArguments, TokenWeightedTrainingArguments)
DATA = {"tokenizer": "t", "train_files": ["/a.txt"], "validation_files": ["/b.txt"], "report_to": "none"}
Reader = Callable[..., tuple[PreTrainedConfig, DataArguments, TokenWeightedTrainingArguments]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Reads a run file of the given values (a mixer's, with data, unless they say otherwise) and overrides."""

    def read(values: dict[str, Any] | str, *overrides: str) -> Any:
        text = values if isinstance(values, str) else yaml.safe_dump({"model_type": "masked_mixer", **DATA, **values})
        (tmp_path / "run.yaml").write_text(text)
        config, (data, arguments) = read_run_file(tmp_path / "run.yaml", ARGUMENTS, overrides)
        return config, data, arguments

    return read


def test_one_flat_file_is_model_data_and_training(read: Reader) -> None:
    config, data, arguments = read({"hidden_size": 24, "rows": "stream", "max_steps": 7, "disable_tqdm": True})
    assert isinstance(config, MaskedMixerConfig) and config.hidden_size == 24 and config.intermediate_size == 96
    assert (data.tokenizer, data.train_files, data.validation_files) == ("t", ["/a.txt"], ["/b.txt"])
    assert data.rows == "stream" and arguments.max_steps == 7 and arguments.disable_tqdm


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("learning_rate", "2e-4", 2e-4),
        ("learning_rate", "1", 1.0),
        ("weight_decay", "0", 0.0),
        ("layer_norm_eps", "1e-6", 1e-6),
        ("layer_norm_eps", "0", 0.0),
        ("num_mixing_heads", "4", 4),
        ("is_causal", "false", False),
        ("hidden_act", "relu", "relu"),
        ("intermediate_size", "null", 2048),
        ("tie_word_embeddings", "true", True),
        ("max_steps", "-1", -1),
        ("train_files", "[/x.txt, /y.txt]", ["/x.txt", "/y.txt"]),
        ("save_strategy", '"no"', "no"),
        ("save_strategy", "no", "no"),
        ("eval_strategy", "no", "no"),
        ("disable_tqdm", "no", False),
        ("is_causal", "no", False),
        ("tie_word_embeddings", "yes", True),
        ("eval_steps", "null", None),
        ("max_held_out_rows", "null", None),
    ],
)
def test_values_are_cast_by_their_fields(read: Reader, key: str, text: str, value: Any) -> None:
    values = {name: value for name, value in {"model_type": "masked_mixer", **DATA}.items() if name != key}
    file = f"{yaml.safe_dump(values)}{key}: {text}\n"
    for results in (read(file), read({}, f"--{key}", text)):
        found = next(getattr(result, key) for result in results if key in vars(result))
        assert found == value and isinstance(found, type(value))


@pytest.mark.parametrize("number", ["0", "1e-1", "0.5"])
def test_values_of_sub_configs_are_cast_too(read: Reader, number: str) -> None:
    part = {"layer_norm_eps": yaml.safe_load(number)}
    llama = {"model_type": "llama", "rms_norm_eps": yaml.safe_load(number), "vocab_size": 8000}
    llama["max_position_embeddings"] = 513
    eem = {"model_type": "eem", "encoder_config": part, "decoder_config": llama, "noise_scale": yaml.safe_load(number)}
    config = read(eem)[0]
    assert isinstance(config, EEMConfig) and isinstance(config.decoder_config, LlamaConfig)
    found = config.noise_scale, config.encoder_config.layer_norm_eps, config.decoder_config.rms_norm_eps
    assert found == (float(number),) * 3 and {type(value) for value in found} == {float}
    assert config.encoder_config.position_alignment == "right", "the default of an encoder"


@pytest.mark.parametrize("number", ["1e4", "1.5E+4", "10000"])
def test_numbers_inside_mappings_are_numbers(read: Reader, number: str) -> None:
    """YAML 1.1 takes `1e4` for text."""
    llama = {**DATA, "model_type": "llama", "vocab_size": 8000}
    theta = f"rope_parameters: {{rope_type: default, rope_theta: {number}}}\n"
    for config in (
        read(yaml.safe_dump(llama) + theta)[0],
        read(llama, "--rope_parameters.rope_type", "default", "--rope_parameters.rope_theta", number)[0],
    ):
        assert config.rope_parameters["rope_theta"] == float(number)
    assert read({"hidden_act": "relu", "run_name": "1e4x"})[2].run_name == "1e4x"


def test_base_files_merge(tmp_path: Path, read: Reader) -> None:
    """Key by key, sub-configs too; lists are replaced; the nearest file wins."""
    grandparent = {**DATA, "learning_rate": "1e-3", "max_steps": 5, "train_files": ["/x.txt", "/y.txt"], "seed": 1}
    parent = {"base": "../grand.yaml", "model_type": "eem", "max_steps": 6, "seed": 2, "noise_scale": 0.25}
    parent["encoder_config"] = {"hidden_size": 32, "num_hidden_layers": 3}
    (tmp_path / "sub").mkdir()
    (tmp_path / "grand.yaml").write_text(yaml.safe_dump(grandparent))
    (tmp_path / "sub" / "parent.yaml").write_text(yaml.safe_dump(parent))
    child = {"base": "sub/parent.yaml", "seed": 3, "train_files": ["/z.txt"], "encoder_config": {"hidden_size": 64}}
    config, data, arguments = read(yaml.safe_dump(child), "--encoder_config.mixing_kernel_size", "2")
    assert (arguments.learning_rate, arguments.max_steps, arguments.seed) == (1e-3, 6, 3)
    assert data.train_files == ["/z.txt"] and data.validation_files == ["/b.txt"] and config.noise_scale == 0.25
    encoder = config.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.mixing_kernel_size) == (64, 3, 2)


def test_paths_are_relative_to_their_run_file(tmp_path: Path, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each to the file that says it, overrides to the working directory; assets and URLs to neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    base = {**DATA, "train_files": ["x.txt", "hf://datasets/a/b/c.txt", "asset:quickstart/train.jsonl.gz"]}
    base |= {"validation_files": ["../y.txt"], "output_dir": "out", "tokenizer": "../../t"}
    (tmp_path / "sub" / "base.yaml").write_text(yaml.safe_dump(base))
    values = {"base": "sub/base.yaml", "model_type": "masked_mixer", "output_dir": "mine"}
    _, data, arguments = read(yaml.safe_dump(values))
    assert data.train_files == ["sub/x.txt", *base["train_files"][1:]] and data.validation_files == ["y.txt"]
    assert arguments.output_dir == "mine" and data.tokenizer == str(tmp_path.parent / "t")
    _, data, arguments = read(yaml.safe_dump(values), "--train_files", "x.txt", "z.txt", "--output_dir", "../out")
    assert data.train_files == ["x.txt", "z.txt"] and arguments.output_dir == "../out"


def test_a_path_may_begin_at_home(read: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    _, data, arguments = read(
        {"output_dir": "~/out", "train_files": ["~/a"], "validation_files": ["~/b"], "tokenizer": "~/t"}
    )
    assert data.train_files == [str(home / "a")] and data.validation_files == [str(home / "b")]
    assert data.tokenizer == str(home / "t") and arguments.output_dir == str(home / "out")


def test_a_run_file_can_build_on_one_that_ships(read: Reader) -> None:
    config, data, arguments = read("base: asset:configs/quickstart.yaml\nmax_steps: 3\ntrain_files: [/x.txt]\n")
    assert isinstance(config, EEMConfig) and arguments.max_steps == 3 and arguments.learning_rate == 2e-3
    assert data.train_files == ["/x.txt"] and data.validation_files == ["asset:quickstart/validation.jsonl.gz"]


def test_a_path_is_the_same_text_however_the_run_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's record holds it, and a run goes on only where its record is the same."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    (tmp_path / "sub" / "run.yaml").write_text(
        yaml.safe_dump({"model_type": "masked_mixer", **DATA, "train_files": ["x.txt"]})
    )
    for name in ("run.yaml", "../sub/run.yaml", tmp_path / "sub" / "run.yaml"):
        assert read_run_file(name, ARGUMENTS)[1][0].train_files == ["x.txt"]


def test_a_tokenizer_is_a_folder_beside_the_run_file_or_a_name_on_the_hub(tmp_path: Path, read: Reader) -> None:
    assert read({"tokenizer": "bytes"})[1].tokenizer == "bytes"
    (tmp_path / "bytes").mkdir()
    assert read({"tokenizer": "bytes"})[1].tokenizer == str(tmp_path / "bytes")
    assert read({"tokenizer": "./nowhere"})[1].tokenizer == str(tmp_path / "nowhere")
    assert read({"tokenizer": "asset:tokenizer"})[1].tokenizer == "asset:tokenizer"


def test_the_command_line_overrides_the_run_file(read: Reader) -> None:
    config, _, arguments = read({"learning_rate": "1e-3"}, "--learning_rate", "2e-4", "--hidden_size", "16")
    assert arguments.learning_rate == 2e-4 and config.hidden_size == 16
    config = read({"model_type": "eem"}, "--encoder_config.hidden_size", "16", "--noise_scale", "0")[0]
    assert config.encoder_config.hidden_size == 16 and config.noise_scale == 0.0
    assert read({}, "--model_type", "llama")[0].model_type == "llama"


@pytest.mark.parametrize(
    "values, overrides, message",
    [
        ({"learning_rat": 1}, (), r"run.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'\?"),
        ({"hiden_size": 8}, (), "unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"zzzzzz": 1}, (), r"unknown key 'zzzzzz'\."),
        ({}, ("--max_stps", "3"), "unknown key 'max_stps'; did you mean 'max_steps'"),
        ({"noise_scale": 0.5}, (), "unknown key 'noise_scale'"),  # of another model
        (
            {"model_type": "eem", "encoder_config": {"hiden_size": 8}},
            (),
            "encoder_config.*'hiden_size'.*'hidden_size'",
        ),
        ({"model_type": "eem"}, ("--decoder_config.num_layers", "8"), "decoder_config.* no key 'num_layers'"),
        (
            {"model_type": "eem", "encoder_config": {"model_type": "llama", "layer_norm_eps": 1e-5}},
            (),
            "encoder_config: LlamaConfig has no key 'layer_norm_eps'; did you mean 'rms_norm_eps'",
        ),
        ({"model_type": "eeem"}, (), "run.yaml: model_type must be a type that AutoConfig knows.*'eeem'"),
        ({"model_type": None}, (), "model_type must be .* got None"),
        ({"model_type": "eem", "encoder_config": {"model_type": "nope"}}, (), "encoder_config: .*model_type 'nope'"),
        ({"hidden_size": "wide"}, (), "hidden_size must be an integer, got 'wide'"),
        ({"layer_norm_eps": "small"}, (), "layer_norm_eps must be a number, got 'small'"),
        (
            {"model_type": "eem", "encoder_config": {"hidden_size": "wide"}},
            (),
            "encoder_config.hidden_size must be an",
        ),
        ({"hidden_size": 30, "num_mixing_heads": 4}, (), r"hidden_size \(30\) must be divisible"),
        ({"train_files": None}, (), "train_files is empty"),
        ({"rows": "wind"}, (), "rows must be one of windows, pad, stream, pack; got 'wind'"),
        ({}, ("--learning_rate",), "overrides must come as `--key value` pairs"),
        ({}, ("learning_rate", "1"), "overrides must come as `--key value` pairs"),
        ("base: nowhere.yaml\n", (), "nowhere.yaml does not exist"),
        ("a: [\n", (), "run.yaml is not YAML"),
        ("- a\n", (), "run.yaml must hold `key: value` lines"),
        ("", (), "run.yaml must hold `key: value` lines"),
    ],
)
def test_what_is_wrong_is_named(
    read: Reader, values: dict[str, Any] | str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(values, *overrides)


def test_null_is_not_the_default(tmp_path: Path) -> None:
    """Held-out rows are measured six times where nothing is said, and null says: as often as is logged."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model_type": "masked_mixer", **DATA, "eval_steps": None, "logging_steps": 7}))
    assert read_run_file(path, (DataArguments, RunArguments))[1][1].eval_steps == 7
    with pytest.raises(ValueError, match="command line: learning_rate cannot be null: give it a value"):
        read_run_file(path, (DataArguments, RunArguments), ["--learning_rate", "null"])


@pytest.mark.parametrize(
    "override, message",
    [
        (("--learning_rate", "fast"), "learning_rate"),
        (("--save_strategy", "sometimes"), "save_strategy|sometimes"),
        (("--max_stps", "3"), "unknown key 'max_stps'"),
        (("--hidden_size", "wide"), "hidden_size must be an integer"),
        (("--layer_norm_eps", "1e999"), "layer_norm_eps must be a finite number"),
        (("--rows", "wind"), "rows must be one of"),
        (("--seed",), "overrides must come as"),
    ],
)
def test_the_command_line_is_blamed_for_what_it_says(read: Reader, override: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^command line: .*({message})"):
        read({}, *override)
    with pytest.raises(ValueError, match="^.*run.yaml: .*unknown key 'learning_rat'"):
        read({"learning_rat": 1}, "--max_steps", "3")


@pytest.mark.parametrize(
    "key, value",
    [
        ("prediction_loss_only", "true"),
        ("batch_eval_metrics", "true"),
        ("eval_do_concat_batches", "false"),
        ("eval_use_gather_object", "true"),
        ("bf16_full_eval", "true"),
        ("fp16_full_eval", "true"),
        ("include_for_metrics", "loss"),
        ("label_names", "labels"),
        ("remove_unused_columns", "false"),
        ("include_num_input_tokens_seen", "true"),
        ("label_smoothing_factor", "0.1"),
        ("average_tokens_across_devices", "false"),
        ("save_only_model", "true"),
        ("ignore_data_skip", "true"),
        ("auto_find_batch_size", "true"),
        ("restore_callback_states_from_checkpoint", "true"),
        ("save_on_each_node", "true"),
        ("enable_jit_checkpoint", "true"),
        ("logging_nan_inf_filter", "true"),
        ("accelerator_config", '{"split_batches": true}'),
        ("accelerator_config", '{"use_seedable_sampler": false}'),
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "batch_rebalance"),
        ("save_strategy", "best"),
        ("metric_for_best_model", "nonsense"),
        ("num_train_epochs", "0"),
        ("fsdp", "full_shard"),
        ("save_total_limit", "0"),
        ("save_total_limit", "-1"),
        ("save_steps", "-1"),
        ("logging_steps", "nan"),
        ("eval_steps", "inf"),
        ("learning_rate", "nan"),
        ("learning_rate", "-1"),
        ("weight_decay", "inf"),
        ("adam_beta1", "nan"),
        ("seed", "-1"),
        ("seed", "1000000000000"),
        ("max_steps", "0"),
        ("max_steps", "1000000000000"),
        ("num_train_epochs", "inf"),
        ("num_train_epochs", "1e12"),
        ("per_device_train_batch_size", "0"),
        ("per_device_train_batch_size", "1000000000000"),
        ("per_device_eval_batch_size", "-2"),
        ("gradient_accumulation_steps", "0"),
        ("dataloader_num_workers", "1000000000000"),
        ("focal_gamma", "nan"),
        ("selected_fraction", "2"),
    ],
)
def test_what_a_run_cannot_honour_is_refused_at_the_start(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model_type": "masked_mixer", **DATA, "use_cpu": True}))
    with pytest.raises(ValueError, match=f"^command line: {key}") as failed:
        read_run_file(path, (DataArguments, RunArguments), [f"--{key}", value])
    assert "\n" not in str(failed.value)


def test_a_cpu_pins_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model_type": "masked_mixer", **DATA, "use_cpu": True}))
    assert not read_run_file(path, (DataArguments, RunArguments))[1][1].dataloader_pin_memory


def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000 + "\n")
    with pytest.raises(ValueError, match="deep.yaml is nested too deeply for a run file"):
        read_run_file(tmp_path / "deep.yaml", ARGUMENTS)


@pytest.mark.parametrize("changes", [{"logging_steps": [1]}, {"learning_rate": [0.1]}, {"padding_side": ["left"]}])
def test_a_list_is_no_single_value(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model_type": "masked_mixer", **DATA, "use_cpu": True, **changes}))
    with pytest.raises(ValueError, match=f"{next(iter(changes))} takes one value, not the list"):
        read_run_file(path, (DataArguments, RunArguments))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        read_run_file(tmp_path / "nowhere.yaml", ARGUMENTS)


@pytest.mark.parametrize(
    "values, overrides, message",
    [
        ({"learning_rate": "fast"}, (), "learning_rate.*'fast'"),
        ({"max_steps": 1.5}, (), "max_steps.*1.5"),
        ({"disable_tqdm": "maybe"}, (), "disable_tqdm"),
        ({"hidden_size": 2.5}, (), "hidden_size"),
        ({"hidden_act": 3}, (), "hidden_act"),
        ({"model_type": "eem", "encoder_config": "wide"}, (), "encoder_config"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, (), "hidden size"),
        ({"model_type": ["eem"]}, (), "model_type"),
        ({"train_files": []}, (), "train_files"),
        ({3: 4}, (), "3"),
        ({}, ("--learning_rate", "[1"), "learning_rate"),
        ({}, ("--hidden_size.x", "1"), "hidden_size"),
        ("base: run.yaml\n", (), "base"),
        ("base: [a]\n", (), "base"),
    ],
)
def test_what_is_wrong_is_a_value_error(
    read: Reader, values: dict[str, Any] | str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(values, *overrides)


def test_arguments_that_are_mappings(read: Reader) -> None:
    assert read({"lr_scheduler_kwargs": {"num_cycles": 2}})[2].lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    "model_type, values, kind",
    [
        ("masked_mixer", {"hidden_size": 8, "num_hidden_layers": 1}, MaskedMixerForCausalLM),
        ("eem", {"bottleneck_size": 3}, EEMForCausalLM),
        ("eem_autoencoder", {"memory_expansion": "unroll"}, EEMAutoencoder),
    ],
)
def test_configs_build_their_models(model_type: str, values: dict[str, Any], kind: type) -> None:
    config = build_config(model_type, values)
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, kind) and {p.dtype for p in model.parameters()} == {torch.float32}
    assert isinstance(config, EEMAutoencoderConfig) == (kind is EEMAutoencoder)
    with pytest.raises(ValueError, match="unknown key 'hiden_size'"):
        build_config(model_type, {"hiden_size": 8})


def test_the_quickstart_compares_equal_compute() -> None:
    flops = []
    for name in ("quickstart.yaml", "quickstart-causal.yaml"):
        config, _ = read_run_file(ROOT / "configs" / name, ARGUMENTS)
        flops.append(training_flops(build_model(config), config.max_position_embeddings))
    assert flops[0] / flops[1] == pytest.approx(1, abs=0.05)


def test_the_quickstart_trains_both_models_alike() -> None:
    runs = [
        read_run_file(ROOT / "configs" / name, ARGUMENTS) for name in ("quickstart.yaml", "quickstart-causal.yaml")
    ]
    (eem, (eem_data, eem_arguments)), (causal, (causal_data, causal_arguments)) = runs
    assert eem_data == causal_data and eem.max_position_embeddings == causal.max_position_embeddings
    for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed"):
        assert getattr(eem_arguments, name) == getattr(causal_arguments, name)
    assert eem.code_dtype is not None and eem.vocab_size == causal.vocab_size == 8000


def test_overrides_come_in_every_usual_form(read: Reader) -> None:
    config, data, arguments = read(
        {"train_files": ["a"]}, "--learning_rate=-1e-3", "--train_files", "b", "c", "--hidden_size", "32"
    )
    assert (config.hidden_size, data.train_files, arguments.learning_rate) == (32, ["b", "c"], -1e-3)
    with pytest.raises(ValueError, match="--seed without a value"):
        read({}, "--seed")
