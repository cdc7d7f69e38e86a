"""A backend is killed with -9 under load and comes back: nobody but those in flight on it notices."""
import threading
import time

import pytest
from support.clients import h2load, wrk
from support.portcullis import cluster
from support.waiting import wait_until

INTERVAL, FALL, RISE = 0.25, 3, 2
# Jitter, the probe's own time and a busy machine.
SLACK = 2.0
HEALTH = (f'health = {{ path = "/healthz", interval = "{INTERVAL * 1000:.0f}ms", timeout = "250ms", '
          f'fall = {FALL}, rise = {RISE} }}')
CLIENTS = 16


def is_up(front, backend) -> bool:
    return front.metrics().total("backend_up", backend=backend.address) == 1


def time_until(condition, what) -> float:
    began = time.monotonic()
    wait_until(condition, 20, what)
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", ["http1", "h2"])
def test_only_requests_in_flight_notice_a_killed_backend(portcullis, nginxes, protocol):
    front = portcullis(cluster("web", [b.address for b in nginxes], HEALTH))
    front.wait_for_health(web=3)
    victim = nginxes[1]
    loads = []

    def put_under_load():
        url = f"{front.https_url}/name"
        if protocol == "http1":
            loads.append(wrk(url, seconds=7, clients=CLIENTS))
        else:
            loads.append(h2load(url, "-m", 4, seconds=7, clients=CLIENTS // 4))

    load = threading.Thread(target=put_under_load)
    load.start()
    time.sleep(1)
    victim.kill()
    to_fall = time_until(lambda: not is_up(front, victim), "the killed backend counts as down")
    before = victim.requests()
    victim.start()
    to_rise = time_until(lambda: is_up(front, victim), "the restarted backend counts as up")
    load.join()

    # Each probe takes its interval and at most its timeout.
    assert to_fall <= FALL * (INTERVAL + 0.25) + SLACK
    assert to_rise <= RISE * (INTERVAL + 0.25) + SLACK
    assert loads, "the load generator failed"
    # At most what one backend can have in flight: every client's request.
    assert loads[0].failures <= CLIENTS, loads[0].report
    failed = [line for line in front.log_lines() if line["status"] >= 500]
    assert len(failed) <= CLIENTS
    assert {line["reason"] for line in failed} <= {"upstream_closed"}, failed
    # And once nothing is in flight any more, it takes its share again.
    assert h2load(f"{front.https_url}/name", requests=300).failures == 0
    assert victim.requests() - before >= 90


def test_a_backend_that_refuses_is_skipped_before_health_notices(portcullis, nginxes):
    slow = HEALTH.replace("250ms", "30s", 1)
    front = portcullis(cluster("web", [b.address for b in nginxes], slow))
    front.wait_for_health(web=3)
    nginxes[0].kill()

    load = h2load(f"{front.https_url}/name", requests=3_000)

    assert load.failures == 0, load.report
    assert front.metrics().total("upstream_retries_total", cluster="web") > 0


def test_a_probe_status_out_of_range_takes_a_backend_out(portcullis, nginxes, echo):
    addresses = [nginxes[0].address, nginxes[1].address, echo.address]
    health = HEALTH.replace("/healthz", "/status/204").replace("fall", 'expect_status = "204", fall')
    front = portcullis(cluster("web", addresses, health + "\n"))

    # Only the echo backend answers this path with 204; nginx says 404.
    wait_until(lambda: not is_up(front, nginxes[0]) and not is_up(front, nginxes[1]), 10, "nginx counts as down")
    assert front.metrics().total("backend_up", backend=echo.address) == 1
    assert front.metrics().by("result", "probes_total", backend=nginxes[0].address).keys() != {"ok"}
