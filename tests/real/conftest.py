"""Fixtures: certificates, three nginx backends, an echo backend, and Portcullis in front of them."""
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.echo import EchoBackend
from support.nginx import Nginx
from support.portcullis import BINARY, ROOT, Portcullis


def pytest_sessionstart():
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: cargo build --release", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        item.failed = True
    return report


@pytest.fixture(scope="session")
def certs():
    directory = Path(tempfile.mkdtemp(prefix="portcullis-certs-"))
    subprocess.run([ROOT / "certs/make-dev-certs.sh", directory], check=True, capture_output=True)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def directory(request):
    """A scratch directory, kept with its logs when the test fails."""
    path = Path(tempfile.mkdtemp(prefix="portcullis-test-"))
    yield path
    if getattr(request.node, "failed", False):
        print(f"\nlogs and configuration of {request.node.name} are in {path}")
    else:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def nginxes(directory):
    """Three nginx backends, `a`, `b` and `c`."""
    backends = []
    try:
        for name in "abc":
            backends.append(Nginx(name, directory))
        yield backends
    finally:
        for backend in backends:
            backend.stop()


@pytest.fixture
def echo():
    """One scripted backend in this process."""
    with EchoBackend() as backend:
        yield backend


@pytest.fixture
def portcullis(directory, certs):
    """Makes a Portcullis from routes and clusters and, unless told otherwise, starts it; all end with the test."""
    made = []

    def make(body: str, *, start: bool = True, **options) -> Portcullis:
        instance = Portcullis(directory / f"portcullis-{len(made) + 1}", certs, body, **options)
        made.append(instance)
        if start:
            instance.start()
        return instance

    yield make
    for instance in made:
        instance.stop()
