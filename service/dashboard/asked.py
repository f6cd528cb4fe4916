"""What somebody wants to see: the parameters of an address, each read and checked where it is used."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from service.models import MAX_ID
from service.refusals import InvalidRequest
from service.sessions import Session

DAY_S = 24 * 3600
MINUTE_FORMAT = "%Y-%m-%dT%H:%M"


@dataclass(frozen=True, slots=True)
class Asked:
    """One view with its parameters. `now_s`: unix seconds; `caller`: whose turn at the database it takes."""

    values: Mapping[str, str]
    session: Session
    caller: int
    now_s: float

    @property
    def key(self) -> Hashable:
        """The same for all who see the same."""
        return tuple(sorted(self.values.items())), self.session.may_force

    def text(self, name: str, *, max_length: int = 200) -> str:
        """A parameter, "" where there is none. Raises InvalidRequest."""
        value = self.values.get(name, "").strip()
        if len(value) > max_length:
            raise InvalidRequest(name, f"must have at most {max_length} characters")
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str:
        """One of these, the first where there is none. Raises InvalidRequest."""
        value = self.values.get(name) or next(iter(allowed))
        if value not in allowed:
            raise InvalidRequest(name, f"must be one of {', '.join(allowed)}")
        return value

    def integer(self, name: str, *, most: int = MAX_ID) -> int | None:
        """A number from 0, None where there is none. Raises InvalidRequest."""
        value = self.text(name)
        if not value:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
            raise InvalidRequest(name, f"must be an integer from 0 to {most}")
        return int(value)

    def minute(self, name: str) -> float | None:
        """A minute as 2026-11-25T14:03, UTC, in unix seconds; None where there is none. Raises InvalidRequest."""
        value = self.text(name)
        if not value:
            return None
        try:
            at_s = datetime.strptime(value, MINUTE_FORMAT).replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise InvalidRequest(name, "must be a minute like 2026-11-25T14:03, UTC") from error
        if not self.now_s - 2 * DAY_S < at_s < self.now_s + DAY_S:
            raise InvalidRequest(name, "must be a minute of the last day: nothing else is kept")
        return at_s


def minute_text(at_s: float) -> str:
    """The minute of this moment, as Asked.minute reads it."""
    return datetime.fromtimestamp(at_s, UTC).strftime(MINUTE_FORMAT)
