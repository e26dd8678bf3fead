"""The hook tools: what each does to the context of the run that calls it.

Facts are from Juju's documentation of hook commands and from what `ops` sends and expects. A tool
returns what it prints; it raises `ToolError` for what Juju answers with exit code 1 and words.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml

from tests.model.runner.context import Context
from tests.model.runner.entities import Relation, Secret

FILE_INPUT = "-"


class ToolError(Exception):
    """The tool fails with these words."""


class _Parser(argparse.ArgumentParser):
    def words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a tool's words: options may stand between the others, as Juju allows."""
        return self.parse_intermixed_args(list(words))

    def error(self, message: str) -> NoReturn:
        raise ToolError(message)


def run_tool(context: Context, name: str, arguments: Sequence[str], given: str) -> str:
    """Run a tool and return what it prints.

    Raises:
        ToolError: It fails, or there is no such tool.
    """
    tool = TOOLS.get(name)
    if tool is None:
        raise ToolError(f"{name} is not one of the tools that this runner has")
    with context.lock:
        return tool(context, list(arguments), given)


def _parser(*, formats: bool = True) -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    if formats:
        parser.add_argument("--format", default="smart")
        parser.add_argument("-o", "--output", default=None)
    return parser


def _shown(value: Any, form: str) -> str:
    if form == "json":
        return json.dumps(value)
    if form == "yaml":
        return str(yaml.safe_dump(value))
    if value is None:
        return ""
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value if isinstance(value, str) else str(yaml.safe_dump(value)).strip()


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ToolError(f"expected key=value, got {word!r}")
        pairs[key] = value
    return pairs


# The model, the unit, its configuration and status.


def _config_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("-a", "--all", action="store_true")
    parser.add_argument("key", nargs="?")
    asked = parser.words(words)
    application = context.entities.applications[context.unit.application]
    config = application.effective_config()
    return _shown(config if asked.key is None else config.get(asked.key), asked.format)


def _is_leader(context: Context, words: list[str], given: str) -> str:
    return _shown(context.is_leader, _parser().words(words).format)


