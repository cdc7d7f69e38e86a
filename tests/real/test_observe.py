"""What Prometheus and the access log say: clean, scraped by the real thing, and exact to the request."""
import json
import socket
import ssl
import subprocess
import urllib.parse

import h2.connection
import h2.events
import pytest
from support.clients import curl, exchange, h2load
from support.portcullis import admin_get, cluster
from support.process import Process
from support.waiting import free_port, wait_until


@pytest.fixture
def front(portcullis, nginxes, echo):
    """Three nginx for everything, the echo backend for slow answers, nothing for other hosts."""
    instance = portcullis(
        '[[routes]]\nhost = "localhost"\ncluster = "web"\n'
        '[[routes]]\nhost = "localhost"\npath = "/delay"\ncluster = "slow"\n'
        '[[routes]]\nhost = "localhost"\npath = "/stall"\ncluster = "slow"\n'
        + cluster("web", [b.address for b in nginxes], 'health.path = "/healthz"')
        + cluster("slow", [echo.address]))
    instance.wait_for_health(web=3, slow=1)
    return instance


def reset_h2_streams(front, path: str, streams: int, resets: int) -> None:
    """Opens `streams` requests on one HTTP/2 connection, resets the first `resets`, waits for the others."""
    trust = ssl.create_default_context(cafile=front.ca)
    trust.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", front.https), timeout=10)
    with trust.wrap_socket(raw, server_hostname="localhost") as peer:
        connection = h2.connection.H2Connection()
        connection.initiate_connection()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", f"localhost:{front.https}"), (":path", path)]
        identifiers = [1 + 2 * n for n in range(streams)]
        for identifier in identifiers:
            connection.send_headers(identifier, head, end_stream=True)
        peer.sendall(connection.data_to_send())
        wait_until(lambda: front.metrics().total("requests_in_flight") == streams, 5, "all streams are in flight")
        for identifier in identifiers[:resets]:
            connection.reset_stream(identifier)
        peer.sendall(connection.data_to_send())
        waiting = set(identifiers[resets:])
        while waiting:
            for event in connection.receive_data(peer.recv(65536)):
                if isinstance(event, h2.events.StreamEnded):
                    waiting.discard(event.stream_id)
            peer.sendall(connection.data_to_send())


def test_promtool_finds_nothing_to_say(front):
    curl(f"{front.https_url}/name", ca=front.ca)
    check = subprocess.run(["promtool", "check", "metrics"], input=front.metrics().text,
                           capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_requests_sent_log_lines_and_requests_total_are_one_number(front):
    sent = 0
    for options in (["--h1"], ["-m", 10]):
        assert h2load(f"{front.https_url}/name", *options, requests=1000, clients=8).failures == 0
        sent += 1000
    for version in ("--http1.1", "--http2"):
        assert curl(f"{front.https_url}/missing", version, ca=front.ca).status == 404
        assert curl(f"{front.https_url}/", version, "-H", "host: other.test", ca=front.ca).reason == "no_route"
        # Given up before the head, and in the middle of the body.
        assert curl(f"{front.https_url}/delay/9", version, "--max-time", "0.5", ca=front.ca).exit_code == 28
        assert curl(f"{front.https_url}/stall", version, "--max-time", "0.5", ca=front.ca).exit_code == 28
        sent += 4
    reset_h2_streams(front, "/delay/1", streams=5, resets=3)
    sent += 5

    log = front.settled_log(sent)
    wait_until(lambda: front.metrics().total("requests_in_flight") == 0, 5, "nothing is in flight")

    assert len(log) == sent
    assert front.metrics().total("requests_total") == sent
    by_code = front.metrics().by("code", "requests_total")
    for code, count in by_code.items():
        assert count == sum(line["status"] == int(code) for line in log), code
    assert front.metrics().total("request_seconds_count") == sent
    assert sum(line["reason"] == "client_closed" for line in log) == 2 * 2 + 3
    assert front.metrics().total("log_lines_lost_total") == 0


def test_an_access_log_line_says_everything(front):
    curl(f"{front.https_url}/name?x=1", "--http2", "-A", 'quote " and \\', "-e", "https://example.test/", ca=front.ca)
    [line] = front.settled_log(1)
    assert {
        "listener": "https", "client_ip": "127.0.0.1", "protocol": "h2", "method": "GET", "host": "localhost",
        "path": "/name", "cluster": "web", "status": 200, "bytes_out": 2, "attempts": 1,
        "user_agent": 'quote " and \\', "referer": "https://example.test/",
    }.items() <= line.items(), line
    assert line["tls"]["version"] and line["tls"]["cipher"] and line["tls"]["sni"] == "localhost"
    assert line["duration_s"] >= line["upstream_response_s"] >= 0
    assert {"time", "peer", "route", "backend", "request_id"} <= line.keys()


def test_hostile_bytes_break_no_line(front):
    hostile = [b'"}{"x":"', b"\\", b"\xff\xfe\xc3", "caf\u00e9 \u2028".encode(), b"%0a%00", b"\t{{}}"]
    for text in hostile:
        answer = exchange(front.http, b"GET /name HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                                      b"user-agent: " + text + b"\r\nreferer: " + text + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
    assert len(front.settled_log(len(hostile))) == len(hostile)


def test_no_series_grows_with_what_clients_send(front):
    def visit(n: int):
        curl(f"{front.http_url}/p{n}?q={n}", "-H", f"host: h{n}.test", "-A", f"agent {n}", "-X", f"METHOD{n}")
        curl(f"{front.http_url}/name?q={n}", "-H", f"x-mine-{n}: {n}", "-A", f"agent {n}")

    # Series appear with the first use of a backend, so each has to have its turn.
    for n in range(12):
        visit(n)
    before = len(front.metrics().samples)
    for n in range(12, 40):
        visit(n)
    assert len(front.metrics().samples) == before
    assert not [word for word in (".test", "METHOD", "agent", "/p") if word in front.metrics().text]


def test_prometheus_scrapes_it(front, directory):
    assert h2load(f"{front.https_url}/name", requests=300).failures == 0
    port = free_port()
    (directory / "prometheus.yml").write_text(
        "global: { scrape_interval: 500ms, scrape_timeout: 400ms }\n"
        f"scrape_configs: [{{ job_name: portcullis, static_configs: [{{ targets: ['127.0.0.1:{front.admin}'] }}] }}]\n")
    argv = ["prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={directory}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}"]

    def ask(query: str) -> dict:
        status, body = admin_get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        found = json.loads(body)["data"]["result"] if status == 200 else []
        return {tuple(sorted(item["metric"].items())): float(item["value"][1]) for item in found}

    with Process("prometheus", argv, directory):
        wait_until(lambda: list(ask('up{job="portcullis"}').values()) == [1.0], 20, "Prometheus has scraped it")
        wait_until(lambda: list(ask("sum(portcullis_requests_total)").values()) == [300.0], 10, "it counts 300")
        assert len(ask("portcullis_backend_up == 1")) == 4
        assert len(ask("portcullis_upstream_requests_total > 0")) == 3
        [quantile] = ask("histogram_quantile(0.99, sum by (le) (portcullis_request_seconds_bucket))").values()
        assert 0 < quantile < 5


def test_status_shows_listeners_clusters_and_certificates(front):
    status, body = front.admin_get("/status")
    assert status == 200
    seen = json.loads(body)
    assert {"listeners", "clusters"} <= seen.keys()
    assert "example.test" in body and "https" in body and "web" in body
    assert front.admin_get("/healthz")[0] == 200
    assert front.admin_get("/nothing")[0] == 404
