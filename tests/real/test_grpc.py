"""A grpcio client and a grpcio backend with Portcullis between them: TLS in front, clear-text HTTP/2 behind."""
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from support.portcullis import cluster
from support.waiting import wait_until


class Methods:
    """Generic handlers over plain bytes, so that no generated code is needed."""

    def __init__(self):
        self.cancelled = threading.Event()
        self.started = threading.Event()
        self.time_left = None

    def unary(self, request, context):
        self.time_left = context.time_remaining()
        context.send_initial_metadata((("greeting", "hello"),))
        context.set_trailing_metadata((("farewell", "goodbye"),))
        return request[::-1]

    def fail(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")

    def download(self, request, context):
        for n in range(int(request)):
            yield b"%d" % n * 1000

    def upload(self, requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def chat(self, requests, context):
        yield from requests

    def endless(self, request, context):
        context.add_callback(self.cancelled.set)
        self.started.set()
        while context.is_active():
            yield b"tick"
            time.sleep(0.02)


@pytest.fixture
def grpc_pair(portcullis):
    """The backend's methods, the channel through Portcullis, Portcullis."""
    methods = Methods()
    handlers = {
        "unary": grpc.unary_unary_rpc_method_handler(methods.unary),
        "fail": grpc.unary_unary_rpc_method_handler(methods.fail),
        "download": grpc.unary_stream_rpc_method_handler(methods.download),
        "upload": grpc.stream_unary_rpc_method_handler(methods.upload),
        "chat": grpc.stream_stream_rpc_method_handler(methods.chat),
        "endless": grpc.unary_stream_rpc_method_handler(methods.endless),
    }
    backend = grpc.server(ThreadPoolExecutor(8))
    backend.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    port = backend.add_insecure_port("127.0.0.1:0")
    backend.start()
    front = portcullis(cluster("web", [f"127.0.0.1:{port}"], 'protocol = "h2"'))
    trust = grpc.ssl_channel_credentials(front.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{front.https}", trust) as channel:
        yield methods, channel, front
    backend.stop(0)


def test_unary_with_metadata_both_ways(grpc_pair):
    _, channel, front = grpc_pair
    reply, call = channel.unary_unary("/test.Echo/unary").with_call(b"abc", timeout=5)
    assert reply == b"cba"
    assert ("greeting", "hello") in [tuple(item) for item in call.initial_metadata()]
    assert ("farewell", "goodbye") in [tuple(item) for item in call.trailing_metadata()]
    assert front.metrics().total("requests_total", protocol="h2", code="200") == 1


def test_a_deadline_reaches_the_backend(grpc_pair):
    methods, channel, _ = grpc_pair
    channel.unary_unary("/test.Echo/unary")(b"abc", timeout=7)
    assert 5 < methods.time_left <= 7


def test_an_error_is_trailers_only_and_arrives_whole(grpc_pair):
    _, channel, _ = grpc_pair
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/test.Echo/fail")(b"", timeout=5)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "not today"


def test_the_backend_streams(grpc_pair):
    _, channel, _ = grpc_pair
    replies = list(channel.unary_stream("/test.Echo/download")(b"500", timeout=20))
    assert replies == [b"%d" % n * 1000 for n in range(500)]


def test_the_client_streams(grpc_pair):
    _, channel, _ = grpc_pair
    assert channel.stream_unary("/test.Echo/upload")((b"x" * 10_000 for _ in range(500)), timeout=20) == b"5000000"


def test_both_stream_in_turns(grpc_pair):
    """Each message is sent only after the one before came back: nothing may be held back on the way."""
    _, channel, _ = grpc_pair
    came_back = threading.Semaphore(1)

    def in_turns():
        for n in range(50):
            assert came_back.acquire(timeout=5)
            yield b"%d" % n

    replies = []
    for reply in channel.stream_stream("/test.Echo/chat")(in_turns(), timeout=20):
        replies.append(reply)
        came_back.release()
    assert replies == [b"%d" % n for n in range(50)]


def test_a_cancellation_reaches_the_backend(grpc_pair):
    methods, channel, front = grpc_pair
    call = channel.unary_stream("/test.Echo/endless")(b"", timeout=30)
    assert next(call) == b"tick"
    call.cancel()
    assert methods.cancelled.wait(5), "the backend did not see the cancellation"
    wait_until(lambda: front.metrics().total("requests_in_flight") == 0, 5, "nothing is in flight")


def test_a_deadline_that_passes_ends_the_call_on_both_sides(grpc_pair):
    methods, channel, _ = grpc_pair
    with pytest.raises(grpc.RpcError) as late:
        list(channel.unary_stream("/test.Echo/endless")(b"", timeout=0.5))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert methods.cancelled.wait(5)


def test_many_calls_share_a_connection(grpc_pair):
    _, channel, _ = grpc_pair
    call = channel.unary_unary("/test.Echo/unary")
    pending = [call.future(b"%d" % n, timeout=20) for n in range(300)]
    assert [future.result() for future in pending] == [(b"%d" % n)[::-1] for n in range(300)]
