"""More connections than there are file descriptors."""
import time

from wire import Connection, close, connect


def beyond_the_file_limit(target, count) -> list[Connection]:
    """Opens connections as fast as they come, holds them, and goes away."""
    connections = []
    for _ in range(count):
        try:
            connections.append(connect(target.http))
        except OSError:
            break
    time.sleep(2)
    close(connections)
    for connection in connections:
        connection.end("ours")
    return connections
