"""Floods over HTTP/2: each must end in GOAWAY or a closed connection within two seconds."""
import struct
import time

from hpack import Encoder
from wire import (
    ACK, CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, block,
    close, connect_h2, drive, frame, get, goaway, settings, window_update,
)

# Frames in one write.
BURST = 200


def _flood(speak, *opening: bytes, also: bytes = b""):
    def run(target, count):
        """Waves of connections, one after the other for as long as the target says; one where it says nothing."""
        end, connections = time.monotonic() + target.sustain, []
        while not connections or time.monotonic() < end:
            connections += wave(target, count)
        return connections

    def wave(target, count):
        connections = [connect_h2(target.https, *opening) for _ in range(count)]
        for connection in connections:
            connection.pending += also

        def over(connection):
            code = goaway(connection)
            return None if code is None else "calm" if code == CALM else f"goaway {code}"

        drive(connections, speak=speak, over=over)
        close(connections)
        return connections

    return run


def _streams(connection):
    """The next odd stream numbers."""
    first = 2 * BURST * connection.turn + 1
    return range(first, first + 2 * BURST, 2)


def _each_stream(*frames):
    """Frames for each of the next streams."""
    return lambda connection: b"".join(make(stream) for stream in _streams(connection) for make in frames)


def _again(*frames: bytes):
    return lambda _: b"".join(frames) * BURST


def _small(stream):
    return get(stream, "/small")


rapid_reset = _flood(_each_stream(_small, lambda stream: frame(RST_STREAM, 0, stream, struct.pack(">I", 8))))
# Each makes us reset: a window that overflows, a frame behind the end, a window of nothing.
made_you_reset_window = _flood(_each_stream(_small, lambda stream: window_update(stream, 0x7FFFFFFF)))
made_you_reset_data = _flood(_each_stream(_small, lambda stream: frame(DATA, END_STREAM, stream, b"late")))
made_you_reset_zero = _flood(_each_stream(_small, lambda stream: window_update(stream, 0)))
malformed_heads = _flood(_each_stream(
    lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, block("/small", ("connection", "close")))))
refused_heads = _flood(_each_stream(
    lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, block("/a b"))))

continuation = _flood(_again(frame(CONTINUATION, 0, 1, block("/small", ("x", "y" * 1000))[20:])),
                      also=frame(HEADERS, 0, 1, block("/small")))
continuation_empty = _flood(_again(frame(CONTINUATION, 0, 1)), also=frame(HEADERS, 0, 1, block("/small")))
ping = _flood(_again(frame(PING, 0, 0, bytes(8))))
ping_ack = _flood(_again(frame(PING, ACK, 0, bytes(8))))
settings_flood = _flood(_again(settings()))
settings_toggle = _flood(_again(settings(table=0), settings(table=4096, window=1), settings(window=65535)))
empty_data = _flood(_again(frame(DATA, 0, 1)), also=frame(HEADERS, END_HEADERS, 1, block("/small", method="POST")))
padded_data = _flood(_again(frame(DATA, 8, 1, bytes([255]) + bytes(255))),
                     also=frame(HEADERS, END_HEADERS, 1, block("/small", method="POST")))
priority = _flood(_again(frame(PRIORITY, 0, 3, struct.pack(">IB", 1, 15))))
window_updates = _flood(_again(window_update(0, 1)))
unknown_frames = _flood(_again(frame(0x42, 0, 0, bytes(8))))
goaways = _flood(_again(frame(7, 0, 0, bytes(8))))
# The window grows byte by byte, as fast as can be, and each byte is a frame of ours.
one_byte_windows = _flood(
    lambda connection: b"".join(window_update(1, 1) for _ in range(BURST)),
    settings(window=0), also=get(1, "/big"))


