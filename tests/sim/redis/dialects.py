"""Where the servers differ: their words, and how they write numbers that are no integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of server speaks."""

    brand: str  # in what it says of itself
    no_script: str
    no_text: str  # what a script gives a command is neither text nor a number
    names_failed_script: bool  # by its hash, behind the words of an error in a script
    answers_while_busy: frozenset[bytes]  # what it does beside a script that does not end
    answers_while_loading: frozenset[bytes]
    shortest_floats: bool  # else with seventeen digits
    tells_of_served: bool  # who watches a list is told when it gives something to a client that waits
    watches_keys_of_script: bool  # a script that reads after CLIENT CACHING YES has read all keys that it was given

    def text_of(self, value: float) -> bytes:
        """A number as the server writes it."""
        if abs(value) < 1e17 and value == int(value):
            return b"%d" % value
        return repr(float(value)).encode() if self.shortest_floats else b"%.17g" % value

    def failed_script(self, words: str, sha: bytes, line: int) -> str:
        """The error of a script from what went wrong in this line of it."""
        name = f"{sha.decode()}, " if self.names_failed_script else ""
        return f"{words} script: {name}on @user_script:{line}."


_WHILE_LOADING = frozenset((b"CLIENT", b"SUBSCRIBE", b"PUBLISH", b"SELECT", b"TIME", b"ROLE"))
VALKEY_9 = Dialect(
    brand="Valkey",
    no_script="NOSCRIPT No matching script.",
    no_text="ERR Command arguments must be strings or integers",
    names_failed_script=False,
    answers_while_busy=frozenset((b"SELECT", b"CLIENT ID", b"CLIENT CACHING")),
    answers_while_loading=_WHILE_LOADING | {b"CLUSTER"},
    shortest_floats=True,
    tells_of_served=True,
    watches_keys_of_script=False,
)
REDIS_8 = Dialect(
    brand="Redis",
    no_script="NOSCRIPT No matching script. Please use EVAL.",
    no_text="ERR Lua redis lib command arguments must be strings or integers",
    names_failed_script=True,
    answers_while_busy=frozenset(),
    answers_while_loading=_WHILE_LOADING,
    shortest_floats=True,
    tells_of_served=True,
    watches_keys_of_script=False,
)
REDIS_7 = Dialect(
    brand="Redis",
    no_script="NOSCRIPT No matching script. Please use EVAL.",
    no_text="ERR Lua redis lib command arguments must be strings or integers",
    names_failed_script=True,
    answers_while_busy=frozenset(),
    answers_while_loading=_WHILE_LOADING,
    shortest_floats=False,
    tells_of_served=False,
    watches_keys_of_script=True,
)
# By the names of tests/servers/kinds.py.
DIALECTS = {"valkey": VALKEY_9, "redis-8": REDIS_8, "redis-7": REDIS_7}
