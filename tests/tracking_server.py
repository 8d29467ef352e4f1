"""Servers that fail as tracking servers do, on the loopback."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_TRICKLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@dataclass
class Failing:
    """A server and how many connections it was asked for."""

    port: int
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def failing_server(how: str) -> Iterator[Failing]:
    """Args: how: `refuses` connections, `hangs` (never answers), `trickles` (a byte a second), or `breaks` (500)."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = Failing(listener.getsockname()[1])
    if how == "refuses":  # bound, so that nobody else takes the port; nobody listens
        yield server
        listener.close()
        return
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            if how == "breaks":
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if how == "trickles":
                connection.sendall(_TRICKLE)
            while not ended.wait(1):
                if how == "trickles":
                    connection.sendall(b" ")

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.connections.append(connection)
            threading.Thread(target=_quietly, args=(answer, connection), daemon=True).start()

    listener.listen()
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _quietly(answer, connection: socket.socket) -> None:
    try:
        answer(connection)
    except OSError:
        return  # the other side has gone
