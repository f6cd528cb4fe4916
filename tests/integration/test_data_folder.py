"""A data folder that somebody else put in our way chooses neither our database nor our secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.data_folder import load_or_make_secrets, owner_of
from service.embedded import EmbeddedError, EmbeddedServers, running_addresses
from tests.harness import PATIENCE_S, ROOT, clean_environment

STRANGER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

# Each way by which the folder is used: by serve, by token, by a command that looks for running servers.
WAYS: list[Callable[[Path], object]] = [
    lambda folder: EmbeddedServers.start(folder, postgres=False).stop(),
    load_or_make_secrets,
    running_addresses,
]
ways = pytest.mark.parametrize("use", WAYS, ids=["start", "secrets", "looking"])


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with secrets and published addresses."""
    folder = tmp_path / "data"
    load_or_make_secrets(folder)
    (folder / "embedded.json").write_text("{}")
    (folder / "embedded.json").chmod(0o600)
    return folder


def refusal(use: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(EmbeddedError) as caught:
        use(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def as_another_user() -> Iterator[None]:
    os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(0)


@ways
@pytest.mark.parametrize("leads_somewhere", [True, False])
def test_a_folder_that_is_a_link_is_refused(
    use: Callable[[Path], object], data_dir: Path, leads_somewhere: bool
) -> None:
    link = data_dir.with_name("link")
    link.symlink_to(data_dir if leads_somewhere else data_dir.with_name("nowhere"))
    before = sorted(data_dir.iterdir())
    assert f"{link} is a symbolic link" in refusal(use, link)
    assert sorted(data_dir.iterdir()) == before
    assert not data_dir.with_name("nowhere").exists()


@ways
@pytest.mark.parametrize("name", ["secrets.json", "embedded.json", "owner.lock", "valkey.log", "valkey.lock", "valkey"])
def test_a_link_within_it_is_refused(use: Callable[[Path], object], data_dir: Path, name: str) -> None:
    elsewhere = data_dir.with_name("elsewhere")
    if (data_dir / name).exists():
        shutil.copy2(data_dir / name, elsewhere)
        (data_dir / name).unlink()
    (data_dir / name).symlink_to(elsewhere)
    assert f"{data_dir / name} is a symbolic link" in refusal(use, data_dir)


@ways
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["secrets.json", "embedded.json", "owner.lock", "postgres.log", "valkey.lock"])
def test_what_is_not_a_plain_file_is_refused_and_not_waited_for(
    use: Callable[[Path], object], data_dir: Path, name: str, make: Callable[[Path, int], None]
) -> None:
    (data_dir / name).unlink(missing_ok=True)
    make(data_dir / name, 0o700)
    assert f"{data_dir / name} is not a plain file" in refusal(use, data_dir)


@ways
def test_a_server_whose_folder_is_a_file_is_refused(use: Callable[[Path], object], data_dir: Path) -> None:
    (data_dir / "postgres").touch(0o600)
    assert f"{data_dir / 'postgres'} is not a folder" in refusal(use, data_dir)


def test_who_owns_a_folder_is_looked_at_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "owner.lock", 0o600)
    assert owner_of(tmp_path) is None


@needs_root
@ways
@pytest.mark.parametrize("name", ["", "secrets.json", "embedded.json", "postgres.log"])
def test_another_owner_is_refused_and_named(use: Callable[[Path], object], data_dir: Path, name: str) -> None:
    (data_dir / "postgres.log").touch()
    os.chown(data_dir / name, STRANGER, STRANGER)
    line = refusal(use, data_dir)
    assert line.startswith(str(data_dir / name))
    assert f"belongs to uid {STRANGER}" in line


@needs_root
@ways
def test_a_folder_of_root_is_refused_to_others(use: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        load_or_make_secrets(Path(name) / "data")
        with as_another_user():
            assert "belongs to uid 0" in refusal(use, Path(name) / "data")


@ways
@pytest.mark.parametrize("name", ["secrets.json", "embedded.json"])
@pytest.mark.parametrize("mode", [0o604, 0o640])
def test_passwords_that_others_may_read_are_refused(
    use: Callable[[Path], object], data_dir: Path, name: str, mode: int
) -> None:
    (data_dir / name).chmod(mode)
    line = refusal(use, data_dir)
    assert line.startswith(f"{data_dir / name} holds passwords")
    assert "chmod 600" in line


@needs_root
@ways
def test_a_strangers_link_on_the_way_is_refused(use: Callable[[Path], object], data_dir: Path) -> None:
    link = data_dir.parent.with_name(f"{data_dir.parent.name}-link")
    link.symlink_to(data_dir.parent)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    try:
        assert f"through {link}, a symbolic link of uid {STRANGER}" in refusal(use, link / "data")
    finally:
        link.unlink()


def test_our_own_link_on_the_way_is_followed(data_dir: Path) -> None:
    link = data_dir.with_name("link")
    link.symlink_to(data_dir.parent)
    assert load_or_make_secrets(link / "data") == load_or_make_secrets(data_dir)


def test_a_command_says_it_in_one_line(data_dir: Path) -> None:
    (data_dir / "secrets.json").chmod(0o644)
    for words, status in ((["serve", "--port", "0"], 1), (["token", "--user", "1"], 1), (["audit"], 2)):
        ended = subprocess.run(
            [sys.executable, "-m", "service", *words],
            cwd=ROOT,
            env=clean_environment(data_dir=str(data_dir)),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert (ended.returncode, ended.stdout) == (status, "")
        assert ended.stderr.startswith(f"chargeonce: {data_dir / 'secrets.json'} holds passwords")
        assert ended.stderr.count("\n") == 1
