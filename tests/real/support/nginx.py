"""Real nginx as a backend: one process (so that kill -9 ends all of it), no root-only paths."""
import os
import shutil
from collections import Counter
from pathlib import Path

from .process import Process
from .waiting import accepts, free_port, wait_until

_PATH = os.environ["PATH"] + ":/usr/sbin"
_CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type text/plain;
    sendfile on;
    keepalive_requests 1000000;
    keepalive_timeout 75s;
    client_max_body_size 0;
    server {{
        listen {host}:{port} backlog=4096 {listen};
        root files;
        {settings}
        location = /healthz {{ access_log off; return 200 "well\\n"; }}
        location = /name {{ return 200 "{name}\\n"; }}
        location = /ends {{ return 200 "$proxy_protocol_addr $proxy_protocol_server_port $remote_addr $scheme"; }}
        location / {{ }}
    }}
}}
"""


class Nginx:
    """A backend that answers `/name` with its name, `/healthz`, and the files put into `files`.

    `listen` and `settings` are put into its configuration, on the loopback address `host`; `/ends` says whom the PROXY protocol named.
    """

    def __init__(self, name: str, directory: Path, listen: str = "", settings: str = "",
                 host: str = "127.0.0.1"):
        self.name = name
        self.port = free_port()
        self.host = host
        self.address = f"{host}:{self.port}"
        self.directory = directory / f"nginx-{name}"
        self.files = self.directory / "files"
        self.files.mkdir(parents=True)
        # Started as root, its one process runs as root; the files are then readable all the same.
        (self.directory / "nginx.conf").write_text(
            _CONFIG.format(host=host, port=self.port, name=name, listen=listen, settings=settings))
        self.process = None
        self.start()

    def start(self):
        nginx = shutil.which("nginx", path=_PATH)
        argv = [nginx, "-p", self.directory, "-c", "nginx.conf", "-e", "error.log"]
        self.process = Process(f"nginx-{self.name}", argv, self.directory)
        wait_until(lambda: accepts(self.port, host=self.host), 5, f"nginx {self.name} accepts")

    def requests(self) -> int:
        """Lines in its access log; probes are not logged."""
        with open(self.directory / "access.log", "rb") as log:
            return sum(1 for _ in log)

    def kill(self):
        self.process.kill()

    def stop(self):
        self.process.stop()




def spread(backends) -> Counter:
    """How many requests each backend has logged."""
    return Counter({backend.name: backend.requests() for backend in backends})
