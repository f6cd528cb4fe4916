"""The instances of a run, seen from the harness: forked, awaited, asked at their points, killed, frozen, drained."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from locks.keys import keys_of
from tests.chaos.history import History, now_ns
from tests.chaos.instance import Plan
from tests.chaos.nursery import Child, Nursery
from tests.servers.wire import ErrorReply, Wire

READY_WAIT_S = 60.0
BACKLOG = 1024
FIRST_WAIT_S = 0.5
WAITER_LOOK_S = 0.01
STOP_WAIT_S = 5.0


class LivesError(Exception):
    """The instances cannot be run; the message is one line."""


class Proxied(Protocol):
    """What an instance's connections to one server lead through."""

    @property
    def port(self) -> int:
        """Where the instance connects to."""


class Harness(Protocol):
    """Who is asked at points."""

    def next_for(self, instance: InstanceHandle) -> Mapping[str, Any] | None:
        """What is to be armed in it now: id, point, nth, patience_s."""

    async def on_reached(self, instance: InstanceHandle, question: Mapping[str, Any]) -> None:
        """An armed point is reached; it goes on when this returns."""

    def on_missed(self, instance: InstanceHandle, fault_id: int) -> None:
        """An armed point did not come in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What leads from one instance to its servers; None where it connects directly."""

    database: Any
    redis: Any


