"""A real agent whose storage unit is the enemy's, and what must hold after each session."""

from __future__ import annotations

import contextlib
import os
import random
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.hostile_unit import Act, HostileUnit, Visit
from tests.integration.agent.stand_ins import AgentMachine, Finished, snapshot
from tests.support.stand_in_api import running_api

OUTSIDE = b"what-nobody-outside-this-machine-is-to-read"
NEWEST = "20261102T000000Z"
SAID_MAX = 200_000
"""Characters of an agent's words about one session, whatever the storage unit says."""


@dataclass
class Attacked:
    """A machine whose storage unit is the enemy's, and what lies on it."""

    machine: AgentMachine
    unit: HostileUnit
    folder: Path

    @property
    def data(self) -> Path:
        """The source ``docs``."""
        return self.folder / "data"

    @property
    def outside(self) -> Path:
        """A folder beside it, which is in no source."""
        return self.folder / "outside"

    def fill(self) -> None:
        """Make the files: the source, a source that isn't due, and what is in none."""
        for folder in ("data/sub", "outside", "other"):
            (self.folder / folder).mkdir(parents=True)
        (self.data / "a").write_text("alpha")
        (self.data / "sub/b").write_text("beta")
        (self.data / "private.tmp").write_bytes(OUTSIDE)
        (self.data / "to-outside").symlink_to(self.outside / "secret")
        (self.data / "folder-outside").symlink_to(self.outside)
        for place in (self.outside / "secret", self.folder / "other/secret"):
            place.write_bytes(OUTSIDE)

    def describe(self) -> dict[str, tuple[int, bytes]]:
        """Return the mode and content of all that lies there and isn't the agent's own."""
        found = {}
        for name in ("data", "outside", "other", "machine/etc"):
            for path in (self.folder / name).rglob("*"):
                mode = path.lstat().st_mode
                is_link, is_file = stat.S_ISLNK(mode), stat.S_ISREG(mode)
                content = os.readlink(path).encode() if is_link else b""
                found[str(path.relative_to(self.folder))] = (
                    mode,
                    path.read_bytes() if is_file else content,
                )
        return found

    def suffer(self, act: Act, dice: random.Random, *arguments: str) -> Finished:
        """Let the agent have a session in which the enemy does something."""
        self.unit.act, self.unit.dice = act, dice
        before = self.describe()
        done = self.machine.run("turku-agent-ping", *arguments)
        assert done.code in (0, 1, 75), done
        assert "Traceback" not in done.errors, done.errors
        said = done.output + done.errors
        assert len(said) < SAID_MAX, said[:2000]
        assert all(each.isprintable() or each == "\n" for each in said), said[:2000]
        assert self.describe() == before
        assert self.machine.leftovers() == []
        assert self.machine.children() == []
        assert self.unit.errors == []
        return done

    def stolen(self) -> list[str]:
        """Return what the enemy has that it should not, of all its visits."""
        shadow = Path("/etc/passwd").read_bytes().splitlines()[0]
        identity = (self.machine.state / "config.d/identity.json").read_bytes()
        [secret] = re.findall(rb'"machine_secret": *"([^"]+)"', identity)
        marks = (OUTSIDE, shadow, secret)
        found = [what for visit in self.unit.visits for what in visit.won]
        for path in self.unit.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found += [str(path) for mark in marks if mark in content]
        return found


@contextlib.contextmanager
def attacked_machine(folder: Path) -> Iterator[Attacked]:
    """Make such a machine, with a stand-in for the API, as long as the context lasts."""
    with running_api() as api, HostileUnit(folder / "enemy") as unit:
        machine = AgentMachine(folder / "machine", api, unit)
        made = Attacked(machine, unit, folder)
        made.fill()
        # Another source of the machine, which isn't due at the enemy's.
        machine.add_source("other", folder / "other")
        machine.scheduled.clear()
        machine.add_source("docs", made.data, exclude=["*.tmp"])
        machine.register()
        yield made


WRITES = (
    ("-a", "--delete"),
    ("-a", "--delete-excluded", "--force"),
    ("-aK", "--inplace"),
    ("-a", "--write-devices", "--inplace"),
    ("-a", "--backup", "--backup-dir={outside}"),
    ("-a", "--temp-dir={outside}"),
    ("-a", "--partial-dir={outside}"),
    ("-a", "--link-dest={outside}", "--inplace"),
    ("-a", "-M--fake-super"),
    ("-a", "-M--log-file={outside}/planted"),
    ("-a", "--remove-source-files"),
)


def restore_ill(attacked: Attacked) -> Act:
    """List a snapshot; then send what wasn't asked for to where it doesn't belong."""

    def act(visit: Visit, dice: random.Random) -> int:
        if visit.request["action"] == "list":
            # There is no tunnel in such a session.
            visit.won += ["a tunnel"] if visit.open("forwarded-tcpip") is not None else []
            listed = [snapshot(attacked.machine.uuid, NEWEST, "2026-11-02T00:00:00+00:00")]
            visit.say({"event": "snapshots", "snapshots": listed})
            return 0
        planted = visit.folder / "planted"
        planted.mkdir()
        # First links that lead elsewhere, then files through them.
        for name, target in (("up", "../outside"), ("out", str(attacked.outside))):
            (planted / name).symlink_to(target)
        visit.rsync("-a", f"{planted}/", "{M}/turku-restore/", module="turku-restore")
        for name in ("up", "out"):
            (planted / name).unlink()
            (planted / name).mkdir()
            (planted / name / "secret").write_text("planted")
        for options in dice.sample(WRITES, 3):
            place = dice.choice(("", "up/", "out/", "../outside/", "/", "../../"))
            chosen = [each.format(outside=attacked.outside) for each in options]
            visit.rsync(
                *chosen, f"{planted}/", f"{{M}}/turku-restore/{place}", module="turku-restore"
            )
        visit.rsync("-a", "{M}/turku-restore/", str(visit.loot), module="turku-restore")
        visit.rsync("-a", f"{planted}/", "{M}/docs/", module="turku-restore")
        visit.say({"event": "result", "ok": True, "files": 1, "bytes": 1})
        return 0

    return act
