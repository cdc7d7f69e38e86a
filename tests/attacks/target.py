"""The program under attack: its configuration, its backend, an innocent client, and what they measure."""
import http.client
import json
import multiprocessing
import os
import resource
import shutil
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))

from support.portcullis import BINARY, ROOT, Portcullis, cluster  # noqa: E402
from support.process import Process  # noqa: E402
from support.waiting import accepts, free_port, wait_until  # noqa: E402

MIB = 1 << 20
# Every deadline that a slow client can reach, short enough to wait for.
DEADLINE = 3.0
LIMITS = f"""
[limits]
handshake_timeout = "{DEADLINE:.0f}s"
head_timeout = "{DEADLINE:.0f}s"
body_idle_timeout = "{DEADLINE:.0f}s"
body_rate_grace = "{DEADLINE:.0f}s"
write_timeout = "{DEADLINE:.0f}s"
idle_timeout = "20s"
"""
# Where the machine is busy with other things, the innocent would be shed and not served late: it is to be seen whether
# they are served.
PATIENT = 'overload_delay = "60s"\n'
# The bystander has a backend to itself: what is measured is the proxy.
ROUTES = """
[[routes]]
cluster = "web"

[[routes]]
path = "/quiet"
cluster = "quiet"
"""
MEMORY_LIMIT = 256 * MIB
BIG_FILE = 8 * MIB

_NGINX = """
daemon off;
master_process off;
worker_rlimit_nofile 16000;
pid nginx.pid;
error_log error.log crit;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    sendfile on;
    keepalive_requests 100000000;
    client_max_body_size 0;
    large_client_header_buffers 8 64k;
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        root files;
        location /quiet {{ return 200 "small\\n"; }}
        location /small {{ return 200 "small\\n"; }}
        location /upload {{ proxy_pass http://127.0.0.1:{port}/small; }}
        location /healthz {{ return 200 "well\\n"; }}
        location / {{ }}
    }}
}}
"""


class Backend:
    """nginx: `/small` is a few bytes, `/big` eight MiB, `/upload` waits for the body; any number of connections."""

    def __init__(self, directory: Path, name: str):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        home = directory / name
        (home / "files").mkdir(parents=True)
        (home / "files/big").write_bytes(b"x" * BIG_FILE)
        (home / "files/64k").write_bytes(b"x" * 65536)
        (home / "nginx.conf").write_text(_NGINX.format(port=self.port))
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        self.process = Process(name, [nginx, "-p", home, "-c", "nginx.conf", "-e", "error.log"], home)
        wait_until(lambda: accepts(self.port), 5, "nginx accepts")

    def stop(self):
        self.process.stop()


class MemoryLimit:
    """A control group of its own with 256 MiB, where this machine lets us make one."""

    def __init__(self):
        name = f"portcullis-attacks-{os.getpid()}"
        self.group = None
        for base, limit, swap in (
            ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        ):
            group = Path(base, name)
            try:
                group.mkdir()
                # The kernel fills the directory; where it does not, this is no control group.
                with open(group / limit, "r+") as file:
                    file.write(str(MEMORY_LIMIT))
            except OSError:
                if group.is_dir():
                    group.rmdir()
                continue
            self.group = group
            try:
                (group / swap).write_text("0" if swap.endswith("max") else str(MEMORY_LIMIT))
            except OSError:
                pass  # No swap accounting: then there is mostly no swap either.
            return

    def enter(self):
        """In the child, before the program starts."""
        if self.group:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        if self.group:
            wait_until(lambda: not (self.group / "cgroup.procs").read_text(), 5, "the control group is empty")
            self.group.rmdir()


class Target(Portcullis):
    """Portcullis with two workers and short deadlines, under a memory limit."""

    # For how many seconds floods go on with new connections.
    sustain = 0.0

    def __init__(self, directory: Path, certs: Path, backends: tuple, limit: MemoryLimit, files: int,
                 limits: str = PATIENT):
        self.limit, self.files = limit, files
        settings = 'retries = 0\nhealth = false'
        attacked, quiet = backends
        body = LIMITS + limits + ROUTES + cluster("web", [attacked.address], settings) + cluster("quiet", [quiet.address], settings)
        super().__init__(directory, certs, body, top="workers = 2")

    def launch(self) -> Process:
        def prepare():
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))
            self.limit.enter()

        self.process = Process("portcullis", [BINARY, "run", "--config", self.config], self.directory,
                               preexec_fn=prepare)
        return self.process

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


def percentile(samples: list, share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Bystander:
    """An honest client in a process of its own: a request every few milliseconds, each on record.

    With `newcomers`, now and then one on a connection of its own: an attack may keep others out and do no harm to those
    who are in.
    """

    PAUSE = 0.01
    NEWCOMERS = 0.3

    def __init__(self, port: int, newcomers: bool):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=self._run, args=(port, other, newcomers), daemon=True)
        self.process.start()
        other.close()

    def figures(self) -> tuple[list, float, int, int]:
        """Since the last time: seconds of each request, of the slowest newcomer, and how many were shed or failed."""
        self.pipe.send("figures")
        return self.pipe.recv()

    def stop(self):
        self.process.terminate()
        self.process.join()

    def _run(self, port: int, pipe, newcomers: bool):
        samples, slowest, shed, failures, connection, next_newcomer = [], 0.0, 0, 0, None, 0.0
        while True:
            if pipe.poll():
                pipe.recv()
                pipe.send((samples, slowest, shed, failures))
                samples, slowest, shed, failures = [], 0.0, 0, 0
            began = time.perf_counter()
            try:
                if newcomers and began >= next_newcomer:
                    newcomer = self._connect(port)
                    self._ask(newcomer)
                    newcomer.close()
                    slowest = max(slowest, time.perf_counter() - began)
                    began = time.perf_counter()
                    next_newcomer = began + self.NEWCOMERS
                connection = connection or self._connect(port)
                shed += self._ask(connection)
                samples.append(time.perf_counter() - began)
            except (OSError, http.client.HTTPException):
                failures += 1
                connection = None
            time.sleep(self.PAUSE)

    @staticmethod
    def _ask(connection: http.client.HTTPSConnection) -> bool:
        """Whether it was shed, on a connection that stays."""
        connection.request("GET", "/quiet", headers={"host": "localhost"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 503 and answer.headers["retry-after"] == "1" and not answer.will_close:
            return True
        if answer.status != 200 or body != b"small\n":
            raise http.client.HTTPException(answer.status)
        return False

    @staticmethod
    def _connect(port: int) -> http.client.HTTPSConnection:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)


class MemoryWatch:
    """The largest resident size while it runs."""

    def __init__(self, target: Target):
        self.before = self.peak = target.memory()
        self._target, self._over = target, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self):
        while not self._over.wait(0.02):
            try:
                self.peak = max(self.peak, self._target.memory())
            except (OSError, ValueError, IndexError):
                return

    def growth(self) -> int:
        self._over.set()
        self._thread.join()
        return self.peak - self.before


@dataclass
class Figures:
    """What one attack did."""
    attack: str
    connections: int = 0
    ended: int = 0
    first_end: float | None = None
    last_end: float | None = None
    how: dict = field(default_factory=dict)
    memory_growth: int = 0
    cpu: float = 0.0
    p99_before: float = 0.0
    p99_during: float = 0.0
    slowest_newcomer: float = 0.0
    requests: int = 0
    shed: int = 0
    failures: int = 0
    upstream_requests: int = 0
    notes: list = field(default_factory=list)
    faults: list = field(default_factory=list)

    def json(self) -> str:
        return json.dumps(self.__dict__)
