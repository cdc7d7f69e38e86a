"""Clients that take their time over HTTP/1: each is closed at its deadline, and nobody else notices."""
import socket
import subprocess
import time

from wire import close, connect, drive, tls


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
    drive(connections, speak=lambda _: b"y", within=6, every=0.5)
    close(connections)
    return connections


def bodies(target, count):
    """A body that grows by a byte now and then: below the least rate once the grace is over."""
    connections = _open(target, count, _head("/small", "content-length: 100000", method="POST"))
    drive(connections, speak=lambda _: b"y", within=7, every=0.5)
    close(connections)
    return connections


def silent_bodies(target, count):
    connections = _open(target, count, _head("/small", "content-length: 100000", method="POST"))
    drive(connections, speak=lambda _: b"", within=6, every=0.5)
    close(connections)
    return connections


def readers(target, count):
    """Asks for eight MiB and reads nothing of it."""
    connections = _open(target, count, _head("/big"), receive_buffer=4096)
    drive(connections, speak=lambda _: b"", within=7, every=0.5, read=0)
    close(connections)
    return connections


def dripping_readers(target, count):
    """Asks for eight MiB and reads a little of it again and again, so that something always moves."""
    connections = _open(target, count, _head("/big"), receive_buffer=4096)
    drive(connections, speak=lambda _: b"", within=10, every=0.25, read=300)
    close(connections)
    return connections
