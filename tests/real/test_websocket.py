"""A WebSocket echo through the HTTPS listener, with a real client and a real backend."""
import ssl
import threading

import pytest
from support.portcullis import cluster
from support.waiting import wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

LARGEST = 4 << 20


def echo(connection):
    for message in connection:
        if message == "please close":
            connection.close(4001, "as asked")
            return
        connection.send(message)


@pytest.fixture
def front(portcullis):
    with serve(echo, "127.0.0.1", 0, max_size=LARGEST, compression=None) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        port = backend.socket.getsockname()[1]
        yield portcullis(cluster("web", [f"127.0.0.1:{port}"]))
        backend.shutdown()


def open_socket(front):
    return connect(f"wss://localhost:{front.https}/chat", max_size=LARGEST, compression=None,
                   ssl=ssl.create_default_context(cafile=front.ca))


@pytest.mark.parametrize("message", ["hello", "ünïcödé", b"\x00\xff" * 500, b"x" * LARGEST],
                         ids=["text", "unicode", "binary", "4MiB"])
def test_messages_come_back_as_they_were(front, message):
    with open_socket(front) as socket:
        for _ in range(3):
            socket.send(message)
            assert socket.recv(timeout=20) == message


def test_pings_are_answered(front):
    with open_socket(front) as socket:
        assert socket.ping().wait(5)


def test_close_codes_pass(front):
    with open_socket(front) as socket:
        socket.send("please close")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=5)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as asked")


def test_a_tunnel_is_counted_and_logged_once(front):
    with open_socket(front) as socket:
        socket.send("hello")
        socket.recv(timeout=5)
        assert front.metrics().total("requests_in_flight", listener="https") == 1
    [line] = front.settled_log(1)
    assert line["status"] == 101
    assert line["bytes_in"] > 0 and line["bytes_out"] > 0
    wait_until(lambda: front.metrics().total("requests_in_flight") == 0, 5, "the tunnel has left the gauge")
    assert front.metrics().total("requests_total", code="101") == 1
