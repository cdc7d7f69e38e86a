"""The PROXY protocol with peers that others wrote: HAProxy and curl in front, nginx behind."""
import pytest
from support.clients import curl
from support.haproxy import ADDRESS, Haproxy
from support.nginx import Nginx
from support.portcullis import LISTENERS, cluster

CLIENT = "127.0.0.9"
RULE = 'proxy_protocol = {{ from = ["127.0.0.8", "127.0.0.7"] }}\n'
TAKES_HEADERS = LISTENERS.replace('name = "https"\n', 'name = "https"\n' + RULE) + RULE
VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])


def named(answer) -> list[str]:
    return [value for name, value in answer.json()["fields"] if name == "x-forwarded-for"]


@VERSIONS
@pytest.mark.parametrize("options", [
    "send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id", "send-proxy-v2-ssl-cn"])
def test_haproxy_in_front_names_the_client(portcullis, echo, directory, options, version):
    front = portcullis(cluster("web", [echo.address]), listeners=TAKES_HEADERS)
    with Haproxy(directory, front.https, options) as haproxy:
        for _ in range(3):
            answer = curl(f"https://localhost:{haproxy.port}/echo", version, "--interface", CLIENT, ca=front.ca)
            assert (answer.status, named(answer)) == (200, [CLIENT])
        for line in front.settled_log(3):
            assert line["client_ip"] == CLIENT
            assert line["peer"].startswith(f"{ADDRESS}:")
    # Its checks, which open and close, are no offence.
    assert front.metrics().total("rejections_total", reason="proxy_protocol") == 0


def test_haproxy_without_the_protocol_is_turned_away(portcullis, echo, directory):
    front = portcullis(cluster("web", [echo.address]), listeners=TAKES_HEADERS)
    with Haproxy(directory, front.https, "") as haproxy:
        answer = curl(f"https://localhost:{haproxy.port}/echo", ca=front.ca)
        assert answer.exit_code != 0
    assert front.metrics().total("rejections_total", reason="proxy_protocol") == 1


def test_curl_names_itself_and_only_from_where_it_may(portcullis, echo):
    front = portcullis(cluster("web", [echo.address]), listeners=TAKES_HEADERS)
    for url in (front.https_url, front.http_url):
        believed = curl(f"{url}/echo", "--haproxy-protocol", "--interface", "127.0.0.7", ca=front.ca)
        assert named(believed) == ["127.0.0.7"]
        other = curl(f"{url}/echo", "--interface", CLIENT, ca=front.ca)
        assert named(other) == [CLIENT]
        stranger = curl(f"{url}/echo", "--haproxy-protocol", "--interface", CLIENT, ca=front.ca)
        assert stranger.status != 200


@VERSIONS
@pytest.mark.parametrize("tls", [False, True])
def test_nginx_behind_is_told_of_each_client(portcullis, directory, certs, tls, version):
    listen = "proxy_protocol ssl" if tls else "proxy_protocol"
    keys = f"ssl_certificate {certs}/site.crt; ssl_certificate_key {certs}/site.key;" if tls else ""
    realip = "set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;"
    backend = Nginx("told", directory, listen, keys + realip)
    try:
        settings = 'proxy_protocol = "v2"\nhealth = { path = "/healthz", interval = "100ms" }\n'
        settings += f'tls = {{ ca = "{certs}/ca.crt", server_name = "localhost" }}\n' if tls else ""
        front = portcullis(cluster("web", [backend.address], settings))
        front.wait_for_health(web=1)
        for client in (CLIENT, "127.0.0.10", CLIENT):
            answer = curl(f"{front.https_url}/ends", version, "--interface", client, ca=front.ca)
            scheme = "https" if tls else "http"
            assert answer.body.decode() == f"{client} {front.https} {client} {scheme}"
        assert front.metrics().total("probes_total", result="ok") > 0
        assert front.metrics().total("errors_total") == 0
    finally:
        backend.stop()
