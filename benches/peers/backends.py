"""The backends: one nginx worker that serves, swallows uploads and counts requests."""

import http.client
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import LOAD_CORE, Process, free_ports, wait_until
from template import render

HERE = Path(__file__).parent
SMALL_BYTES = 1024
LARGE_BYTES = 1024 * 1024
BACKEND_COUNT = 50
# The name that the backends' certificate is for, which every peer verifies.
TLS_NAME = "backend-1.test"


@dataclass(frozen=True)
class Certificates:
    """PEM files of the clients' side and the backends' side, both signed by one authority."""

    directory: Path

    @property
    def authority(self):
        return self.directory / "ca.crt"

    @property
    def site(self):
        return self.directory / "site.crt"

    @property
    def site_key(self):
        return self.directory / "site.key"

    @property
    def site_with_key(self):
        return self.directory / "site.pem"


def make_certificates(directory):
    """ECDSA P-256, by the project's own script."""
    script = HERE.parent.parent / "certs" / "make-dev-certs.sh"
    subprocess.run([script, directory], check=True, stdout=subprocess.DEVNULL)
    certificates = Certificates(directory)
    certificates.site_with_key.write_text(
        certificates.site.read_text() + certificates.site_key.read_text())
    return certificates


class Backends:
    """Running backends, in clear text on `ports` and with TLS on `tls_ports`."""

    def __init__(self, nginx, certificates, directory):
        self.ports = free_ports(BACKEND_COUNT)
        self.tls_ports = free_ports(2)
        self.count_port, = free_ports(1)
        (directory / "www").mkdir(parents=True, exist_ok=True)
        (directory / "www" / "large").write_bytes(os.urandom(LARGE_BYTES))
        listen = [f"        listen 127.0.0.1:{port} backlog=4096;" for port in self.ports]
        listen += [f"        listen 127.0.0.1:{port} ssl backlog=4096;" for port in self.tls_ports]
        config = render(
            HERE / "configs" / "backends.conf", directory / "nginx.conf",
            directory=directory, user=nginx_user(), listen="\n".join(listen), small="x" * SMALL_BYTES,
            certificate=certificates.directory / "backend-1.crt",
            key=certificates.directory / "backend-1.key", count_port=self.count_port,
        )
        argv = [nginx, "-p", directory, "-e", directory / "error.log", "-c", config]
        self.process = Process(argv, LOAD_CORE, directory)
        wait_until(self._answers, self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stop()

    def served(self):
        """Requests so far, of all backends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.count_port, timeout=5)
        try:
            connection.request("GET", "/count")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        # "server accepts handled requests", and the three numbers on the line below.
        return int(text.splitlines()[2].split()[2])

    def _answers(self):
        try:
            return self.served() > 0
        except OSError:
            return False


def nginx_user():
    """Workers of a root's nginx stay root here: they write below the build directory."""
    return "user root;" if os.geteuid() == 0 else ""


def find_nginx():
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
