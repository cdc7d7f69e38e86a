"""Waiting for something to become true, always with a deadline."""
import socket
import time


def wait_until(condition, within: float, what: str, step: float = 0.02):
    """Calls `condition` until it returns something true, and returns that; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        outcome = condition()
        if outcome:
            return outcome
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {within} s (last: {outcome!r})")
        time.sleep(step)


_handed_out: set[int] = set()


def free_port() -> int:
    """A port that nothing listens on, never the same twice in one run."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _handed_out:
            _handed_out.add(port)
            return port


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on this loopback port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
        return True
    except OSError:
        return False
