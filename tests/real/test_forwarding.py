"""What a backend is told about the client, and what it never sees."""
import pytest
from support.clients import curl
from support.portcullis import cluster

VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])
CLAIMS = ["-H", "x-forwarded-for: 6.6.6.6", "-H", "x-forwarded-proto: gopher", "-H", "x-forwarded-host: evil.test",
          "-H", "x-request-id: chosen-by-the-client"]


def fields_seen(answer) -> dict[str, list[str]]:
    """The fields that reached the backend, by name."""
    seen = {}
    for name, value in answer.json()["fields"]:
        seen.setdefault(name, []).append(value)
    return seen


@pytest.fixture
def front(portcullis, echo):
    return portcullis(cluster("web", [echo.address]))


@VERSIONS
def test_the_backend_learns_who_asked_and_how(front, version):
    seen = fields_seen(curl(f"{front.https_url}/echo", version, ca=front.ca))
    assert seen["host"] == [f"localhost:{front.https}"]
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["https"]
    assert seen["x-forwarded-host"] == [f"localhost:{front.https}"]
    assert len(seen["via"]) == 1 and seen["via"][0].startswith({"--http1.1": "1.1", "--http2": "2"}[version])
    assert fields_seen(curl(f"{front.http_url}/echo"))["x-forwarded-proto"] == ["http"]


@VERSIONS
def test_what_a_stranger_claims_is_replaced(front, version):
    seen = fields_seen(curl(f"{front.https_url}/echo", version, *CLAIMS, ca=front.ca))
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["https"]
    assert seen["x-forwarded-host"] == [f"localhost:{front.https}"]
    [line] = front.settled_log(1)
    assert seen["x-request-id"] == [line["request_id"]] != ["chosen-by-the-client"]
    assert line["client_ip"] == "127.0.0.1"


def test_what_a_trusted_proxy_claims_is_believed(portcullis, echo):
    front = portcullis(cluster("web", [echo.address]), top='trusted_proxies = ["127.0.0.1"]\n')
    seen = fields_seen(curl(f"{front.https_url}/echo", *CLAIMS, ca=front.ca))
    assert seen["x-request-id"] == ["chosen-by-the-client"]
    assert seen["x-forwarded-for"] == ["6.6.6.6, 127.0.0.1"]
    [line] = front.settled_log(1)
    assert (line["client_ip"], line["request_id"]) == ("6.6.6.6", "chosen-by-the-client")
    assert line["peer"].startswith("127.0.0.1")


def test_fields_of_one_hop_do_not_pass(front):
    seen = fields_seen(curl(
        f"{front.https_url}/echo", "--http1.1", "-H", "connection: x-mine, keep-alive", "-H", "x-mine: 1",
        "-H", "keep-alive: 5", "-H", "te: gzip", "-H", "proxy-connection: x", "-H", "upgrade: h2c",
        "-H", "x-kept: 1", ca=front.ca))
    assert not {"x-mine", "keep-alive", "te", "proxy-connection", "upgrade"} & seen.keys()
    assert seen["x-kept"] == ["1"]


def test_a_connection_field_cannot_take_away_what_we_set(front):
    seen = fields_seen(curl(f"{front.https_url}/echo", "--http1.1", "-H", "connection: x-forwarded-for, x-request-id",
                            ca=front.ca))
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-request-id"]


def test_cookies_of_http2_arrive_as_one_field(front):
    seen = fields_seen(curl(f"{front.https_url}/echo", "--http2", "-H", "cookie: a=1; b=2; c=3", ca=front.ca))
    assert seen["cookie"] == ["a=1; b=2; c=3"]


def test_the_path_arrives_in_one_spelling_and_the_query_as_sent(front):
    answer = curl(f"{front.https_url}/echo/%7Euser/./x/%2e%2e/a%2fb//c?q=%20+&r=%2e", "--path-as-is", ca=front.ca)
    assert answer.json()["target"] == "/echo/~user/a%2Fb//c?q=%20+&r=%2e"
