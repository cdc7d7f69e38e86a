"""A scripted HTTP/1.1 backend in this process: it says what it was sent, and misbehaves on request.

    /echo            the request as JSON: method, target, fields in order, length and SHA-256 of the body
    /delay/SECONDS   answers `late` after that time
    /stall           a head and one byte, then nothing until the backend ends
    /cut             announces 100 bytes, sends 10, closes
    /chunks          a chunked answer with the trailer `x-checksum: 42`
    /hints           103 Early Hints before the answer
    /status/CODE     an answer of that status
"""
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        body = _Body(self)
        name, _, argument = self.path.partition("?")[0][1:].partition("/")
        answer = getattr(self, f"answer_{name}", self.answer_echo)
        answer(argument, body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET

    def reply(self, body: bytes, status: int = 200, **fields):
        self.send_response(status)
        for name, value in {"content_length": len(body), **fields}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def answer_echo(self, _, body):
        seen = {"method": self.command, "target": self.path, "version": self.request_version,
                "fields": [[name.lower(), value] for name, value in self.headers.items()],
                "length": body.length, "sha256": body.sha256, "trailers": body.trailers}
        self.reply(json.dumps(seen).encode(), content_type="application/json")

    def answer_delay(self, seconds, _):
        self.server.arrived.set()
        self.server.over.wait(float(seconds))
        self.reply(b"late\n")

    def answer_stall(self, *_):
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.write(b"x")
        self.server.arrived.set()
        self.server.over.wait(60)
        self.close_connection = True

    def answer_cut(self, *_):
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.write(b"0123456789")
        self.close_connection = True

    def answer_chunks(self, *_):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-checksum")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\nx-checksum: 42\r\n\r\n")

    def answer_hints(self, *_):
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
        self.reply(b"after the hints\n")

    def answer_status(self, code, _):
        self.reply(b"" if code in ("204", "304") else b"as asked\n", status=int(code))

    def log_message(self, *_):
        pass


class _Body:
    """Reads a request body to its end, by length or in chunks."""

    def __init__(self, handler):
        self.source, self.length, self.trailers, self._digest = handler.rfile, 0, [], hashlib.sha256()
        self._piece = memoryview(bytearray(1 << 20))
        if handler.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.source.readline().split(b";")[0], 16):
                self._take(size)
                self.source.readline()
            while (line := self.source.readline().strip()):
                self.trailers.append(line.decode())
        else:
            self._take(int(handler.headers.get("content-length", 0)))
        self.sha256 = self._digest.hexdigest()

    def _take(self, size: int):
        while size:
            count = self.source.readinto(self._piece[:min(size, len(self._piece))])
            if not count:
                raise ConnectionError("the request body ended early")
            self._digest.update(self._piece[:count])
            self.length += count
            size -= count


class EchoBackend:
    """Serves on a free port from threads of this process until the context ends."""

    def __init__(self):
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self.port = self._http.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        # Set when a slow request has arrived.
        self.arrived = self._http.arrived

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.over.set()
        self._http.shutdown()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments):
        self.arrived, self.over = threading.Event(), threading.Event()
        super().__init__(*arguments)

    def handle_error(self, *_):
        """A client that went away is part of the tests."""
