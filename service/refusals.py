"""What the service itself refuses, beside what locks/ and db/ do. problems.py says how each one is answered."""

from __future__ import annotations

from collections.abc import Mapping

MAX_FIELD_SHOWN = 100


class ServiceRefusal(Exception):
    """A request that is answered with a problem."""


class InvalidRequest(ServiceRefusal):
    """A path, query, header or body that cannot be read; `field` names the place."""

    def __init__(self, field: str, reason: str) -> None:
        # It may be the client's own word, as long as it likes, and in bytes that are no text.
        self.field = field[:MAX_FIELD_SHOWN].encode(errors="replace").decode()
        super().__init__(f"{self.field}: {reason}")


class Forbidden(ServiceRefusal):
    """The caller's token lacks the scope that this takes."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this takes the scope {scope!r}")
        self.scope = scope


class NameReserved(ServiceRefusal):
    """The caller's token has no leases on the lock of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the access token's scopes do not reach the lock {name!r}")
        self.name = name


class NotFound(ServiceRefusal):
    """No such route, or no such object."""


class LockFree(ServiceRefusal):
    """Nobody holds the lock."""


class MethodNotAllowed(ServiceRefusal):
    """The route exists, with other methods."""

    def __init__(self, method: str, allowed: list[str]) -> None:
        super().__init__(f"{method} is not possible here, but {', '.join(allowed)} is")
        self.allowed = allowed


class TooLarge(ServiceRefusal):
    """The body is larger than it may be."""


class ChargeInProgress(ServiceRefusal):
    """Somebody else held the appointment for as long as this request could wait."""

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class LeaseRefused(ServiceRefusal):
    """Somebody else held the lock for as long as the client was willing to wait.

    `holder` is None for a python-redis-lock program, and where nobody held it any more when we looked.
    """

    def __init__(
        self,
        detail: str,
        *,
        holder: Mapping[str, str | int] | None,
        expires_in_ms: int | None,
        waiters: int,
        retry_after_s: float,
    ) -> None:
        super().__init__(detail)
        self.holder = holder
        self.expires_in_ms = expires_in_ms
        self.waiters = waiters
        self.retry_after_s = retry_after_s


class Overloaded(ServiceRefusal):
    """More is under way than may be; nothing was charged."""


class TooManyRequests(Overloaded):
    """This caller has as much under way as one caller may; nothing was done.

    Whatever copes with overload copes with it.
    """


class Draining(ServiceRefusal):
    """This instance is about to stop and takes no new work."""


class ChargeUnknown(ServiceRefusal):
    """The charge was under way when its answer failed to come in time; retrying is safe."""
