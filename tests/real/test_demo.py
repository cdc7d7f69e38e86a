"""`portcullis demo`: what it prints works as printed."""
import re
import shlex
import signal
import subprocess

import pytest
from support.clients import curl
from support.metrics import Metrics
from support.portcullis import BINARY, admin_get
from support.process import Process
from support.waiting import free_port, wait_until


class Demo:
    """A running demo and the commands it printed."""

    def __init__(self, process: Process, https: int, admin: int):
        self.process, self.https, self.admin = process, https, admin
        self.commands = [shlex.split(line.strip().removeprefix("$ "), comments=True)
                         for line in process.output().splitlines() if re.match(r"\s*(\$ )?curl ", line)]
        [self.ca] = {c[c.index("--cacert") + 1] for c in self.commands if "--cacert" in c}

    def backends_up(self) -> float:
        return Metrics(admin_get(self.admin, "/metrics")[1]).total("backend_up")

    def get(self, *options):
        return curl(f"https://localhost:{self.https}/", *options, ca=self.ca)


@pytest.fixture
def demo(directory):
    https, admin = free_port(), free_port()
    argv = [BINARY, "demo", "--https", f"127.0.0.1:{https}", "--admin", f"127.0.0.1:{admin}"]
    with Process("demo", argv, directory) as process:
        wait_until(lambda: admin_get(admin, "/readyz")[0] == 200 and "curl" in process.output(), 10, "the demo is ready")
        yield Demo(process, https, admin)


def test_it_answers_over_both_versions_from_three_backends(demo):
    assert demo.get("--http1.1").version == "1.1"
    assert demo.get("--http2").version == "2"
    assert len({demo.get().body for _ in range(6)}) >= 3


def test_every_printed_command_works(demo):
    assert len(demo.commands) >= 3
    for command in demo.commands:
        run = subprocess.run([*command, "-sS", "--fail"], capture_output=True, text=True, timeout=10, check=False)
        assert run.returncode == 0, (command, run.stderr)


def test_stopping_a_backend_fails_no_request_and_health_notices(demo):
    wait_until(lambda: demo.backends_up() == 3, 10, "three backends are up")
    stop = next(command for command in demo.commands if any("stop" in word for word in command))
    subprocess.run([*stop, "-sS", "--fail"], check=True, capture_output=True, timeout=10)
    assert all(demo.get().status == 200 for _ in range(10))
    wait_until(lambda: demo.backends_up() == 2, 15, "one backend is down")


def test_sigterm_ends_it_cleanly(demo):
    demo.process.signal(signal.SIGTERM)
    assert demo.process.wait(5) == 0
