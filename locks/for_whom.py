"""For whom a lease is held or waited for: a request, its owner, and whether that is a client outside.

One ASCII text goes wherever the lease goes, beside the process that has it: into the grant, the line, the list, the
history. Of a request alone it is the request id and nothing more, as processes wrote it before there were owners.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote

MAX_REQUEST_ID_LENGTH = MAX_OWNER_LENGTH = 200
# Not printable, so that no request id and no owner has it in itself.
_SEPARATOR = "\x1f"
_LENT = "lent"
_AS_THEY_ARE = "".join(letter for letter in map(chr, range(32, 127)) if letter != "%")


class ForWhom(NamedTuple):
    """What such a text says. `owner`: who holds, in the words of whoever asked; None where nothing was said."""

    request_id: str
    owner: str | None
    is_lent: bool


def text_for(request_id: str, owner: str | None = None) -> str:
    """The text of what this process does itself. Raises ValueError for what could not be shown."""
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not request_id.isascii() or not request_id.isprintable():
        raise ValueError(f"a request_id is at most {MAX_REQUEST_ID_LENGTH} printable ASCII characters")
    if owner is None:
        return request_id
    check_owner(owner)
    return f"{request_id}{_SEPARATOR}{quote(owner, safe=_AS_THEY_ARE)}"


def text_for_client(request_id: str, owner: str | None = None) -> str:
    """The text of a lease that is lent to a client outside. Raises ValueError likewise."""
    before = _SEPARATOR if owner is None else ""
    return f"{text_for(request_id, owner)}{before}{_SEPARATOR}{_LENT}"


def read_for_whom(text: str) -> ForWhom:
    """What text_for or text_for_client has made."""
    request_id, *more = text.split(_SEPARATOR)
    return ForWhom(request_id, unquote(more[0]) if more and more[0] else None, _LENT in more[1:])


def check_owner(owner: str) -> None:
    """Raises ValueError where it could not be shown: control and format characters are refused, and blanks alone."""
    if not 1 <= len(owner) <= MAX_OWNER_LENGTH or not owner.isprintable() or owner.isspace():
        raise ValueError(f"an owner is 1 to {MAX_OWNER_LENGTH} printable characters")
