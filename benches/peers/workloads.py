"""What is measured: the workloads, and how one run of each is made."""

import subprocess
import sys
import time
from dataclasses import dataclass

import peers
import tls_client
from backends import LARGE_BYTES, SMALL_BYTES
from load import ENVIRONMENT, HERE, H2load, Handshakes, Wrk
from processes import LOAD_CORE, PROXY_CORE, core_time, free_ports, wait_until

IDLE_CONNECTIONS = 2000
COLD_STARTS = 5


@dataclass(frozen=True)
class Workload:
    """A workload: `headline` is the measure in which peers are compared, `unit` that of it."""

    name: str
    title: str
    headline: str = "cpu_us"
    unit: str = "µs CPU/request"
    generator: object = None
    backend_count: int = 2
    upstream_tls: bool = False
    warm_up_seconds: float = 1.0
    # How often the backends count one request of a client.
    counted_per_request: int = 1
    # The workload whose headline this one's is divided by, to show growth.
    slope_of: str | None = None


ALL = [
    Workload("h1-small", "HTTPS h1 keep-alive, 1 KiB, 64 connections", generator=Wrk("/small", 64)),
    Workload("h2-small", "HTTPS h2, 1 KiB, 8 connections of 10 streams", generator=H2load("/small", 8, 10)),
    Workload("h1-small-upstream-tls", "HTTPS h1, 1 KiB, verified TLS to the backends",
             generator=Wrk("/small", 64), upstream_tls=True),
    Workload("handshake-resumed", "New connection a request, session resumed",
             generator=Wrk("/small", 64, close=True)),
    Workload("handshake-full", "New connection a request, full handshake", generator=Handshakes(8)),
    Workload("download-1m", "HTTPS h1, 1 MiB download", generator=Wrk("/large", 16)),
    Workload("upload-1m", "HTTPS h1, 1 MiB upload", generator=Wrk("/upload", 16, "upload.lua"),
             counted_per_request=2),
    Workload("h1-paced", "HTTPS h1, 1 KiB, 3,200 requests/s for all",
             generator=H2load("/small", 64, http1=True, rate_per_connection=50)),
    Workload("h1-small-2048", "HTTPS h1, 1 KiB, 2,048 connections", generator=Wrk("/small", 2048),
             warm_up_seconds=4.0, slope_of="h1-small"),
    Workload("h1-small-50-backends", "HTTPS h1, 1 KiB, 50 backends", generator=Wrk("/small", 64),
             backend_count=50, slope_of="h1-small"),
    Workload("idle-memory", f"Memory a connection, {IDLE_CONNECTIONS:,} idle TLS h1 connections",
             headline="kib_per_connection", unit="KiB"),
    Workload("cold-start", "From the start of the process to the first answer",
             headline="first_answer_ms", unit="ms"),
]


class Void(Exception):
    """A run that does not count, and why."""


