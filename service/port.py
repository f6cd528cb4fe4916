"""Whether a port is taken, and by whom: looked at before anything is installed or started.

make run asks before there is any .venv, so the standard library has to do: python -m service.port HOST PORT DATA_DIR
"""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path

from service.data_folder import owner_of

COULD_NOT, COULD_NOT_LOOK = 1, 2
MAX_PORT = 65535


def who_has_the_port(host: str, port: int, data_dir: Path) -> str | None:
    """One line about who listens there, we ourselves or another program; None where nobody does."""
    if not _is_taken(host, port):
        return None
    try:
        owner = owner_of(data_dir)
    except OSError:  # nobody has ever run here, or it is not ours to look
        owner = None
    if owner is not None and owner.address.endswith(f":{port}"):
        return owner.told_of(data_dir.resolve())
    return f"port {port} is taken by another program: choose another with --port or CHARGEONCE_PORT (0: any free one)"


def _is_taken(host: str, port: int) -> bool:
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(resolved[4], family=resolved[0]).close()
    except OSError as error:  # what else may be wrong is said by who binds in earnest
        return error.errno == errno.EADDRINUSE
    return False


def _main(host: str, port: str, data_dir: str) -> int:
    if not port.isdecimal() or int(port) > MAX_PORT:
        print(f"chargeonce: CHARGEONCE_PORT: must be a whole number from 0 to {MAX_PORT}", file=sys.stderr)
        return COULD_NOT_LOOK
    if (reason := who_has_the_port(host, int(port), Path(data_dir))) is not None:
        print(f"chargeonce: {reason}", file=sys.stderr)
        return COULD_NOT
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
