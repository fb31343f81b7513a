"""Ways to damage files: their bytes, and the values in JSON, in YAML and in the heads of safetensors."""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

WAYS = ("delete", "cut", "zero", "flip", "flip", "empty", "list", "number", "mapping", "garbage", "deep", "longer")
ODD_VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**40,
    2**70,
    -0.5,
    1e300,
    float("nan"),
    "",
    "x",
    [],
    [1],
    {},
    {"a": None},
)


def spoil(file: Path, chance: random.Random) -> str:
    """Change a file's bytes in one way or another, and name the way."""
    data = bytearray(file.read_bytes())
    way = chance.choice(WAYS)
    if way == "delete":
        file.unlink()
        return way
    if way == "cut":
        data = data[: chance.randrange(len(data) or 1)]
    elif way == "longer":
        data += chance.randbytes(20)
    elif way == "zero":
        place = chance.randrange(len(data) or 1)
        data[place:] = bytes(len(data) - place)
    elif way == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        other = {"empty": b"", "list": b"[1, 2]", "number": b"3", "mapping": b'{"a": {"b": null}}'}
        data = bytearray(other.get(way, chance.randbytes(200) if way == "garbage" else b"[" * 100_000))
    file.write_bytes(data)
    return way


def damage(file: Path, chance: random.Random) -> str:
    """Change a file's bytes or, where it holds values by name, one of these; say what was changed."""
    if chance.random() < 0.5:
        return spoil(file, chance)
    if file.suffix == ".json":
        record = json.loads(file.read_text())
        said = change_value(record, chance)
        file.write_text(json.dumps(record))
        return said
    if file.suffix in (".yaml", ".yml"):
        record = yaml.safe_load(file.read_text())
        said = change_value(record, chance)
        file.write_text(yaml.safe_dump(record))
        return said
    if file.suffix == ".safetensors":
        head, numbers = split_safetensors(file.read_bytes())
        said = change_value(head, chance)
        file.write_bytes(join_safetensors(head, numbers))
        return said
    return spoil(file, chance)


def change_value(record: Any, chance: random.Random, is_small: bool = False) -> str:
    """Change, or leave out, one value of nested lists and mappings; those near the top are chosen more often.

    Args:
        is_small: whether sizes stay small: a model of 2⁴⁰ layers would be built.
    """
    by_depth: dict[int, list[tuple[Any, Any, str]]] = {}
    for holder, key, name in _places(record, ""):
        by_depth.setdefault(name.count("/"), []).append((holder, key, name))
    if not by_depth:
        return "nothing to change"
    holder, key, name = chance.choice(by_depth[chance.choice(sorted(by_depth))])
    if chance.random() < 0.2:
        del holder[key]
        return f"{name} left out"
    odd = [value for value in ODD_VALUES if not (is_small and isinstance(value, int | float) and value > 100)]
    new = chance.choice([*odd, *_near(holder[key])])
    holder[key] = new
    return f"{name} = {new!r}"


def _near(value: Any) -> list[Any]:
    """Values of the same type, which are the hardest to tell from right ones."""
    if isinstance(value, bool):
        return [not value] * 6
    if isinstance(value, int | float):
        return [value + 1, value - 1, 2 * value, -value, value / 2, str(value)]
    if isinstance(value, str):
        return [value + "x", value[1:], value.upper(), [value], "../" + value, "é\n" + value]
    if isinstance(value, list):
        return [value + value, value[1:], value[::-1], {str(index): item for index, item in enumerate(value)}]
    return [[value]] * 4


def _places(record: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in items:
        yield record, key, f"{name}/{key}"
        yield from _places(value, f"{name}/{key}")


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The head and the numbers of a file; ValueError for one that has no head."""
    if len(data) < 8 or (size := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        raise ValueError("no head")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join_safetensors(head: dict[str, Any], numbers: bytes) -> bytes:
    packed = json.dumps(head).encode()
    return struct.pack("<Q", len(packed)) + packed + numbers
