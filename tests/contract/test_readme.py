"""What README.md tells a newcomer to paste works as it says, in its order, beside what `make run` starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, ROOT, Start, service

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
MEMBER = re.compile(r'"(\w+)":')
TOLD = ("outcome", "code", "status", "retryable", "charged", "count", "payer_id")


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A terminal in a fresh checkout, in which `make run` was called in another one."""

    folder: Path
    url: str
    printed: str

    def paste(self, command: str) -> str:
        """The command, at the address and with the token that were printed; what it says."""
        token = re.search(r"Bearer ([^']+)'", self.printed)
        assert token is not None
        command = command.replace("http://127.0.0.1:8080", self.url).replace("eyJhbGciOi…", token[1])
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    start = Start(command=(".venv/bin/python", "-m", "service", "serve", "--demo"), cwd=folder, settings={})
    with service(folder, start) as running:
        assert running.process.stdout is not None
        printed = ""
        while "curl" not in printed:
            printed += running.process.stdout.readline()
        yield Newcomer(folder, running.url, printed)


def transcripts() -> list[tuple[str, str]]:
    """Each command of README's transcripts, and what it is said to answer."""
    text = "\n".join(block for language, block in BLOCKS if language == "console")
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", text, flags=re.MULTILINE)
    assert len(found) >= 4
    return [(command, answer.strip()) for command, answer in found]


def test_the_command_for_an_operators_token_works_when_pasted(newcomer: Newcomer) -> None:
    (command,) = re.findall(r"log in with what this prints: (.*)", newcomer.printed)
    assert newcomer.paste(command).count(".") == 2


def test_what_the_transcripts_show_is_what_a_newcomer_gets(newcomer: Newcomer) -> None:
    for command, shown in transcripts():
        said = newcomer.paste(command).strip()
        if not shown.startswith("{"):
            assert said.splitlines() == shown.splitlines()
            continue
        assert set(MEMBER.findall(shown)) <= set(MEMBER.findall(said)), command
        for name in TOLD:
            told = rf'"{name}":("[^"]*"|\w+)'
            assert re.findall(told, shown) == re.findall(told, said), (command, name)


def test_the_line_that_make_run_prints_enters_a_room(newcomer: Newcomer) -> None:
    [line] = [line for line in newcomer.printed.splitlines() if line.startswith("curl")]
    assert json.loads(newcomer.paste(line))["room"]["token"].startswith("007")


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "sh"])
def test_a_block_of_shell_works_when_pasted(newcomer: Newcomer, block: str) -> None:
    answer = json.loads(newcomer.paste(block))
    assert {"lease_id", "fencing_token", "expires_at"} <= answer.keys(), answer


def test_every_curl_of_the_documentation_is_in_a_block_that_is_tried() -> None:
    tried = "".join(block for language, block in BLOCKS if language in ("sh", "console"))
    assert README.count("curl -") == tried.count("curl -") > 0
