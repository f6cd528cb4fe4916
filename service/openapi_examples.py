"""An example of each schema, put together from the examples of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """A value that the schema admits; `schemas`: those that it may refer to, by name."""
    match schema:
        case {"examples": [example, *_]}:
            return example
        case {"$ref": str(reference)}:
            return example_of(schemas[reference.rpartition("/")[2]], schemas)
        case {"anyOf": [first, *_]}:
            return example_of(first, schemas)
        case {"type": "array", "items": items}:
            return [example_of(items, schemas)]
        case {"type": "object", "properties": properties}:
            return {name: example_of(each, schemas) for name, each in properties.items()}
    raise ValueError(f"there is no example in {schema}")
