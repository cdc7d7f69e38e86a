"""More honest requests than the backend and the cores can serve."""
import re
import subprocess

SECONDS = 3
STREAMS = 100
LIMITS = """
requests = 2000
overload_delay = "50ms"
"""


def requests(target, count) -> list:
    """Keeps a hundred requests under way on each connection, and fails if one has another answer than 200 or 503."""
    load = subprocess.run(["h2load", "-D", str(SECONDS), "-c", str(count), "-m", str(STREAMS), "-t", "2",
                           f"https://localhost:{target.https}/small"], check=True, capture_output=True, text=True)
    failed, errored = map(int, re.search(r"(\d+) failed, (\d+) errored", load.stdout).groups())
    shed = int(re.search(r"(\d+) 5xx", load.stdout)[1])
    if errored or failed != shed:
        raise RuntimeError(load.stdout)
    return []
