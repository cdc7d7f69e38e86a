"""The firewall: exported rules in network namespaces, rates over all workers, many networks."""
import ipaddress
import random
import subprocess
import textwrap
import time
import uuid

import pytest
from support.clients import wrk
from support.portcullis import BINARY, cluster

# One bridge; each host is a namespace with one address on it.
HOSTS = {"lb": "10.77.0.1", "web": "10.77.0.11", "db": "10.77.0.21", "client": "10.77.0.99", "office": "10.77.9.1"}
PORTS = [22, 443, 3306, 8080]

CONFIG = """
admin.address = "127.0.0.1:9090"
[[listeners]]
address = "0.0.0.0:443"
redirect_to_https = true
[[routes]]
cluster = "web"
[clusters.web]
backends = ["10.77.0.11:8080"]
"""

# Listens on every port of the test until it is killed.
LISTEN = f"""
import selectors, socket
selector = selectors.DefaultSelector()
for port in {PORTS}:
    selector.register(socket.create_server(("0.0.0.0", port)), selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.accept()[0].close()
"""
# Prints the ports of a host that can be connected to.
TRY = f"""
import socket, sys
for port in {PORTS}:
    try:
        socket.create_connection((sys.argv[1], port), timeout=0.3).close()
        print(port)
    except OSError:
        pass
"""


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **options)


def exported(config, *arguments) -> str:
    return run(BINARY, "firewall", "export", "--config", config, *arguments).stdout


class Network:
    """Namespaces named after a random prefix, all on one bridge in a namespace of its own."""

    def __init__(self):
        self.prefix = f"pc{uuid.uuid4().hex[:6]}"
        self.listeners = []
        run("ip", "netns", "add", self.name("hub"))
        self.inside("hub", "ip", "link", "add", "bridge", "type", "bridge")
        self.inside("hub", "ip", "link", "set", "bridge", "up")
        for host, address in HOSTS.items():
            self.add(host, address)

    def name(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def inside(self, host: str, *command, **options):
        return run("ip", "netns", "exec", self.name(host), *command, **options)

    def add(self, host: str, address: str):
        run("ip", "netns", "add", self.name(host))
        self.inside("hub", "ip", "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", self.name(host))
        self.inside("hub", "ip", "link", "set", host, "master", "bridge", "up")
        self.inside(host, "ip", "address", "add", f"{address}/16", "dev", "eth0")
        for link in ("lo", "eth0"):
            self.inside(host, "ip", "link", "set", link, "up")

    def listen(self, host: str):
        command = ["ip", "netns", "exec", self.name(host), "python3", "-c", LISTEN]
        listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.listeners.append(listener)
        assert listener.stdout.readline() == "ready\n"

    def open_ports(self, host: str, to: str) -> list[int]:
        return [int(port) for port in self.inside(host, "python3", "-c", TRY, HOSTS[to]).stdout.split()]

    def close(self):
        for listener in self.listeners:
            listener.kill()
            listener.wait()
        for host in [*HOSTS, "hub"]:
            subprocess.run(["ip", "netns", "del", self.name(host)], check=False, capture_output=True)


@pytest.fixture
def network():
    """Needs root; without it, or without namespaces, these tests can't be made."""
    try:
        made = Network()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield made
    made.close()


def test_exported_rules_let_each_host_be_reached_by_those_it_serves_only(network, directory):
    config = directory / "portcullis.toml"
    config.write_text(CONFIG)
    ssh = ["--ssh-from", "10.77.9.0/24"]
    rules = {
        "lb": exported(config, "--role", "lb", *ssh),
        "web": exported(config, "--role", "web", "--balancer", HOSTS["lb"], *ssh),
        "db": exported(config, "--role", "db", *ssh),
    }
    for host, text in rules.items():
        network.listen(host)
        assert network.open_ports("client", to=host) == PORTS, "everything is open before"
        # Twice: loading it again replaces it.
        for check in (["-c"], [], []):
            network.inside(host, "nft", *check, "-f", "/dev/stdin", input=text)
    reachable = {(who, host): network.open_ports(who, to=host) for host in rules for who in HOSTS if who != host}
    expected = {
        ("web", "lb"): [443], ("db", "lb"): [443], ("client", "lb"): [443], ("office", "lb"): [22, 443],
        ("lb", "web"): [8080], ("db", "web"): [], ("client", "web"): [], ("office", "web"): [22],
        ("lb", "db"): [], ("web", "db"): [3306], ("client", "db"): [], ("office", "db"): [22],
    }
    assert reachable == expected


def test_a_role_that_lacks_addresses_says_which_option_gives_them(directory):
    config = directory / "portcullis.toml"
    config.write_text(CONFIG.replace("10.77.0.11", "web1.internal"))
    for role, option in (("web", "--balancer"), ("db", "--web")):
        command = [BINARY, "firewall", "export", "--config", config, "--role", role]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10)
        assert asked.returncode == 1 and option in asked.stderr, asked


def test_a_rate_is_exact_over_all_workers(portcullis, nginxes):
    seconds, rate, burst = 6, 1000, 100
    front = portcullis(cluster("web", [b.address for b in nginxes]), top=textwrap.dedent(f"""
        workers = 2
        [firewall]
        rate_limits = [{{ key = "client_ip", rate = "{rate}/s", burst = {burst} }}]
    """))
    began = time.monotonic()
    load = wrk(f"{front.http_url}/name", seconds=seconds, clients=16)
    took = time.monotonic() - began
    admitted = front.metrics().total("requests_total", code="200")
    limited = front.metrics().total("rejections_total", reason="rate_limited")
    assert limited > admitted, f"too little load to tell: {load}"
    # The load runs for at least `seconds` and no longer than the program that makes it; the burst bears
    # moments in which a busy machine lets no client run.
    assert 0.95 * rate * seconds <= admitted <= 1.05 * rate * took + burst, (admitted, took)


def test_half_a_million_networks_load_quickly_and_small(portcullis, directory, echo):
    random.seed(4)
    lines = set()
    while len(lines) < 480_000:
        prefix = random.choice([16, 20, 22, 24, 24, 24, 28, 32])
        base = random.getrandbits(32) >> (32 - prefix) << (32 - prefix)
        if base >> 24 not in (10, 127):
            lines.add(f"{ipaddress.IPv4Address(base)}/{prefix}")
    while len(lines) < 500_000:
        lines.add(f"{ipaddress.IPv6Address(random.getrandbits(48) << 80)}/48")
    plain = portcullis(cluster("web", [echo.address]))
    before = plain.process.peak_memory()
    plain.stop()
    (directory / "blocked.txt").write_text("\n".join(lines))
    began = time.monotonic()
    front = portcullis(cluster("web", [echo.address]), top=f'[firewall]\ndeny_files = ["{directory}/blocked.txt"]')
    took = time.monotonic() - began
    grown = front.process.peak_memory() - before
    assert front.metrics().total("firewall_networks") == 500_000
    assert took < 2, f"started after {took:.2f} s"
    assert grown < 64 << 20, f"{grown >> 20} MiB more"
    print(f"500,000 networks: started in {took * 1000:.0f} ms, {grown >> 20} MiB more at the peak")