class InstanceHandle:
    """One instance; each process of it is a life."""

    def __init__(self, lives: Lives, number: int, link: Link) -> None:
        self._lives = lives
        self.number = number
        self.link = link
        self.life = 0
        self.pid = 0
        self.held: dict[str, int] = {}  # as it told when it last stood still
        self.killed_at: int | None = None  # ns; None while nobody has killed this life
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.ready = asyncio.Event()
        self.busy = asyncio.Lock()  # whoever ends its life, until the next is there

    @property
    def database(self) -> Any:
        """Its proxy to Postgres."""
        return self.link.database

    @property
    def redis(self) -> Any:
        """Its proxy to Redis."""
        return self.link.redis

    @property
    def base_url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    async def begin(self) -> None:
        """Forks a life; returns once it serves."""
        self.life += 1
        self.held = {}
        self.killed_at = None
        self.ready.clear()
        self.pid = await self._lives.fork(self.number, self.life)
        await self._until_ready()

    async def kill(self) -> None:
        """SIGKILL; the next life serves when this returns."""
        life, lives = self.life, self.ready.is_set()
        if lives:
            # At once: whoever drains it waits for its end, which may be standing still at a point.
            self._send(signal.SIGKILL)
            self.killed_at = self.killed_at or now_ns()
        async with self.busy:
            # Where it was dead already, its next life has been awaited now, and is left alone.
            if lives and self.life == life:
                await self._ended()
                await self.begin()

    async def somebody_waits(self, *, within_s: float) -> bool:
        """Whether somebody stands in line, within this time, for a lock that it holds."""
        return await self._lives.somebody_waits(self, within_s=within_s)

    async def drain(self) -> None:
        """SIGTERM, as a deployment sends it; the next life serves when this returns."""
        async with self.busy:
            await self._drained()
            await self.begin()

    async def end(self) -> None:
        """SIGTERM, and no other life."""
        async with self.busy:
            await self._drained()

    async def _drained(self) -> None:
        self.thaw()
        self._send(signal.SIGTERM)
        await self._ended()

    async def _ended(self) -> None:
        await self._lives.ended(self.pid)
        if self.killed_at is None:
            self.held = {}
        how = "drained" if self.killed_at is None else "killed"
        self._lives.write_death(self, self.killed_at or now_ns(), how=how)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT; harmless when it is not frozen."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def _until_ready(self) -> None:
        ready = asyncio.ensure_future(self.ready.wait())
        ended = asyncio.ensure_future(self._lives.ended(self.pid))
        done, pending = await asyncio.wait({ready, ended}, timeout=READY_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        for each in pending:
            each.cancel()
        if ready not in done:
            raise LivesError(f"instance {self.number} does not serve; see its log in {self._lives.log_folder}")


class Lives:
    """The zygote, the instances that it forks, and the socket at which they ask."""

    def __init__(
        self, nursery: Nursery, folder: Path, history: History, harness: Harness, *, redis_port: int | None
    ) -> None:
        """`redis_port`: where a killed holder's leases are looked at; None where there is no one such server."""
        self.instances: dict[int, InstanceHandle] = {}
        self.log_folder = folder
        self.socket_path = str(folder / "harness.sock")
        self._nursery = nursery
        self._history = history
        self._harness = harness
        self._redis_port = redis_port
        self._zygote: Child | None = None
        self._ends: dict[int, asyncio.Future[None]] = {}
        self._forks: dict[tuple[int, int], asyncio.Future[int]] = {}
        self._zygote_ready: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    def add(self, number: int, link: Link) -> InstanceHandle:
        """An instance that is to be; it has its port from here on."""
        handle = self.instances[number] = InstanceHandle(self, number, link)
        return handle

    async def start(self, plan: Plan, *, mutant: str | None, environment: Mapping[str, str]) -> None:
        """Returns once every instance serves. Raises LivesError."""
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_unix_server(self._asked, self.socket_path)
        config = self.log_folder / "zygote.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"plan": asdict(plan), "mutant": mutant}))
        self._zygote_ready = loop.create_future()
        self._zygote = self._nursery.fork(
            "zygote",
            config,
            log=self.log_folder / "zygote.log",
            fds=[self.instances[number].listening.fileno() for number in sorted(self.instances)],
            environment=environment,
        )
        self._reading = loop.create_task(self._read())
        await asyncio.wait_for(self._zygote_ready, READY_WAIT_S)
        await asyncio.gather(*[handle.begin() for handle in self.instances.values()])

    async def fork(self, number: int, life: int) -> int:
        """The pid of a new process."""
        assert self._zygote is not None
        future = self._forks[number, life] = asyncio.get_running_loop().create_future()
        self._zygote.tell({"fork": number, "life": life})
        return await asyncio.wait_for(future, READY_WAIT_S)

    async def ended(self, pid: int) -> None:
        """Returns once the process has ended and is reaped."""
        if pid in self._ends:
            await asyncio.shield(self._ends[pid])

    async def somebody_waits(self, handle: InstanceHandle, *, within_s: float) -> bool:
        """As InstanceHandle.somebody_waits."""
        queues = [keys_of(name).queue for name in handle.held if name.startswith("appointment:")]
        if not queues or self._redis_port is None:
            return False
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + within_s
        while loop.time() < give_up_at_s:
            with contextlib.suppress(OSError, ErrorReply), closing(Wire(self._redis_port)) as wire:
                if any(wire.ask("ZCARD", queue) for queue in queues):
                    return True
            await asyncio.sleep(WAITER_LOOK_S)
        return False

    def write_death(self, handle: InstanceHandle, died_at: int, *, how: str) -> None:
        """The end of a life, and what became of the locks that it held: their time left, and who waits."""
        held = self._left_of(
            {name: fence for name, fence in handle.held.items() if name.startswith("appointment:")}, died_at
        )
        self._history.write("died", died_at, i=handle.number, life=handle.life, pid=handle.pid, how=how, held=held)

    async def stop(self) -> None:
        """Ends every life and the zygote; harmless twice."""
        for handle in self.instances.values():
            handle.listening.close()
        if self._zygote is not None:
            await asyncio.to_thread(self._zygote.end, wait_s=STOP_WAIT_S)
            for pid, ended in self._ends.items():
                if not ended.done():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for task in [*self._asking, *([self._reading] if self._reading else [])]:
            task.cancel()
        if self._server is not None:
            self._server.close()

    def living(self) -> list[int]:
        """The pids of lives that have not ended."""
        return [pid for pid, ended in self._ends.items() if not ended.done()]

    def _left_of(self, held: Mapping[str, int], died_at: int) -> list[dict[str, Any]]:
        """What Redis tells of these locks, all asked at once: the harness' proxies wait meanwhile."""
        left: list[dict[str, Any]] = [
            {"name": name, "fence": fence, "left_ms": None, "waiters": None} for name, fence in held.items()
        ]
        if self._redis_port is None or not left:
            return left
        with (
            contextlib.suppress(OSError, ErrorReply),
            closing(Wire(self._redis_port, answer_wait_s=FIRST_WAIT_S)) as wire,
        ):
            for lock in left:
                keys = keys_of(lock["name"])
                wire.say("GET", keys.grant)
                wire.say("PTTL", keys.lock)
                wire.say("ZCARD", keys.queue)
            for lock in left:
                grant, left_ms, waiters = wire.hear(), wire.hear(), wire.hear()
                if left_ms > 0 and _is_of(grant, lock["fence"]):
                    # As of the death, so that the lease's end is died + left.
                    lock["left_ms"], lock["waiters"] = left_ms + (now_ns() - died_at) / 1e6, waiters
        return left

    async def _read(self) -> None:
        """What the zygote says, until it ends."""
        assert self._zygote is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._zygote.out, "rb")
        )
        try:
            while line := await reader.readline():
                self._heard(orjson.loads(line))
        finally:
            transport.close()
        if self._zygote_ready is not None and not self._zygote_ready.done():
            self._zygote_ready.set_exception(LivesError(f"the zygote ended; see {self.log_folder / 'zygote.log'}"))

    def _heard(self, said: Mapping[str, Any]) -> None:
        if "ready" in said:
            assert self._zygote_ready is not None
            self._zygote_ready.set_result(None)
        elif "forked" in said:
            self._ends.setdefault(said["forked"], asyncio.get_running_loop().create_future())
            self._forks.pop((said["instance"], said["life"])).set_result(said["forked"])
        elif "ended" in said:
            ended = self._ends.setdefault(said["ended"], asyncio.get_running_loop().create_future())
            if not ended.done():
                ended.set_result(None)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # it has died at its point
        finally:
            self._asking.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = orjson.loads(await reader.readline() or b"{}")
        handle = self.instances.get(hello.get("i", 0))
        if handle is None or handle.life != hello["life"]:
            return
        handle.ready.set()
        await _reply(writer, self._harness.next_for(handle))
        while line := await reader.readline():
            question = orjson.loads(line)
            if "missed" in question:
                self._harness.on_missed(handle, question["missed"])
            else:
                handle.held = question["held"]
                await self._harness.on_reached(handle, question)
            if handle.life != hello["life"]:
                return  # that one is dead
            await _reply(writer, self._harness.next_for(handle))


async def _reply(writer: asyncio.StreamWriter, armed: Mapping[str, Any] | None) -> None:
    writer.write(orjson.dumps({"arm": armed}, option=orjson.OPT_APPEND_NEWLINE))
    await writer.drain()


def _is_of(grant: str | None, fence: int) -> bool:
    """Whether the last grant is this token's: 'seconds microseconds' of it, and how many before it are of its run."""
    if grant is None:
        return False
    seconds, microseconds, *left = (int(number) for number in grant.partition("\t")[0].split())
    last = seconds * 1_000_000 + microseconds
    return last - sum(left) <= fence <= last
