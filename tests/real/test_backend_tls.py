"""TLS between Portcullis and real nginx: the documented commands, and every kind of bad certificate."""
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.authority import OpensslCa, self_signed
from support.clients import curl
from support.nginx import Nginx
from support.portcullis import BINARY, ROOT, cluster
from support.waiting import wait_until

PROBES = "health = { path = '/healthz', interval = '200ms', timeout = '1s', rise = 1, fall = 1 }"
SERVERS = {"web1.internal": "127.0.0.11", "web2.internal": "127.0.0.12", "web3.internal": "127.0.0.13"}


def guide() -> str:
    """The part of the operating guide about this."""
    text = (ROOT / "docs/operating.md").read_text()
    return text.split("\n## Encrypt the way to the web servers\n")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    """The code blocks of that part, without the indentation of lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", guide(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"(?m)^{indent}", "", text) for indent, text in found]


class Walk:
    """The guide, followed on this machine: 10.0.0.x is 127.0.0.x, and the folders are below one directory."""

    def __init__(self, directory: Path):
        self.etc = directory / "etc-portcullis"
        self.etc.mkdir()
        self.directory = directory
        self.said = ""

    def backend(self, address: str) -> Path:
        folder = self.directory / f"web-{address}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def run(self, line: str):
        line = line.replace("10.0.0.", "127.0.0.").replace("/etc/portcullis/", f"{self.etc}/")
        words = shlex.split(line)
        if words[0] == "scp":
            place = words[-1].removeprefix("root@").split(":")[0]
            files = subprocess.run(f"ls {words[1]}", shell=True, capture_output=True, text=True, check=True).stdout.split()
            for file in files:
                shutil.copy(file, self.backend(place))
            return
        assert words[:2] == ["portcullis", "pki"], line
        group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
        words = [group if word == "portcullis" else word for word in words[2:]]
        argv = [BINARY, "pki", words[0], "--directory", self.etc / "pki", *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        self.said += done.stdout

    def nginx(self, address: str) -> Nginx:
        snippet = blocks("nginx")[0].replace("/etc/portcullis-backend", str(self.backend(address)))
        settings = "\n".join(line for line in snippet.splitlines() if not line.startswith("listen "))
        return Nginx(address, self.directory, "ssl", settings, host=address)


@pytest.fixture
def walk(directory):
    return Walk(directory)


@pytest.fixture
def servers(walk):
    """The three web servers of the guide, after its commands."""
    commands = [line for block in blocks("sh")[:1] for line in block.splitlines() if line and not line.startswith("#")]
    assert len(commands) >= 3, commands
    for line in commands:
        walk.run(line)
    found = []
    try:
        found.extend(walk.nginx(address) for address in SERVERS.values())
        yield found
    finally:
        for server in found:
            server.stop()


@pytest.fixture
def front(portcullis, walk, servers):
    settings = "\n".join(line for line in blocks("toml")[0].splitlines() if not line.startswith(("[", "backends")))
    top = f"[pki]\ndirectory = '{walk.etc}/pki'\n"
    front = portcullis(cluster("web", [server.address for server in servers], f"{settings}\n{PROBES}"), top=top)
    front.wait_for_health(web=3)
    return front


def names(front, count: int) -> set[str]:
    return {curl(f"{front.https_url}/name", ca=front.ca).body.decode().strip() for _ in range(count)}


class TestTheGuide:
    def test_both_ends_know_each_other(self, front, servers):
        assert names(front, 12) == set(SERVERS.values())
        # Whoever else comes has no certificate, and is told so.
        for server in servers:
            stranger = curl(f"https://{server.address}/name", "-k")
            assert stranger.status == 400 and b"No required SSL certificate was sent" in stranger.body

    def test_nothing_is_said_against_it(self, front):
        done = subprocess.run([BINARY, "check", "--config", front.config], capture_output=True, text=True, check=True)
        assert "the configuration is good" in done.stdout, done.stdout + done.stderr
        assert front.metrics().total("cluster_plaintext") == 0

    def test_the_printed_snippet_is_that_of_the_guide(self, walk, servers):
        printed = re.search(r"^nginx, in server \{ \}:\n(.*?)\n\n", walk.said, re.MULTILINE | re.DOTALL)[1]
        flat = lambda text: [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        assert flat(printed) == flat(blocks("nginx")[0])

    def test_openssl_finds_nothing_wrong(self, walk, servers):
        authority = walk.etc / "pki/ca.crt"
        for address in SERVERS.values():
            certificate = walk.backend(address) / "backend.crt"
            argv = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", address,
                    "-CAfile", authority, certificate]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        below = walk.etc / "pki/balancer/client-ca.crt"
        done = subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", authority, below],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_a_revoked_server_is_down_within_seconds_and_comes_back_with_a_new_certificate(self, front, walk, servers):
        walk.run("portcullis pki revoke web2.internal")
        wait_until(lambda: "upstream_tls_revoked" in front.admin_get("/status")[1], 10, "the revoked server is down")
        assert names(front, 8) == {"127.0.0.11", "127.0.0.13"}
        wait_until(lambda: "upstream_tls_revoked" in front.process.output(), 5, "the reason in the log")
        walk.run("portcullis pki issue web2.internal,10.0.0.12")
        walk.run("scp /etc/portcullis/pki/issued/web2.internal/* root@10.0.0.12:/etc/portcullis-backend/")
        servers[1].stop()
        servers[1].start()
        front.wait_for_health(web=3)
        assert names(front, 12) == set(SERVERS.values())

    def test_the_balancer_lives_without_the_key_of_the_ca(self, front, walk):
        (walk.etc / "pki/ca.key").unlink()
        front.stop()
        front.start()
        front.wait_for_health(web=3)
        assert names(front, 12) == set(SERVERS.values())


def down(front, reason: str):
    """Waits for the probe's verdict, and looks at what a request gets."""
    wait_until(lambda: f'"{reason}: ' in front.admin_get("/status")[1], 10, f"{reason} in /status")
    wait_until(lambda: front.metrics().total("backend_up", cluster="web") == 0, 5, "the backend is down")
    wait_until(lambda: f"is down: 1 probe failed: {reason}: " in front.process.output(), 5, "the reason in the log")
    answer = curl(f"{front.https_url}/name", ca=front.ca)
    assert (answer.status, answer.reason) == (502, reason)
    assert b"127.0.0.1" not in answer.body


