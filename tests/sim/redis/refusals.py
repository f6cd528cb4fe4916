"""Servers that refuse for a while: which commands, and in which words."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from tests.sim.redis.commands import GROWS, WRITES
from tests.sim.redis.dialects import Dialect
from tests.sim.redis.resp import ErrorReply


class Refusal(StrEnum):
    """Why a server refuses; the values are the words that an error begins with."""

    LOADING = "LOADING"
    BUSY = "BUSY"
    OOM = "OOM"
    MISCONF = "MISCONF"
    READONLY = "READONLY"
    NOREPLICAS = "NOREPLICAS"


_WORDS = {
    Refusal.LOADING: "LOADING {brand} is loading the dataset in memory",
    Refusal.BUSY: "BUSY {brand} is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    Refusal.OOM: "OOM command not allowed when used memory > 'maxmemory'.",
    Refusal.MISCONF: "MISCONF {brand} is configured to save RDB snapshots, but it's currently unable to persist to "
    "disk. Commands that may modify the data set are disabled, because this instance is configured to report errors "
    "during writes if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the {brand} logs for "
    "details about the RDB error.",
    Refusal.READONLY: "READONLY You can't write against a read only replica.",
    Refusal.NOREPLICAS: "NOREPLICAS Not enough good replicas to write.",
}


def check(refusal: Refusal, command: Sequence[bytes], dialect: Dialect) -> None:
    """Raises ErrorReply where the server refuses this command of a client's."""
    name = command[0].upper()
    if refusal is Refusal.BUSY:
        words = b" ".join(command[:2]).upper() if name == b"CLIENT" else name
        refuses = words not in dialect.answers_while_busy
    elif refusal is Refusal.LOADING:
        refuses = name not in dialect.answers_while_loading
    elif refusal is Refusal.OOM:
        refuses = name in GROWS
    else:
        refuses = name in WRITES or (refusal is Refusal.MISCONF and name == b"PING")
    if refuses:
        raise ErrorReply(_WORDS[refusal].format(brand=dialect.brand))


def check_in_script(refusal: Refusal, name: bytes, dialect: Dialect, *, has_written: bool) -> None:
    """The same for a command of a script. A script that has begun to write may go on when memory runs out."""
    refuses = name in GROWS and not has_written if refusal is Refusal.OOM else name in WRITES
    if refuses:
        raise ErrorReply(_WORDS[refusal].format(brand=dialect.brand))
