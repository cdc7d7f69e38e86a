"""HTTP as curl speaks it: versions, methods, framing, interim answers, answers of our own."""
import pytest
from support.clients import curl, exchange
from support.portcullis import LISTENERS, cluster
from support.waiting import free_port

VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])


@pytest.fixture
def front(portcullis, echo):
    return portcullis(cluster("web", [echo.address], 'response_timeout = "500ms"'))


class TestVersions:
    @pytest.mark.parametrize("option, version", [("--http1.1", "1.1"), ("--http2", "2")])
    def test_both_are_spoken_over_verified_tls(self, front, option, version):
        answer = curl(f"{front.https_url}/echo", option, ca=front.ca)
        assert (answer.status, answer.version) == (200, version)
        assert answer.json()["version"] == "HTTP/1.1"

    def test_the_certificate_is_not_trusted_without_the_ca(self, front):
        assert curl(f"{front.https_url}/echo").exit_code == 60

    @pytest.mark.parametrize("option", ["--tlsv1.2", "--tlsv1.3"])
    def test_tls_versions(self, front, option):
        assert curl(f"{front.https_url}/echo", option, "--tls-max", option[-3:], ca=front.ca).status == 200

    def test_http_1_0_gets_no_chunks_and_a_closed_connection(self, front):
        answer = exchange(front.http, b"GET /chunks HTTP/1.0\r\nhost: localhost\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.")
        assert b"transfer-encoding" not in head.lower()
        assert body == b"firstsecond"

    def test_http_1_0_works_with_curl(self, front):
        assert curl(f"{front.http_url}/echo", "--http1.0").json()["version"] == "HTTP/1.1"

    def test_requests_in_a_row_are_answered_in_order(self, front):
        last = b"GET /echo/3 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        first = b"".join(b"GET /echo/%d HTTP/1.1\r\nhost: localhost\r\n\r\n" % n for n in (1, 2))
        answer = exchange(front.http, first + last)
        places = [answer.index(b'"/echo/%d"' % n) for n in (1, 2, 3)]
        assert places == sorted(places)
        assert answer.count(b"HTTP/1.1 200") == 3


class TestBodies:
    @VERSIONS
    def test_head_has_the_length_and_no_body(self, front, version):
        answer = curl(f"{front.https_url}/echo", version, "-I", ca=front.ca)
        assert (answer.exit_code, answer.status) == (0, 200)
        assert int(answer.field("content-length")) > 0

    @VERSIONS
    @pytest.mark.parametrize("code", [204, 304])
    def test_answers_without_a_body(self, front, version, code):
        answer = curl(f"{front.https_url}/status/{code}", version, ca=front.ca)
        assert (answer.exit_code, answer.status, answer.body) == (0, code, b"")

    @VERSIONS
    def test_an_upload_that_asks_first_is_told_to_continue(self, front, version):
        answer = curl(f"{front.https_url}/echo", version, "-H", "expect: 100-continue", "--data-binary", "x" * 5000,
                      "--expect100-timeout", "30", ca=front.ca)
        assert answer.json()["length"] == 5000
        assert answer.seconds < 5, "curl waited for a 100 that did not come"

    def test_chunks_pass_both_ways(self, front):
        answer = curl(f"{front.https_url}/echo", "--http1.1", "-H", "transfer-encoding: chunked", "-d", "abc",
                      ca=front.ca)
        assert answer.json()["length"] == 3
        answer = curl(f"{front.https_url}/chunks", "--http1.1", ca=front.ca)
        assert (answer.field("transfer-encoding"), answer.body) == ("chunked", b"firstsecond")

    @VERSIONS
    def test_trailers_of_the_answer_pass(self, front, version):
        answer = curl(f"{front.https_url}/chunks", version, "-H", "te: trailers", ca=front.ca)
        assert answer.field("x-checksum") == "42"

    def test_trailers_of_the_request_pass(self, front):
        answer = exchange(
            front.http,
            b"POST /echo HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
            b"trailer: x-sum\r\n\r\n3\r\nab", b"c\r\n0\r\nx-sum: 7\r\nhost: evil.test\r\n\r\n")
        assert b'"length": 3' in answer
        assert b"x-sum: 7" in answer and b"evil.test" not in answer

    @VERSIONS
    def test_early_hints_pass(self, front, version):
        answer = curl(f"{front.https_url}/hints", version, ca=front.ca)
        assert (answer.status, answer.body) == (200, b"after the hints\n")
        assert " 103" in answer.head and answer.field("link") == "</style.css>; rel=preload"

    @VERSIONS
    def test_a_truncated_answer_is_an_error_for_the_client(self, front, version):
        assert curl(f"{front.https_url}/cut", version, ca=front.ca).exit_code in (18, 56, 92)


class TestOwnAnswers:
    @VERSIONS
    def test_a_host_without_a_route(self, portcullis, echo, version):
        front = portcullis('[[routes]]\nhost = "example.test"\ncluster = "web"\n' + cluster("web", [echo.address]))
        answer = curl(f"{front.https_url}/", version, ca=front.ca)
        assert (answer.status, answer.reason) == (404, "no_route")
        assert answer.body
        known = curl(f"{front.https_url}/", version, "-H", "host: Example.TEST:443", ca=front.ca)
        assert known.status == 200

    @VERSIONS
    def test_no_backend_listens(self, portcullis, version):
        address = f"127.0.0.1:{free_port()}"
        front = portcullis(cluster("web", [address]))
        answer = curl(f"{front.https_url}/", version, ca=front.ca)
        assert (answer.status, answer.reason) in [(502, "connect_refused"), (503, "no_healthy_backend")]
        assert address.encode() not in answer.body and address not in answer.head
        assert front.metrics().total("errors_total", reason=answer.reason) == 1

    @VERSIONS
    def test_a_backend_that_is_too_slow(self, front, version):
        answer = curl(f"{front.https_url}/delay/9", version, ca=front.ca)
        assert (answer.status, answer.reason) == (504, "response_timeout")
        assert 0.4 < answer.seconds < 3

    def test_json_for_who_asks(self, portcullis):
        front = portcullis(cluster("web", [f"127.0.0.1:{free_port()}"]))
        answer = curl(f"{front.https_url}/", "-H", "accept: application/json", ca=front.ca)
        assert answer.json()["reason"] == answer.reason

    def test_a_request_that_is_no_http(self, front):
        answer = exchange(front.http, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-portcullis-reason: bad_request" in answer and b"connection: close" in answer.lower()

    def test_a_head_that_is_too_large(self, front):
        answer = curl(f"{front.https_url}/", "--http1.1", "-H", "x: " + "y" * 40_000, ca=front.ca)
        assert (answer.status, answer.reason) == (431, "head_too_large")


def test_a_clear_text_listener_redirects(portcullis, echo):
    front = portcullis(cluster("web", [echo.address]), listeners=LISTENERS + "redirect_to_https = true\n")
    answer = curl(f"{front.http_url}/a/b?c=d")
    assert answer.status in (301, 308)
    assert answer.field("location").startswith("https://localhost")
    assert answer.field("location").endswith("/a/b?c=d")
