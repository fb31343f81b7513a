from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, MambaConfig, RobertaConfig

from modeling_eem.data.saved_tokenizer import fit_to_context

COMMITTED = Path(__file__).parents[2] / "tokenizer"


def test_truncation_cuts_to_the_models_context(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    fit_to_context(tokenizer, MambaConfig())
    assert tokenizer.model_max_length == 1024, "no limit, nothing to say"
    fit_to_context(tokenizer, RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    assert tokenizer.model_max_length == 512, "two positions lie behind the padding token's id"
    fit_to_context(tokenizer, LlamaConfig(max_position_embeddings=256))
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.model_max_length == 256
    assert len(saved("the sea " * 500, truncation=True)["input_ids"]) == 256
