"""The admin address: on a unix socket, behind a token, and never open to others by mistake."""
import signal
import subprocess

import pytest
from support.clients import curl
from support.portcullis import BINARY, cluster
from support.waiting import wait_until

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def configured(portcullis, echo):
    """Makes a Portcullis with other lines in its admin table; does not start it."""
    def make(lines: str):
        front = portcullis(cluster("web", [echo.address]), start=False)
        text = front.config.read_text()
        front.config.write_text(text.replace(f'address = "127.0.0.1:{front.admin}"', lines.format(port=front.admin)))
        return front

    return make


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=10, check=False)


class TestUnixSocket:
    @pytest.fixture
    def front(self, configured):
        front = configured('address = "unix:admin.sock"')
        front.socket = front.directory / "admin.sock"
        return front

    def serve(self, front):
        front.launch()
        wait_until(lambda: front.socket.is_socket() and self.ask(front, "/readyz").status == 200, 10, "it is ready")

    def ask(self, front, path: str):
        return curl(f"http://admin{path}", "--unix-socket", front.socket)

    def test_it_answers_there_and_health_checks_find_it(self, front):
        self.serve(front)
        assert front.socket.stat().st_mode & 0o777 == 0o660
        assert b"portcullis_" in self.ask(front, "/metrics").body
        assert run("healthcheck", "--admin", f"unix:{front.socket}").returncode == 0
        assert curl(f"{front.https_url}/echo", ca=front.ca).status == 200

    def test_the_socket_is_removed_at_the_end(self, front):
        self.serve(front)
        front.process.signal(signal.SIGTERM)
        assert front.process.wait(5) == 0
        assert not front.socket.exists()
        check = run("healthcheck", "--admin", f"unix:{front.socket}")
        assert check.returncode == 1 and str(front.socket) in check.stderr

    def test_the_socket_of_a_killed_process_is_replaced(self, front):
        self.serve(front)
        front.process.kill()
        assert front.socket.is_socket()
        self.serve(front)
        assert self.ask(front, "/healthz").status == 200

    def test_the_socket_of_a_running_process_is_not(self, front, configured):
        self.serve(front)
        second = configured(f'address = "unix:{front.socket}"')
        process = second.launch()
        assert process.wait(10) == 1
        assert f"unix:{front.socket}: another program answers there" in process.output()
        assert self.ask(front, "/readyz").status == 200


class TestToken:
    @pytest.fixture
    def front(self, configured):
        front = configured('address = "0.0.0.0:{port}"\ntoken_file = "token"')
        token = front.directory / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        front.launch()
        wait_until(lambda: front.admin_get("/healthz")[0] == 200, 10, "it lives")
        return front

    def test_only_health_is_told_to_everybody(self, front):
        url = f"http://127.0.0.1:{front.admin}"
        for path in ("/metrics", "/status", "/readyz", "/bans"):
            refused = curl(url + path)
            assert (refused.status, refused.field("www-authenticate")) == (401, "Bearer")
            assert curl(url + path, "-H", f"authorization: Bearer {TOKEN[:-1]}").status == 401
            assert curl(url + path, "-H", f"authorization: Bearer {TOKEN}").status == 200
        assert curl(url + "/bans/192.0.2.1", "-X", "DELETE").status == 401
        assert curl(url + "/bans/192.0.2.1", "-X", "DELETE", "-H", f"authorization: Bearer {TOKEN}").status == 404
        assert run("healthcheck", "--admin", f"127.0.0.1:{front.admin}").returncode == 0
        assert TOKEN not in front.process.output()


class TestOpenAddress:
    def test_it_is_refused(self, configured):
        process = configured('address = "0.0.0.0:{port}"').launch()
        assert process.wait(10) == 2
        assert "everybody who reaches" in process.output() and "token_file" in process.output()

    def test_it_is_served_and_warned_of_where_somebody_means_it(self, configured):
        front = configured('address = "0.0.0.0:{port}"\nunprotected = true')
        front.start()
        assert "warning: everybody who reaches" in front.process.output()
        assert front.admin_get("/metrics")[0] == 200
