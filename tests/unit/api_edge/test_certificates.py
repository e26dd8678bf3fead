"""The API's own CA and its server certificate."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from turku_core.api import certificates
from turku_core.api.certificates import Certificates, ensure_certificates
from turku_core.errors import ConfigurationError

NOW = datetime(2026, 3, 11, 12, 0, tzinfo=timezone.utc)
NAMES = ["turku.example.com", "192.0.2.7", "2001:db8::7"]


def make(folder: Path, names: list[str] = NAMES, now: datetime = NOW) -> Certificates:
    return ensure_certificates(folder, names, now)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_server_certificate_is_signed_by_the_ca_and_names_hosts_and_addresses(
    tmp_path: Path,
) -> None:
    made = make(tmp_path / "certificates")
    server, ca = read(made.certificate), read(made.ca_certificate)
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["turku.example.com"]
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address("192.0.2.7"),
        ipaddress.ip_address("2001:db8::7"),
    }
    assert server.not_valid_after_utc - NOW <= timedelta(days=398)
    assert made.changed


def test_the_ca_may_sign_servers_and_nothing_that_signs(tmp_path: Path) -> None:
    ca = read(make(tmp_path).ca_certificate)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_prior_art_08_private_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    make(folder)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_good_is_left_as_it_is(tmp_path: Path) -> None:
    made = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert not make(tmp_path, list(reversed(NAMES)), NOW + timedelta(days=300)).changed
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert made.certificate in before


def test_renewing_before_the_end_keeps_the_ca_and_both_keys(tmp_path: Path) -> None:
    made = make(tmp_path)
    kept = [made.ca_certificate, made.key, tmp_path / "ca.key"]
    before = [path.read_bytes() for path in kept]
    later = read(made.certificate).not_valid_after_utc - certificates.RENEW_BEFORE
    assert make(tmp_path, now=later).changed
    assert [path.read_bytes() for path in kept] == before
    renewed = read(made.certificate)
    assert renewed.not_valid_after_utc > later + timedelta(days=300)
    renewed.verify_directly_issued_by(read(made.ca_certificate))


def test_other_names_make_another_certificate(tmp_path: Path) -> None:
    make(tmp_path)
    assert make(tmp_path, ["turku.example.com"]).changed


def test_a_clock_set_back_makes_a_certificate_that_is_valid_now(tmp_path: Path) -> None:
    made = make(tmp_path)
    before = NOW - timedelta(days=30)
    assert make(tmp_path, now=before).changed
    assert read(made.certificate).not_valid_before_utc <= before


def test_a_certificate_of_another_ca_is_replaced(tmp_path: Path) -> None:
    made = make(tmp_path / "one")
    other = make(tmp_path / "two")
    made.certificate.write_bytes(other.certificate.read_bytes())
    made.key.write_bytes(other.key.read_bytes())
    assert make(tmp_path / "one").changed
    read(made.certificate).verify_directly_issued_by(read(made.ca_certificate))


def test_a_crash_between_the_key_and_the_certificate_is_made_good(tmp_path: Path) -> None:
    made = make(tmp_path)
    for path in (made.ca_certificate, made.certificate):
        path.unlink()
    assert make(tmp_path).changed
    read(made.certificate).verify_directly_issued_by(read(made.ca_certificate))


def test_in_the_cas_last_days_the_certificate_is_not_made_anew_each_time(tmp_path: Path) -> None:
    made = make(tmp_path)
    end = read(made.ca_certificate).not_valid_after_utc
    last_days = end - timedelta(days=20)
    assert make(tmp_path, now=last_days).changed
    assert read(made.certificate).not_valid_after_utc == end
    assert not make(tmp_path, now=last_days + timedelta(days=1)).changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "ca.key").unlink(), "put it back from a backup"),
        (lambda folder: (folder / "ca.key").write_text("x"), "not a private key"),
        (lambda folder: (folder / "server.crt").write_text("x"), "not a certificate"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(
    tmp_path: Path, change: object, says: str
) -> None:
    make(tmp_path)
    assert callable(change)
    change(tmp_path)
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_ca_key_that_is_another_cas_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    (tmp_path / "one/ca.key").write_bytes((tmp_path / "two/ca.key").read_bytes())
    with pytest.raises(ConfigurationError, match="do not belong together"):
        make(tmp_path / "one")


def test_a_ca_that_ran_out_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ran out on 2046-.* begin with a new one"):
        make(tmp_path, now=NOW + certificates.CA_LIFETIME + timedelta(days=1))


@pytest.mark.parametrize("names", [[], ["-x"], ["a b"], ["turku.example.com", ""]])
def test_names_that_are_none_are_refused_and_nothing_is_written(
    tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(ConfigurationError):
        make(tmp_path / "certificates", names)
    assert not (tmp_path / "certificates").exists()
