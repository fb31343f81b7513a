"""Makes a checkpoint's folder work elsewhere: every Auto class finds its model in the code saved with it."""

from typing import Any

from transformers import PreTrainedModel


class RemoteCodePreTrainedModel(PreTrainedModel):
    """Names all classes of a family in `config.auto_map`; transformers itself names only the one that is saved."""

    auto_map: dict[str, str]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.config.auto_map = dict(self.auto_map)
        super().save_pretrained(*args, **kwargs)


__all__ = ["RemoteCodePreTrainedModel"]
