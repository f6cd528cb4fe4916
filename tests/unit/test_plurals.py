"""A count with its noun goes through `plural`, so that nobody reads "1 charges"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTED = (
    "appointment|byte|caller|charge|client|coupon|entri|event|fault|holder|instance|invariant|kind|leas|lock"
    "|operation|page|place|pric|process|request|server|session|stream|user|waiter|worker"
)
NOUN = re.compile(rf" (demo )?({COUNTED})e?s\b")
IN_A_TEMPLATE = re.compile(rf"}}}} ({COUNTED})e?s\b")
TOLD = [
    *(path for folder in ("db", "locks", "service") for path in (ROOT / folder).rglob("*.py")),
    *(ROOT / f"tests/chaos/{name}.py" for name in ("__main__", "shrink", "telling")),
]


def bare_counts(source: str) -> Iterator[str]:
    """Each f-string that puts a plural noun behind a number that may be 1; a CONSTANT is none."""
    for text in ast.walk(ast.parse(source)):
        if not isinstance(text, ast.JoinedStr):
            continue
        for value, behind in zip(text.values, text.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(behind, ast.Constant):
                continue
            shown = ast.unparse(value.value)
            is_fixed = re.fullmatch(r"[A-Z_]+( // 60)?", shown) or shown.startswith("plural(")
            if not is_fixed and NOUN.match(str(behind.value)):
                yield ast.unparse(text)


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_counts_without_plural(path: Path) -> None:
    assert list(bare_counts(path.read_text())) == []


@pytest.mark.parametrize("path", sorted((ROOT / "service/dashboard/templates").iterdir()), ids=lambda path: path.name)
def test_no_page_counts_without_plural(path: Path) -> None:
    assert IN_A_TEMPLATE.findall(path.read_text()) == []


def test_a_bare_count_is_found() -> None:
    assert list(bare_counts("f'{count} charges'")) == ["f'{count} charges'"]
    assert list(bare_counts("f'{plural(count, \"charge\")} and {MOST} charges, charges: {count}'")) == []
