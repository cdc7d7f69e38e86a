"""Real HAProxy in front: a TCP balancer that says for whom it connects."""
import os
import shutil
from pathlib import Path

from .process import Process
from .waiting import accepts, free_port, wait_until

_PATH = os.environ["PATH"] + ":/usr/sbin"
# It connects from an address of its own, so that nothing else on the loopback is taken for it.
ADDRESS = "127.0.0.8"
_CONFIG = """
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind 127.0.0.1:{port}
    unique-id-format %{{+X}}o\\ %ci:%cp_%rt
    default_backend back
backend back
    source {address}
    server portcullis 127.0.0.1:{target} check inter 100ms {options}
"""


class Haproxy:
    """Passes TCP connections on to a port of ours; `options` are those of its server line."""

    def __init__(self, directory: Path, target: int, options: str):
        self.port = free_port()
        config = directory / f"haproxy-{self.port}.cfg"
        config.write_text(_CONFIG.format(port=self.port, target=target, address=ADDRESS, options=options))
        haproxy = shutil.which("haproxy", path=_PATH)
        self.process = Process(f"haproxy-{self.port}", [haproxy, "-db", "-f", config], directory)

    def __enter__(self):
        wait_until(lambda: accepts(self.port), 5, "haproxy accepts")
        return self

    def __exit__(self, *_):
        self.process.stop()