def _juju_log(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("-l", "--log-level", default="INFO")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("message", nargs="+")
    asked = parser.words(words)
    context.log.append(f"{asked.log_level} {' '.join(asked.message)}")
    return ""


def _status_set(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("--application", nargs="?", const="true", default="false")
    parser.add_argument("status", choices=["maintenance", "blocked", "waiting", "active"])
    parser.add_argument("message", nargs="?", default="")
    asked = parser.words(words)
    status = (asked.status, asked.message)
    if asked.application.lower() == "true":
        if not context.is_leader:
            raise ToolError("this unit is not the leader")
        context.unit.application_status = status
    else:
        context.unit.status = status
    return ""


def _status_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("--include-data", action="store_true")
    parser.add_argument("--application", nargs="?", const="true", default="false")
    asked = parser.words(words)
    if asked.application.lower() == "true":
        word, message = context.unit.application_status or ("unknown", "")
        body: Any = {"application-status": {"status": word, "message": message, "units": {}}}
    else:
        word, message = context.unit.status
        body = {"status": word, "message": message, "status-data": {}}
    return _shown(body if asked.include_data else word, asked.format)


def _application_version_set(context: Context, words: list[str], given: str) -> str:
    context.unit.workload_version = next((word for word in words if word != "--"), "")
    return ""


def _unit_get(context: Context, words: list[str], given: str) -> str:
    asked = _with_word(words)
    return _shown(context.addresses["address"], asked.format)


def _with_word(words: list[str]) -> argparse.Namespace:
    parser = _parser()
    parser.add_argument("word")
    return parser.words(words)


def _network_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("binding")
    parser.add_argument("-r", "--relation", default=None)
    for flag in ("--bind-address", "--ingress-address", "--primary-address", "--egress-subnets"):
        parser.add_argument(flag, action="store_true")
    asked = parser.words(words)
    address, subnet = context.addresses["address"], context.addresses["subnet"]
    if asked.bind_address or asked.ingress_address or asked.primary_address:
        return _shown(address, asked.format)
    interface = {
        "interface-name": "host0",
        "mac-address": "",
        "addresses": [
            {"hostname": "", "value": address, "cidr": subnet, "address": address},
        ],
    }
    body = {
        "bind-addresses": [interface],
        "egress-subnets": [f"{address}/32"],
        "ingress-addresses": [address],
    }
    return _shown(body, asked.format)


def _goal_state(context: Context, words: list[str], given: str) -> str:
    asked = _parser().words(words)
    units = context.entities.applications[context.unit.application].units
    listed = {
        name: {"status": unit.status[0], "since": "2026-01-01 00:00:00Z"}
        for name, unit in units.items()
        if not unit.dying
    }
    return _shown({"units": listed, "relations": {}}, asked.format)


def _open_port(context: Context, words: list[str], given: str) -> str:
    context.ports.add(_port(words))
    return ""


def _close_port(context: Context, words: list[str], given: str) -> str:
    context.ports.discard(_port(words))
    return ""


def _port(words: list[str]) -> str:
    port = next((word for word in words if not word.startswith("-")), "")
    return port if "/" in port or port == "icmp" else f"{port}/tcp"


def _opened_ports(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("--endpoints", action="store_true")
    return _shown(sorted(context.ports), parser.words(words).format)


def _resource_get(context: Context, words: list[str], given: str) -> str:
    raise ToolError(f"there is no resource {' '.join(words)}")


def _juju_reboot(context: Context, words: list[str], given: str) -> str:
    raise ToolError("this runner reboots machines itself")


# What a unit keeps between hooks.


def _state_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("key", nargs="?")
    asked = parser.words(words)
    if asked.key is None:
        return _shown(context.state, asked.format)
    return _shown(context.state.get(asked.key, ""), asked.format)


def _state_set(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("--file", default=None)
    parser.add_argument("pairs", nargs="*")
    asked = parser.words(words)
    if asked.file == FILE_INPUT:
        context.state |= {key: str(value) for key, value in (yaml.safe_load(given) or {}).items()}
    context.state |= _pairs(asked.pairs)
    return ""


def _state_delete(context: Context, words: list[str], given: str) -> str:
    for word in words:
        context.state.pop(word, None)
    return ""


# Relations.


def _relation(context: Context, identifier: str | None) -> Relation:
    if identifier is None:
        relation = context.hook.relation if context.hook is not None else None
        if relation is None:
            raise ToolError("no relation id specified")
        return context.snapshot[relation.id]
    number = identifier.rpartition(":")[2]
    if not number.isdecimal() or int(number) not in context.snapshot:
        raise ToolError(f'invalid value "{identifier}" for option -r: relation not found')
    return context.snapshot[int(number)]


def _is_broken_now(context: Context, relation: Relation) -> bool:
    hook = context.hook
    is_it = hook is not None and hook.relation is not None and hook.relation.id == relation.id
    return is_it and hook is not None and hook.name.endswith("-broken")


def _relation_ids(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("name", nargs="?")
    asked = parser.words(words)
    seen = context.unit.seen.relations
    ids = [
        f"{asked.name}:{relation.id}"
        for relation in context.snapshot.values()
        if relation.ends[context.unit.application].name == asked.name
        and not (relation.id in seen and seen[relation.id].broken)
    ]
    return _shown(sorted(ids), asked.format)


def _relation_list(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("-r", "--relation", default=None)
    parser.add_argument("--app", action="store_true")
    asked = parser.words(words)
    relation = _relation(context, asked.relation)
    if asked.app:
        return _shown(relation.remote_application(context.unit.application), asked.format)
    return _shown(sorted(_members(context, relation)), asked.format)


def _members(context: Context, relation: Relation) -> set[str]:
    """Return the units that hooks have been told of, and the one that is being told of now."""
    seen = context.unit.seen.relations.get(relation.id)
    members = set(seen.members) if seen is not None else set()
    hook = context.hook
    if hook is not None and hook.relation is not None and hook.relation.id == relation.id:
        if hook.name.endswith("-joined") and hook.remote_unit is not None:
            members.add(hook.remote_unit)
        if hook.name.endswith("-departed") and hook.remote_unit is not None:
            members.discard(hook.remote_unit)
    return members


def _relation_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("-r", "--relation", default=None)
    parser.add_argument("--app", action="store_true")
    parser.add_argument("key", nargs="?", default="-")
    parser.add_argument("who", nargs="?")
    asked = parser.words(words)
    relation = _relation(context, asked.relation)
    who = asked.who or (context.hook.remote_unit if context.hook is not None else None)
    if who is None and context.hook is not None:
        who = context.hook.remote_application
    if who is None:
        raise ToolError("no unit or application specified")
    if asked.app:
        who = who.partition("/")[0]
    if who == context.unit.application and not relation.is_peer and not context.is_leader:
        raise ToolError("permission denied")
    known = {context.unit.name, context.unit.application, *relation.ends, *relation.versions}
    if who not in known:
        raise ToolError(f"cannot read settings for unit {who!r}: settings not found")
    settings = context.settings(relation.id, who)
    return _shown(settings if asked.key == "-" else settings.get(asked.key), asked.format)


def _relation_set(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("-r", "--relation", default=None)
    parser.add_argument("--app", action="store_true")
    parser.add_argument("--file", default=None)
    parser.add_argument("pairs", nargs="*")
    asked = parser.words(words)
    relation = _relation(context, asked.relation)
    settings = _pairs(asked.pairs)
    if asked.file == FILE_INPUT:
        settings = {key: str(value) for key, value in (yaml.safe_load(given) or {}).items()} | (
            settings
        )
    if asked.app and not context.is_leader:
        raise ToolError("cannot write relation settings: permission denied, not the leader")
    who = context.unit.application if asked.app else context.unit.name
    context.written.setdefault((relation.id, who), {}).update(settings)
    return ""


def _relation_model_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("-r", "--relation", default=None)
    asked = parser.words(words)
    _relation(context, asked.relation)
    return _shown({"uuid": context.entities.uuid}, asked.format)


# Secrets.


def _secret_uri(text: str) -> str:
    return text.removeprefix("secret:").rpartition("/")[2]


def _own_secret(context: Context, identifier: str) -> Secret:
    secret = context.secrets.get(_secret_uri(identifier))
    if secret is None or secret.id in context.removed_secrets:
        raise ToolError(f'secret "{identifier}" not found')
    if not context.owns(secret) or (
        secret.owner == context.unit.application and not context.is_leader
    ):
        raise ToolError("permission denied")
    return secret


def _content(words: Sequence[str]) -> dict[str, str]:
    content = {}
    for key, value in _pairs(words).items():
        name, hash_sign, kind = key.partition("#")
        if hash_sign and kind == "file":
            raise ToolError("the contents come from a file of the machine: not possible here")
        content[name] = value
    return content


def _secret_add(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("--label", default="")
    parser.add_argument("--description", default="")
    parser.add_argument("--expire", default=None)
    parser.add_argument("--rotate", default=None)
    parser.add_argument("--owner", default="application")
    parser.add_argument("--file", default=None)
    parser.add_argument("pairs", nargs="*")
    asked = parser.words(words)
    owner = context.unit.name if asked.owner == "unit" else context.unit.application
    if owner == context.unit.application and not context.is_leader:
        raise ToolError("permission denied: this unit is not the leader")
    labels = {secret.label for secret in context.secrets.values() if secret.owner == owner}
    if asked.label and asked.label in labels:
        raise ToolError(f'secret with label "{asked.label}" already exists')
    content = {**(yaml.safe_load(given) or {})} if asked.file == FILE_INPUT else {}
    content |= _content(asked.pairs)
    if not content:
        raise ToolError("missing secret value")
    secret = Secret(uuid.uuid4().hex[:20], owner, asked.label, asked.description, {1: content})
    context.secrets[secret.id] = secret
    return f"secret:{secret.id}"


def _secret_set(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    for option in ("--label", "--description", "--expire", "--rotate", "--owner", "--file"):
        parser.add_argument(option, default=None)
    parser.add_argument("id")
    parser.add_argument("pairs", nargs="*")
    asked = parser.words(words)
    secret = _own_secret(context, asked.id)
    content = {**(yaml.safe_load(given) or {})} if asked.file == FILE_INPUT else {}
    content |= _content(asked.pairs)
    if content and content != secret.revisions[secret.latest]:
        secret.revisions[secret.latest + 1] = content
    if asked.label is not None:
        secret.label = asked.label
    if asked.description is not None:
        secret.description = asked.description
    return ""


def _find_secret(context: Context, identifier: str | None, label: str | None) -> Secret:
    if identifier is not None:
        secret = context.secrets.get(_secret_uri(identifier))
        if secret is None:
            if any(_secret_uri(identifier) == known for known in context.entities.secrets):
                raise ToolError("permission denied")
            raise ToolError(f'secret "{identifier}" not found')
        return secret
    for secret in context.secrets.values():
        own = context.owns(secret) and secret.label == label
        if own or context.labels.get(secret.id) == label:
            return secret
    raise ToolError(f'secret "{label}" not found')


def _secret_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("--label", default=None)
    parser.add_argument("--refresh", action="store_true")
    parser.add_argument("--peek", action="store_true")
    parser.add_argument("id", nargs="?")
    parser.add_argument("key", nargs="?")
    asked = parser.words(words)
    secret = _find_secret(context, asked.id, asked.label)
    if asked.id is not None and asked.label:
        context.labels[secret.id] = asked.label
    tracked = context.tracked.get(secret.id)
    revision = secret.latest if asked.peek or asked.refresh or tracked is None else tracked
    if not asked.peek:
        context.tracked[secret.id] = revision
    content = secret.revisions[revision]
    return _shown(content if asked.key is None else content[asked.key], asked.format)


def _secret_info_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("--label", default=None)
    parser.add_argument("id", nargs="?")
    asked = parser.words(words)
    secret = _find_secret(context, asked.id, asked.label)
    if not context.owns(secret):
        raise ToolError(f'secret "{asked.id or asked.label}" not found')
    body = {
        "revision": secret.latest,
        "label": secret.label,
        "owner": "unit" if secret.owner == context.unit.name else "application",
        "description": secret.description,
        "rotation": "never",
    }
    return _shown({secret.id: body}, asked.format)


def _secret_ids(context: Context, words: list[str], given: str) -> str:
    ids = [f"secret:{secret.id}" for secret in context.secrets.values() if context.owns(secret)]
    return _shown(sorted(ids), _parser().words(words).format)


def _secret_grant(context: Context, words: list[str], given: str) -> str:
    relation, names, secret = _grant_words(context, words)
    secret.grants.setdefault(relation.id, set()).update(names)
    return ""


def _secret_revoke(context: Context, words: list[str], given: str) -> str:
    relation, names, secret = _grant_words(context, words)
    secret.grants.get(relation.id, set()).difference_update(names)
    return ""


def _grant_words(context: Context, words: list[str]) -> tuple[Relation, set[str], Secret]:
    parser = _parser(formats=False)
    parser.add_argument("-r", "--relation", default=None)
    parser.add_argument("--unit", default=None)
    parser.add_argument("--app", "--application", default=None)
    parser.add_argument("id")
    asked = parser.words(words)
    relation = _relation(context, asked.relation)
    secret = _own_secret(context, asked.id)
    other = relation.remote_application(context.unit.application)
    return relation, {asked.unit or asked.app or other}, secret


def _secret_remove(context: Context, words: list[str], given: str) -> str:
    parser = _parser(formats=False)
    parser.add_argument("--revision", type=int, default=None)
    parser.add_argument("id")
    asked = parser.words(words)
    secret = _own_secret(context, asked.id)
    if asked.revision is not None:
        secret.revisions.pop(asked.revision, None)
    if asked.revision is None or not secret.revisions:
        context.removed_secrets.add(secret.id)
    return ""


# Storage.


def _storage_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("-s", default=None)
    parser.add_argument("key", nargs="?")
    asked = parser.words(words)
    hook = context.hook
    own = hook.storage.id if hook is not None and hook.storage is not None else None
    storage = context.unit.storages.get(asked.s or own or "")
    if storage is None:
        raise ToolError(f"invalid storage {asked.s!r}")
    body = {"kind": storage.kind, "location": storage.location}
    return _shown(body if asked.key is None else body[asked.key], asked.format)


def _storage_list(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("name", nargs="?")
    asked = parser.words(words)
    ids = [
        storage.id
        for storage in context.unit.storages.values()
        if asked.name in (None, storage.name)
    ]
    return _shown(sorted(ids), asked.format)


# Actions.


def _action_get(context: Context, words: list[str], given: str) -> str:
    parser = _parser()
    parser.add_argument("key", nargs="?")
    asked = parser.words(words)
    if context.action is None:
        raise ToolError("not running an action")
    value: Any = context.action.parameters
    if asked.key is not None:
        for part in asked.key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return _shown(value, asked.format)


def _action_set(context: Context, words: list[str], given: str) -> str:
    if context.action is None:
        raise ToolError("not running an action")
    for key, value in _pairs(words).items():
        place = context.action.results
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return ""


def _action_fail(context: Context, words: list[str], given: str) -> str:
    if context.action is None:
        raise ToolError("not running an action")
    context.action.failure = " ".join(words) or "action failed without reason given"
    return ""


def _action_log(context: Context, words: list[str], given: str) -> str:
    if context.action is None:
        raise ToolError("not running an action")
    context.action.messages.append(" ".join(words))
    return ""


Tool = Callable[[Context, list[str], str], str]

TOOLS: dict[str, Tool] = {
    "action-fail": _action_fail,
    "action-get": _action_get,
    "action-log": _action_log,
    "action-set": _action_set,
    "application-version-set": _application_version_set,
    "close-port": _close_port,
    "config-get": _config_get,
    "goal-state": _goal_state,
    "is-leader": _is_leader,
    "juju-log": _juju_log,
    "juju-reboot": _juju_reboot,
    "network-get": _network_get,
    "open-port": _open_port,
    "opened-ports": _opened_ports,
    "relation-get": _relation_get,
    "relation-ids": _relation_ids,
    "relation-list": _relation_list,
    "relation-model-get": _relation_model_get,
    "relation-set": _relation_set,
    "resource-get": _resource_get,
    "secret-add": _secret_add,
    "secret-get": _secret_get,
    "secret-grant": _secret_grant,
    "secret-ids": _secret_ids,
    "secret-info-get": _secret_info_get,
    "secret-remove": _secret_remove,
    "secret-revoke": _secret_revoke,
    "secret-set": _secret_set,
    "state-delete": _state_delete,
    "state-get": _state_get,
    "state-set": _state_set,
    "status-get": _status_get,
    "status-set": _status_set,
    "storage-get": _storage_get,
    "storage-list": _storage_list,
    "unit-get": _unit_get,
}
