"""What an operator does with the snapshots of a storage unit: list, usage, verify, expire."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from turku_core.commandline import (
    Progress,
    human_size,
    human_time,
    print_json,
    print_table,
)
from turku_core.errors import DONE, FAILED, TurkuError
from turku_core.storage import expiry, holds, slots, verification
from turku_core.storage.catalogue import Catalogue, NoSuchSnapshot
from turku_core.storage.holds import Hold
from turku_core.storage.machine_names import find_machine, read_names
from turku_core.storage.ping import make_catalogue
from turku_core.storage.queue import Queue
from turku_core.storage.records import Record
from turku_core.storage.reports import Spool
from turku_core.storage.settings import Settings
from turku_core.storage.snapshots import Environment
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import VolumeError
from turku_core.storage.worker import (
    expiry_report,
    read_loops,
    release_report,
    verification_report,
)


@dataclass(frozen=True)
class Selection:
    """Which snapshots a command is about; None is all of them."""

    machine: str | None = None
    source: str | None = None


class Operator:
    """One operator's command on one storage unit.

    Args:
        settings: The unit's.
        now: An aware time.
        as_json: Print JSON instead of tables.
    """

    def __init__(self, settings: Settings, now: datetime, *, as_json: bool) -> None:
        self._settings = settings
        self._catalogue: Catalogue = make_catalogue(settings)
        self._environment = Environment(settings.paths.state)
        self._now = now
        self._as_json = as_json

    @cached_property
    def _names(self) -> dict[str, str]:
        return read_names(self._settings.paths)

    def _resolve(self, selection: Selection) -> tuple[str | None, str | None]:
        machine = selection.machine
        if machine is not None:
            machine = find_machine(self._settings.paths, machine)
        return machine, selection.source

    def list_snapshots(self, selection: Selection) -> int:
        """Print the snapshots; return the exit code, which tells of anything that is wrong."""
        machine, source = self._resolve(selection)
        listing = self._catalogue.listing(machine, source)
        records = [record for _, record in listing.records]
        if self._as_json:
            print_json(
                {
                    "snapshots": [self._named(record.to_json()) for record in records],
                    "problems": list(listing.problems),
                }
            )
        else:
            self._print_records(records)
            _print_problems(listing.problems)
        if machine is not None and not records:
            raise NoSuchSnapshot(
                f"Machine {machine} has no snapshots"
                + (f" of the source {source}." if source else " on this storage unit.")
            )
        return FAILED if listing.problems else DONE

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Add the machine's readable name to what is said of a snapshot."""
        return {**values, "machine_name": self._names.get(values["machine"])}

    def _print_records(self, records: Sequence[Record]) -> None:
        names = self._names
        print_table(
            ("machine", "source", "snapshot", "taken", "state", "mode", "size", "files", "proven"),
            [
                (
                    names.get(record.machine, record.machine),
                    record.source,
                    record.id,
                    human_time(record.taken_at),
                    state_words(record),
                    record.mode,
                    human_size(record.bytes_total),
                    record.files_total,
                    human_time(record.proven_at),
                )
                for record in records
            ],
        )

    def usage(self) -> int:
        """Print how full the volumes are and what goes on; return the exit code."""
        volumes = self._volumes()
        work = self._work()
        problems = [*self._catalogue.volumes.problems(), *work_problems(work)]
        problems += [
            f"Nothing of the source {each['source']} of machine "
            f"{each['machine_name'] or each['machine']} expires: {each['reason']}"
            for each in self._holds(Selection())
        ]
        if self._as_json:
            print_json({"volumes": volumes, "work": work, "problems": problems})
        else:
            _print_usage(volumes, work)
            _print_problems(problems)
        return FAILED if problems else DONE

    def list_holds(self, selection: Selection) -> int:
        """Print the sources of which nothing expires, and why; return the exit code."""
        found = self._holds(selection)
        if self._as_json:
            print_json({"holds": found})
        elif found:
            print_table(
                ("machine", "source", "since", "snapshot", "why"),
                [
                    (
                        each["machine_name"] or each["machine"],
                        each["source"],
                        human_time(each["since"]),
                        each["snapshot"],
                        each["reason"],
                    )
                    for each in found
                ],
            )
        else:
            print("Nothing is held.")
        return DONE

    def release(self, selection: Selection) -> int:
        """Let the snapshots of a machine, or of a source of it, expire again."""
        machine, source = self._resolve(selection)
        released = []
        for folder in self._catalogue.folders(machine, source):
            if holds.read(folder).hold is None:
                continue
            hold = holds.release(folder)
            if hold is not None:
                released.append(self._held(folder, hold))
                self._report_release(folder)
        if not released:
            raise TurkuError("Nothing of that is held; turku-storage holds lists what is.")
        if self._as_json:
            print_json({"released": released})
        else:
            for each in released:
                name = each["machine_name"] or each["machine"]
                print(f"The snapshots of the source {each['source']} of {name} expire again.")
        return DONE

    def _holds(self, selection: Selection) -> list[dict[str, Any]]:
        machine, source = self._resolve(selection)
        found = []
        for folder in self._catalogue.folders(machine, source):
            hold = holds.read(folder).hold
            if hold is not None:
                found.append(self._held(folder, hold))
        return found

    def _held(self, folder: SourceFolder, hold: Hold) -> dict[str, Any]:
        place = {"machine": folder.machine, "source": folder.source, "volume": folder.volume.name}
        return self._named({**place, **vars(hold)})

    def _report_release(self, folder: SourceFolder) -> None:
        """Tell the API, beside the state of a snapshot, which one that knows no holds takes too."""
        report = release_report(folder, self._catalogue.records(folder)[0])
        Spool(self._settings.paths.reports).add(report, self._now)

    def _volumes(self) -> list[dict[str, Any]]:
        found = []
        for volume in self._settings.volumes:
            values: dict[str, Any] = {
                "name": volume.name,
                "path": str(volume.path),
                "accept_new": volume.accept_new,
                "high_water_pct": volume.high_water_pct,
                "mounted": False,
            }
            with contextlib.suppress(VolumeError):
                space = self._catalogue.volumes.space(volume)
                values |= {
                    "mounted": True,
                    "bytes_total": space.total,
                    "bytes_available": space.available,
                    "used_pct": space.used_pct,
                    "over_high_water": self._catalogue.volumes.over_high_water(volume),
                }
            found.append(values)
        return found

    def _work(self) -> dict[str, Any]:
        paths = self._settings.paths
        jobs = Queue(paths.queue).jobs()
        return {
            "sessions": [session.to_json() for session in slots.running(paths.slots)],
            "slots": self._settings.slots,
            "jobs": [job.to_json() for job in jobs],
            "reports_waiting": Spool(paths.reports).waiting(),
            "reports_refused": Spool(paths.reports).refused(),
            "worker": {name: vars(loop) for name, loop in read_loops(paths.worker_state).items()},
        }

    def verify(self, selection: Selection, snapshot: str | None) -> int:
        """Verify the snapshots that aren't expired, one by one; return the exit code."""
        machine, source = self._resolve(selection)
        found = [
            (folder, record)
            for folder, record in self._catalogue.listing(machine, source).records
            if snapshot == record.id or (snapshot is None and record.expired_at is None)
        ]
        if not found:
            raise NoSuchSnapshot("There is no such snapshot to verify.")
        rows, results = [], []
        progress = Progress()
        for number, (folder, record) in enumerate(found, start=1):
            progress.show(f"{number} of {len(found)}: {record.source} {record.id}")
            error = None
            proven = False
            try:
                verdict = verification.verify(
                    self._catalogue, folder, record, self._environment, self._now
                )
                Spool(self._settings.paths.reports).add(
                    verification_report(verdict.record), self._now
                )
                error = verdict.damaged
                if verdict.failed is not None:
                    error = f"could not be checked: {verdict.failed}"
                if verdict.unprovable:
                    error = "has no checksums of its making; as it was when it was first read"
                proven = verdict.proven
            except (TurkuError, OSError) as problem:
                error = f"could not be checked: {problem}"
            name = self._names.get(record.machine, record.machine)
            rows.append((name, record.source, record.id, "proven" if proven else error))
            results.append({**self._named(record.to_json()), "proven": proven, "error": error})
        progress.clear()
        if self._as_json:
            print_json({"verified": results})
        else:
            print_table(("machine", "source", "snapshot", "result"), rows)
        return DONE if all(result["proven"] for result in results) else FAILED

    def expire(
        self, selection: Selection, *, remove_now: bool, dry_run: bool, trust_clock: bool
    ) -> int:
        """Expire and remove what the policies no longer want; return the exit code."""
        machine, source = self._resolve(selection)
        spool = Spool(self._settings.paths.reports)
        report = expiry.run(
            self._catalogue,
            self._environment,
            self._now,
            floor=self._settings.expiry_floor,
            grace=self._settings.expiry_grace,
            default_retention=self._settings.default_retention,
            machine=machine,
            source=source,
            remove_now=remove_now,
            dry_run=dry_run,
            trust_clock=trust_clock,
            tell=lambda change: spool.add(expiry_report(change), self._now),
        )
        if self._as_json:
            print_json(
                {
                    "dry_run": dry_run,
                    "changes": [
                        self._named(
                            {
                                "machine": change.record.machine,
                                "source": change.record.source,
                                "snapshot": change.record.id,
                                "taken_at": change.record.taken_at,
                                "state": change.state,
                            }
                        )
                        for change in report.changes
                    ],
                    "held": list(report.held),
                    "problems": list(report.problems),
                }
            )
        else:
            _print_expiry(report, self._names, dry_run=dry_run)
        return FAILED if report.problems else DONE