class TestBadCertificates:
    """One backend, so that the cluster fails open and a request shows the reason, too."""

    @pytest.fixture
    def authority(self, directory):
        return OpensslCa(directory / "ca")

    @pytest.fixture
    def serve(self, directory, portcullis, authority):
        made = []

        def serve(pair, more: str = "", wanted: str = ""):
            settings = f"ssl_certificate {pair[0]}; ssl_certificate_key {pair[1]}; {wanted}"
            made.append(Nginx(f"bad{len(made)}", directory, "ssl", settings))
            tls = f"tls = {{ ca = '{authority.certificate}'{more} }}"
            return portcullis(cluster("web", [made[-1].address], f"{tls}\n{PROBES}"))

        yield serve
        for backend in made:
            backend.stop()

    def test_good(self, serve, authority):
        front = serve(authority.issue("good"), f", crl = '{authority.crl}'")
        front.wait_for_health(web=1)
        assert curl(f"{front.https_url}/name", ca=front.ca).status == 200

    def test_expired(self, serve, authority):
        down(serve(authority.issue("old", end="20210101000000Z")), "upstream_tls_expired")

    def test_self_signed(self, serve, directory):
        down(serve(self_signed(directory)), "upstream_tls_unknown_ca")

    def test_wrong_name(self, serve, authority):
        down(serve(authority.issue("other", "DNS:other.internal,IP:127.0.0.2")), "upstream_tls_name_mismatch")

    def test_not_pinned(self, serve, authority):
        pair = authority.issue("web", "IP:127.0.0.1,URI:spiffe://example.org/web")
        down(serve(pair, ", names = ['spiffe://example.org/db']"), "upstream_tls_name_mismatch")

    def test_wrong_ca(self, serve, directory):
        down(serve(OpensslCa(directory / "foreign", "foreign CA").issue("web")), "upstream_tls_unknown_ca")

    def test_a_certificate_for_clients_is_none_for_servers(self, serve, authority):
        down(serve(authority.issue("client", usage="clientAuth")), "upstream_tls_handshake")

    def test_revoked(self, serve, authority):
        pair = authority.issue("web")
        front = serve(pair, f", crl = '{authority.crl}'")
        front.wait_for_health(web=1)
        authority.revoke(pair[0])
        down(front, "upstream_tls_revoked")

    def test_old_tls(self, serve, authority):
        down(serve(authority.issue("web"), ", minimum_version = '1.3'", "ssl_protocols TLSv1.2;"), "upstream_tls_handshake")

    def test_a_client_certificate_that_is_replaced_is_shown(self, serve, authority, directory):
        wrong, right = OpensslCa(directory / "wrong", "wrong CA"), authority.issue("lb", usage="clientAuth")
        own = [directory / "own.crt", directory / "own.key"]
        for source, target in zip(wrong.issue("lb", usage="clientAuth"), own):
            shutil.copy(source, target)
        wanted = f"ssl_client_certificate {authority.certificate}; ssl_verify_client on;"
        front = serve(authority.issue("web"), f", certificate = {{ chain = '{own[0]}', key = '{own[1]}' }}", wanted)
        wait_until(lambda: "status 400" in front.admin_get("/status")[1], 10, "nginx refuses the certificate")
        for source, target in zip(right, own):
            fresh = target.with_suffix(".new")
            shutil.copy(source, fresh)
            os.rename(fresh, target)
        front.wait_for_health(web=1)
        assert curl(f"{front.https_url}/name", ca=front.ca).status == 200


