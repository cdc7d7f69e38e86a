"""The program under test as a process, with a configuration of its own in a directory of its own."""
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from .metrics import Metrics
from .process import Process
from .waiting import free_port, wait_until

ROOT = Path(__file__).resolve().parents[3]
# Another build of the program can be put in by this variable.
BINARY = Path(os.environ.get("PORTCULLIS", ROOT / "target/release/portcullis"))

LISTENERS = """
[[listeners]]
name = "https"
address = "127.0.0.1:{https}"
tls.certificates = [{{ chain = "{certs}/site.crt", key = "{certs}/site.key" }}]

[[listeners]]
name = "http"
address = "127.0.0.1:{http}"
"""
_ROUTE_TO_WEB = '\n[[routes]]\ncluster = "web"\n'


def cluster(name: str, addresses: list, settings: str = "") -> str:
    """The TOML of a cluster."""
    return f"\n[clusters.{name}]\nbackends = {json.dumps(addresses)}\n{settings}\n"


class Portcullis:
    """`portcullis run` with an HTTPS and a clear-text listener, an admin address, its access log in a file.

    `body` holds routes and clusters; without a `[[routes]]` in it, everything goes to the cluster `web`.
    """

    def __init__(self, directory: Path, certs: Path, body: str, *, top: str = "", listeners: str = LISTENERS):
        self.directory = directory
        self.directory.mkdir()
        self.ca = certs / "ca.crt"
        self.https, self.http, self.admin = (free_port() for _ in range(3))
        self.access_log = self.directory / "access.log"
        ports = {"https": self.https, "http": self.http, "certs": certs}
        routes = "" if "[[routes]]" in body else _ROUTE_TO_WEB
        self.config = self.directory / "portcullis.toml"
        self.config.write_text(
            f'{top}\n[admin]\naddress = "127.0.0.1:{self.admin}"\n\n[log]\naccess = "access.log"\n'
            + listeners.format(**ports) + routes + body)
        self.process = None

    def launch(self) -> Process:
        """Starts it and does not wait."""
        self.process = Process("portcullis", [BINARY, "run", "--config", self.config], self.directory)
        return self.process

    def start(self):
        self.launch()
        wait_until(lambda: self.ready() or not self.process.running(), 10, "portcullis is ready")
        assert self.process.running(), f"portcullis did not start:\n{self.process.output()}"

    def stop(self):
        if self.process:
            self.process.stop()

    @property
    def https_url(self) -> str:
        return f"https://localhost:{self.https}"

    @property
    def http_url(self) -> str:
        return f"http://localhost:{self.http}"

    def admin_get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 where nothing answers."""
        return admin_get(self.admin, path)

    def ready(self) -> bool:
        return self.admin_get("/readyz")[0] == 200

    def metrics(self) -> Metrics:
        status, text = self.admin_get("/metrics")
        assert status == 200, f"/metrics answered {status}"
        return Metrics(text)

    def log_lines(self) -> list[dict]:
        """The access log, parsed; every line must be a JSON object."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def settled_log(self, lines: int) -> list[dict]:
        """The access log once it holds `lines` lines: it is written behind the requests."""
        wait_until(lambda: len(self.log_lines()) >= lines, 5, f"{lines} lines in the access log")
        return self.log_lines()

    def wait_for_health(self, within: float = 10, **up: int):
        """Waits until that many backends of each named cluster have been probed and are up."""
        def known(name: str, count: int) -> bool:
            now = self.metrics()
            return now.total("backend_up", cluster=name) == count <= len(now.by("backend", "probes_total", cluster=name))

        for name, count in up.items():
            wait_until(lambda: known(name, count), within, f"{count} backends of {name} are up")


def admin_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of an admin address; status 0 where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()
    except OSError:
        return 0, ""
