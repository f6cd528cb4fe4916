"""Libraries that are preloaded into one server, and the numbers by which a run tells them what to do."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

FOLDER = Path(__file__).with_name("native")


def why_no_compiler() -> str | None:
    """Why no library can be built and preloaded here; None when it can."""
    if sys.platform != "linux":
        return "preloading a library needs Linux"
    return None if _compiler() else "there is no C compiler (cc) here"


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder for what a server of another user must reach; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chaos-native-") as path:
        folder = Path(path)
        folder.chmod(0o755)
        yield folder


def build(source: Path, folder: Path) -> Path:
    """The C file as a library in the folder, for any user to load."""
    compiler = _compiler()
    assert compiler is not None, why_no_compiler()
    library = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    library.chmod(0o755)
    return library


class Numbers:
    """Signed 64-bit numbers in a file, which the programs that have mapped it see change at once."""

    def __init__(self, path: Path, *, count: int) -> None:
        self.path = path
        path.write_bytes(bytes(8 * count))
        path.chmod(0o666)  # the server that maps it may be another user's
        with path.open("r+b") as opened:
            self._mapped = mmap.mmap(opened.fileno(), 8 * count)

    def __getitem__(self, index: int) -> int:
        (number,) = struct.unpack_from("=q", self._mapped, 8 * index)
        return int(number)

    def __setitem__(self, index: int, number: int) -> None:
        struct.pack_into("=q", self._mapped, 8 * index, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mapped.close()


def _compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
