"""The default codec models of all releases: each stays loadable by its id for ever.

`modeling_eem/assets/codec/released.json` lists them, oldest first: `[{"id": "<hexadecimal>", "folder": "<name of a
folder beside the list>", "release": [0, 2]}, …]`. The last one is the default.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from modeling_eem.codec.container import CodecError

ASSETS = Path(__file__).parents[1] / "assets" / "codec"
_LIST = "released.json"


@dataclass(frozen=True)
class Release:
    """A default model: the 8 bytes of its id that files store, its folder, and its first release (major, minor)."""

    id: bytes
    folder: Path
    release: tuple[int, int]


def released_models() -> list[Release]:
    """All default models that this release can load, oldest first."""
    path = ASSETS / _LIST
    if not path.exists():
        return []
    return [
        Release(bytes.fromhex(entry["id"])[:8], ASSETS / entry["folder"], (entry["release"][0], entry["release"][1]))
        for entry in json.loads(path.read_text())
    ]


def default_model() -> Release:
    """The newest default model. CodecError if this installation has none."""
    models = released_models()
    if not models:
        raise CodecError("this installation has no default codec model: give one with --model.")
    return models[-1]


def release_of(model_id: bytes) -> Release | None:
    """The default model with this id, if this release has it."""
    return next((model for model in released_models() if model.id == model_id), None)


__all__ = ["ASSETS", "Release", "default_model", "release_of", "released_models"]
