"""The API's own certificate authority and its server certificate.

HTTPS works from the first minute without anyone's help: the API makes a CA that lives for twenty
years and that machines are told of when they are set up, and with it a server certificate that is
renewed long before it runs out. Renewing never changes the CA, so no machine has to be told again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from turku_core.configuration import ensure_private_folder, write_durably
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError, host

CA_LIFETIME = timedelta(days=20 * 365)
SERVER_LIFETIME = timedelta(days=397)
"""Some TLS libraries refuse a server certificate that lives longer than 398 days."""

RENEW_BEFORE = timedelta(days=90)
CLOCK_DIFFERENCE = timedelta(days=1)
"""Certificates are valid from a day before they were made, for machines whose clock is behind."""

COMMON_NAME_LENGTH_MAX = 64
"""The upper bound of a common name (RFC 5280, appendix A.1, ub-common-name)."""


@dataclass(frozen=True)
class Certificates:
    """Where the files are. All are PEM; the keys are readable by their owner alone."""

    ca_certificate: Path
    certificate: Path
    key: Path
    changed: bool
    """Whether the server certificate is a new one: a running server has to be told to reload."""


def ensure_certificates(folder: Path, names: Collection[str], now: datetime) -> Certificates:
    """Make sure that `folder` holds a CA and a server certificate that is good for `names`.

    What is there and still good is left as it is. The server certificate is made anew when the
    names differ, when fewer than 90 days of it are left, or when the CA or its own key has not
    made it; the CA and both private keys stay.

    Args:
        folder: Is made, with mode 0700, when it isn't there.
        names: Host names and IP addresses under which the API is reached; at least one.
        now: An aware datetime.

    Raises:
        ConfigurationError: A name is none, a file is damaged, or the CA has run out.
    """
    if not names:
        raise ConfigurationError("The API's certificate needs at least one host name or address.")
    alternatives = [_general_name(name) for name in sorted(set(names))]
    ensure_private_folder(folder)
    ca_key = _ensure_key(folder / "ca.key", must_be_there=(folder / "ca.crt").exists())
    ca = _ensure_ca_certificate(folder / "ca.crt", ca_key, now)
    key = _ensure_key(folder / "server.key", must_be_there=False)
    path = folder / "server.crt"
    changed = not _is_good(_read_certificate(path), ca, key, alternatives, now)
    if changed:
        certificate = _make_server_certificate(ca, ca_key, key, alternatives, now)
        _write_certificate(path, certificate)
    return Certificates(folder / "ca.crt", path, folder / "server.key", changed)


def _general_name(name: str) -> x509.GeneralName:
    try:
        checked = host(name, "host name")
    except FieldError as error:
        raise ConfigurationError(f"The certificate can't be made: {error}.") from error
    try:
        return x509.IPAddress(ipaddress.ip_address(checked))
    except ValueError:
        return x509.DNSName(checked)


def _ensure_key(path: Path, *, must_be_there: bool) -> ec.EllipticCurvePrivateKey:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if must_be_there:
            raise ConfigurationError(
                f"{path} is missing, and without it no certificate can be made that machines "
                f"trust: put it back from a backup, or remove {path.parent} to begin with a new "
                "CA, which every machine then has to be given."
            ) from None
        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_durably(path, content, 0o600)
        return key
    try:
        known = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a private key in PEM form.") from error
    if not isinstance(known, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} is not a key that Turku made: it is not elliptic-curve.")
    return known


def _ensure_ca_certificate(
    path: Path, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    known = _read_certificate(path)
    if known is None:
        ca = _make_ca_certificate(key, now)
        _write_certificate(path, ca)
        return ca
    if known.public_key() != key.public_key():
        raise ConfigurationError(f"{path} and {path.with_suffix('.key')} do not belong together.")
    if now > known.not_valid_after_utc:
        raise ConfigurationError(
            f"The CA in {path} ran out on {known.not_valid_after_utc:%Y-%m-%d}: move "
            f"{path.parent} away to begin with a new one, and give it to every machine."
        )
    return known


def _make_ca_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Turku API certificate authority")])
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_DIFFERENCE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_server_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    alternatives: list[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    public_key = key.public_key()
    common_name = str(alternatives[0].value)[:COMMON_NAME_LENGTH_MAX]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_DIFFERENCE)
        .not_valid_after(min(now + SERVER_LIFETIME, ca.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(
    certificate: x509.Certificate | None,
    ca: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    alternatives: list[x509.GeneralName],
    now: datetime,
) -> bool:
    """Say whether a server certificate can stay: made by this CA for this key and these names."""
    if certificate is None or certificate.public_key() != key.public_key():
        return False
    try:
        certificate.verify_directly_issued_by(ca)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    if set(extension.value) != set(alternatives):
        return False
    # In the CA's own last days a new certificate could not live any longer than this one.
    renew_at = min(certificate.not_valid_after_utc, ca.not_valid_after_utc) - RENEW_BEFORE
    outlived_by_ca = certificate.not_valid_after_utc < ca.not_valid_after_utc
    return certificate.not_valid_before_utc <= now and (now < renew_at or not outlived_by_ca)


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a certificate in PEM form.") from error


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_durably(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
