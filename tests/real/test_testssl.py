"""testssl.sh finds nothing to mend.

Debian's version (3.0) is older than X25519MLKEM768, which it does not list.
"""
import json
import os
import subprocess

from support.portcullis import cluster

# Protocols, kinds of ciphers, forward secrecy, certificate, and those attacks that these do not tell of already.
CHECKS = ["-p", "-s", "-f", "-S", "-H", "-I", "-T", "-R", "-C", "-BB", "-Z"]

# Findings that are not about the server, by id.
NOT_OURS = {
    "engine_problem": "the openssl that testssl brings has no GOST",
    "cert_revocation": "the tests' CA publishes no revocations",
    "DNS_CAArecord": "nobody asks DNS here",
}


def findings(front, directory) -> dict:
    file = directory / "testssl.json"
    command = ["testssl", *CHECKS, "--warnings", "off", "--color", "0", "--quiet", "--ip", "127.0.0.1", "--nodns", "none",
               "--add-ca", front.ca, "--jsonfile", file, f"localhost:{front.https}"]
    run = subprocess.run(list(map(str, command)), env={**os.environ, "TERM": "dumb"}, capture_output=True, text=True,
                         timeout=400)
    assert file.exists(), run.stdout + run.stderr
    return {finding["id"]: finding for finding in json.loads(file.read_text())}


def test_testssl_finds_nothing_to_mend(portcullis, echo, directory):
    found = findings(portcullis(cluster("web", [echo.address])), directory)
    severe = {name: finding for name, finding in found.items()
              if finding["severity"] not in ("OK", "INFO") and name not in NOT_OURS}
    assert not severe
    # And it has looked.
    said = {name: finding["finding"] for name, finding in found.items()}
    assert said["SSLv3"] == said["TLS1"] == said["TLS1_1"] == "not offered"
    assert "offered" in said["TLS1_2"] and "offered" in said["TLS1_3"]
    assert said["cert_chain_of_trust"] == "passed."
    assert said["PFS"] == "offered"
    for attack in ("heartbleed", "CCS", "ticketbleed", "secure_renego", "CRIME_TLS", "ROBOT"):
        assert attack in said
