"""The load of the budget: the same request over some connections, one in flight on each. Exit 1 unless all succeed."""

from __future__ import annotations

import selectors
import socket
import sys


def main() -> int:
    """Arguments: port, appointment id, token, how many answers to wait for, connections."""
    port, appointment_id, token, count, connections = sys.argv[1:]
    request = (
        f"POST /v1/appointments/{appointment_id}/entries HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    selector = selectors.DefaultSelector()
    for _ in range(int(connections)):
        connection = socket.create_connection(("127.0.0.1", int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, connection)
        connection.sendall(request)
    answered = succeeded = 0
    while answered < int(count):
        for key, _ in selector.select():
            succeeded += key.data.recv(65536).startswith(b"HTTP/1.1 20")
            answered += 1
            key.data.sendall(request)
    return 0 if succeeded == answered else 1


if __name__ == "__main__":
    sys.exit(main())
