"""The folder of the embedded servers: closed to others, one owner at a time, its secrets made once.

It holds, mode 0700: secrets.json, embedded.json (the addresses, while an owner lives), owner.lock, and for each
server its folder, its log and a lock that lasts as long as any process of that server. While a serve runs, also the
folder that its processes count in.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from service.child_process import EmbeddedError, Identity

OWNER_WAIT_S = 0.5
EARLIER_SERVER_WAIT_S = 20.0
LOCK_POLL_S = 0.005
MAX_LOG_BYTES = 10 * 1024 * 1024

SECRETS, PUBLISHED, OWNER_LOCK = "secrets.json", "embedded.json", "owner.lock"
WITH_PASSWORDS = {SECRETS, PUBLISHED}
# What may stand in a data folder that was open to others so far, and is closed now.
BEFORE_A_SERVER = {SECRETS, PUBLISHED, OWNER_LOCK}
SERVERS = ("postgres", "valkey")
OUR_NAMES = BEFORE_A_SERVER | {server + suffix for server in SERVERS for suffix in ("", ".lock", ".log", ".log.1")}
HOLDER_BYTES = 512


@contextlib.contextmanager
def one_line_errors(data_dir: Path) -> Iterator[None]:
    """What the system says about a file becomes an EmbeddedError."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise EmbeddedError(f"cannot use the data folder {data_dir}: {error.strerror or error}{where}") from error


def open_folder(data_dir: Path) -> Path:
    """The data folder, there, ours, and closed to others. Raises EmbeddedError, which names what is not."""
    data_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        data_dir.mkdir(mode=0o700)
    refuse_what_is_not_ours(data_dir)
    folder = data_dir.resolve()
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IWOTH | stat.S_ISVTX):
        raise EmbeddedError(f"the data folder {folder} is open to everybody; choose one of your own")
    if mode & 0o077 and {entry.name for entry in folder.iterdir()} <= BEFORE_A_SERVER:
        folder.chmod(0o700)
    return folder


def refuse_what_is_not_ours(data_dir: Path) -> None:
    """Raises EmbeddedError where somebody else chose what this folder is, or what it holds; harmless without one.

    Whoever puts it in our way (a shared /tmp is enough) would choose our database and our secrets.
    """
    folder = data_dir.absolute()
    _refuse_link(folder)
    for parent in folder.parents:  # the system's own links, such as macOS' /tmp, are root's
        if parent.is_symlink() and (owner := parent.lstat().st_uid) not in (0, os.geteuid()):
            raise EmbeddedError(f"{folder} is reached through {parent}, a symbolic link of uid {owner}")
    _refuse_stranger(folder)
    for name in sorted(OUR_NAMES):
        path = folder / name
        _refuse_link(path)
        _refuse_other_kind(path, is_folder=name in SERVERS)
        # The folders of root's servers belong to the unprivileged user that they run as.
        if name not in SERVERS or os.geteuid() != 0:
            _refuse_stranger(path)
        if name in WITH_PASSWORDS and path.exists() and path.stat().st_mode & 0o077:
            raise EmbeddedError(f"{path} holds passwords and is open to others: chmod 600 it, if nobody has read it")


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise EmbeddedError(f"{path} is a symbolic link, and none is followed: anybody may have made it")


def _refuse_other_kind(path: Path, *, is_folder: bool) -> None:
    """Opening a FIFO waits for somebody to open its other end, perhaps for ever."""
    if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
        raise EmbeddedError(f"{path} is not a {'folder' if is_folder else 'plain file'}: remove it")


