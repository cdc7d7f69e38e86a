"""A child process with its output in a file, ended by its own pid."""
import os
import re
import signal
import subprocess
from pathlib import Path


class Process:
    """Runs `argv` in `directory`; use as a context manager so that it always ends."""

    def __init__(self, name: str, argv: list, directory: Path, **options):
        self.name = name
        self.output_file = directory / f"{name}.output"
        with open(self.output_file, "ab") as output:
            self.child = subprocess.Popen(
                [str(word) for word in argv],
                cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self) -> int:
        return self.child.pid

    def running(self) -> bool:
        return self.child.poll() is None

    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    def signal(self, number: int):
        self.child.send_signal(number)

    def wait(self, within: float) -> int:
        """The exit code; fails where the process is still there after `within` seconds."""
        try:
            return self.child.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {within} s; its output:\n{self.output()}") from None

    def kill(self):
        """kill -9."""
        self.child.kill()
        self.child.wait(10)

    def stop(self):
        if self.running():
            self.signal(signal.SIGTERM)
            try:
                self.child.wait(3)
            except subprocess.TimeoutExpired:
                self.kill()

    def peak_memory(self) -> int:
        """The largest resident set it ever had, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))
