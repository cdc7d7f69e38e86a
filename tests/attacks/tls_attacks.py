"""Handshakes that stall, are too large, are none, or never stop coming."""
import os
import ssl
import struct
import subprocess
import time

from wire import Connection, close, connect, drive, tls



def _raw(target, count, opening: bytes, speak, every=0.5, spread=0.0):
    connections = [connect(target.https) for _ in range(count)]
    for connection in connections:
        connection.pending = opening
    drive(connections, speak=speak, every=every, spread=spread)
    close(connections)
    return connections


def _client_hello(extra: int) -> bytes:
    """A ClientHello in one handshake message, `extra` bytes of it in an extension that nobody knows."""
    padding = struct.pack(">HH", 0xFEFE, min(extra, 65000)) + bytes(min(extra, 65000))
    body = b"\x03\x03" + os.urandom(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack(">H", len(padding)) + padding
    message = b"\x01" + struct.pack(">I", len(body))[1:] + body
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part
                    for part in (message[at:at + 16384] for at in range(0, len(message), 16384)))


def stalled_hello(target, count):
    """The beginning of a ClientHello, and then nothing."""
    return _raw(target, count, _client_hello(200)[:60], lambda _: b"")


def hello_and_no_more(target, count):
    """A hello that gets its answer, which nobody answers: more of them than handshakes may run at once."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = tls("http/1.1").wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return _raw(target, count, outgoing.read(), lambda _: b"", spread=1.0)


def dripping_hello(target, count):
    """64 KiB of ClientHello, byte by byte."""
    hello = _client_hello(65000)
    return _raw(target, count, hello[:30000], lambda connection: hello[30000 + connection.turn:][:1])


def large_hello(target, count):
    """64 KiB of ClientHello at once, which offers nothing that we have."""
    return _raw(target, count, _client_hello(65000), lambda _: b"", every=0.05)


def endless_hello(target, count):
    """Records of a handshake message that never ends."""
    part = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(16380)
    more = b"\x16\x03\x01\x40\x00" + bytes(16384)
    return _raw(target, count, part, lambda _: more * 4, every=0.01)


def garbage(target, count):
    return _raw(target, count, os.urandom(2048), lambda _: os.urandom(256), every=0.05)


def plain_http(target, count):
    return _raw(target, count, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", lambda _: b"", every=0.05)


def handshakes(target, count):
    """Whole handshakes one after the other, as fast as one process can; each is closed by us."""
    context, connections = tls("http/1.1"), []
    end = time.monotonic() + 3
    while time.monotonic() < end:
        connection = connect(target.https, context)
        connection.socket.close()
        connection.end("ours")
        connections.append(connection)
    return connections


def renegotiation(target, count):
    """TLS 1.2 clients that want a second handshake in their first connection."""
    connections = []
    for _ in range(count):
        connection = Connection(None)
        client = subprocess.Popen(
            ["stdbuf", "-oL", "openssl", "s_client", "-connect", f"127.0.0.1:{target.https}", "-tls1_2", "-msg",
             "-no_ign_eof", "-legacy_renegotiation"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        client.stdin.write(b"R\n")
        client.stdin.flush()
        time.sleep(0.5)
        client.kill()
        output = client.communicate()[0]
        if output.count(b"ClientHello\n") != 2 or output.count(b"ServerHello\n") != 1:
            raise RuntimeError("renegotiated, or not even asked to")
        connection.end("refused")
        connections.append(connection)
    return connections


def unread_key_updates(target, count):
    """A client that asks for keys again and again needs a TLS library of its own; OpenSSL sends one for `K`."""
    connections = []
    for _ in range(count):
        connection = Connection(None)
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{target.https}", "-tls1_3", "-no_ign_eof"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.2)
        try:
            for _ in range(2000):
                client.stdin.write(b"K\n")
                client.stdin.flush()
        except OSError:
            pass
        try:
            client.wait(0.5)
            connection.end("closed")
        except subprocess.TimeoutExpired:
            connection.end("served")
            client.kill()
            client.wait()
        connections.append(connection)
    return connections