def _refuse_stranger(path: Path) -> None:
    if path.exists() and (owner := path.lstat().st_uid) != os.geteuid():
        raise EmbeddedError(f"{path} belongs to uid {owner}, and we are uid {os.geteuid()}: start as its owner")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a data folder; the address is that of its service, empty for a command that only passes."""

    pid: int
    address: str

    def told_of(self, folder: Path) -> str:
        """The line for who would own the folder too."""
        if self.address:
            return f"it already runs here: pid {self.pid}, {self.address}, data folder {folder}"
        return f"the data folder {folder} is in use by another process (pid {self.pid})"


def own_folder(folder: Path, *, address: str) -> FolderLock:
    """The folder is ours until the lock is closed; others are told our address. Raises FolderOwned."""
    lock = FolderLock(folder / OWNER_LOCK)
    # Somebody may be looking whether there is an owner, which takes no time; an owner who was killed may have left a
    # forked child that is just ending.
    if not lock.take(OWNER_WAIT_S) and (is_alive(lock.holder().pid) or not lock.take(EARLIER_SERVER_WAIT_S)):
        owner = lock.holder()
        lock.close()
        raise FolderOwned(owner.told_of(folder))
    lock.write_holder(Owner(os.getpid(), address))
    return lock


def is_held(path: Path) -> bool:
    """Whether somebody has taken this file as a FolderLock at this moment. Raises OSError when it is not there."""
    return _holder_of(path) is not None


def owner_of(folder: Path) -> Owner | None:
    """Who owns the folder at this moment. Raises OSError when nobody ever did."""
    return _holder_of(folder / OWNER_LOCK)


def _holder_of(path: Path) -> Owner | None:
    # Before anything has been refused; O_NONBLOCK: it may be a FIFO.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(lock.fileno())
    return None


def _holder(fd: int) -> Owner:
    words = os.pread(fd, HOLDER_BYTES, 0).decode(errors="replace").partition("\n")[0].split()
    pid = int(words[0]) if words and words[0].isdigit() else 0
    return Owner(pid, words[1] if len(words) > 1 else "")


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


class FolderOwned(EmbeddedError):
    """The data folder has a live owner already."""


class FolderLock:
    """A file that one holder locks; the lock goes with the last process that has its descriptor."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb+")
        self.fd = self._file.fileno()

    def take(self, wait_s: float) -> bool:
        """Whether it is ours, within wait_s."""
        deadline = time.monotonic() + wait_s
        while not self.take_now():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_POLL_S)
        return True

    def take_now(self) -> bool:
        """Whether it is ours, without waiting."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def holder(self) -> Owner:
        """What its holder wrote down of itself; pid 0 when that was nothing."""
        return _holder(self.fd)

    def write_holder(self, holder: Owner) -> None:
        """Names the holder, for messages; longer than what an earlier one wrote."""
        os.pwrite(self.fd, f"{holder.pid} {holder.address}".ljust(HOLDER_BYTES - 1).encode() + b"\n", 0)

    def close(self) -> None:
        """Leaves the lock to whoever else has the descriptor; harmless twice."""
        self._file.close()


def make_folder_of(folder: Path, identity: Identity | None) -> None:
    """The folder is there, 0700, and belongs, with all in it, to who runs the server."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if identity is not None and folder.stat().st_uid != identity.uid:
        for path in [*folder.rglob("*"), folder]:  # the folder last: its owner says whether all is done
            os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What nobody chose, made once for a data folder."""

    jwt_secret: str = field(repr=False)
    agora_app_id: str = field(repr=False)
    agora_app_certificate: str = field(repr=False)
    postgres_password: str = field(repr=False)
    valkey_password: str = field(repr=False)


def load_or_make_secrets(data_dir: Path) -> Secrets:
    """The secrets of this data folder, made at the first call and the same ever after. Raises EmbeddedError."""
    with one_line_errors(data_dir):
        folder = open_folder(data_dir)
        path = folder / SECRETS
        with _alone_in(folder):  # two first calls at once must agree
            if not path.exists():
                if (folder / "postgres").exists():
                    raise EmbeddedError(
                        f"{path} is missing, and nobody can open the Postgres data beside it without it"
                    )
                write_private(path, json.dumps(asdict(_make_secrets())))
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


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_private(path: Path, text: str) -> None:
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed in the folder stays renamed when the power goes."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def bound_log(log: Path) -> None:
    """Keeps one older copy of a log that has grown too long; its server goes on appending to the emptied file."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copy2(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
