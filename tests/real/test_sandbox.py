"""What the process may do once it serves, seen from outside: privileges, files, names, logs, keys."""
import re
import signal
from pathlib import Path

import pytest
from support.clients import curl
from support.portcullis import BINARY, cluster
from support.process import Process
from support.waiting import free_port, wait_until


def threads(pid: int) -> dict[str, dict[str, str]]:
    """What the kernel says of each thread, by the thread's name."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        found[f'{fields["Name"]} {fields["Pid"]}'] = fields
    return found


@pytest.fixture
def front(portcullis, echo):
    return portcullis(cluster("web", [echo.address]))


class TestProcess:
    def test_every_thread_has_no_new_privileges_and_a_filter(self, front):
        curl(f"{front.https_url}/echo", ca=front.ca)
        found = threads(front.process.pid)
        assert len(found) >= 3
        for name, fields in found.items():
            assert fields["NoNewPrivs"] == "1", name
            assert fields["Seccomp"] == "2", name

    def test_there_are_no_core_dumps(self, front):
        limits = Path(f"/proc/{front.process.pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0\s", limits)

    def test_one_line_says_what_is_in_force(self, front):
        lines = [line for line in front.process.output().splitlines() if "sandbox" in line]
        assert len(lines) == 1
        assert all(part in lines[0] for part in ("no new privileges", "no core dumps", "system calls"))

    def test_it_can_be_turned_off(self, portcullis, echo):
        front = portcullis(cluster("web", [echo.address]), top='sandbox = "off"')
        assert {(fields["NoNewPrivs"], fields["Seccomp"]) for fields in threads(front.process.pid).values()} == {("0", "0")}
        assert "the sandbox is off" in front.process.output()


class TestWhatStillWorks:
    def test_a_backend_named_by_host_name_is_found(self, portcullis, echo):
        port = echo.address.rpartition(":")[2]
        front = portcullis(cluster("web", [f"localhost:{port}"], "health.interval = '100ms'"))
        front.wait_for_health(web=1)
        assert curl(f"{front.https_url}/echo", ca=front.ca).status == 200

    def test_an_unknown_host_name_is_an_error_of_the_lookup(self, portcullis):
        front = portcullis(cluster("web", ["nobody.invalid:80"], "health = false"))
        answer = curl(f"{front.https_url}/echo", ca=front.ca)
        assert (answer.status, answer.reason) == (502, "connect_failed"), answer
        assert "denied" not in front.process.output().lower()
        assert "not permitted" not in front.process.output().lower()

    def test_the_access_log_is_opened_anew(self, front):
        curl(f"{front.http_url}/one")
        front.settled_log(1)
        front.access_log.rename(front.directory / "access.log.1")
        front.process.signal(signal.SIGHUP)
        wait_until(front.access_log.exists, 5, "a new access log")
        curl(f"{front.http_url}/two")
        assert front.settled_log(1)[0]["path"] == "/two"

    def test_the_authorities_of_the_system_verify_backends(self, portcullis, echo):
        front = portcullis(cluster("web", [echo.address], "tls.ca = 'system'\nhealth = false"))
        answer = curl(f"{front.https_url}/echo", ca=front.ca)
        assert answer.status == 502, "the backend speaks no TLS, but the authorities were read"

    def test_process_metrics_are_there(self, front):
        now = front.metrics().text
        for name in ("cpu_seconds_total", "open_fds", "max_fds", "resident_memory_bytes", "start_time_seconds", "threads"):
            assert re.search(rf"^process_{name} [1-9]|^process_{name} 0\.\d", now, re.MULTILINE), name


class TestFiles:
    @pytest.fixture
    def lists(self, portcullis, echo, directory):
        (directory / "lists").mkdir()
        (directory / "outside").mkdir()
        (directory / "lists/good").write_text("192.0.2.0/24\n")
        (directory / "outside/bad").write_text("127.0.0.0/8\n")
        link = directory / "lists/deny"
        link.symlink_to("good")
        front = portcullis(f'[firewall]\ndeny_files = ["{link}"]\n' + cluster("web", [echo.address]))
        front.link = link
        return front

    def turn(self, front, target: str):
        """Points the link elsewhere, as a deployment does."""
        fresh = front.link.with_name("fresh")
        fresh.symlink_to(target)
        fresh.rename(front.link)

    def test_a_list_outside_is_not_read_and_the_last_good_one_stays(self, lists):
        if "Landlock" not in lists.process.output() or "not in force: Landlock" in lists.process.output():
            pytest.skip("this kernel has no Landlock")
        self.turn(lists, "../outside/bad")
        wait_until(lambda: "can't be used" in lists.process.output(), 10, "the list is refused")
        assert re.search(r"firewall list .*deny.*ermission denied", lists.process.output())
        assert curl(f"{lists.http_url}/echo").status == 200

    def test_a_list_beside_it_is_read(self, lists):
        (lists.link.parent / "better").write_text("198.51.100.0/24\n203.0.113.0/24\n")
        self.turn(lists, "better")
        wait_until(lambda: "2 networks in force" in lists.process.output(), 10, "the new list is in force")


def test_the_demo_removes_its_keys_from_within_the_sandbox(directory):
    https, admin = free_port(), free_port()
    argv = [BINARY, "demo", "--https", f"127.0.0.1:{https}", "--admin", f"127.0.0.1:{admin}"]
    with Process("demo", argv, directory) as process:
        wait_until(lambda: "--cacert" in process.output(), 10, "the demo is ready")
        folder = Path(re.search(r"--cacert (\S+)", process.output())[1]).parent
        assert (folder / "site.key").exists()
        status = threads(process.pid)
        assert {fields["Seccomp"] for name, fields in status.items() if "demo-backends" not in name} == {"2"}
        process.signal(signal.SIGTERM)
        assert process.wait(5) == 0
    assert not folder.exists()


def test_no_log_holds_a_key(portcullis, echo, certs):
    front = portcullis(cluster("web", [echo.address]))
    config = front.config.read_text().replace("[log]\n", '[log]\nlevel = "trace"\n')
    front.stop()
    front.config.write_text(config)
    front.start()
    for version in ("--http1.1", "--http2"):
        curl(f"{front.https_url}/echo", version, ca=front.ca)
    output = front.process.output() + front.access_log.read_text() + front.admin_get("/status")[1]
    lines = [line for line in (certs / "site.key").read_text().splitlines() if not line.startswith("-")]
    assert len(output) > 2000
    assert not [line for line in lines if len(line) > 16 and line in output]
