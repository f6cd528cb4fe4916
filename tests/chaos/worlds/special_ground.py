"""A ground with more than Postgres and Valkey: what comes before them, and what is added to them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.chaos.ground import Ground


class SpecialGround(Ground):
    """What prepare() and complete() put on the stack is undone at the end, the last first, also after half a start.

    `instance_environment` is for the process that instances are forked from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        postgres_settings: Mapping[str, str],
        postgres_environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, postgres_settings=postgres_settings, postgres_environment=postgres_environment)
        self.folder = folder
        self.instance_environment: Mapping[str, str] = {}
        self._own = ExitStack()

    def prepare(self, stack: ExitStack) -> None:
        """Makes what must be there before the servers start."""

    def complete(self, stack: ExitStack) -> None:
        """Adds to the servers, which run."""

    def drop_valkey(self) -> None:
        """The locks are elsewhere: there is no `valkey` from now on."""
        self.valkey.close()
        del self.valkey

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.prepare(stack)
            super().__enter__()
            stack.callback(super().__exit__)
            self.complete(stack)
            self._own = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._own.close()
