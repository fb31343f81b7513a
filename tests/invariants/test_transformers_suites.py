"""transformers' own common tests, run against this project's models.

Their code is not part of this repository. `make test` unpacks what transformers' source distribution holds of it
(`ModelTesterMixin`, `ConfigTester`) into `.venv/transformers-tests`. The generation tests are in transformers' git
repository only: `TRANSFORMERS_SOURCE=/path/to/checkout make test` runs them too.
"""

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto

from modeling_eem import (
    EEMConfig,
    EEMForCausalLM,
    EEMModel,
    MaskedMixerConfig,
    MaskedMixerForCausalLM,
    MaskedMixerForTokenClassification,
    MaskedMixerModel,
)

SOURCE = os.environ.get("TRANSFORMERS_SOURCE", str(Path(sys.prefix) / "transformers-tests"))
PACKAGE = "transformers_tests"


def _load(name: str) -> types.ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


def _open_package() -> bool:
    """Make transformers' `tests` folder importable as a package; what it lacks of its own imports becomes empty."""
    folder = Path(SOURCE) / "tests"
    if not (folder / "test_modeling_common.py").exists():
        return False
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for module, contents in {
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        "utils.test_configuration_utils": {"config_common_kwargs": {}},
    }.items():
        if not (folder / (module.replace(".", "/") + ".py")).exists():
            parent = types.ModuleType(f"{PACKAGE}.{module.split('.')[0]}")
            parent.__path__ = []
            empty = types.ModuleType(f"{PACKAGE}.{module}")
            vars(empty).update(contents)
            sys.modules |= {parent.__name__: parent, empty.__name__: empty}
    return True


if not _open_package():
    pytest.skip("transformers' tests are not there: `make test` fetches them", allow_module_level=True)

common = _load("test_modeling_common")
ConfigTester = _load("test_configuration_common").ConfigTester

# Label tests find a model's head by its class's name here.
for _config_class, _model_class, _causal_lm_class in (
    (MaskedMixerConfig, MaskedMixerModel, MaskedMixerForCausalLM),
    (EEMConfig, EEMModel, EEMForCausalLM),
):
    modeling_auto.MODEL_MAPPING_NAMES[_config_class.model_type] = _model_class.__name__
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_config_class.model_type] = _causal_lm_class.__name__
modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["masked_mixer"] = MaskedMixerForTokenClassification.__name__

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Tester:
    """What the common tests ask of a model's own tester: sizes, a config, inputs."""

    is_training = True
    batch_size, seq_length = 3, 7
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, context = 99, 32, 2, 2, 128
    num_labels, type_sequence_label_size = 3, 2

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> PreTrainedConfig:
        raise TypeError("every tester has a config of its own")

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class MixerTester(Tester):
    variant: dict[str, Any] = {}

    def get_config(self) -> MaskedMixerConfig:
        return MaskedMixerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            max_position_embeddings=self.context,
            **SPECIAL,
            **self.variant,
        )


class HeadsMixerTester(MixerTester):
    variant = {"num_mixing_heads": 2, "mixing_kernel_size": 3}


class EEMTester(Tester):
    introduction = "token"
    model_type = "masked_mixer"

    def backbone(self, hidden_size: int, context: int) -> dict[str, Any]:
        sizes = {"vocab_size": self.vocab_size, "num_hidden_layers": self.num_hidden_layers, **SPECIAL}
        sizes |= {"model_type": self.model_type, "hidden_size": hidden_size, "max_position_embeddings": context}
        if self.model_type == "llama":
            sizes |= {"num_attention_heads": 2, "intermediate_size": 2 * hidden_size}
        return sizes

    def get_config(self) -> EEMConfig:
        return EEMConfig(
            encoder_config=self.backbone(16, self.context),
            decoder_config=self.backbone(self.hidden_size, self.context + (self.introduction == "token")),
            bottleneck_size=8,
            memory_introduction=self.introduction,
        )


class EmbeddingTester(EEMTester):
    introduction = "embedding"


