"""With which certificate a unit serves, and which authorities its clients are told to trust.

Until another authority is related, and whenever its certificate isn't there yet, a unit serves with
a certificate of the units' own CA: it is never without one. While any unit serves with another's,
clients are told of both, so that they get through before, during and after a change.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import ops
from charmlibs.interfaces.tls_certificates import (
    CertificateRequestAttributes,
    KeyAlgorithm,
    Mode,
    ProviderCapabilities,
    ProviderCertificate,
    TLSCertificatesError,
    TLSCertificatesRequiresV4,
)

from turku_charm.api_relation import write_if_changed
from turku_charm.statuses import Blocked
from turku_core.api.certificates import COMMON_NAME_LENGTH_MAX
from turku_core.relations import CERTIFICATES_BYTES_MAX

logger = logging.getLogger(__name__)

ENDPOINT = "certificates"
FOLDER = Path("etc/turku-api/tls")


@dataclass(frozen=True)
class Issued:
    """A certificate of the related authority.

    Attributes:
        chain: The server's certificate first, then those between it and the authority.
        authorities: The authority, and whatever stands between.
    """

    chain: str
    authorities: str
    key: str = field(repr=False)


class _Requirer(TLSCertificatesRequiresV4):
    """The library's, for which certificates that can't be read would be an error of the charm's.

    Attributes:
        is_unreadable: Whether the authority has sent such.
    """

    is_unreadable = False

    def get_provider_certificates(self) -> list[ProviderCertificate]:
        """Return what the authority sent; nothing, as long as it can't be read."""
        try:
            return super().get_provider_certificates()
        except TLSCertificatesError as error:
            logger.warning("the authority's certificates can't be read: %s", error)
            self.is_unreadable = True
            return []


class Certificates:
    """The relation to another certificate authority."""

    def __init__(self, charm: ops.CharmBase) -> None:
        self._charm = charm
        self._names: tuple[str, ...] = ()
        self._requirer = _Requirer(
            charm,
            ENDPOINT,
            certificate_requests=self._requests,
            mode=Mode.UNIT,
            key_algorithm=KeyAlgorithm.ECDSA,
        )

    def issued(self, names: Collection[str]) -> Issued | None:
        """Return the certificate for these names; None without relation, or until it is issued.

        Asks for it, and again when the names have changed or its end comes near.
        """
        relation = self._charm.model.get_relation(ENDPOINT)
        if relation is None or not relation.active:
            return None
        self._names = tuple(sorted(names))
        self._requirer.sync()
        certificate, key = self._requirer.get_assigned_certificate(make_request(self._names))
        if certificate is None or key is None:
            return None
        leaf = str(certificate.certificate)
        between = [str(each) for each in certificate.chain if str(each) != leaf]
        authority = str(certificate.ca)
        return Issued(
            chain=bundle([leaf, *(each for each in between if each != authority)]),
            authorities=bundle([*between, authority]),
            key=str(key).strip() + "\n",
        )

    def require_readable(self) -> None:
        """Say it when the authority sends what isn't certificates.

        Raises:
            Blocked: It does. The unit serves with a certificate of its own CA meanwhile.
        """
        if self._requirer.is_unreadable:
            raise Blocked(
                "The authority on the relation certificates sends certificates that can't be read: "
                "look at it, or remove the relation. The API goes on with its own authority."
            )

    def _requests(self, _: ProviderCapabilities | None) -> list[CertificateRequestAttributes]:
        # The library also asks by itself, before this hook's names are known; none, then, keeps
        # it from asking for a certificate that nobody would use.
        return [make_request(self._names)] if self._names else self._asked_before()

    def _asked_before(self) -> list[CertificateRequestAttributes]:
        return [
            CertificateRequestAttributes.from_csr(each.certificate_signing_request, each.is_ca)
            for each in self._requirer.get_csrs_from_requirer_relation_data()
        ]


def make_request(names: Collection[str]) -> CertificateRequestAttributes:
    """Return the request for a certificate that is good for some host names and addresses."""
    addresses = frozenset(name for name in names if _is_address(name))
    hosts = frozenset(names) - addresses
    common_name = min(hosts or addresses)
    return CertificateRequestAttributes(
        common_name=common_name[:COMMON_NAME_LENGTH_MAX], sans_dns=hosts, sans_ip=addresses
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def files(root: Path) -> tuple[Path, Path]:
    """Return where the related authority's certificate and its key are written."""
    return root / FOLDER / "server.crt", root / FOLDER / "server.key"


def write(root: Path, issued: Issued, group: int | None) -> None:
    """Write the certificate and its key; a running API takes new ones at its next connection."""
    certificate, key = files(root)
    write_if_changed(key, issued.key, 0o600 if group is None else 0o640, group)
    write_if_changed(certificate, issued.chain, 0o644)


def bundle(certificates: Iterable[str]) -> str:
    """Return certificates in one PEM text, each once, in order."""
    end = "-----END CERTIFICATE-----"
    found: dict[str, None] = {}
    for text in certificates:
        for part in text.split(end):
            if part.strip():
                found[f"{part.strip()}\n{end}\n"] = None
    return "".join(found)


def trusted(own: str, others: Iterable[str | None]) -> str:
    """Return the authorities that clients are told to trust: our own, and those in use besides."""
    whole = bundle([own, *(each for each in others if each)])
    # More than the other side takes in would be refused there as a whole.
    return whole if len(whole) <= CERTIFICATES_BYTES_MAX else bundle([own])