@dataclass(frozen=True)
class Bench:
    """What all runs share: backends, certificates, a directory for what the peers write."""

    backends: object
    certificates: object
    directory: object
    seconds: float

    def setup(self, peer, workload):
        port, admin_port = free_ports(2)
        ports = self.backends.tls_ports if workload.upstream_tls else self.backends.ports
        return peers.Setup(
            port, admin_port, ports[:workload.backend_count], workload.upstream_tls,
            self.certificates, self.directory / peer.name,
        )

    def run(self, peer, workload):
        """One run, with a balancer that was just started; returns its measures by name."""
        try:
            if workload.name == "cold-start":
                return self._cold_start(peer, workload)
            setup = self.setup(peer, workload)
            with peers.start(peer, setup) as proxy:
                negotiated = self._wait_for_answer(proxy, setup)
                measure = self._idle_memory if workload.name == "idle-memory" else self._load
                measures = measure(proxy, setup, workload)
            return {**measures, "negotiated": negotiated}
        except (RuntimeError, OSError, tls_client.Unexpected) as error:
            raise Void(str(error)) from error

    def _wait_for_answer(self, proxy, setup):
        """Waits for a right answer; then looks at both sizes, verified TLS and its resumption.

        Returns what was negotiated.
        """
        look = [setup.port, self.certificates.authority]

        def answers():
            try:
                return tls_client.look(*look, "/small", SMALL_BYTES)
            except (OSError, tls_client.Unexpected):
                return None

        wait_until(answers, proxy)
        if not tls_client.resumes(setup.port):
            raise Void("does not resume TLS sessions")
        return tls_client.look(*look, "/large", LARGE_BYTES)

    def _load(self, proxy, setup, workload):
        """Load for a warm-up, then for a window in which CPU time and requests are counted."""
        warm_up = workload.warm_up_seconds
        # A generator that ended before the window does would make the last part of it idle.
        load_seconds = warm_up + self.seconds + 1
        child = workload.generator.start(setup.port, load_seconds, setup.directory)
        try:
            time.sleep(warm_up)
            before = self._sample(proxy)
            time.sleep(self.seconds)
            after = self._sample(proxy)
        finally:
            outcome = workload.generator.finish(child, setup.directory, load_seconds + 15)
        if outcome.failure:
            raise Void(outcome.failure)
        if not proxy.running():
            raise Void("the balancer ended")
        elapsed, cpu, served, core = (later - earlier for later, earlier in zip(after, before))
        requests = served / workload.counted_per_request
        if requests < 10:
            raise Void(f"only {requests:.0f} requests")
        return {
            "cpu_us": 1e6 * cpu.total / requests,
            "user_us": 1e6 * cpu.user / requests,
            "system_us": 1e6 * cpu.system / requests,
            "requests_per_second": requests / elapsed,
            "core_busy": cpu.total / elapsed,
            "core_taken_by_others": max(0, core - cpu.total) / elapsed,
            "p50_ms": outcome.p50_ms,
            "p99_ms": outcome.p99_ms,
            "max_rss_mib": proxy.memory_kib("VmHWM") / 1024,
        }

    def _sample(self, proxy):
        return time.monotonic(), proxy.cpu_time(), self.backends.served(), core_time(PROXY_CORE)

    def _idle_memory(self, proxy, setup, workload):
        """How much resident memory grows from 50 connections to 2,000 more."""
        few = self._idle_clients(setup, 50)
        many = None
        try:
            before = proxy.memory_kib()
            many = self._idle_clients(setup, IDLE_CONNECTIONS)
            time.sleep(1.5)
            after = proxy.memory_kib()
        finally:
            for child in filter(None, [few, many]):
                child.stdin.close()
                child.wait(20)
        return {
            "kib_per_connection": (after - before) / IDLE_CONNECTIONS,
            "max_rss_mib": proxy.memory_kib("VmHWM") / 1024,
        }

    def _idle_clients(self, setup, connections):
        argv = ["taskset", "-c", str(LOAD_CORE), sys.executable, HERE / "tls_client.py", "idle",
                str(setup.port), str(connections)]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env=ENVIRONMENT)
        if not child.stdout.readline():
            child.stdin.close()
            child.wait(5)
            raise Void(f"{connections} connections could not be opened")
        return child

    def _cold_start(self, peer, workload):
        """The fastest of a few: what is slower is the machine's doing."""
        tls, times = tls_client.context(), []
        for _ in range(COLD_STARTS):
            setup = self.setup(peer, workload)
            began = time.monotonic()
            with peers.start(peer, setup) as proxy:
                wait_until(lambda: self._first_answer(tls, setup.port), proxy, pause=0.001)
                times.append(1000 * (time.monotonic() - began))
        return {"first_answer_ms": min(times)}

    @staticmethod
    def _first_answer(tls, port):
        try:
            with tls_client.connect(tls, port) as stream:
                stream.sendall(tls_client.SMALL)
                tls_client.read_answer(stream, SMALL_BYTES)
                return True
        except (OSError, tls_client.Unexpected):
            return False


def select(names):
    """The workloads of these names (all if none), and those that they are compared with."""
    known = {workload.name: workload for workload in ALL}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no such workload: {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = set(names or known)
    wanted |= {known[name].slope_of for name in wanted}
    return [workload for workload in ALL if workload.name in wanted]
