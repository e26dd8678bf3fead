"""HTTPS from the first minute, with the units' own CA, another's, and on the way between them."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from charmlibs.interfaces.tls_certificates import (
    Certificate,
    CertificateRequestAttributes,
    CertificateSigningRequest,
    PrivateKey,
)
from ops import testing

import api_certificates
from tests.support.api_unit import Api

AGENTS = testing.Relation("agents", remote_app_name="agent")


class Authority:
    """Another certificate authority, as the other side of the relation."""

    def __init__(self) -> None:
        self.key = PrivateKey.generate()
        self.certificate = Certificate.generate_self_signed_ca(
            CertificateRequestAttributes(common_name="Another CA", is_ca=True),
            self.key,
            timedelta(days=3650),
        )

    def answer(self, relation: Any) -> dict[str, str]:
        """Return the databag that answers what a relation asks."""
        asked = json.loads(relation.local_unit_data["certificate_signing_requests"])
        issued = []
        for each in asked:
            request = CertificateSigningRequest.from_string(each["certificate_signing_request"])
            certificate = request.sign(
                ca=self.certificate, ca_private_key=self.key, validity=timedelta(days=90)
            )
            issued.append(
                {
                    "certificate": str(certificate),
                    "certificate_signing_request": str(request),
                    "ca": str(self.certificate),
                    "chain": [str(certificate), str(self.certificate)],
                }
            )
        return {"certificates": json.dumps(issued)}


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One authority for all tests of this file."""
    return Authority()


def issue(api: Api, authority: Authority) -> Any:
    """Relate the authority, let it issue what is asked for, and return the relation."""
    relation: Any = testing.Relation("certificates", remote_app_name="ca")
    api.run(api.on.relation_created(relation), **api.with_relations(relation, AGENTS))
    relation = replace(
        api.relation(relation), remote_app_data=authority.answer(api.relation(relation))
    )
    api.run(api.on.relation_changed(relation, remote_unit=0), **api.with_relations(relation))
    return relation


def own_ca(api: Api) -> str:
    """Return the units' own CA."""
    return (api.root / "var/lib/turku-api/certificates/ca.crt").read_text()


def test_https_is_served_from_the_first_minute_with_the_units_own_ca(serving: Api) -> None:
    assert serving.options["certificate_names"] == ["192.0.2.0"]
    serving.run(serving.on.relation_created(AGENTS), **serving.with_relations(AGENTS))
    assert serving.published(AGENTS).ca_certificate == own_ca(serving)


def test_the_own_ca_goes_on_until_the_other_one_has_issued(serving: Api) -> None:
    relation = testing.Relation("certificates", remote_app_name="ca")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation, AGENTS))
    assert serving.options["certificate_names"] == ["192.0.2.0"]
    assert serving.published(AGENTS).ca_certificate == own_ca(serving)
    assert serving.status[0] == "active"
    asked = json.loads(serving.relation(relation).local_unit_data["certificate_signing_requests"])
    request = CertificateSigningRequest.from_string(asked[0]["certificate_signing_request"])
    assert request.sans_ip == {"192.0.2.0"}


def test_another_cas_certificate_is_used_and_both_cas_are_published(
    serving: Api, authority: Authority
) -> None:
    issue(serving, authority)
    certificate, key = api_certificates.files(serving.root)
    assert serving.options["certificate"] == str(certificate)
    assert serving.options["key"] == str(key)
    assert "certificate_names" not in serving.options
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    assert key.stat().st_mode & 0o077 == 0
    trusted = serving.published(AGENTS).ca_certificate or ""
    assert trusted == own_ca(serving) + str(authority.certificate).strip() + "\n"
    assert certificate.read_text().count("BEGIN CERTIFICATE") == 1
    assert serving.systemd.asked[-1] == "restart turku-api.service"
    assert serving.status[0] == "active"


@pytest.mark.parametrize("sent", ["-----BEGIN CERTIFICATE-----", "", "\0"])
def test_what_isnt_a_certificate_is_said_and_the_own_ca_goes_on(serving: Api, sent: str) -> None:
    other = testing.Relation("certificates", remote_app_name="ca")
    serving.run(serving.on.relation_created(other), **serving.with_relations(other))
    broken = {"certificate": sent, "certificate_signing_request": sent, "ca": sent, "chain": []}
    answered = replace(
        serving.relation(other), remote_app_data={"certificates": json.dumps([broken])}
    )
    serving.run(serving.on.relation_changed(answered), **serving.with_relations(answered))
    name, message = serving.status
    assert (name, message.partition(":")[0]) == (
        "blocked",
        "The authority on the relation certificates sends certificates that can't be read",
    )
    assert serving.systemd.is_running("turku-api.service")


def test_changing_to_another_ca_and_back_leaves_keys_and_identities(
    serving: Api, authority: Authority
) -> None:
    serving.run(serving.on.relation_created(AGENTS), **serving.with_relations(AGENTS))
    before, key = serving.published(AGENTS), serving.content_of(AGENTS)
    relation = issue(serving, authority)
    serving.run(serving.on.relation_broken(serving.relation(relation)))
    assert serving.options["certificate_names"] == ["192.0.2.0"]
    assert "certificate" not in serving.options
    assert serving.published(AGENTS) == before
    assert serving.content_of(AGENTS) == key
    serving.run(serving.on.update_status(), **serving.without_relations(relation))
    assert serving.options["certificate_names"] == ["192.0.2.0"]


def test_a_renewed_certificate_is_written_without_a_restart(
    serving: Api, authority: Authority
) -> None:
    relation = issue(serving, authority)
    before = api_certificates.files(serving.root)[0].read_text()
    asked = list(serving.systemd.asked)
    renewed = replace(
        serving.relation(relation), remote_app_data=authority.answer(serving.relation(relation))
    )
    serving.run(
        serving.on.relation_changed(renewed, remote_unit=0), **serving.with_relations(renewed)
    )
    assert api_certificates.files(serving.root)[0].read_text() != before
    assert serving.systemd.asked == asked


def test_a_new_address_asks_for_a_new_certificate(serving: Api, authority: Authority) -> None:
    relation = issue(serving, authority)
    serving.run(serving.on.config_changed(), config={"external-url": "https://turku.example.com"})
    asked = json.loads(serving.relation(relation).local_unit_data["certificate_signing_requests"])
    requests = [
        CertificateSigningRequest.from_string(each["certificate_signing_request"]) for each in asked
    ]
    assert [(each.sans_dns, each.sans_ip) for each in requests] == [
        ({"turku.example.com"}, {"192.0.2.0"})
    ]
    # Until it is there, the own CA's is good for the new name.
    assert serving.options["certificate_names"] == ["192.0.2.0", "turku.example.com"]


def test_clients_trust_what_any_unit_serves_with() -> None:
    def pem(text: str) -> str:
        return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"

    own, other, third = pem("own"), pem("other"), pem("third")
    assert api_certificates.trusted(own, [None, other, None, other + third]) == own + other + third
    assert api_certificates.trusted(own, []) == own
    assert api_certificates.trusted(own, [pem("x" * 300_000)]) == own


def test_a_certificate_for_addresses_alone_has_one_as_its_name() -> None:
    request = api_certificates.make_request(["192.0.2.9", "192.0.2.1"])
    assert request.common_name == "192.0.2.1"
    request = api_certificates.make_request(["192.0.2.9", f"{'a' * 60}.example.com"])
    assert len(request.common_name) == 64