class LlamaCombinationTester(EEMTester):
    introduction = "combination"
    model_type = "llama"


class Suite(common.ModelTesterMixin, common.GenerationTesterMixin):
    """The common tests, with what this project's models do differently."""

    model_tester_class: type[Tester]
    config_class: type[PreTrainedConfig]
    has_attentions = False
    test_resize_embeddings = True
    force_left_padding_test = True

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, common_properties=["hidden_size", "num_hidden_layers", "vocab_size"]
        )

    def test_the_config_passes_the_common_tests(self) -> None:
        self.config_tester.run_common_tests()

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, seq_length: int, config: PreTrainedConfig
    ) -> None:
        """A mixer's cache holds mixing inputs as keys and empty values; an EEM's counts text tokens."""
        self.assertEqual(past_key_values.get_seq_length(), seq_length)
        self.assertEqual(len(past_key_values), config.num_hidden_layers)


class MaskedMixerTest(Suite, unittest.TestCase):
    model_tester_class, config_class = MixerTester, MaskedMixerConfig
    all_model_classes = (MaskedMixerModel, MaskedMixerForCausalLM, MaskedMixerForTokenClassification)
    all_generative_model_classes = (MaskedMixerForCausalLM,)


class HeadsMaskedMixerTest(MaskedMixerTest):
    model_tester_class = HeadsMixerTester


class EEMSuite(Suite):
    """Skipped: what needs one embedding table (an EEM has two, and refuses `inputs_embeds`)."""

    config_class = EEMConfig
    all_model_classes = (EEMModel, EEMForCausalLM)
    all_generative_model_classes = (EEMForCausalLM,)

    def test_the_config_passes_the_common_tests(self) -> None:
        """The composite check finds a sub-config in the saved file by its model type alone, so here both differ."""
        composite = self.config_tester.create_and_test_config_from_and_save_pretrained_composite

        def of_two_types() -> None:
            self.config_tester.inputs_dict = {
                "encoder_config": LlamaConfig(vocab_size=8000, max_position_embeddings=512)
            }
            composite()
            self.config_tester.inputs_dict = {}

        self.config_tester.create_and_test_config_from_and_save_pretrained_composite = of_two_types
        super().test_the_config_passes_the_common_tests()

    def test_retain_grad_hidden_states_attentions(self) -> None:
        if self.model_tester.introduction == "token":
            self.skipTest("hidden states without the memory's position are slices, which no loss passes through")
        super().test_retain_grad_hidden_states_attentions()

    def test_generate_from_random_inputs_embeds(self) -> None:
        self.skipTest("an EEM refuses inputs_embeds")

    def test_generate_from_inputs_embeds_0_greedy(self) -> None:
        self.skipTest("an EEM refuses inputs_embeds")

    def test_generate_from_inputs_embeds_1_beam_search(self) -> None:
        self.skipTest("an EEM refuses inputs_embeds")

    def test_generate_continue_from_inputs_embeds(self) -> None:
        self.skipTest("an EEM refuses inputs_embeds")


class EEMTokenTest(EEMSuite, unittest.TestCase):
    model_tester_class = EEMTester


class EEMEmbeddingTest(EEMSuite, unittest.TestCase):
    model_tester_class = EmbeddingTester

    def test_tied_weights_keys(self) -> None:
        self.skipTest("ties the head to embeddings that are narrower, which the config refuses")


class EEMLlamaCombinationTest(EEMSuite, unittest.TestCase):
    model_tester_class = LlamaCombinationTester

    def test_model_rope_scaling_from_config_0_linear(self) -> None:
        self.skipTest("wants rows longer than the context, which an EEM refuses")

    def test_model_rope_scaling_from_config_1_dynamic(self) -> None:
        self.skipTest("wants rows longer than the context, which an EEM refuses")

    def test_model_rope_scaling_from_config_2_yarn(self) -> None:
        self.skipTest("wants rows longer than the context, which an EEM refuses")
