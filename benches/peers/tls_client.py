"""A small TLS client for what wrk and h2load cannot do, and which checks what was negotiated.

As a program, with results as JSON on standard output:
  tls_client.py handshakes PORT SECONDS CLIENTS    a new connection and a full handshake for each request
  tls_client.py idle PORT CONNECTIONS    one request on each, then open until standard input ends
"""

import json
import multiprocessing
import re
import socket
import ssl
import sys
import time

SMALL = b"GET /small HTTP/1.1\r\nhost: localhost\r\n\r\n"
SMALL_AND_CLOSE = b"GET /small HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
SMALL_BYTES = 1024


class Unexpected(Exception):
    """An answer or a handshake other than the one that is measured."""


def context(authority=None, alpn="http/1.1"):
    """Verifies if given an authority; version, cipher and group come from `configs/clients.cnf`."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols([alpn])
    if authority:
        made.load_verify_locations(authority)
    else:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def connect(tls, port, previous=None):
    """A connection after its handshake; `previous` is a TLS session to resume."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain, server_hostname="localhost", session=previous)


def read_answer(stream, body_bytes):
    """Reads one answer; anything but 200 with a body of `body_bytes` is an error."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = stream.recv(65536)
        if not piece:
            raise Unexpected(f"closed after {len(received)} bytes of a head")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise Unexpected(head.split(b"\r\n")[0].decode(errors="replace"))
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head + b"\r\n")
    if not length or int(length[1]) != body_bytes:
        raise Unexpected(f"content-length is not {body_bytes}")
    missing = body_bytes - len(body)
    while missing > 0:
        piece = stream.recv(65536)
        if not piece:
            raise Unexpected(f"closed {missing} bytes before the end")
        missing -= len(piece)


def look(port, authority, path, body_bytes):
    """One verified request; returns what was negotiated."""
    with connect(context(authority), port) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        read_answer(stream, body_bytes)
        return f"{stream.version()} {stream.cipher()[0]}"


def resumes(port):
    """Whether a session can be taken up again, as wrk does on every connection after its first."""
    tls, previous = context(), None
    for _ in range(2):
        with connect(tls, port, previous) as stream:
            stream.sendall(SMALL_AND_CLOSE)
            read_answer(stream, SMALL_BYTES)
            previous = stream.session
            resumed = stream.session_reused
    return resumed


def one_client(job):
    """Connects, asks, closes until the time is over; a handshake that was not full is an error."""
    port, seconds = job
    tls, latencies = context(), []
    end = time.monotonic() + seconds
    try:
        while (began := time.monotonic()) < end:
            with connect(tls, port) as stream:
                stream.sendall(SMALL_AND_CLOSE)
                read_answer(stream, SMALL_BYTES)
                latencies.append(time.monotonic() - began)
                if stream.session_reused or stream.version() != "TLSv1.3":
                    raise Unexpected("not a full handshake of TLS 1.3")
    except (OSError, Unexpected) as error:
        return latencies, f"{type(error).__name__}: {error}"
    return latencies, None


def handshakes(port, seconds, clients):
    with multiprocessing.get_context("fork").Pool(clients) as pool:
        done = pool.map(one_client, [(port, seconds)] * clients, chunksize=1)
    latencies = sorted(latency for some, _ in done for latency in some)
    failures = [failure for _, failure in done if failure]
    return {"latencies": latencies, "failure": failures[0] if failures else None}


def idle(port, connections):
    """Holds connections that have served a request each, and stay as they are."""
    tls, held = context(), []
    for _ in range(connections):
        stream = connect(tls, port)
        stream.sendall(SMALL)
        read_answer(stream, SMALL_BYTES)
        held.append(stream)
    print(json.dumps({"open": len(held)}), flush=True)
    sys.stdin.read()


def main():
    if sys.argv[1] == "handshakes":
        port, seconds, clients = sys.argv[2:]
        print(json.dumps(handshakes(int(port), float(seconds), int(clients))))
    elif sys.argv[1] == "idle":
        idle(int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
