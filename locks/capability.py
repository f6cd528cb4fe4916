"""Lease ids, which are capabilities, and the text in which a lease goes to another process."""

from __future__ import annotations

import json
from collections.abc import Callable

from locks.lease import Lease

_RANDOM_BYTES, _IDS_AT_ONCE = 16, 256
LEASE_ID_LENGTH = 2 * _RANDOM_BYTES


class LeaseIds:
    """New ones: 128 random bits each, of which many are asked for at once."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._ids: list[str] = []

    def new(self) -> str:
        """One that nobody has seen."""
        ids = self._ids
        if not ids:
            text = self._random_bytes(_RANDOM_BYTES * _IDS_AT_ONCE).hex()
            ids.extend(text[at : at + LEASE_ID_LENGTH] for at in range(0, len(text), LEASE_ID_LENGTH))
        return ids.pop()


def exported(lease: Lease) -> str:
    """The lease as text."""
    return json.dumps([lease.name, lease.known_as, lease.fencing_token, lease.grant_fence, lease.lease_ttl_s])


def read_export(text: str) -> tuple[str, str, int, int, float]:
    """Name, lease id, fencing token, its grant's fence, lease_ttl_s. Raises ValueError for a text of another kind."""
    try:
        name, lease_id, fencing_token, grant_fence, lease_ttl_s = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("not an exported lease") from error
    sane = isinstance(fencing_token, int) and isinstance(grant_fence, int) and isinstance(lease_ttl_s, int | float)
    if not (sane and isinstance(name, str) and isinstance(lease_id, str) and len(lease_id) == LEASE_ID_LENGTH):
        raise ValueError("not an exported lease")
    if not (lease_id.isascii() and lease_id.isalnum()):
        raise ValueError("not an exported lease")
    return name, lease_id, fencing_token, grant_fence, lease_ttl_s
