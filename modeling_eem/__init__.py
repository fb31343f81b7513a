from .configuration_masked_mixer import MaskedMixerConfig
from .modeling_masked_mixer import *
