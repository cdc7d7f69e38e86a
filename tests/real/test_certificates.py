"""Certificates as openssl and curl see them: for each name, each client, and while they are exchanged."""
import os
import socket
import ssl
import subprocess
import threading

import pytest
from support.clients import curl
from support.portcullis import cluster
from support.waiting import wait_until

LISTENERS = """
[[listeners]]
name = "https"
address = "127.0.0.1:{https}"
%s

[[listeners]]
name = "http"
address = "127.0.0.1:{http}"
"""


def openssl(*arguments, **options) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True, **options).stdout


class Authority:
    """A CA by openssl, with what it has issued, in a folder."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.ca = folder / "ca.crt"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "400",
                "-subj", f"/CN={folder.name} CA", "-keyout", folder / "ca.key", "-out", self.ca)

    def issue(self, file: str, names: str, *, key=("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), days="90",
              with_issuer=False):
        """Writes `file`.crt and `file`.key, whole."""
        path = self.folder / file
        request = openssl("req", "-newkey", *key, "-nodes", "-subj", f"/CN={file}/O=Portcullis",
                          "-keyout", f"{path}.key.new", "-addext", f"subjectAltName={names}")
        chain = openssl("x509", "-req", "-CA", self.ca, "-CAkey", self.folder / "ca.key", "-days", days,
                        "-copy_extensions", "copy", input=request)
        (self.folder / f"{file}.crt.new").write_text(chain + (self.ca.read_text() if with_issuer else ""))
        os.chmod(f"{path}.key.new", 0o600)
        os.replace(f"{path}.key.new", f"{path}.key")
        os.replace(f"{path}.crt.new", f"{path}.crt")


@pytest.fixture
def authority(directory):
    return Authority(directory / "authority")


def shown(port: int, name: str, *options: str) -> str:
    """What s_client says of a handshake for a name."""
    run = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name, *options],
                         input="", capture_output=True, text=True, timeout=10)
    return run.stdout + run.stderr


def subject(port: int, name: str, *options: str) -> str:
    return next((line for line in shown(port, name, *options).splitlines() if line.startswith("subject=")), "")


def test_each_name_and_each_client_gets_its_certificate(portcullis, echo, authority):
    authority.issue("rsa", "DNS:both.example", key=("rsa:2048",))
    authority.issue("ecdsa", "DNS:both.example")
    authority.issue("wild", "DNS:*.wild.example")
    files = ", ".join(f'{{ chain = "{authority.folder}/{name}.crt", key = "{authority.folder}/{name}.key" }}'
                      for name in ("rsa", "ecdsa", "wild"))
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS.replace("%s", f"tls.certificates = [{files.replace('{', '{{').replace('}', '}}')}]"))
    assert "CN = ecdsa" in subject(front.https, "both.example")
    assert "CN = rsa" in subject(front.https, "both.example", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256")
    assert "CN = rsa" in subject(front.https, "both.example", "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
    assert "CN = ecdsa" in subject(front.https, "both.example", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256")
    assert "CN = wild" in subject(front.https, "a.wild.example")
    assert "CN = ecdsa" in subject(front.https, "other.example"), "the default name's"


def test_a_renewed_pair_is_shown_and_a_bad_one_is_not(portcullis, echo, authority):
    authority.issue("site", "DNS:localhost")
    site = authority.folder / "site"
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS.replace(
        "%s", f'tls.certificates = [{{{{ chain = "{site}.crt", key = "{site}.key" }}}}]'))
    serial = lambda: openssl("x509", "-noout", "-serial", input=shown(front.https, "localhost"))
    loads = lambda result: front.metrics().total("tls_file_loads_total", file="certificate", result=result)
    old = serial()
    # As it is installed: under the sandbox.
    authority.issue("site", "DNS:localhost")
    wait_until(lambda: loads("ok") == 1, 10, "the new pair is loaded")
    new = serial()
    assert new != old
    site.with_suffix(".crt").write_text("-----BEGIN CERTIFICATE-----\nhalf")
    wait_until(lambda: loads("failed") == 1, 10, "half a file is refused")
    assert serial() == new
    wait_until(lambda: "what was in force stays" in front.process.output(), 5, "it is told")
    assert curl(f"{front.https_url}/echo", ca=authority.ca).status == 200


class Handshakes(threading.Thread):
    """Full handshakes without end, each verified; keeps the last serial number of each name, and what went wrong."""

    def __init__(self, port: int, names: list[str], ca, version: ssl.TLSVersion):
        super().__init__(daemon=True)
        self.port, self.names = port, names
        self.context = ssl.create_default_context(cafile=ca)
        self.context.minimum_version = self.context.maximum_version = version
        self.made, self.serials, self.lost = 0, {}, []
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            for name in self.names:
                self.shake_hands(name)

    def shake_hands(self, name: str):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as tcp:
                with self.context.wrap_socket(tcp, server_hostname=name) as tls:
                    self.serials[name] = int(tls.getpeercert()["serialNumber"], 16)
                    self.made += 1
        except OSError as error:
            self.lost.append(error)


def test_a_hundred_exchanges_under_load_lose_no_handshake(portcullis, echo, authority):
    names = [f"site{number}.example" for number in range(10)]
    issue = lambda: [authority.issue(name, f"DNS:{name}") for name in names]
    issue()
    files = ", ".join(f'{{{{ chain = "{authority.folder}/{name}.crt", key = "{authority.folder}/{name}.key" }}}}'
                      for name in names)
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS.replace("%s", f"tls.certificates = [{files}]"))
    loads = lambda: front.metrics().total("tls_file_loads_total", file="certificate", result="ok")
    load = [Handshakes(front.https, names, authority.ca, version)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    for each in load:
        each.start()
    for done in range(len(names), 101, len(names)):
        issue()
        wait_until(lambda: loads() >= done, 15, f"{done} exchanges")
    serial = lambda name: int(openssl("x509", "-noout", "-serial", "-in", authority.folder / f"{name}.crt")[7:], 16)
    expected = {name: serial(name) for name in names}
    for each in load:
        wait_until(lambda: each.serials == expected, 10, "the last of each is shown")
        each.over.set()
        each.join()
        assert each.lost == [] and each.made > 100


def test_a_client_certificate_is_asked_for_and_told(portcullis, echo, certs, authority):
    authority.issue("alice", "DNS:alice.example")
    other = Authority(authority.folder.with_name("other"))
    other.issue("mallory", "DNS:alice.example")
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS.replace("%s", """
tls.certificates = [{{ chain = "{certs}/site.crt", key = "{certs}/site.key" }}]
tls.client_auth = {{ ca = "%s" }}""" % authority.ca))
    path = authority.folder / "alice"
    url = f"{front.https_url}/echo"
    for version in ("--http1.1", "--http2"):
        answer = curl(url, version, "--cert", f"{path}.crt", "--key", f"{path}.key",
                      "-H", "x-client-cert-subject: CN=root", ca=front.ca)
        assert answer.status == 200
        assert "CN=alice" in str(answer.json()) and "CN=root" not in str(answer.json())
    assert curl(url, ca=front.ca).exit_code != 0
    path = other.folder / "mallory"
    assert curl(url, "--cert", f"{path}.crt", "--key", f"{path}.key", ca=front.ca).exit_code != 0
    results = {result: front.metrics().total("tls_handshakes_total", listener="https", result=result)
               for result in ("ok", "no_client_certificate", "unknown_client_ca")}
    assert results == {"ok": 2, "no_client_certificate": 1, "unknown_client_ca": 1}


class Responder:
    """What an authority's responder says of its certificates, by `openssl ocsp`."""

    def __init__(self, authority: Authority):
        self.authority = authority

    def respond(self, file: str, *, valid: tuple = ("-ndays", "7"), status: str = "V"):
        """Writes `file`.ocsp, whole, for `file`.crt."""
        folder = self.authority.folder
        serial = openssl("x509", "-in", folder / f"{file}.crt", "-noout", "-serial").strip().split("=")[1]
        revoked = "200101000000Z" if status == "R" else ""
        (folder / "index").write_text(f"{status}\t400101000000Z\t{revoked}\t{serial}\tunknown\t/CN={file}\n")
        openssl("ocsp", "-issuer", self.authority.ca, "-cert", folder / f"{file}.crt", "-no_nonce",
                "-reqout", folder / "request")
        openssl("ocsp", "-index", folder / "index", "-CA", self.authority.ca, "-rsigner", self.authority.ca,
                "-rkey", folder / "ca.key", "-reqin", folder / "request", *valid, "-respout", folder / "response")
        os.replace(folder / "response", folder / f"{file}.ocsp")


