"""The API's description, taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and what is said of it."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolved(document: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for; anything else as it is."""
    while "$ref" in told:
        place: Any = document
        for step in told["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        told = place
    return told
