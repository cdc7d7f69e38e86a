"""Clients that take their time over HTTP/1: each is closed at its deadline, and nobody else notices."""
import time

from wire import close, connect, drive, tls

# All of them are there for a while, and they come as fast as one core can serve their first bytes.
SPREAD = 2.0


def _head(path: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


def _open(target, count, opening: bytes, **options):
    connections = []
    for _ in range(count):
        connection = connect(target.http, **options)
        connection.pending = opening
        connections.append(connection)
    return connections


def heads(target, count):
    """A head that grows by a byte now and then."""
    connections = _open(target, count, b"GET /small HTTP/1.1\r\nhost: localhost\r\nx: ")
    drive(connections, speak=lambda _: b"y", every=0.5, spread=SPREAD)
    close(connections)
    return connections


def bodies(target, count):
    """A body that grows by a byte now and then: below the least rate once the grace is over."""
    connections = _open(target, count, _head("/upload", "content-length: 100000", method="POST"))
    drive(connections, speak=lambda _: b"y", every=0.5, spread=SPREAD)
    close(connections)
    return connections


def silent_bodies(target, count):
    connections = _open(target, count, _head("/upload", "content-length: 100000", method="POST"))
    drive(connections, speak=lambda _: b"", every=0.5, spread=SPREAD)
    close(connections)
    return connections


def readers(target, count):
    """Asks for eight MiB and reads nothing of it."""
    connections = _open(target, count, _head("/big"), receive_buffer=32768)
    return _read_nothing(connections)


def tls_readers(target, count):
    """The same over TLS."""
    connections = [connect(target.https, tls("http/1.1"), receive_buffer=32768) for _ in range(count)]
    for connection in connections:
        connection.pending = _head("/big")
    return _read_nothing(connections)


def _read_nothing(connections):
    drive(connections, speak=lambda _: b"", every=0.5, read=0, spread=SPREAD)
    close(connections)
    return connections


def dripping_readers(target, count):
    """Asks for eight MiB and reads a little of it again and again, so that something always moves."""
    connections = _open(target, count, _head("/big"), receive_buffer=32768)
    drive(connections, speak=lambda _: b"", every=0.5, read=30, spread=SPREAD)
    close(connections)
    return connections
