"""The leader's part: a registration key for each relation, and where the API is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import ops

import api_certificates
import api_identity
from peers import Peers
from registration_keys import Keys, relations
from turku_charm.api_relation import publish
from turku_core.relations import URLS_MAX, ApiAccess
from website import base_url


def keep_keys(peers: Peers, keys: Keys, *, sees_all_relations: bool, look_again: bool) -> None:
    """Make the keys that are missing, and revoke those whose relation is gone.

    Args:
        peers: Where the keys are on record.
        keys: The keys.
        sees_all_relations: False on a unit that has just come: it is told of its relations one by
            one, and one that it doesn't know yet isn't gone.
        look_again: Whether to see that what is on record is really there.
    """
    record = peers.record
    ids = keys.mint(record.keys, look_again=look_again)
    gone = {name: secret_id for name, secret_id in record.keys.items() if name not in ids}
    if sees_all_relations:
        for name, secret_id in gone.items():
            keys.revoke(name, secret_id)
    else:
        ids |= gone
    peers.put_on_record(replace(record, keys=ids))


def publish_access(charm: ops.CharmBase, peers: Peers, external: str | None) -> None:
    """Tell every relation the URLs of the units that serve, whom to trust, and its key.

    Args:
        charm: For its model.
        peers: What the units say.
        external: The one URL to tell instead.

    Raises:
        NotReady: The units' common secret can't be read yet.
    """
    record, units = peers.record, peers.units().values()
    if record.identity is None:
        return
    own_ca = api_identity.read(charm.model, record.identity).ca_certificate
    trusted = api_certificates.trusted(own_ca, [unit.authorities for unit in units])
    for name, relation in relations(charm.model).items():
        urls = [external] if external else _urls(relation.name, [unit.addresses for unit in units])
        if urls:
            access = ApiAccess(tuple(urls), trusted, name, record.keys[name])
            publish(relation, charm.app, access.to_databag())


def _urls(endpoint: str, addresses: list[Mapping[str, str]]) -> list[str]:
    """Return the units' URLs as one endpoint's other side reaches them."""
    found = {base_url(each[endpoint]) for each in addresses if endpoint in each}
    return sorted(found)[:URLS_MAX]
