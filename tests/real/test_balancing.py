"""30,000 requests over each HTTP version: none fails, and each backend gets its share."""
import os

import pytest
from support.clients import h2load, wrk
from support.nginx import spread
from support.portcullis import cluster

REQUESTS = 30_000
WORKERS = len(os.sched_getaffinity(0))
HEALTH = 'health.path = "/healthz"'


def assert_even(counts, slack):
    share = sum(counts.values()) / len(counts)
    assert all(abs(count - share) <= slack for count in counts.values()), dict(counts)


@pytest.mark.parametrize("options", [["--h1"], ["-m", 10]], ids=["http1", "h2"])
def test_every_request_succeeds_and_each_backend_gets_its_share(portcullis, nginxes, options):
    front = portcullis(cluster("web", [b.address for b in nginxes], HEALTH))

    load = h2load(f"{front.https_url}/name", *options, requests=REQUESTS)

    assert load.failures == 0, load.report
    counts = spread(nginxes)
    assert counts.total() == REQUESTS
    assert_even(counts, slack=WORKERS)
    assert front.metrics().total("requests_total", code="200") == REQUESTS
    assert front.metrics().by("backend", "upstream_requests_total", code="200") \
        == {b.address: counts[b.name] for b in nginxes}


def test_wrk_sees_no_failure(portcullis, nginxes):
    front = portcullis(cluster("web", [b.address for b in nginxes], HEALTH))
    clients, requests = 32, 0
    # wrk takes a time and not a count.
    for _ in range(6):
        load = wrk(f"{front.https_url}/name", seconds=3, clients=clients)
        assert load.failures == 0, load.report
        requests += load.requests
        if requests >= REQUESTS:
            break
    assert requests >= REQUESTS
    # At its end wrk leaves requests unfinished; not all of them reach an access log.
    assert_even(spread(nginxes), slack=WORKERS + clients)


def test_weights_are_exact(portcullis, nginxes):
    a, b, c = nginxes
    weighted = (f'\n[clusters.web]\nbackends = [{{ address = "{a.address}", weight = 3 }}, '
                f'{{ address = "{b.address}", weight = 2 }}, "{c.address}"]\n{HEALTH}\n')
    front = portcullis(weighted)

    assert h2load(f"{front.https_url}/name", requests=6_000).failures == 0

    counts = spread(nginxes)
    expected = {"a": 3_000, "b": 2_000, "c": 1_000}
    # Within one round of the wheel, which is the weights' sum, for each worker.
    assert all(abs(counts[name] - share) <= 6 * WORKERS for name, share in expected.items()), dict(counts)
