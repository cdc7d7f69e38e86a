"""Bodies of 1 GiB pass both ways without being held: the process never grows to 64 MiB."""
import hashlib
import os

import pytest
from support.clients import curl
from support.portcullis import cluster

GIB = 1 << 30
MEMORY = 64 << 20
VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])


@pytest.fixture
def sparse(directory):
    path = directory / "gibibyte"
    with open(path, "wb") as file:
        file.truncate(GIB)
    return path


@VERSIONS
def test_a_gibibyte_download_streams(portcullis, nginxes, sparse, version):
    os.link(sparse, nginxes[0].files / "gibibyte")
    front = portcullis(cluster("web", [nginxes[0].address]))

    answer = curl(f"{front.https_url}/gibibyte", version, ca=front.ca, keep_body=False)

    assert (answer.exit_code, answer.status, answer.downloaded) == (0, 200, GIB), answer.said
    assert front.process.peak_memory() < MEMORY


@pytest.mark.parametrize("options", [["--http1.1"], ["--http1.1", "-H", "transfer-encoding: chunked"], ["--http2"]],
                         ids=["length", "chunked", "h2"])
def test_a_gibibyte_upload_streams(portcullis, echo, sparse, options):
    front = portcullis(cluster("web", [echo.address]))

    answer = curl(f"{front.https_url}/echo", *options, "-T", sparse, ca=front.ca)

    assert (answer.exit_code, answer.status) == (0, 200), answer.said
    assert answer.json()["length"] == GIB
    assert front.process.peak_memory() < MEMORY


@VERSIONS
def test_what_arrives_is_what_was_sent(portcullis, nginxes, echo, directory, version):
    content = os.urandom(32 << 20)
    (nginxes[0].files / "random").write_bytes(content)
    (directory / "random").write_bytes(content)
    front = portcullis(
        f'[[routes]]\npath = "/random"\ncluster = "files"\n[[routes]]\ncluster = "web"\n'
        + cluster("files", [nginxes[0].address]) + cluster("web", [echo.address]))

    down = curl(f"{front.https_url}/random", version, ca=front.ca)
    up = curl(f"{front.https_url}/echo", version, "-T", directory / "random", ca=front.ca)

    assert hashlib.sha256(down.body).digest() == hashlib.sha256(content).digest()
    assert up.json()["sha256"] == hashlib.sha256(content).hexdigest()


@VERSIONS
def test_a_client_that_does_not_read_holds_little(portcullis, nginxes, sparse, version):
    os.link(sparse, nginxes[0].files / "gibibyte")
    front = portcullis(cluster("web", [nginxes[0].address]))

    answer = curl(f"{front.https_url}/gibibyte", version, "--limit-rate", "100k", "--max-time", "2",
                  ca=front.ca, keep_body=False)

    assert answer.exit_code == 28, "curl gives up after its time"
    assert front.process.peak_memory() < MEMORY
