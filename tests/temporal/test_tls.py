"""Temporal behind TLS with certificates for both sides: what is right works, what is wrong is said in one line."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.server
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.temporal.conftest import Temporal

pytestmark = pytest.mark.faults


@dataclass
class Authority:
    """Signs certificates, and writes them with their keys into files."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.folder.name)])
        self.folder.mkdir()
        self.certificate = self._signed(self.name, self.key, is_authority=True)
        self.path = self._written("ca", self.certificate)

    def issue(self, name: str) -> tuple[str, str]:
        """Return the paths of a new certificate for this machine, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        path = self.folder / f"{name}.key"
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(*form))
        return self._written(name, certificate), str(path)

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(tz=datetime.timezone.utc)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        made = made.not_valid_after(now + datetime.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        here = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        made = made.add_extension(x509.SubjectAlternativeName(here), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def _written(self, name: str, certificate: x509.Certificate) -> str:
        path = self.folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)


class Gate:
    """Lets in who has a certificate, and passes on what they say to a server without TLS."""

    def __init__(self, authority: Authority, port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.path)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(*authority.issue("server"))
        self._context.set_alpn_protocols(["h2"])
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(30)
        self.address = f"localhost:{self._server.sockets[0].getsockname()[1]}"

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def gate(authority: Authority, temporal: Temporal) -> Iterator[Gate]:
    made = Gate(authority, temporal.port)
    yield made
    made.close()


def ask(gate: Gate, folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AIRFLOW_HOME": str(folder), "AIRFLOW__AIR_EXECUTOR__TEMPORAL_KEY": "k"}
    env |= {"TEMPORAL_ADDRESS": gate.address, **more}
    command = [sys.executable, "-m", "air_executor.cli", "temporal", "status", *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)


def test_certificates_of_both_sides_are_used(gate: Gate, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("client")
    files = {"TEMPORAL_TLS_CLIENT_CERT_PATH": certificate, "TEMPORAL_TLS_CLIENT_KEY_PATH": key}
    done = ask(gate, tmp_path, "--json", TEMPORAL_TLS_SERVER_CA_CERT_PATH=authority.path, **files)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["workflows"] == 0


def test_what_is_wrong_is_one_line_that_says_where_and_how(gate: Gate, authority: Authority, tmp_path: Path) -> None:
    ours = {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": authority.path}
    other = {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": Authority(tmp_path / "other").path}
    missing = {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(tmp_path / "missing.pem")}
    for options, how in (({}, "without TLS"), (ours, "with TLS"), (other, "with TLS")):
        done = ask(gate, tmp_path, **options)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 2, done
        assert gate.address in line and how in line and "cannot be used" in line
    done = ask(gate, tmp_path, **missing)
    assert done.returncode == 2 and "missing.pem" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_port_of_the_ui_is_not_that_of_temporal(gate: Gate, tmp_path: Path) -> None:
    handler = http.server.SimpleHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{page.server_address[1]}"
        done = ask(gate, tmp_path, TEMPORAL_ADDRESS=address)
        page.shutdown()
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and address in line and "gRPC port, 7233 by default, not that of its UI" in line
