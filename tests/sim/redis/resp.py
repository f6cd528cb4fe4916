"""Replies as the server writes them: RESP2."""

from __future__ import annotations

from typing import Any, Final

# int, bytes, a list of these, None for a nil, and a Status. What a command returns is Any, for it is read by its class.
Reply = Any


class Status(str):
    """A simple string: +OK."""

    __slots__ = ()


class ErrorReply(Exception):
    """What the server refuses, in its words, without the minus sign."""


OK: Final = Status("OK")
NIL_ARRAY: Final = b"*-1\r\n"
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
NOT_A_FLOAT: Final = "ERR value is not a valid float"


def encoded(reply: Reply) -> bytes:
    """The reply on the wire."""
    kind = reply.__class__
    if kind is int:
        return b":%d\r\n" % reply
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return b"$-1\r\n"
    if kind is Status:
        return b"+%b\r\n" % reply.encode()
    return b"*%d\r\n%b" % (len(reply), b"".join([encoded(item) for item in reply]))


def encoded_error(words: str) -> bytes:
    """An error on the wire."""
    return b"-%b\r\n" % words.encode()


def integer(text: bytes) -> int:
    """A number as commands take it. Raises ErrorReply."""
    try:
        return int(text)
    except ValueError:
        raise ErrorReply(NOT_AN_INTEGER) from None


def number(text: bytes) -> float:
    """A score as commands take it. Raises ErrorReply."""
    try:
        return float(text)
    except ValueError:
        raise ErrorReply(NOT_A_FLOAT) from None
