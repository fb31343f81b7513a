"""This project's own keys of run files, for `eem train --help`, which imports neither PyTorch nor transformers.

tests/eem/test_train_keys.py compares them with the dataclasses that read them.
"""

DATA_KEYS = {
    "tokenizer": "folder or Hub name; if not given, model_name_or_path's, or else the one that ships",
    "train_files": ".txt, .jsonl or .parquet files, also .gz",
    "validation_files": "text to measure on",
    "train_rows": "a folder of `eem data prepare` or `eem entropy`, in place of train_files",
    "rows": "how text becomes rows: windows, pad, stream or pack",
    "max_length": "tokens of a row; if not given, all that the model takes",
    "padding_side": "left or right",
    "max_held_out_rows": "measure on at most this many of the first held-out rows",
    "licence": "the trained model's, for its card: apache-2.0",
    "language": "the trained model's, for its card: en",
}

LOSS_KEYS = {
    "token_loss": "cross_entropy, complement, distance, hinge, threshold, focal, mile or selective",
    "entropy_normalization": "for complement: minmax within each document, or none",
    "entropy_columns": "the rows' columns of entropies, one a stage of training; if not given, token_entropies",
    "entropy_stage_steps": "the step at which each later stage begins; if not given, all are equally long",
    "entropy_threshold": "for threshold: nats",
    "focal_gamma": "of focal",
    "mile_gamma": "of mile",
    "selected_fraction": "for selective: the share of tokens that it keeps",
    "regression_alignment": "with num_labels: 1: a token's entropy is the output before it (prefix) or at it (token); "
    "if not given, the trained model's own, or prefix",
}

STOPPING_KEYS = {
    "early_stopping_patience": "end after so many measurements without a better one, and keep the best model",
    "load_best_model_at_end": "keep the best measured model, not the last; each measurement is then a checkpoint",
    "metric_for_best_model": "loss, bits_per_byte, cross_entropy, token_accuracy or mean_squared_error",
}

MODEL_KEYS = {
    "model_type": "eem, eem_autoencoder, masked_mixer, or any type that AutoConfig knows",
    "model_name_or_path": "a model to start from, in place of model_type",
}

MIXER_KEYS = {
    "vocab_size": "number of tokens, as in the tokenizer",
    "hidden_size": "width d",
    "intermediate_size": "width of the feed-forward layers; 4 d if not given",
    "num_hidden_layers": "blocks",
    "max_position_embeddings": "context n, in tokens",
    "num_mixing_heads": "0: flat mixing",
    "mixing_kernel_size": "taps of the mixing convolution",
    "is_causal": "false: every position sees all positions",
    "position_alignment": "left or right",
    "hidden_act": "gelu is the exact one",
    "layer_norm_eps": "epsilon of the layer norms",
    "use_cache": "whether forward returns a cache",
    "tie_word_embeddings": "one table for embedding and head",
    "pad_token_id": "the tokenizer's",
    "bos_token_id": "the tokenizer's",
    "eos_token_id": "the tokenizer's",
}

EEM_KEYS = {
    "encoder_config": "keys of a backbone; on the command line --encoder_config.hidden_size 128",
    "decoder_config": "likewise",
    "bottleneck_size": "numbers in the code",
    "noise_scale": "q of the noise U(-q, q) in training",
    "noise_placement": "bottleneck or encoder_output",
    "code_dtype": "how the code is stored and charged: float8_e4m3fn, int8, float16, …",
    "code_dropout": "for eem: how often a row's code is left out in training",
    "memory_introduction": "for eem: token, embedding or combination",
    "random_prefix_probability": "for eem: how often a row is cut at a random length",
    "memory_expansion": "for eem_autoencoder: repeat or unroll",
}

PANELS = {
    "Data (keys of the run file, or --key value)": DATA_KEYS,
    "Token loss": LOSS_KEYS,
    "Stop early": STOPPING_KEYS,
    "Model": MODEL_KEYS,
    "Masked mixer: model_type masked_mixer, and the backbones of an EEM": MIXER_KEYS,
    "EEM and autoencoder: model_type eem, eem_autoencoder": EEM_KEYS,
}