def _bomb(fields: int, size: int):
    """A field that is sent once, then named by one byte again and again, in as many streams as there may be."""
    encoder = Encoder()
    first = encoder.encode([(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/big"),
                            ("x", "b" * size)], huffman=False)
    # With everything in the table, a head is a byte for each field.
    again = encoder.encode([(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/big"),
                            *[("x", "b" * size)] * fields], huffman=False)
    opening = frame(HEADERS, END_HEADERS | END_STREAM, 1, first)

    def bomb(stream):
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, again)

    return opening, bomb


def _bombs(fields: int, size: int):
    opening, bomb = _bomb(fields, size)

    def speak(connection):
        return b"".join(bomb(stream + 2) for stream in _streams(connection))

    return _flood(speak, settings(window=0), also=opening)


# Each head beyond the limit, many times: what we refuse makes work too.
header_bomb_too_large = _bombs(2000, 3900)




def _post(stream):
    return frame(HEADERS, END_HEADERS, stream, block("/small", method="POST"))


# A name of two kilobytes that is sent once, then put into the table again with every two bytes.
_LONG_NAME = frame(HEADERS, END_HEADERS | END_STREAM, 1, block("/small") + b"\x40\x7f\xf1\x0e" + b"a" * 2032 + b"\0")
_COPIES = b"\x7e\0" * 8000
name_bombs = _flood(lambda connection: b"".join(
    frame(HEADERS, END_HEADERS | END_STREAM, stream + 2, block("/small") + _COPIES) for stream in _streams(connection)),
    also=_LONG_NAME)
name_bombs_in_trailers = _flood(lambda connection: b"".join(
    _post(stream + 2) + frame(HEADERS, END_HEADERS | END_STREAM, stream + 2, _COPIES) for stream in _streams(connection)),
    also=_LONG_NAME)
# More trailers than may be, of one byte each: what was begun for them was begun for nothing.
trailers_too_large = _flood(_each_stream(
    _post, lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x90" * 101),
    lambda stream: window_update(stream, 1)))
late_data = _flood(_again(frame(DATA, END_STREAM, 1)), also=_small(1))


def header_bomb(target, count):
    """100 streams of 32 KiB heads each, for a few hundred bytes, and answers that can't be sent."""
    opening, bomb = _bomb(7, 3900)
    connections = [connect_h2(target.https, settings(window=0)) for _ in range(count)]
    for connection in connections:
        connection.pending += opening + b"".join(bomb(2 * stream + 3) for stream in range(99))
    return _wait(connections)


def zero_window(target, count):
    """100 streams on each connection, none of which may be answered."""
    return _held(target, count, "/big", settings(window=0))


def unread(target, count):
    """Windows wide open, 100 streams, and nothing is read."""
    connections = [connect_h2(target.https, settings(window=0x7FFFFFFF), window_update(0, 0x7FFF0000 - 65535),
                              receive_buffer=4096) for _ in range(count)]
    for connection in connections:
        connection.pending += b"".join(get(2 * stream + 1, "/big") for stream in range(100))
    drive(connections, speak=lambda _: b"", every=0.5, read=0, spread=1, reader=True)
    close(connections)
    return connections


def _held(target, count, path, *opening):
    connections = [connect_h2(target.https, *opening) for _ in range(count)]
    for connection in connections:
        connection.pending += b"".join(get(2 * stream + 1, path) for stream in range(100))
    return _wait(connections)


def _resets_of_all(connections):
    """How a connection ended whose 100 streams were all reset."""
    resets = {id(connection): 0 for connection in connections}

    def over(connection):
        buffer = connection.received
        while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
            length, kind = int.from_bytes(buffer[:3], "big"), buffer[3]
            del buffer[:9 + length]
            if kind == GOAWAY:
                return "goaway"
            resets[id(connection)] += kind == RST_STREAM
        return "streams reset" if resets[id(connection)] >= 100 else None

    return over


def _wait(connections):
    """Reads until all 100 streams of each connection were reset, or the connection is over."""
    drive(connections, speak=lambda _: b"", every=0.05, over=_resets_of_all(connections), spread=1)
    close(connections)
    return connections


def window_drip(target, count):
    """One byte of window every half second on each of 100 streams: never idle, never done."""
    connections = [connect_h2(target.https, settings(window=0)) for _ in range(count)]
    for connection in connections:
        connection.pending += b"".join(get(2 * stream + 1, "/big") for stream in range(100))

    def speak(_):
        return b"".join(window_update(2 * stream + 1, 1) for stream in range(100))

    drive(connections, speak=speak, every=0.5, over=_resets_of_all(connections), spread=1)
    close(connections)
    return connections
