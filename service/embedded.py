"""Our own Postgres and Valkey, with all they own in one folder: started, found by others, kept up, stopped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from service.child_process import EmbeddedError
from service.data_folder import (
    OWNER_WAIT_S,
    PUBLISHED,
    FolderLock,
    FolderOwned,
    Secrets,
    bound_log,
    is_held,
    load_or_make_secrets,
    one_line_errors,
    open_folder,
    own_folder,
    refuse_what_is_not_ours,
    write_private,
)
from service.embedded_servers import STOP_WAIT_S, Postgres, Valkey, postgres_binary, valkey_binary
from service.server_life import Keeper, Server, ServerDied, ServerUpAgain

__all__ = [
    "EmbeddedAddresses",
    "EmbeddedError",
    "EmbeddedServers",
    "Secrets",
    "ServerDied",
    "ServerUpAgain",
    "load_or_make_secrets",
    "open_servers",
    "postgres_binary",
    "running_addresses",
    "valkey_binary",
]

STARTING_OWNER_WAIT_S = 30.0


def _say_nothing(stage: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class EmbeddedAddresses:
    """Where the embedded servers listen, passwords included; None for one that is not ours."""

    database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)


class EmbeddedServers:
    """The embedded servers and their data folder, owned until stop(). Start it in the main thread."""

    def __init__(self, data_dir: Path, owner_lock: FolderLock) -> None:
        self.addresses = EmbeddedAddresses(None, None)
        self._data_dir = data_dir
        self._owner_lock = owner_lock
        self._published: FolderLock | None = None
        self._servers: list[Server] = []
        self._keepers: list[Keeper] = []

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        postgres: bool = True,
        valkey: bool = True,
        address: str = "",
        say: Callable[[str], None] = _say_nothing,
    ) -> Self:
        """Both servers ready, on yesterday's data where there is some. Raises EmbeddedError.

        address is what a second start is told of us; say hears what is being done, a word or two a stage.
        """
        with one_line_errors(data_dir):
            folder = open_folder(data_dir)
            servers = cls(folder, own_folder(folder, address=address))
            try:
                servers._start(postgres=postgres, valkey=valkey, say=say)
            except BaseException:
                servers.stop()
                raise
            return servers

    def revive(self) -> list[ServerDied | ServerUpAgain]:
        """What has happened to the servers since the last call: one that dies is started again, its address unchanged.

        Call it often, in the main thread: it waits for nothing, and one call begins what a later one finds done. It
        also keeps the servers' logs within their limit.
        """
        events = []
        for keeper in self._keepers:
            while (event := keeper.step()) is not None:
                events.append(event)
        return events

    def stop(self) -> None:
        """Both servers are gone when this returns, their data on disk; harmless twice."""
        with contextlib.suppress(OSError):  # a folder that became read-only does not keep the servers alive
            (self._data_dir / PUBLISHED).unlink()
        for server in self._servers:
            server.child.send(server.stop_signal)
        for server in self._servers:
            server.child.wait_or_kill(STOP_WAIT_S)
        self._servers.clear()
        self._keepers.clear()
        if self._published is not None:
            self._published.close()
        self._owner_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, *, postgres: bool, valkey: bool, say: Callable[[str], None]) -> None:
        (self._data_dir / PUBLISHED).unlink(missing_ok=True)
        known = load_or_make_secrets(self._data_dir)
        # Valkey first: it gets ready while a first start makes the Postgres cluster.
        if valkey:
            say("starting Valkey")
            self._launch(Valkey(self._data_dir, known.valkey_password))
        if postgres:
            say("starting Postgres")
            self._launch(Postgres(self._data_dir, known.postgres_password))
        for server in self._servers:
            server.wait_ready()
        self._keepers = [Keeper(server) for server in self._servers]
        urls = {server.name: server.url() for server in self._servers}
        self.addresses = EmbeddedAddresses(urls.get("Postgres"), urls.get("Valkey"))
        path = self._data_dir / PUBLISHED
        write_private(path, json.dumps(asdict(self.addresses)))
        self._published = FolderLock(path)
        self._published.take(OWNER_WAIT_S)  # whoever looks whether it is held holds it for no time

    def _launch(self, server: Server) -> None:
        bound_log(server.log)
        server.launch()
        self._servers.append(server)


def running_addresses(data_dir: Path) -> EmbeddedAddresses | None:
    """What a live owner of the folder has published; None when nobody runs, or one is only just starting."""
    folder = data_dir.resolve()
    try:
        refuse_what_is_not_ours(data_dir)
        published = json.loads((folder / PUBLISHED).read_text())
        held = is_held(folder / PUBLISHED)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise EmbeddedError(f"cannot read {folder / PUBLISHED}: {error}") from error
    # Held by whoever has published it. A new owner of the folder does not lend its life to what a killed one left.
    if not held:
        return None
    return EmbeddedAddresses(published["database_url"], published["redis_url"])


@contextlib.contextmanager
def open_servers(data_dir: Path, *, postgres: bool, valkey: bool) -> Iterator[EmbeddedAddresses]:
    """The running servers of the folder, or else servers of our own for as long as this is open."""
    deadline = time.monotonic() + STARTING_OWNER_WAIT_S
    while (addresses := running_addresses(data_dir)) is None:
        try:
            own = EmbeddedServers.start(data_dir, postgres=postgres, valkey=valkey)
        except FolderOwned:
            # Its owner is just starting or stopping.
            if time.monotonic() > deadline:
                raise
            continue
        with own:
            yield own.addresses
        return
    for name, wanted, url in (("Postgres", postgres, addresses.database_url), ("Valkey", valkey, addresses.redis_url)):
        if wanted and url is None:
            raise EmbeddedError(
                f"the owner of {data_dir} runs without an embedded {name}; stop it, or use its settings"
            )
    yield addresses