def state_words(record: Record) -> str:
    """Return what is to be said of a snapshot, in a word or two."""
    words = [
        word
        for word, holds in (
            ("damaged", record.damaged is not None),
            ("expired", record.expired_at is not None),
            ("partial", record.partial),
            ("suspicious", record.suspicious is not None),
        )
        if holds
    ]
    return ", ".join(words) or "good"


def work_problems(work: dict[str, Any]) -> list[str]:
    """Return a sentence for everything in the background that an operator should look at."""
    problems = [
        f"The snapshot {job['snapshot']} of source {job['source']} of machine {job['machine']} "
        f"could not be made (tried {job['attempts']} times): {job['error']}"
        for job in work["jobs"]
        if job["error"]
    ]
    problems += [
        f"The worker's {name}: {loop['error']}"
        for name, loop in work["worker"].items()
        if loop.get("error")
    ]
    if work["reports_refused"]:
        problems.append(
            f"{work['reports_refused']} reports were refused by the API and lie in reports/refused."
        )
    return problems


def _print_usage(volumes: list[dict[str, Any]], work: dict[str, Any]) -> None:
    print_table(
        ("volume", "path", "size", "available", "used", "mark", "state"),
        [
            (
                volume["name"],
                volume["path"],
                human_size(volume.get("bytes_total")),
                human_size(volume.get("bytes_available")),
                f"{volume['used_pct']:.0f} %" if volume["mounted"] else None,
                f"{volume['high_water_pct']:.0f} %",
                _volume_words(volume),
            )
            for volume in volumes
        ],
    )
    print()
    print(f"Sessions at work:    {len(work['sessions'])} of {work['slots']}")
    print(f"Commits waiting:     {len(work['jobs'])}")
    print(f"Reports waiting:     {work['reports_waiting']}")
    for name, loop in work["worker"].items():
        ended = loop.get("ended_at")
        when = None if ended is None else human_time(datetime.fromtimestamp(ended).astimezone())
        print(f"{f'Worker, {name}:':<20} {when or '-'}")


def _volume_words(volume: dict[str, Any]) -> str:
    if not volume["mounted"]:
        return "not mounted"
    if volume["over_high_water"]:
        return "over its mark, takes nothing new"
    return "ok" if volume["accept_new"] else "takes nothing new"


def _print_expiry(report: expiry.ExpiryReport, names: Mapping[str, str], *, dry_run: bool) -> None:
    if report.changes:
        print_table(
            ("machine", "source", "snapshot", "taken", "would be" if dry_run else "now"),
            [
                (
                    names.get(change.record.machine, change.record.machine),
                    change.record.source,
                    change.record.id,
                    human_time(change.record.taken_at),
                    change.state,
                )
                for change in report.changes
            ],
        )
    else:
        print("Nothing to expire.")
    for sentence in report.held:
        print(sentence)
    _print_problems(report.problems)


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)
