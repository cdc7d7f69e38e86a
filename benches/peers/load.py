"""The load generators: their command lines, and what their output says of a run."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from processes import LOAD_CORE

HERE = Path(__file__).parent
# The same TLS for all clients.
ENVIRONMENT = {**os.environ, "OPENSSL_CONF": str(HERE / "configs" / "clients.cnf"), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Outcome:
    """What a generator saw: why the run is void, if it is, and latencies in milliseconds."""

    failure: str | None
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Generator:
    """A generator that runs beside the backends; subclasses know a program's words."""

    def command(self, port, seconds, directory):
        raise NotImplementedError

    def outcome(self, output, directory):
        raise NotImplementedError

    def start(self, port, seconds, directory):
        argv = ["taskset", "-c", str(LOAD_CORE), *map(str, self.command(port, seconds, directory))]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True, env=ENVIRONMENT)

    def finish(self, child, directory, patience):
        """Waits for the end; a generator that does not come to one voids the run."""
        try:
            output, _ = child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return Outcome("the load generator did not end")
        if child.returncode != 0:
            return Outcome(f"the load generator ended with {child.returncode}: {output.strip()[-200:]}")
        return self.outcome(output, directory)


@dataclass(frozen=True)
class Wrk(Generator):
    """HTTP/1.1: with keep-alive, or a new connection a request, whose session wrk always resumes.

    Its latencies are from the request on: a handshake is not in them.
    """

    path: str
    connections: int
    script: str | None = None
    close: bool = False

    def command(self, port, seconds, directory):
        extra = ["-s", HERE / "configs" / self.script] if self.script else []
        extra += ["-H", "connection: close"] if self.close else []
        return ["wrk", "-t1", f"-c{self.connections}", f"-d{math.ceil(seconds)}s", "--timeout", "5s", "--latency",
                *extra, f"https://localhost:{port}{self.path}"]

    def outcome(self, output, directory):
        for trouble in ["Socket errors", "Non-2xx"]:
            if found := re.search(rf"^ *({trouble}.*)$", output, re.M):
                return Outcome(found[1])
        if not re.search(r"^ +[1-9]\d* requests in", output, re.M):
            return Outcome(f"wrk made no requests: {output[-200:]}")
        return Outcome(None, self._percentile(output, 50), self._percentile(output, 99))

    @staticmethod
    def _percentile(output, percent):
        value, unit = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s)", output, re.M).groups()
        return float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


@dataclass(frozen=True)
class H2load(Generator):
    """HTTP/2, or HTTP/1.1 at a fixed rate."""

    path: str
    connections: int
    streams: int = 1
    http1: bool = False
    rate_per_connection: int | None = None

    def command(self, port, seconds, directory):
        pace = [f"--rps={self.rate_per_connection}"] if self.rate_per_connection else []
        return ["h2load", "-t1", f"-c{self.connections}", f"-m{self.streams}", f"-D{math.ceil(seconds)}s",
                "--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519",
                f"--log-file={directory / 'h2load.log'}", *(["--h1"] if self.http1 else []), *pace,
                f"https://localhost:{port}{self.path}"]

    def outcome(self, output, directory):
        counts = re.search(r"requests: .*?(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
        codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
        if not counts or not codes or counts[1] == "0":
            return Outcome(f"h2load made no requests: {output[-200:]}")
        if any(map(int, counts.groups()[1:])) or any(map(int, codes.groups()[1:])):
            return Outcome(f"{counts[0]}; {codes[0]}")
        lines = (directory / "h2load.log").read_text().splitlines()
        return Outcome(None, *percentiles(sorted(int(line.split()[2]) / 1000 for line in lines)))


@dataclass(frozen=True)
class Handshakes(Generator):
    """A new connection for each request with a full handshake, which is checked on each of them."""

    connections: int

    def command(self, port, seconds, directory):
        return [sys.executable, HERE / "tls_client.py", "handshakes", port, seconds, self.connections]

    def outcome(self, output, directory):
        result = json.loads(output)
        if result["failure"] or not result["latencies"]:
            return Outcome(result["failure"] or "no handshake was made")
        return Outcome(None, *percentiles([1000 * seconds for seconds in result["latencies"]]))


def percentiles(ordered):
    """The 50th and 99th, of values in order."""
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
