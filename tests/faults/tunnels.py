"""Where the tunnels of a local Turku end: only its own, whoever else listens on this host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from turku_core.local.turku import LocalTurku


def descendants(pid: int) -> set[int]:
    """Return a process with all that it and its children have started and that is still theirs."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening_sockets() -> dict[str, int]:
    """Return the port of every listening socket of this host, by the link that names it."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":
                found[f"socket:[{columns[9]}]"] = int(columns[1].rpartition(":")[2], 16)
    return found


def ports_of(pids: set[int]) -> Iterator[int]:
    """Yield the ports on which processes listen."""
    sockets = listening_sockets()
    for pid in pids:
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                link = str(descriptor.readlink())
                if link in sockets:
                    yield sockets[link]
        except (FileNotFoundError, ProcessLookupError):
            continue


def tunnels_of(turku: LocalTurku) -> set[int]:
    """Return the ports on which its SSH daemon's sessions listen."""
    daemon = turku.running.ssh_port
    sessions = {
        pid for pid in descendants(turku.running.pid) if _name(pid).startswith(("sshd", "ssh"))
    }
    return set(ports_of(sessions)) - {daemon}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
