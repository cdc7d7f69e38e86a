"""A CA made with openssl: good and bad certificates, and lists of revoked ones."""
import subprocess
from pathlib import Path

_CONFIG = """
[ca]
default_ca = it
[it]
dir = {folder}
database = $dir/index
serial = $dir/serial
crlnumber = $dir/crlnumber
new_certs_dir = $dir
certificate = $dir/ca.crt
private_key = $dir/ca.key
default_md = sha256
default_days = 30
default_crl_days = 30
policy = anything
copy_extensions = copy
unique_subject = no
[anything]
commonName = supplied
"""


def _run(*argv):
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)


class OpensslCa:
    """A CA in a folder of its own."""

    def __init__(self, folder: Path, name: str = "test CA"):
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.crl = folder / "ca.crl"
        self.config = folder / "openssl.cnf"
        self.config.write_text(_CONFIG.format(folder=folder))
        (folder / "index").touch()
        (folder / "serial").write_text("1000\n")
        (folder / "crlnumber").write_text("01\n")
        _run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30,
             "-keyout", folder / "ca.key", "-out", self.certificate, "-subj", f"/CN={name}",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.list()

    def list(self):
        """Writes the list of what is revoked."""
        _run("openssl", "ca", "-config", self.config, "-gencrl", "-out", self.crl)

    def issue(self, file: str, names: str = "IP:127.0.0.1", end: str | None = None, usage: str = "serverAuth"):
        """Certificate and key, `file`.crt and `file`.key; `end` as YYYYMMDDHHMMSSZ."""
        certificate, key = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        request = self.folder / f"{file}.csr"
        _run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", key, "-out", request, "-subj", f"/CN={file}", "-addext", f"subjectAltName={names}",
             "-addext", f"extendedKeyUsage={usage}")
        dates = ["-startdate", "20200101000000Z", "-enddate", end] if end else []
        _run("openssl", "ca", "-config", self.config, "-batch", "-notext", *dates, "-in", request, "-out", certificate)
        return certificate, key

    def revoke(self, certificate: Path):
        _run("openssl", "ca", "-config", self.config, "-revoke", certificate)
        self.list()


def self_signed(folder: Path, names: str = "IP:127.0.0.1"):
    """Certificate and key that nobody else has signed."""
    certificate, key = folder / "self.crt", folder / "self.key"
    _run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30,
         "-keyout", key, "-out", certificate, "-subj", "/CN=self", "-addext", f"subjectAltName={names}")
    return certificate, key
