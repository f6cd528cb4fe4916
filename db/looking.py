"""Looks that a role may be without the right to make: what cannot be looked at is told, and stops nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from db.answers import INSUFFICIENT_PRIVILEGE, first_line
from db.errors import MayNotLook

Result = TypeVar("Result")


def looked(connection: sa.Connection, look: Callable[[sa.Connection], Result]) -> Result:
    """What `look`, which only selects, has read. Raises MayNotLook, after which the transaction goes on."""
    try:
        with connection.begin_nested():
            return look(connection)
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != INSUFFICIENT_PRIVILEGE:
            raise
        raise MayNotLook(f"{first_line(error)}: the role lacks SELECT on it") from error
