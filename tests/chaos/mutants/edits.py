"""How a mutant changes the product: some lines of its text for others, in this process only.

An edit shows the lines as a diff does: those that go begin with -, those that come with +, those that stay with a
space. Where they are not there exactly once, the product has changed since, and the edit raises StaleEdit instead of
doing nothing: a mutant without its defect would be a checker's worst witness.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from types import CodeType
from typing import Any, Protocol

from db import charging_statements
from db.prepared import Prepared
from locks import store


class StaleEdit(Exception):
    """What the edit replaces is not in the product, or more than once: the product has changed since."""


class Edit(Protocol):
    """One change of the product."""

    def check(self) -> None:
        """Raises StaleEdit where it could not be applied; changes nothing."""

    def apply(self) -> None:
        """Changes this process' copy of the product, for whatever is made of it from now on. Raises StaleEdit."""


@dataclass(frozen=True, slots=True)
class Python:
    """A function of the product, `module:Class.method`, with other text."""

    target: str
    diff: str

    def check(self) -> None:
        """As Edit.check."""
        self._code(self._function())

    def apply(self) -> None:
        """Gives the function other code in its place, so that whoever has got hold of it already runs that too."""
        function = self._function()
        function.__code__ = self._code(function)

    def _function(self) -> Any:
        module, _, path = self.target.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if not inspect.isfunction(found):
            raise StaleEdit(f"{self.target} is no function")
        return inspect.unwrap(found)

    def _code(self, function: Callable[..., Any]) -> CodeType:
        original = function.__code__
        source = inspect.getsource(function)
        edited = _with_diff(source, self.diff, where=self.target)
        if edited.startswith(" "):
            edited = f"if True:\n{edited}"  # a method, as deep as it stands in its class
        name = f"mutant of {self.target}"
        whole = compile(edited, name, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
        # So that a traceback shows what ran, and another edit of the same function finds it.
        linecache.cache[name] = (len(edited), None, edited.splitlines(keepends=True), name)
        for part in whole.co_consts:
            if isinstance(part, CodeType) and part.co_name == original.co_name:
                if part.co_freevars != original.co_freevars:
                    raise StaleEdit(f"{self.target} is a closure")
                return part
        raise StaleEdit(f"{self.target} is no function of its own")


@dataclass(frozen=True, slots=True)
class Lua:
    """A script of the locks, by the name of its file, with other text."""

    part: str
    diff: str

    def check(self) -> None:
        """As Edit.check."""
        if not _lua_edits:
            _LOADING.check()
        self._edited((resources.files("locks") / "scripts" / self.part).read_text("utf-8"))

    def apply(self) -> None:
        """As Edit.apply; for lockers that are made from now on."""
        self.check()
        if not _lua_edits:
            vars(store)["_edited_script"] = _edited_script
            _LOADING.apply()
        _lua_edits.append(self)

    def _edited(self, text: str) -> str:
        return _with_diff(text, self.diff, where=self.part)


@dataclass(frozen=True, slots=True)
class Statement:
    """A prepared statement of the charge, by its name in db.charging_statements, with other text."""

    name: str
    before: str
    after: str

    def check(self) -> None:
        """As Edit.check."""
        self._edited()

    def apply(self) -> None:
        """As Edit.apply; for connections that are opened from now on."""
        self._statement().prepare = self._edited()

    def _statement(self) -> Prepared:
        statement = getattr(charging_statements, self.name, None)
        if not isinstance(statement, Prepared) or statement not in charging_statements.STATEMENTS:
            raise StaleEdit(f"{self.name} is no statement of the charge")
        return statement

    def _edited(self) -> str:
        text = self._statement().prepare
        count = text.count(self.before)
        if count != 1:
            raise StaleEdit(f"{self.name} has {count} times what is to be replaced: {self.before!r}")
        return text.replace(self.before, self.after)


def _with_diff(text: str, diff: str, *, where: str) -> str:
    """The text with other lines; the diff may stand as deep as it likes."""
    marked = textwrap.dedent(diff).strip("\n").split("\n")
    before = [line[1:] for line in marked if not line.startswith("+")]
    after = [line[1:] for line in marked if not line.startswith("-")]
    lines = text.split("\n")
    places = [place for place in range(len(lines)) if lines[place : place + len(before)] == before]
    if len(places) != 1:
        raise StaleEdit(f"{where} has {len(places)} times what is to be replaced: {before}")
    lines[places[0] : places[0] + len(before)] = after
    return "\n".join(lines)


_LOADING = Python(
    "locks.store:_Script.__init__",
    """
    -        self.source = constants + "\\n".join(_text_of(part) for part in parts)
    +        texts = [_edited_script(part, _text_of(part)) for part in parts]
    +        self.source = constants + "\\n".join(texts)
    """,
)
_lua_edits: list[Lua] = []


def _edited_script(part: str, text: str) -> str:
    for edit in _lua_edits:
        if edit.part == part:
            text = edit._edited(text)
    return text
