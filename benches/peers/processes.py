"""Starts processes on a core of their own, and says what they cost: CPU time and memory."""

import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PROXY_CORE = 0
LOAD_CORE = 1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    """Seconds in user space and in the kernel."""

    user: float
    system: float

    def __sub__(self, earlier):
        return CpuTime(self.user - earlier.user, self.system - earlier.system)

    @property
    def total(self):
        return self.user + self.system


class Process:
    """A process and what it forked, pinned to one core; ends with the `with` block."""

    def __init__(self, argv, core, directory, environment=None):
        directory.mkdir(parents=True, exist_ok=True)
        self.stdout = directory / "stdout"
        self.stderr = directory / "stderr"
        with open(self.stdout, "wb") as out, open(self.stderr, "wb") as err:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, argv)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def running(self):
        return self.child.poll() is None

    def pids(self):
        """The process and all below it."""
        found, ahead = [], [self.child.pid]
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                ahead.extend(map(int, _read(children).split()))
        return found

    def cpu_time(self):
        user = system = 0
        for pid in self.pids():
            # What follows the name in brackets: state is field 3, utime and stime are 14 and 15.
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if fields:
                user += int(fields[11])
                system += int(fields[12])
        return CpuTime(user / TICKS, system / TICKS)

    def memory_kib(self, field="VmRSS"):
        """Resident memory of all processes: now (`VmRSS`) or at its highest (`VmHWM`)."""
        total = 0
        for pid in self.pids():
            for line in _read(f"/proc/{pid}/status").splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        return total

    def stop(self):
        pids = self.pids() if self.running() else []
        # Open connections make a drain wait: a second signal or SIGKILL ends it.
        for number, patience in [(signal.SIGTERM, 0.5), (signal.SIGTERM, 2), (signal.SIGKILL, 5)]:
            if not self.running():
                break
            self.child.send_signal(number)
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                pass
        for pid in pids[1:]:
            if "PPid:\t1\n" in _read(f"/proc/{pid}/status"):
                _kill(pid)


def core_time(core):
    """Seconds that anybody spent on this core, in user space and in the kernel."""
    line = next(line for line in _read("/proc/stat").splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system = map(int, line.split()[1:4])
    return (user + nice + system) / TICKS


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def free_ports(count):
    """Ports nobody listens on, below the range from which outgoing connections take theirs."""
    ports = []
    for port in random.sample(range(10_000, 32_000), 4 * count + 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"found no {count} free ports")


def wait_until(condition, process, seconds=15, pause=0.01):
    """Polls until `condition()` is true; says what `process` wrote if it ends or never gets there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        if not process.running():
            break
        time.sleep(pause)
    output = _read(process.stdout)[-2000:] + _read(process.stderr)[-2000:]
    raise RuntimeError(f"{' '.join(map(str, process.child.args))} did not come up:\n{output}")
