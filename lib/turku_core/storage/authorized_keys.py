"""The ``authorized_keys`` file: which machines may open a session, and what little it may do.

Every line gives its key the forced command with the machine's UUID, and remote forwarding on this
host's loopback; nothing else. The forms are sshd(8)'s. Tried with OpenSSH 9.2: ``permitopen`` takes
no ``none`` here (sshd then refuses the whole line), so it names a host that can't exist (RFC 6761)
and with it every local forward is refused; ``ssh -R 0:...`` asks for the listening host
``localhost``, which ``permitlisten`` must therefore name.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from turku_core.configuration import ensure_private_folder, write_durably
from turku_core.credentials import PublicKey

logger = logging.getLogger(__name__)

_HEADER = "# Written by turku-storage-worker; what is changed here is lost.\n"
_OPTIONS = 'restrict,port-forwarding,permitlisten="localhost:*",permitopen="none.invalid:1"'
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_LINE = re.compile(rf'{re.escape(_OPTIONS)},command=".* (?P<machine>{_UUID})" (?P<key>\S+ \S+)')


def make_line(machine: str, key: PublicKey, command: Sequence[str]) -> str:
    """Return one machine's line, without a newline.

    Args:
        machine: The machine's UUID, in its canonical form.
        key: Its SSH public key.
        command: The forced command and its first arguments; the UUID becomes the last.
    """
    shell = shlex.join([*command, machine])
    if any(character < " " for character in shell):
        raise ValueError(f"the command {shell!a} can't stand in authorized_keys")
    escaped = shell.replace('"', '\\"')
    return f'{_OPTIONS},command="{escaped}" {key.line}'


def make_content(
    machines: Mapping[str, PublicKey], command: Sequence[str], previous: str = ""
) -> tuple[str, list[str]]:
    """Return the whole file, and a sentence for every machine that had to be left out.

    sshd takes the first line that a key matches, so a key that two machines hold (a cloned
    virtual machine) would let one be taken for the other. Only the one that had the key before
    keeps it; when neither had, the first by UUID gets it.

    Args:
        machines: The keys by UUID.
        command: As for `make_line`.
        previous: What the file holds now.
    """
    owners = {
        found["key"]: found["machine"]
        for found in map(_LINE.fullmatch, previous.splitlines())
        if found is not None
    }
    holders: dict[str, list[str]] = {}
    for machine in sorted(machines):
        holders.setdefault(machines[machine].line, []).append(machine)
    lines, problems = {}, []
    for key_line, sharing in holders.items():
        owner = owners.get(key_line)
        chosen = owner if owner in sharing else sharing[0]
        lines[chosen] = make_line(chosen, machines[chosen], command)
        problems += [
            f"Machine {machine} has the SSH key of machine {chosen} and can't log in: remove "
            f"/var/lib/turku-agent on the clone, so that it becomes a machine of its own."
            for machine in sharing
            if machine != chosen
        ]
    return _HEADER + "".join(f"{lines[machine]}\n" for machine in sorted(lines)), problems


def is_current(path: Path, machines: Mapping[str, PublicKey], command: Sequence[str]) -> bool:
    """Say whether the file is what `write` would make of it."""
    try:
        found = path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return False
    return make_content(machines, command, found)[0] == found


def write(path: Path, machines: Mapping[str, PublicKey], command: Sequence[str]) -> bool:
    """Write the file durably, readable by its owner alone, if its content changes.

    Every problem is logged.

    Returns:
        Whether the file was changed.
    """
    try:
        previous = path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        previous = None
    content, problems = make_content(machines, command, previous or "")
    for problem in problems:
        logger.error("%s", problem)
    ensure_private_folder(path.parent)
    if content == previous and path.stat().st_mode & 0o777 == 0o600:
        return False
    write_durably(path, content, 0o600)
    return True
