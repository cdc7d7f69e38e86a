"""Start, drain and end: exit codes, signals, and what happens when file descriptors run out."""
import signal
import socket
import subprocess
import threading
import time

import pytest
from support.clients import curl
from support.portcullis import BINARY, cluster
from support.waiting import accepts, wait_until


def curl_in_background(*arguments, **options):
    """Starts curl in a thread; the returned function waits for its answer."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(curl(*arguments, **options)))
    thread.start()

    def answer():
        thread.join()
        return answers[0]

    return answer


@pytest.fixture
def front(portcullis, echo):
    return portcullis(cluster("web", [echo.address]))


class TestStart:
    def test_a_taken_port_ends_it_with_1_and_says_which(self, portcullis, echo):
        front = portcullis(cluster("web", [echo.address]), start=False)
        with socket.create_server(("127.0.0.1", front.https)):
            process = front.launch()
            assert process.wait(10) == 1
        assert f"127.0.0.1:{front.https}: another program has that port" in process.output()

    def test_a_port_of_another_instance_is_taken_too(self, portcullis, echo):
        """Both set SO_REUSEPORT, so the kernel alone would let the second one steal half the connections."""
        first = portcullis(cluster("web", [echo.address]))
        second = portcullis(cluster("web", [echo.address]), start=False)
        second.config.write_text(second.config.read_text().replace(str(second.https), str(first.https)))
        process = second.launch()
        assert process.wait(10) == 1
        assert f"127.0.0.1:{first.https}: another program has that port" in process.output()

    def test_a_bad_configuration_ends_it_with_2_and_binds_nothing(self, portcullis):
        front = portcullis(cluster("web", ["127.0.0.1:9"], 'polisy = "round_robin"'), top='nonsense = "1"', start=False)
        process = front.launch()
        assert process.wait(10) == 2
        output = process.output()
        assert "portcullis.toml:1:1" in output and "nonsense" in output
        assert "polisy" in output and "policy" in output, "every problem at once, with a suggestion"
        assert "^" in output

    def test_a_missing_configuration_ends_it_with_2(self, directory):
        run = subprocess.run([BINARY, "run", "--config", directory / "nothing.toml"],
                             capture_output=True, text=True, timeout=10, check=False)
        assert run.returncode == 2
        assert "nothing.toml" in run.stderr

    def test_check_says_what_would_be_served_and_binds_nothing(self, portcullis):
        front = portcullis(cluster("web", ["127.0.0.1:9"]), start=False)
        with socket.create_server(("127.0.0.1", front.https)):
            run = subprocess.run([BINARY, "check", "--config", front.config],
                                 capture_output=True, text=True, timeout=10, check=False)
        assert run.returncode == 0, run.stderr
        assert str(front.https) in run.stdout and "web" in run.stdout


class TestDrain:
    @pytest.mark.parametrize("version", ["--http1.1", "--http2"])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
    def test_a_request_in_flight_completes_and_it_exits_0(self, front, echo, number, version):
        answer = curl_in_background(f"{front.https_url}/delay/2", version, ca=front.ca)
        assert echo.arrived.wait(5)
        front.process.signal(number)

        wait_until(lambda: front.admin_get("/readyz")[0] == 503, 2, "readyz says 503")
        assert front.admin_get("/healthz")[0] == 200
        assert (answer().status, answer().body) == (200, b"late\n")
        assert front.process.wait(3) == 0
        assert not accepts(front.https)

    def test_idle_connections_do_not_hold_it_up(self, front):
        idle = socket.create_connection(("127.0.0.1", front.http))
        idle.sendall(b"GET /echo HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        untouched = socket.create_connection(("127.0.0.1", front.http))
        front.process.signal(signal.SIGTERM)
        assert front.process.wait(2) == 0
        idle.close()
        untouched.close()

    def test_an_answer_during_a_drain_closes_its_connection(self, front, echo):
        answer = curl_in_background(f"{front.https_url}/delay/1", "--http1.1", ca=front.ca)
        assert echo.arrived.wait(5)
        front.process.signal(signal.SIGTERM)
        assert answer().field("connection") == "close"

    def test_a_second_signal_ends_it_at_once(self, front, echo):
        answer = curl_in_background(f"{front.https_url}/delay/20", ca=front.ca)
        assert echo.arrived.wait(5)
        front.process.signal(signal.SIGTERM)
        wait_until(lambda: front.admin_get("/readyz")[0] == 503, 2, "readyz says 503")
        front.process.signal(signal.SIGTERM)
        front.process.wait(1)
        assert answer().exit_code != 0

    def test_the_drain_has_a_deadline(self, portcullis, echo):
        front = portcullis('[limits]\ndrain_timeout = "1s"\n' + cluster("web", [echo.address]))
        answer = curl_in_background(f"{front.https_url}/delay/20", ca=front.ca)
        assert echo.arrived.wait(5)
        began = time.monotonic()
        front.process.signal(signal.SIGTERM)
        front.process.wait(3)
        assert 0.9 <= time.monotonic() - began
        assert answer().exit_code != 0


def test_running_out_of_file_descriptors_neither_ends_it_nor_spins(portcullis, echo):
    # In the sandbox only root may count another process' open files.
    front = portcullis(cluster("web", [echo.address]), top='sandbox = "off"')
    assert curl(f"{front.https_url}/echo", ca=front.ca).status == 200
    limit = front.process.open_files() + 8
    subprocess.run(["prlimit", "--pid", str(front.process.pid), f"--nofile={limit}:{limit}"], check=True)
    crowd = [socket.create_connection(("127.0.0.1", front.http)) for _ in range(60)]
    lines, cpu = len(front.process.output().splitlines()), front.process.cpu_seconds()

    time.sleep(3)

    # At most a fifth of a core, at most about one line a second.
    assert front.process.cpu_seconds() - cpu < 0.6
    assert len(front.process.output().splitlines()) - lines <= 5
    for connection in crowd:
        connection.close()
    wait_until(lambda: curl(f"{front.https_url}/echo", ca=front.ca).status == 200, 2, "it serves again")
    assert front.process.running()


def test_who_was_in_the_queue_when_a_drain_began_is_served(portcullis, echo):
    """Four idle workers, so that it is one with nothing else to wait for; again and again, for it is a matter of luck."""
    for _ in range(15):
        front = portcullis(cluster("web", [echo.address], "health = false"), top="workers = 4")
        front.process.signal(signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", front.http)) as client:
            client.settimeout(10)
            client.sendall(b"GET /echo HTTP/1.1\r\nhost: localhost\r\n\r\n")
            front.process.signal(signal.SIGTERM)
            front.process.signal(signal.SIGCONT)
            assert client.recv(64).startswith(b"HTTP/1.1 200 ")
        assert front.process.wait(10) == 0
