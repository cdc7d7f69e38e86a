"""Hostile clients: many non-blocking connections in one loop, and HTTP/2 frames by hand."""
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

from hpack import Encoder

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALM = 11
# Beyond any deadline, on a busy machine too: who is there then is there for good.
WITHIN = 20.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; names as in `IDS`."""
    ids = {"table": 1, "streams": 3, "window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", ids[name], value) for name, value in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def block(path: str, *more: tuple, method: str = "GET") -> bytes:
    """A head without anything of the dynamic table."""
    pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
    return Encoder().encode([*pseudo, *more], huffman=False)


def get(stream: int, path: str) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block(path))


def tls(protocol: str, **options) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    for name, value in options.items():
        setattr(context, name, value)
    return context


@dataclass
class Connection:
    """One hostile connection and how it ended; it begins with its first byte behind the handshake."""
    socket: socket.socket
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    how: str = "open"
    received: bytearray = field(default_factory=bytearray)
    pending: bytes = b""
    said: bool = False
    start: float = 0.0
    turn: int = 0
    next_turn: float = 0.0

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.began

    def end(self, how: str):
        if self.ended is None:
            self.ended, self.how = time.monotonic(), how


def connect(port: int, context: ssl.SSLContext | None = None, receive_buffer: int | None = None) -> Connection:
    """A connection, its TLS handshake done; `began` is when it is ready."""
    plain = socket.socket()
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        # Over the loopback's segments the kernel would hold megabytes of each answer; over a network's it does not.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    plain.settimeout(10)
    plain.connect(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wrapped = context.wrap_socket(plain, server_hostname="localhost") if context else plain
    wrapped.setblocking(False)
    return Connection(wrapped)


def connect_h2(port: int, *opening: bytes, receive_buffer: int | None = None) -> Connection:
    """An HTTP/2 connection that has sent its preface, then `opening` (SETTINGS first)."""
    connection = connect(port, tls("h2"), receive_buffer)
    connection.pending = PREFACE + b"".join(opening or (settings(),)) + frame(SETTINGS, ACK, 0)
    return connection


_ENDS = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


def _send(connection: Connection):
    while connection.pending:
        try:
            sent = connection.socket.send(connection.pending)
        except _AGAIN:
            return
        except OSError as error:
            return connection.end(f"closed ({type(error).__name__})")
        connection.pending = connection.pending[sent:]
        if not connection.said:
            connection.said, connection.began = True, time.monotonic()


def _receive(connection: Connection, limit: int):
    while limit > 0:
        try:
            received = connection.socket.recv(min(limit, 65536))
        except _AGAIN:
            return
        except OSError as error:
            return connection.end(f"closed ({type(error).__name__})")
        if not received:
            return connection.end("closed")
        connection.received += received
        limit -= len(received)


def goaway(connection: Connection) -> int | None:
    """The code of the GOAWAY that has come; takes whole frames off what was received."""
    buffer = connection.received
    while len(buffer) >= 9:
        length = int.from_bytes(buffer[:3], "big")
        if len(buffer) < 9 + length:
            return None
        kind, payload = buffer[3], bytes(buffer[9:9 + length])
        del buffer[:9 + length]
        if kind == GOAWAY:
            return int.from_bytes(payload[4:8], "big")
    return None


def drive(connections: list, *, speak, every: float = 0.0, read: int = 65536, over=None, spread: float = 0.0):
    """Keeps all connections busy until each has ended or `WITHIN` seconds are over; the first begins at once, the
    last `spread` seconds later, so that it is their number that counts and not their moment.

    `speak(connection)` gives the bytes of the next turn, one turn each `every` seconds (0: without a pause), and
    `read` bytes are taken in each; `over(connection)` says how it ended where the end is something received.
    """
    now = time.monotonic()
    deadline = now + spread + WITHIN
    poller = select.poll()
    for index, connection in enumerate(connections):
        poller.register(connection.socket, _ENDS)
        connection.start = now + spread * index / len(connections)
        connection.next_turn = connection.start + every
    by_file = {connection.socket.fileno(): connection for connection in connections}
    alive = connections
    while alive and time.monotonic() < deadline:
        began = time.monotonic()
        for connection in alive:
            _turn(connection, speak, every, read, over)
        for file, event in poller.poll(0):
            poller.unregister(file)
            # Last words may still be there.
            _receive(by_file[file], 1 << 20 if read else 0)
            _listen(by_file[file], over)
            by_file[file].end("reset" if event & select.POLLERR else "closed")
        alive = [connection for connection in connections if connection.ended is None]
        # Slow ones have time; fast ones let the other end breathe.
        time.sleep(max(0.0005, (0.05 if every else 0.001) - (time.monotonic() - began)))


def _turn(connection: Connection, speak, every: float, read: int, over):
    now = time.monotonic()
    if now < connection.start:
        return
    if not connection.pending and now >= connection.next_turn:
        connection.pending = speak(connection)
        connection.turn += 1
        connection.next_turn = now + every
        if every:
            _receive(connection, read)
    if not every:
        _receive(connection, read)
    _listen(connection, over)
    if connection.ended is None:
        _send(connection)


def _listen(connection: Connection, over):
    """What was said last counts for more than the end behind it."""
    how = over(connection) if over and connection.received else None
    if how:
        connection.end(how)
        connection.how = how


def close(connections: list):
    for connection in connections:
        connection.socket.close()
