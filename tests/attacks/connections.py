"""More connections than there are file descriptors."""
import os
import resource
import time

from wire import Connection, close, connect


def beyond_the_file_limit(target, count) -> list[Connection]:
    """Opens connections as fast as they come, holds them, and goes away."""
    return _hold(_open(target, count), 2)


def no_descriptors_left(target, count) -> list[Connection]:
    """The process has none to accept with, whatever its own caps say: the kernel's queue is full of connections."""
    pid = target.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    few = len(os.listdir(f"/proc/{pid}/fd")) + 8
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        return _hold(_open(target, count), 3)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _open(target, count) -> list[Connection]:
    connections = []
    for _ in range(count):
        try:
            connections.append(connect(target.http))
        except OSError:
            break
    return connections


def _hold(connections: list[Connection], seconds: float) -> list[Connection]:
    time.sleep(seconds)
    close(connections)
    for connection in connections:
        connection.end("ours")
    return connections
