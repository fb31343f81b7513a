"""Registers configurations and models with transformers' Auto classes, and kernels with the models."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from .kernels import use_kernels
from .models.configuration_eem import EEMAutoencoderConfig, EEMConfig
from .models.configuration_masked_mixer import MaskedMixerConfig
from .models.modeling_eem import EEMForCausalLM, EEMModel
from .models.modeling_eem_autoencoder import EEMAutoencoder
from .models.modeling_masked_mixer import MaskedMixerForCausalLM, MaskedMixerForTokenClassification, MaskedMixerModel

use_kernels()

for _config_class in (MaskedMixerConfig, EEMConfig, EEMAutoencoderConfig):
    AutoConfig.register(_config_class.model_type, _config_class)
    _config_class.register_for_auto_class()

for _auto_class, _model_classes in {
    AutoModel: (MaskedMixerModel, EEMModel, EEMAutoencoder),
    AutoModelForCausalLM: (MaskedMixerForCausalLM, EEMForCausalLM),
    AutoModelForTokenClassification: (MaskedMixerForTokenClassification,),
}.items():
    for _model_class in _model_classes:
        _auto_class.register(_model_class.config_class, _model_class)
        _model_class.register_for_auto_class(_auto_class.__name__)