def staple(front, authority: Authority, *options: str) -> str:
    """What s_client says of the response that came with the certificate."""
    text = shown(front.https, "localhost", "-status", "-CAfile", str(authority.ca), *options)
    assert "Verify return code: 0 (ok)" in text
    if "OCSP response: no response sent" in text:
        return ""
    return text[text.index("OCSP Response Data:"):text.index("---\nCertificate chain")]


def test_a_response_is_stapled_and_exchanged(portcullis, echo, authority):
    authority.issue("site", "DNS:localhost", with_issuer=True)
    responder = Responder(authority)
    responder.respond("site")
    site = authority.folder / "site"
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS.replace(
        "%s", f'tls.certificates = [{{{{ chain = "{site}.crt", key = "{site}.key", ocsp = "{site}.ocsp" }}}}]'))
    loads = lambda result: front.metrics().total("tls_file_loads_total", file="ocsp", result=result)
    for version in ("-tls1_2", "-tls1_3"):
        assert "Cert Status: good" in staple(front, authority, version), version
    # curl judges signature and dates, if it is sent the issuer.
    assert curl(f"{front.https_url}/echo", "--cert-status", ca=authority.ca).status == 200
    responder.respond("site", status="R")
    wait_until(lambda: loads("failed") == 1, 10, "a revoked certificate's response is refused")
    wait_until(lambda: "says that the certificate is revoked" in front.process.output(), 5, "it is told")
    assert "Cert Status: good" in staple(front, authority)
    before = staple(front, authority)
    responder.respond("site", valid=("-ndays", "30"))
    wait_until(lambda: loads("ok") == 1, 10, "the new response is loaded")
    assert staple(front, authority) != before
    assert curl(f"{front.https_url}/echo", "--cert-status", ca=authority.ca).status == 200
    # A renewed certificate comes first, its response later.
    authority.issue("site", "DNS:localhost", with_issuer=True)
    certificates = lambda: front.metrics().total("tls_file_loads_total", file="certificate", result="ok")
    wait_until(lambda: certificates() == 1, 10, "the new pair is loaded")
    assert staple(front, authority) == ""
    responder.respond("site")
    wait_until(lambda: loads("ok") == 2, 10, "its response is loaded")
    assert "Cert Status: good" in staple(front, authority)
