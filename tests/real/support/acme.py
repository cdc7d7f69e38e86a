"""Real ACME servers, the DNS that they ask, and a network of the test's own, where ports 80 and 443 are free."""
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .process import Process
from .waiting import accepts, free_port, wait_until

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@contextlib.contextmanager
def own_network():
    """Puts this thread, and what it starts from now on, into a network with a loopback and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_NEW_NETWORK) != 0:
        os.close(before)
        pytest.skip(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        assert libc.setns(before, _NEW_NETWORK) == 0
        os.close(before)


class Dns:
    """Every name leads to 127.0.0.1."""

    def __init__(self, directory: Path):
        management = free_port()
        self.process = Process("dns", [
            "pebble-challtestsrv", "-dns01", "127.0.0.1:53", "-management", f"127.0.0.1:{management}",
            "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""], directory)
        wait_until(lambda: accepts(management), 20, "the DNS answers")

    def stop(self):
        self.process.stop()


_A2C_RUN = """
import ssl, sys
from wsgiref.simple_server import make_server
from acme2certifier.share.acme2certifier_wsgi import application, get_handler_cls
server = make_server("127.0.0.1", int(sys.argv[1]), application, handler_class=get_handler_cls())
server.set_app(lambda environ, start: application({**environ, "wsgi.url_scheme": "https"}, start))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
_A2C_CONFIG = """
[DEFAULT]
debug: True
dns_server_list: ["127.0.0.1"]
[Nonce]
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {ca}.key
issuing_ca_cert: {ca}.crt
issuing_ca_crl: {ca}.crl
cert_save_path: {directory}
cert_validity_days: 30
[DBhandler]
handler: wsgi
dbfile: {directory}/acme.db
[Order]
[Certificate]
[Challenge]
[Directory]
[Renewalinfo]
{renewal}
"""


class Acme2certifier:
    """acme2certifier with its openssl handler; validates on ports 80 and 443, knows ARI."""

    def __init__(self, directory: Path, certs: Path, renewal: str = ""):
        self.directory = directory / "acme2certifier"
        self.directory.mkdir()
        self.certs, self.port = certs, free_port()
        self.url = f"https://localhost:{self.port}/directory"
        self.ca = make_ca(self.directory / "ca")
        # It writes to it when it revokes, which it is not asked to.
        (self.directory / "ca.crl").touch()
        config = _A2C_CONFIG.format(ca=self.directory / "ca", directory=self.directory, renewal=renewal)
        (self.directory / "acme_srv.cfg").write_text(config)
        self.process = None

    def start(self):
        environment = {**os.environ, "ACME_SRV_CONFIGFILE": str(self.directory / "acme_srv.cfg")}
        argv = [sys.executable, "-c", _A2C_RUN, self.port, self.certs / "site.crt", self.certs / "site.key"]
        self.process = Process("acme2certifier", argv, self.directory, env=environment)
        wait_until(lambda: accepts(self.port), 30, "acme2certifier accepts")
        return self

    def stop(self):
        if self.process:
            self.process.stop()

    def requests(self, path: str) -> int:
        """How many requests for a path it has logged."""
        return len(re.findall(rf'"(?:GET|POST|HEAD) {path}', self.process.output()))


class Pebble:
    """Let's Encrypt's test server: checks every request strictly, refuses some good nonces, makes short lives."""

    def __init__(self, directory: Path, certs: Path, *, life: int = 3600, eab: dict | None = None):
        self.directory = directory / "pebble"
        self.directory.mkdir()
        self.port, self.management = free_port(), free_port()
        self.url = f"https://localhost:{self.port}/dir"
        config = {
            "listenAddress": f"127.0.0.1:{self.port}", "managementListenAddress": f"127.0.0.1:{self.management}",
            "certificate": str(certs / "site.crt"), "privateKey": str(certs / "site.key"),
            "httpPort": 80, "tlsPort": 443, "certificateValidityPeriod": life,
            "externalAccountBindingRequired": bool(eab), "externalAccountMACKeys": eab or {},
        }
        (self.directory / "config.json").write_text(json.dumps({"pebble": config}))
        self.process = None

    def start(self):
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1"}
        argv = ["pebble", "-strict", "-config", "config.json", "-dnsserver", "127.0.0.1:53"]
        self.process = Process("pebble", argv, self.directory, env=environment)
        wait_until(lambda: accepts(self.port), 30, "pebble accepts")
        return self

    def stop(self):
        if self.process:
            self.process.stop()


def make_ca(stem: Path) -> Path:
    subprocess.run([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{stem}.key", "-out", f"{stem}.crt", "-days", "3650", "-subj", f"/CN={stem.parent.name} CA",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    ], check=True, capture_output=True)
    return Path(f"{stem}.crt")


def shown_certificate(name: str, *options: str) -> dict:
    """Issuer and serial of the certificate that 127.0.0.1:443 shows for a name; empty where there is none."""
    client = subprocess.run(
        ["openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", name, *options],
        input=b"", capture_output=True, timeout=20, check=False)
    parsed = subprocess.run(["openssl", "x509", "-noout", "-issuer", "-serial", "-ext", "subjectAltName"],
                            input=client.stdout, capture_output=True, check=False)
    lines = parsed.stdout.decode()
    issuer, serial = re.search("issuer=(.*)", lines), re.search("serial=(.*)", lines)
    return {"issuer": issuer[1], "serial": serial[1], "text": lines} if issuer and serial else {}
