"""The scripts' Lua: one Lua 5.1 for all models, each script compiled once for its text.

A script runs to its end before anything else does, so that one set of KEYS and ARGV is enough.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lupa.lua51 import LuaError, LuaRuntime

from tests.sim.redis.resp import ErrorReply, Reply, Status

_runtime = LuaRuntime(encoding=None, unpack_returned_tuples=False, register_eval=False, register_builtins=False)
_table: Callable[[Sequence[Any]], Any] = _runtime.table_from
_is_error_in_script = re.compile(r"user_script:(\d+): ").match

CallCommand = Callable[[tuple[Any, ...]], Reply]


class ScriptFailed(Exception):
    """What ended a script: words, and the line of the script."""

    def __init__(self, words: str, line: int) -> None:
        super().__init__(words)
        self.words, self.line = words, line


def _nothing_runs(args: tuple[Any, ...]) -> Reply:
    raise AssertionError("no script runs")


_call_command: CallCommand = _nothing_runs


def sha_of(source: bytes) -> bytes:
    """The name of a script."""
    return hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


@functools.cache
def compiled(source: bytes) -> Any:
    """The script as a Lua function. Raises ErrorReply where it is none."""
    function, words = _compile(source).values()
    if not function:
        raise ErrorReply(f"ERR Error compiling script (new function): {words.decode()}")
    return function


def run(function: Any, key_count: int, arguments: Sequence[bytes], call_command: CallCommand) -> bytes:
    """The script's reply on the wire. Raises ScriptFailed."""
    global _call_command
    _call_command = call_command
    try:
        reply: bytes = _run(function, key_count, *arguments)
    except LuaError as error:
        words = str(error).partition("\n")[0]
        found = _is_error_in_script(words)
        raise ScriptFailed(f"ERR {words}", int(found[1]) if found else 0) from None
    finally:
        _call_command = _nothing_runs
    return reply


def _call(*args: Any) -> Any:
    """redis.call."""
    try:
        return _as_lua(_call_command(args))
    except ErrorReply as error:
        raise ScriptFailed(str(error), _line()) from None


def _pcall(*args: Any) -> Any:
    """redis.pcall."""
    try:
        return _as_lua(_call_command(args))
    except ErrorReply as error:
        return _runtime.table_from({b"err": str(error).encode()})


def _as_lua(reply: Reply) -> Any:
    kind = reply.__class__
    if kind is int or kind is bytes:
        return reply
    if reply is None:
        return False
    if kind is Status:
        return _OK if reply == "OK" else _runtime.table_from({b"ok": reply.encode()})
    return _table([_as_lua(item) for item in reply])


def _decoded(text: bytes) -> Any:
    """cjson.decode."""
    return _from_json(json.loads(text))


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return _table([_from_json(each) for each in value])
    if isinstance(value, dict):
        return _runtime.table_from({key.encode(): _from_json(each) for key, each in value.items()})
    if value is None:
        raise NotImplementedError("null in JSON")
    return value


def _encoded_text(text: bytes) -> bytes:
    """A string as cjson.encode writes it."""
    return (
        json.dumps(text.decode("utf-8", "surrogateescape"), ensure_ascii=False)
        .replace("/", "\\/")
        .encode("utf-8", "surrogateescape")
    )


_OK = _runtime.table_from({b"ok": b"OK"})
_source = (Path(__file__).with_name("scripting.lua")).read_bytes()
_parts = _runtime.execute(_source, _call, _pcall, _decoded, _encoded_text)
_compile, _run, _line = _parts[b"compile"], _parts[b"run"], _parts[b"line"]