class TestClearText:
    def test_clear_text_to_another_machine_is_said_aloud(self, portcullis):
        front = portcullis(cluster("web", ["192.0.2.1:80"], "health = false"))
        assert "is sent everything in clear text" in front.process.output()
        assert front.metrics().total("cluster_plaintext", cluster="web") == 1

    def test_unless_it_is_meant(self, portcullis):
        front = portcullis(cluster("web", ["192.0.2.1:80"], "plaintext = true\nhealth = false"))
        assert "clear text" not in front.process.output()
        assert front.metrics().total("cluster_plaintext", cluster="web") == 1

    def test_it_is_no_matter_on_this_machine(self, portcullis, echo):
        front = portcullis(cluster("web", [echo.address]))
        assert "clear text" not in front.process.output()
        assert front.metrics().total("cluster_plaintext", cluster="web") == 0


class TestCommand:
    def test_mistakes_are_told(self, directory):
        def pki(*words):
            argv = [BINARY, "pki", words[0], "--directory", directory / "pki", *words[1:]]
            return subprocess.run(argv, capture_output=True, text=True, check=False)

        for words, code, said in [
            (("issue", "web1.internal"), 1, "there is no CA in"),
            (("init", "--permit", "a b"), 1, "neither a domain such as internal nor a network"),
            (("init", "--group", "no-such-group-here"), 1, "there is no group"),
            (("init",), 0, ""),
            (("init",), 1, "there is a CA in"),
            (("issue",), 2, "required"),
            (("issue", "web1.internal,*.internal"), 1, "neither a DNS name nor an address"),
            (("issue", "web1.internal", "www.example.com"), 1, "may not certify www.example.com"),
            (("issue", "--days", "0", "web1.internal"), 2, "0"),
            (("revoke", "web1.internal"), 1, "nothing was issued under"),
        ]:
            done = pki(*words)
            assert done.returncode == code and said in done.stderr, (words, done)
        assert not list((directory / "pki/issued").iterdir()), "all or nothing"
        assert "nothing is to be renewed" in pki("renew").stdout
