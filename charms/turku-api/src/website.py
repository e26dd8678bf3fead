"""The `website` relation: a load balancer in front of the API that passes TLS through."""

from __future__ import annotations

import yaml

ENDPOINT = "website"
PORT = 443
_CHECK = (
    "http-check send meth POST uri /v1/health ver HTTP/1.1 hdr Host turku-api "
    "hdr Content-Type application/json body {}"
)
_SECONDS = 65
"""Longer than the API may take to answer (60 s)."""


def base_url(address: str) -> str:
    """Return the base URL of the protocol at an address or host name."""
    return f"https://{f'[{address}]' if ':' in address else address}:{PORT}/v1"


def website(unit: str, address: str) -> dict[str, str]:
    """Return what a unit writes: the plain `http` interface, and HAProxy's own `services`.

    TLS ends at the API, so the balancer forwards TCP. It asks `health` over TLS, which is healthy
    only when the unit reaches its database; the certificate is the clients' to check.
    """
    service = {
        "service_name": "turku-api",
        "service_host": "0.0.0.0",
        "service_port": PORT,
        "service_options": [
            "mode tcp",
            "balance leastconn",
            "option httpchk",
            _CHECK,
            "http-check expect status 200",
            f"timeout client {_SECONDS}s",
            f"timeout server {_SECONDS}s",
        ],
        "servers": [
            [
                unit.replace("/", "-"),
                address,
                PORT,
                "check check-ssl verify none inter 10s rise 2 fall 3",
            ]
        ],
    }
    return {
        "hostname": address,
        "port": str(PORT),
        "services": yaml.safe_dump([service], sort_keys=False, width=1000),
    }
