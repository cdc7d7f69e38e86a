"""Certificates from real ACME servers: obtained, renewed, kept; and what happens when the server is not there."""
import re
import socket
import stat
import time
from types import SimpleNamespace

import pytest
from support.acme import Acme2certifier, Dns, Pebble, own_network, shown_certificate
from support.clients import curl
from support.portcullis import cluster
from support.waiting import wait_until

NAME = "site.test"
LISTENERS = """
[[listeners]]
name = "https"
address = "127.0.0.1:443"
[listeners.tls.acme]
directory = "{url}"
domains = ["site.test", "www.site.test"]
contact = ["ops@site.test"]
terms_of_service_agreed = true
challenge = "{challenge}"
storage = "storage"
ca = "{ca}"
{more}

[[listeners]]
name = "http"
address = "127.0.0.1:80"
redirect_to_https = true
"""


@pytest.fixture
def network(directory):
    with own_network():
        dns = Dns(directory)
        yield
        dns.stop()


@pytest.fixture
def server(network, directory, certs):
    """Makes servers, which end with the test."""
    made = []

    def make(kind, **options):
        made.append(kind(directory, certs, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def front(portcullis, certs, echo_address):
    """Makes a Portcullis that gets its certificate from a server."""
    def make(server, challenge="tls-alpn-01", more="", **options):
        listeners = LISTENERS.format(url=server.url, challenge=challenge, more=more, ca=certs / "ca.crt")
        listeners = listeners.replace("{", "{{").replace("}", "}}")
        return portcullis(cluster("web", [echo_address], "health = false"), listeners=listeners, **options)

    return make


@pytest.fixture
def echo_address(network):
    """Nobody is there; what matters here ends before a backend."""
    return "127.0.0.1:9"


def orders(front, result="ok") -> float:
    return front.metrics().total("acme_orders_total", listener="https", result=result)


def wait_for_orders(front, count, result="ok", within=30):
    wait_until(lambda: orders(front, result) >= count, within, f"{count} orders are {result}", step=0.2)


def next_order(front) -> float:
    return front.metrics().total("acme_next_order_timestamp_seconds", listener="https")


def is_from(server, name=NAME) -> bool:
    """Whether the name is shown with a certificate that the server's authority vouches for."""
    answer = curl(f"https://{name}/", "--resolve", f"{name}:443:127.0.0.1", ca=server.ca)
    return answer.status == 502


def warnings(front) -> list[str]:
    return [line for line in front.process.output().splitlines() if "no certificate for" in line]


def storage(front):
    return front.directory / "storage"


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
class TestAcme2certifier:
    def test_a_certificate_is_obtained_kept_and_used_after_a_restart(self, server, front, challenge):
        server = server(Acme2certifier).start()
        front = front(server, challenge)
        wait_for_orders(front, 1)
        shown = shown_certificate(NAME)
        assert "acme2certifier" in shown["issuer"] and "DNS:www.site.test" in shown["text"]
        assert is_from(server) and is_from(server, "www.site.test")
        assert "throw-away" in front.process.output()

        files = [path for path in storage(front).rglob("*")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}
        assert {stat.S_IMODE(path.stat().st_mode) for path in [storage(front), *files] if path.is_dir()} == {0o700}
        expiry = front.metrics().total("tls_certificate_expiry_timestamp_seconds", listener="https")
        assert 29 < (expiry - time.time()) / 86400 <= 30
        due = front.metrics().total("acme_next_order_timestamp_seconds", listener="https")
        assert 15 < (due - time.time()) / 86400 < 30

        front.stop()
        before = server.requests("/")
        front.start()
        assert shown_certificate(NAME) == shown
        assert server.requests("/") == before, "the stored certificate is used without asking"
        assert orders(front) == 0

    def test_the_server_says_when_to_renew(self, server, front, challenge):
        server = server(Acme2certifier, renewal="renewal_force: True").start()
        front = front(server, challenge)
        try:
            wait_for_orders(front, 2)
        except AssertionError:
            if 0 < next_order(front) - time.time() <= 86400:
                pytest.skip("the window is a year up to tomorrow, and our moment in it fell into its last day")
            raise
        assert server.requests("/acme/renewal-info/") >= 1
        # It has ARI and does not know `replaces`, so each renewal needs a second order.
        assert server.requests("/acme/neworders ") == 3
        # The plan comes after the order: the server is asked when to renew what it has just issued.
        wait_until(lambda: next_order(front) - time.time() > 300, 30, "a server that always says now is made to wait")


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
class TestPebble:
    def test_a_certificate_is_renewed_after_two_thirds_of_its_life(self, server, front, challenge):
        server = server(Pebble, life=30).start()
        front = front(server, challenge)
        wait_for_orders(front, 1)
        first = shown_certificate(NAME)["serial"]
        wait_for_orders(front, 2, within=60)
        second = shown_certificate(NAME)
        assert second["serial"] != first and "Pebble" in second["issuer"]
        assert shown_certificate(NAME, "-alpn", "h2")["serial"] == second["serial"]

    def test_proofs_are_gone_when_the_order_is_over(self, server, front, challenge):
        server = server(Pebble).start()
        front = front(server, challenge)
        wait_for_orders(front, 1)
        assert shown_certificate(NAME, "-alpn", "acme-tls/1") == {}
        answer = curl("http://127.0.0.1/.well-known/acme-challenge/token", "-H", f"host: {NAME}", ca=front.ca)
        assert answer.status == 308


def test_an_account_is_bound_to_one_at_the_authority(server, front, directory):
    key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    server = server(Pebble, eab={"kid-1": key}).start()
    (directory / "acme.hmac").write_text(key + "\n")
    (directory / "acme.hmac").chmod(0o600)
    eab = f'eab = {{ key_id = "kid-1", hmac_key_file = "{directory}/acme.hmac" }}'
    front = front(server, more=eab)
    wait_for_orders(front, 1)
    assert key not in front.process.output()


def test_without_the_binding_that_it_asks_for_the_server_refuses(server, front):
    server = server(Pebble, eab={"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}).start()
    front = front(server)
    wait_for_orders(front, 1, "refused")
    assert "externalAccountRequired" in warnings(front)[0]


def test_a_dead_server_harms_nothing_and_is_asked_again(server, front):
    server = server(Acme2certifier)
    front = front(server)
    wait_for_orders(front, 1, "unreachable")
    assert "throw-away" in shown_certificate(NAME)["issuer"]
    assert curl(f"https://{NAME}/", "--resolve", f"{NAME}:443:127.0.0.1", "-k", ca=front.ca).status == 502
    assert curl("http://127.0.0.1/", "-H", f"host: {NAME}", ca=front.ca).status == 308
    assert len(warnings(front)) == 1
    server.start()
    wait_for_orders(front, 1, within=60)
    assert is_from(server)
    assert len(warnings(front)) == orders(front, "unreachable")


def test_a_failed_order_is_remembered_over_a_restart(server, front):
    """The proof is looked for on port 80, where nobody listens."""
    server = server(Pebble).start()
    front = front(server, "http-01", start=False)
    front.config.write_text(front.config.read_text().replace('"127.0.0.1:80"', '"127.0.0.1:8080"'))
    front.start()
    wait_for_orders(front, 1, "challenge_failed")
    for name in ("www.site.test", "site.test"):
        assert re.search(f" {name}: .*(refused|connect)", warnings(front)[0]), "each name that failed is told"
    due = front.metrics().total("acme_next_order_timestamp_seconds", listener="https")
    assert 300 < due - time.time() < 660
    front.stop()
    front.start()
    wait_until(lambda: front.metrics().total("acme_failed_orders", listener="https") == 1, 5, "it remembers")
    assert front.metrics().total("acme_next_order_timestamp_seconds", listener="https") == due
    assert orders(front, "challenge_failed") == 0


def test_who_is_killed_in_the_middle_of_an_order_does_not_order_at_once_again(front):
    """The directory takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        front = front(SimpleNamespace(url=f"https://localhost:{silent.getsockname()[1]}/dir"))
        with silent.accept()[0]:
            front.process.kill()
        front.start()
        assert front.metrics().total("acme_failed_orders", listener="https") == 1
        assert next_order(front) - time.time() > 5
