"""HTTPS from the first minute, with a CA of our own."""

from __future__ import annotations

import socket
import ssl
from datetime import datetime, timezone
from pathlib import Path

import pytest
import requests
from cryptography import x509

from tests.integration.api.server import Server, serving, turku_api
from turku_core.api.certificates import ensure_certificates


def now_in_utc() -> datetime:
    return datetime.now(timezone.utc)


def served_certificate(server: Server) -> x509.Certificate:
    pem = ssl.get_server_certificate(("127.0.0.1", server.port), timeout=30)
    return x509.load_pem_x509_certificate(pem.encode())


def test_a_machine_that_has_the_ca_is_sure_of_the_api_and_no_other_client_is(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, certificate_names=["127.0.0.1", "localhost"]) as server:
        assert server.url.startswith("https://")
        assert server.post("health", {}).status_code == 200
        by_name = f"https://localhost:{server.port}/v1/health"
        ca = str(server.ca_certificate)
        assert requests.post(by_name, json={}, verify=ca, timeout=30).status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            server.post("health", {}, verify=True)
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.post(server.url.replace("https", "http"), json={}, timeout=30)
        # And it goes on serving whom it knows.
        assert server.post("health", {}).status_code == 200


def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path, certificate_names=["127.0.0.1"]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(server.ca_certificate)
        # The client would: a lower security level lets OpenSSL 3 offer it.
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(raw, server_hostname="127.0.0.1")
        assert server.post("health", {}).status_code == 200


def test_a_renewed_certificate_is_served_at_once_under_the_same_ca(tmp_path: Path) -> None:
    with serving(tmp_path, certificate_names=["127.0.0.1"], workers=1) as server:
        before = served_certificate(server)
        folder = tmp_path / "var/lib/turku-api/certificates"
        assert ensure_certificates(folder, ["127.0.0.1", "localhost"], now_in_utc()).changed
        after = served_certificate(server)
        assert after.serial_number != before.serial_number
        assert server.post("health", {}).status_code == 200

        # The housekeeping finds that the names are not the configured ones any more.
        server.command("housekeeping")
        assert served_certificate(server).serial_number != after.serial_number
        assert server.post("health", {}).status_code == 200


def test_an_operators_own_certificate_is_served(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "own", ["127.0.0.1"], now_in_utc())
    files = {"certificate": str(made.certificate), "key": str(made.key)}
    with serving(tmp_path, **files) as server:
        answer = server.post("health", {}, verify=str(made.ca_certificate))
        assert answer.status_code == 200


def test_a_key_that_does_not_belong_to_the_certificate_is_refused(tmp_path: Path) -> None:
    one = ensure_certificates(tmp_path / "one", ["localhost"], now_in_utc())
    two = ensure_certificates(tmp_path / "two", ["localhost"], now_in_utc())
    words = ("--certificate", str(one.certificate), "--key", str(two.key))
    done = turku_api(tmp_path, "serve", "--migrate", *words)
    assert done.returncode == 2
    assert "are not a certificate and its key" in done.stderr
