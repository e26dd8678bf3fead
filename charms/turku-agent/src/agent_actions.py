"""The actions: their parameters, checked, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from turku_charm.actions import Result
from turku_charm.programs import Programs
from turku_core import fields
from turku_core.commandline import human_size, human_time, table
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER
from turku_core.fields import FieldError

DAYS_MAX = 14 * 24 * 3600.0
"""A first backup or the restore of a whole machine may take days; its own time limits are the
agent's, so this is only for what has gone wrong for good."""

LIST_SECONDS_MAX = 900.0
CHECK_SECONDS_MAX = 600.0

_PING = "turku-agent-ping"


@dataclass(frozen=True)
class BackUpNow:
    """The parameters of ``backup-now``. Raises FieldError for what isn't valid."""

    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        fields.items(self.sources, "sources", fields.name, fields.SOURCES_MAX)

    def arguments(self) -> list[str]:
        """Return them as the program takes them."""
        return ["--backup-now", *(f"--source={name}" for name in self.sources)]


@dataclass(frozen=True)
class ListSnapshots:
    """The parameters of ``list-snapshots``. Raises FieldError for what isn't valid."""

    source: str | None = None
    machine: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            fields.name(self.source, "source")
        if self.machine is not None:
            fields.label(self.machine, "machine")

    def arguments(self) -> list[str]:
        """Return them as the program takes them."""
        return ["--list", *_given("source", self.source), *_given("machine", self.machine)]


@dataclass(frozen=True)
class Restore:
    """The parameters of ``restore``. Raises FieldError for what isn't valid."""

    source: str
    machine: str | None = None
    snapshot: str = "latest"
    paths: list[str] = field(default_factory=list)
    target: str | None = None
    in_place: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        fields.name(self.source, "source")
        if self.machine is not None:
            fields.label(self.machine, "machine")
        if not fields.text(self.snapshot, "snapshot").strip():
            raise FieldError(
                "snapshot", "must be latest, a snapshot's id, or a time such as 2026-11-22T10:30"
            )
        fields.items(self.paths, "paths", _path)
        if self.target is not None:
            fields.absolute_path(self.target, "target")
            if self.in_place:
                raise FieldError("target", "doesn't go together with in-place: leave one out")

    def arguments(self) -> list[str]:
        """Return them as the program takes them."""
        return [
            "--restore",
            f"--source={self.source}",
            f"--snapshot={self.snapshot}",
            *_given("machine", self.machine),
            *(f"--path={path}" for path in self.paths),
            *_given("target", self.target),
            *(["--in-place"] if self.in_place else []),
            *(["--dry-run"] if self.dry_run else []),
        ]


def _path(value: object, field: str) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return fields.absolute_path(value, field)
    return fields.relative_path(value, field)


def _given(option: str, value: str | None) -> list[str]:
    return [] if value is None else [f"--{option}={value}"]


def back_up_now(programs: Programs, wanted: BackUpNow) -> Result:
    """Back up at once; a source that isn't backed up now is a failure."""
    said = programs.run_json(
        _PING,
        *wanted.arguments(),
        seconds_max=DAYS_MAX,
        answering=(DONE, FAILED, TRY_AGAIN_LATER),
    )
    outcomes: Mapping[str, Mapping[str, str]] = said["sources"]
    rows = [(name, each["outcome"], each["message"]) for name, each in sorted(outcomes.items())]
    missed = [
        f"Source {name}: {outcome}. {message}".rstrip()
        for name, outcome, message in rows
        if outcome not in ("success", "partial")
    ]
    text = table(("source", "outcome", "message"), rows) if rows else "There is nothing to back up."
    return Result(text, said, "\n".join(missed) or None)


def list_snapshots(programs: Programs, wanted: ListSnapshots) -> Result:
    """List the snapshots there are, the newest first."""
    said = programs.run_json(_PING, *wanted.arguments(), seconds_max=LIST_SECONDS_MAX)
    snapshots = sorted(said["snapshots"], key=lambda each: str(each["taken_at"]), reverse=True)
    if not snapshots:
        return Result("There are no snapshots yet.", said)
    text = table(
        ("source", "snapshot", "taken at", "state", "size", "storage unit", "machine"),
        [
            (
                each["source"],
                each["id"],
                human_time(datetime.fromisoformat(each["taken_at"])),
                _state(each),
                human_size(each.get("bytes")),
                each["storage_unit"],
                each["machine"],
            )
            for each in snapshots
        ],
    )
    return Result(text, {"snapshots": snapshots})


def _state(snapshot: Mapping[str, Any]) -> str:
    remarks = [word for word in ("partial", "damaged") if snapshot.get(word)]
    return ", ".join([snapshot["state"], *remarks])


def restore(programs: Programs, wanted: Restore) -> Result:
    """Restore, or say what a restore would change."""
    said = programs.run_json(_PING, *wanted.arguments(), seconds_max=DAYS_MAX)
    what = "would be restored" if said["dry_run"] else "is restored"
    amount = f": {said['files']} files, {human_size(said['bytes'])}" if said["files"] else ""
    snapshot = f"Snapshot {said['snapshot']} of source {said['source']}"
    summary = f"{snapshot} {what} in {said['target']}{amount}."
    return Result("\n".join([summary, *said["changes"]]), said)


def check(programs: Programs) -> Result:
    """Look at everything that a backup needs; anything that is wrong is a failure."""
    said = programs.run_json(
        _PING, "--check", seconds_max=CHECK_SECONDS_MAX, answering=(DONE, FAILED)
    )
    findings = said["findings"]
    wrong = [f"{each['subject']}: {each['message']}" for each in findings if not each["ok"]]
    text = "\n".join(
        f"{'ok' if each['ok'] else 'WRONG'}  {each['subject']}: {each['message']}"
        for each in findings
    )
    return Result(text, said, "\n".join(wrong) or None)
