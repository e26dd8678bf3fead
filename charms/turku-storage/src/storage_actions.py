"""The actions: what they take, and what they make of what Turku's own tool answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from turku_charm.actions import Result
from turku_charm.programs import Programs
from turku_core import fields
from turku_core.commandline import human_size, human_time, table
from turku_core.errors import DONE, FAILED

PROGRAM = "turku-storage"
READING_SECONDS = 15 * 60.0
EXPIRY_SECONDS = 12 * 3600.0
WORK_SECONDS = 48 * 3600.0
"""A restore, or reading every snapshot, takes as long as the disks do."""

_ANSWERING = (DONE, FAILED)
"""It answers also when what it found is bad."""


@dataclass(frozen=True)
class Chosen:
    """Which snapshots an action is about. Raises ValueError with a sentence."""

    machine: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.machine is not None:
            _machine(self.machine)
        if self.source is not None:
            fields.name(self.source, "source")
            if self.machine is None:
                raise ValueError("source: say as well which machine's it is (machine=...).")

    @property
    def arguments(self) -> list[str]:
        """The arguments of the tool's commands."""
        return [each for each in (self.machine, self.source) if each is not None]


@dataclass(frozen=True)
class Verify(Chosen):
    """What is to be verified."""

    snapshot: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snapshot is not None:
            fields.snapshot_id(self.snapshot, "snapshot")


@dataclass(frozen=True)
class Expire(Chosen):
    """What is to be expired, and how."""

    now: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Release(Chosen):
    """What is to expire again. Raises ValueError with a sentence."""

    machine: str = ""


@dataclass(frozen=True)
class Restore:
    """What is to be restored, and where to. Raises ValueError with a sentence."""

    machine: str
    source: str
    target: str
    snapshot: str = "latest"
    paths: Sequence[str] = ()
    into_filled_folder: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        _machine(self.machine)
        fields.name(self.source, "source")
        fields.absolute_path(self.target, "target")
        fields.snapshot_id(self.snapshot, "snapshot")
        fields.items(self.paths, "paths", fields.relative_path)

    @property
    def arguments(self) -> list[str]:
        """The arguments of the tool's command; what might look like an option is joined to one."""
        flags = {"--into-filled-folder": self.into_filled_folder, "--dry-run": self.dry_run}
        return [
            self.machine,
            self.source,
            f"--snapshot={self.snapshot}",
            f"--target={self.target}",
            *(f"--path={path}" for path in self.paths),
            *(flag for flag, wanted in flags.items() if wanted),
        ]


def _machine(value: str) -> None:
    fields.label(value, "machine")
    if value.startswith("-"):
        raise fields.FieldError("machine", f"must be a UUID or a name, not {fields.shown(value)}")


def list_snapshots(programs: Programs, chosen: Chosen) -> Result:
    """List the snapshots."""
    found = _read(programs, "list", chosen.arguments)
    if not found.values["snapshots"] and not found.values["problems"]:
        whose = "" if chosen.machine is None else f" of machine {chosen.machine}"
        return Result(f"There are no snapshots{whose} on this unit.", found.values)
    return found


def usage(programs: Programs) -> Result:
    """Say how full the volumes are, and what is being done."""
    return _read(programs, "usage", [])


def _read(programs: Programs, command: str, arguments: Sequence[str]) -> Result:
    """Return what a command that only reads says: to a person and to a program."""
    values = programs.run_json(
        PROGRAM, command, *arguments, seconds_max=READING_SECONDS, answering=_ANSWERING
    )
    text = programs.run(
        PROGRAM, command, *arguments, seconds_max=READING_SECONDS, answering=_ANSWERING
    )
    return Result("\n".join([text.rstrip("\n"), *values["problems"]]), values)


def list_holds(programs: Programs, chosen: Chosen) -> Result:
    """List the sources of which nothing expires, and why."""
    values = programs.run_json(PROGRAM, "holds", *chosen.arguments, seconds_max=READING_SECONDS)
    rows = [
        (
            _machine_name(hold),
            hold["source"],
            human_time(datetime.fromisoformat(hold["since"])),
            hold["snapshot"],
            hold["reason"],
        )
        for hold in values["holds"]
    ]
    headings = ("machine", "source", "since", "snapshot", "why")
    return Result(table(headings, rows) if rows else "Nothing is held.", values)


def release_hold(programs: Programs, wanted: Release) -> Result:
    """Let what is held expire again."""
    values = programs.run_json(PROGRAM, "release", *wanted.arguments, seconds_max=READING_SECONDS)
    lines = [
        f"The snapshots of the source {each['source']} of {_machine_name(each)} expire again."
        for each in values["released"]
    ]
    return Result(_lines(*lines), values)


def restore(programs: Programs, wanted: Restore) -> Result:
    """Restore to a folder."""
    values = programs.run_json(
        PROGRAM, "restore", *wanted.arguments, seconds_max=WORK_SECONDS, answering=_ANSWERING
    )
    words = "Would restore" if wanted.dry_run else "Restored"
    sentence = (
        f"{words} {values['files']} files ({human_size(values['bytes'])}) of snapshot "
        f"{values['snapshot']} to {wanted.target}."
    )
    text = _lines(*values["changes"], sentence, values["message"])
    return Result(text, values, None if values["ok"] else values["message"] or sentence)


def expire(programs: Programs, wanted: Expire) -> Result:
    """Expire by policy."""
    flags = {"--now": wanted.now, "--dry-run": wanted.dry_run}
    values = programs.run_json(
        PROGRAM, "expire", *wanted.arguments, *(flag for flag, wish in flags.items() if wish),
        seconds_max=EXPIRY_SECONDS, answering=_ANSWERING,
    )  # fmt: skip
    headings = ("machine", "source", "snapshot", "taken", "would be" if wanted.dry_run else "now")
    rows = [
        (
            _machine_name(change),
            change["source"],
            change["snapshot"],
            human_time(datetime.fromisoformat(change["taken_at"])),
            change["state"],
        )
        for change in values["changes"]
    ]
    changes = table(headings, rows) if rows else "Nothing to expire."
    text = _lines(changes, *values["held"], *values["problems"])
    return Result(text, values, " ".join(values["problems"]) or None)


def verify(programs: Programs, wanted: Verify) -> Result:
    """Verify snapshots; one that can't be proven to be good is a failure."""
    which = [] if wanted.snapshot is None else [f"--snapshot={wanted.snapshot}"]
    values = programs.run_json(
        PROGRAM, "verify", *wanted.arguments, *which,
        seconds_max=WORK_SECONDS, answering=_ANSWERING,
    )  # fmt: skip
    verified: Sequence[Mapping[str, Any]] = values["verified"]
    rows = [
        (_machine_name(each), each["source"], each["id"], each["error"] or "proven")
        for each in verified
    ]
    text = table(("machine", "source", "snapshot", "result"), rows)
    bad = [each for each in verified if not each["proven"]]
    if not bad:
        return Result(text, values)
    sentence = f"{len(bad)} of {len(verified)} snapshots could not be proven to be good."
    return Result(text, values, sentence)


def _machine_name(values: Mapping[str, Any]) -> str:
    return str(values["machine_name"] or values["machine"])


def _lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)
