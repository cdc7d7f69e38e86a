"""Real clients: curl, wrk, h2load, and what they report."""
import json
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Answer:
    """What curl saw: the heads in order (1xx, final head, trailers), the body, curl's own exit code."""
    exit_code: int
    status: int
    version: str
    head: str
    body: bytes
    seconds: float
    uploaded: int
    downloaded: int
    said: str

    def field(self, name: str) -> str | None:
        """The last field of this name in any head."""
        found = re.findall(rf"(?im)^{re.escape(name)}: *(.*?)\s*$", self.head)
        return found[-1] if found else None

    @property
    def reason(self) -> str | None:
        return self.field("x-portcullis-reason")

    def json(self):
        return json.loads(self.body)


def curl(url: str, *options, ca: Path | None = None, keep_body: bool = True, within: float = 60) -> Answer:
    """One curl run, `localhost` resolved to 127.0.0.1 so that no other address family hides a failure."""
    with tempfile.TemporaryDirectory() as scratch:
        head, body = Path(scratch, "head"), Path(scratch, "body")
        trust = ["--cacert", ca] if ca else []
        run = subprocess.run(
            ["curl", "-sS", "-4", "-D", head, "-o", body if keep_body else "/dev/null", "-w", "%{json}",
             *trust, *map(str, options), url],
            capture_output=True, text=True, timeout=within, check=False)
        seen = json.loads(run.stdout)
        return Answer(
            exit_code=run.returncode, status=seen["http_code"], version=seen["http_version"],
            head=head.read_text() if head.exists() else "", body=body.read_bytes() if body.exists() else b"",
            seconds=seen["time_total"], uploaded=seen["size_upload"], downloaded=seen["size_download"],
            said=run.stderr)


def exchange(port: int, *pieces: bytes) -> bytes:
    """Sends raw bytes to a clear-text listener, each piece by itself, and reads until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(0.05)
        answer = b""
        while received := peer.recv(65536):
            answer += received
        return answer


@dataclass
class Load:
    """What a load generator counted."""
    requests: int
    failures: int
    report: str


def h2load(url: str, *options, requests: int = 0, seconds: int = 0, clients: int = 32) -> Load:
    """Exactly `requests` requests, or as many as fit in `seconds`; anything but a 2xx is a failure."""
    amount = ["-D", str(seconds)] if seconds else ["-n", str(requests)]
    run = subprocess.run(["h2load", *amount, "-c", str(clients), *map(str, options), url],
                         capture_output=True, text=True, timeout=120, check=True)
    total = int(re.search(r"requests: (\d+) total", run.stdout)[1])
    good = int(re.search(r"status codes: (\d+) 2xx", run.stdout)[1])
    succeeded = int(re.search(r"(\d+) succeeded", run.stdout)[1])
    return Load(total, total - min(good, succeeded), run.stdout)


def wrk(url: str, *options, seconds: int, clients: int = 32) -> Load:
    """As many requests as fit; failures are answers that are not 2xx or 3xx, and socket errors."""
    run = subprocess.run(["wrk", "-t2", f"-c{clients}", f"-d{seconds}s", *map(str, options), url],
                         capture_output=True, text=True, timeout=seconds + 30, check=True)
    requests = int(re.search(r"(\d+) requests in", run.stdout)[1])
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    errors = re.search(r"Socket errors: (.*)", run.stdout)
    failures = int(refused[1]) if refused else 0
    failures += sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0
    return Load(requests, failures, run.stdout)
