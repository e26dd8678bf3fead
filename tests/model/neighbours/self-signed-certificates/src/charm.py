#!/usr/bin/env python3
"""The `self-signed-certificates` charm, as far as a requirer sees it."""

from __future__ import annotations

from datetime import timedelta

import ops
from charmlibs.interfaces.tls_certificates import (
    Certificate,
    CertificateRequestAttributes,
    PrivateKey,
    ProviderCertificate,
    TLSCertificatesProvidesV4,
)

ENDPOINT = "certificates"
COMMON_NAME = "self-signed-certificates-operator"
CA_VALIDITY = timedelta(days=3650)
VALIDITY = timedelta(days=90)


class SelfSignedCertificatesCharm(ops.CharmBase):
    """Makes an authority when it is installed, and signs every request with it."""

    _stored = ops.StoredState()  # type: ignore[no-untyped-call] # ops gives it no types

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self._stored.set_default(key="", certificate="")
        self._provider = TLSCertificatesProvidesV4(self, ENDPOINT)
        framework.observe(self.on.install, self._on_install)
        framework.observe(self.on[ENDPOINT].relation_changed, self._on_changed)
        framework.observe(self.on.collect_unit_status, self._on_collect_unit_status)

    def _on_install(self, _: ops.InstallEvent) -> None:
        key = PrivateKey.generate()
        attributes = CertificateRequestAttributes(common_name=COMMON_NAME, is_ca=True)
        certificate = Certificate.generate_self_signed_ca(attributes, key, CA_VALIDITY)
        self._stored.key, self._stored.certificate = str(key), str(certificate)

    def _on_changed(self, _: ops.RelationChangedEvent) -> None:
        authority = Certificate.from_string(self._stored.certificate)
        key = PrivateKey.from_string(self._stored.key)
        for request in self._provider.get_outstanding_certificate_requests():
            signing_request = request.certificate_signing_request
            certificate = signing_request.sign(authority, key, VALIDITY)
            self._provider.set_relation_certificate(
                ProviderCertificate(
                    relation_id=request.relation_id,
                    certificate=certificate,
                    certificate_signing_request=signing_request,
                    ca=authority,
                    chain=[certificate, authority],
                )
            )

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        event.add_status(ops.ActiveStatus())


if __name__ == "__main__":
    ops.main(SelfSignedCertificatesCharm)
