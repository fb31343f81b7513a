"""What all models share: a checked config, and a checkpoint's folder that works elsewhere."""

from typing import Any

from transformers import PreTrainedModel


class RemoteCodePreTrainedModel(PreTrainedModel):
    """Checks its config, and names all classes of a family in `config.auto_map`.

    `from_pretrained(folder, **changes)` sets attributes of a config that was made and checked before. And transformers
    itself names only the class that is saved: a family's other Auto classes would not find theirs.
    """

    auto_map: dict[str, str]

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        config.check()
        super().__init__(config, *args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.config.auto_map = dict(self.auto_map)
        super().save_pretrained(*args, **kwargs)


__all__ = ["RemoteCodePreTrainedModel"]
