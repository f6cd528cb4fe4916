"""What worlds take of the machine they give back, also what a run could not give back because it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.worlds.disks import PowerDisk, SmallDisk
from tests.chaos.worlds.machine import why_not_root
from tests.chaos.worlds.network import Network, why_no_network
from tests.harness import PATIENCE_S, ROOT
from tests.servers.kinds import skip_or_fail

DIE_WITHIN = """
import os, signal, sys
from pathlib import Path
from tests.chaos.worlds.disks import SmallDisk
from tests.chaos.worlds.network import Network
with SmallDisk(Path(sys.argv[1]), size_mb=1) as disk, Network(place_count=1) as network:
    print(disk.folder, network.places[0].name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_with_the_next_one(tmp_path: Path) -> None:
    if (why := why_no_network()) is not None:
        skip_or_fail(why)
    command = [sys.executable, "-c", DIE_WITHIN, str(tmp_path)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    left, namespace = died.stdout.split()
    assert os.path.ismount(left)
    assert Path(f"/run/netns/{namespace}").exists()

    with SmallDisk(tmp_path, size_mb=1), Network(place_count=1):
        assert not os.path.ismount(left)
        assert not Path(f"/run/netns/{namespace}").exists()


def test_a_full_disk_has_room_for_nothing_until_it_is_given_back(tmp_path: Path) -> None:
    if (why := why_not_root("mount", "umount")) is not None:
        skip_or_fail(why)
    with SmallDisk(tmp_path, size_mb=2) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(4096))
        disk.make_room()
        (disk.folder / "more").write_bytes(bytes(4096))
    assert not disk.folder.exists()


def test_what_was_synced_outlives_a_loss_of_power_and_nothing_else_does(tmp_path: Path) -> None:
    if (why := why_not_root("mkfs.ext4", "mount", "umount")) is not None:
        skip_or_fail(why)
    with PowerDisk(tmp_path, size_mb=64) as disk:
        with (disk.folder / "synced").open("wb", buffering=0) as kept:
            kept.write(b"kept")
            os.fsync(kept.fileno())
        (disk.folder / "written").write_bytes(b"lost")
        disk.lose_power()
        disk.power_up()
        assert (disk.folder / "synced").read_bytes() == b"kept"
        assert not (disk.folder / "written").exists()
    assert not list(tmp_path.iterdir())
