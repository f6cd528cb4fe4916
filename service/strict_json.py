"""JSON from strangers: each key once, and nested no deeper than anything that we read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import orjson

MAX_LEVELS: Final = 32
MAX_KEY_SHOWN: Final = 100


class NotReadable(ValueError):
    """This is no JSON that we read; one line."""


class RepeatedKey(NotReadable):
    """An object says the same key twice, so that two readers may read two things (RFC 8259, 4)."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:MAX_KEY_SHOWN]!r} is given twice")
        self.key = key[:MAX_KEY_SHOWN]


def read_json(text: bytes) -> Any:
    """The value. Raises NotReadable; NaN, Infinity and numbers too large to be one are no JSON either."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NotReadable(f"is not JSON: {error.msg}") from error
    if _is_deeper(value, MAX_LEVELS):
        raise NotReadable(f"is nested more than {MAX_LEVELS} levels deep")
    # orjson keeps the last of two equal keys and says nothing. What is known to be JSON is read again, to hear of both.
    _reader.decode(text.decode())
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    layer: Sequence[Any] = [value]
    for _ in range(levels):
        if not layer:
            return False
        inner: list[Any] = []
        for each in layer:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        layer = inner
    return any(isinstance(each, dict | list) for each in layer)


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    keys = set()
    for key, _ in pairs:
        if key in keys:
            raise RepeatedKey(key)
        keys.add(key)


_reader = json.JSONDecoder(object_pairs_hook=_each_once, parse_int=str, parse_float=str)
