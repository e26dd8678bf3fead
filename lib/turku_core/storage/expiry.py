"""Expiry: which snapshots a retention policy no longer wants, and what is never removed.

Whatever the policy says, there stay: the newest good snapshot; the floor; everything while the
clock can't be trusted; for the grace period, what has expired; and, when a source was away for a
time, what the policy kept when it went away, until it has been back for as long as the grace
period. Of a source that is held after a suspicious change (see `holds`), everything stays, be
the volume full or not. The policy is judged at the time of the newest snapshot, never later: a
source that isn't backed up any more keeps its history.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from turku_core.clock import FILE, observe_clock
from turku_core.errors import TurkuError
from turku_core.retention import Policy
from turku_core.storage import holds, trouble
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.records import Record
from turku_core.storage.snapshots import Environment, converge, get_mode, remove
from turku_core.storage.source_folder import SourceBusy, SourceFolder

logger = logging.getLogger(__name__)

DEFAULT_FLOOR = 3

DEFAULT_GRACE = timedelta(days=7)

DEFAULT_RETENTION = "last 5 days, earliest of month"

ABSENCE = timedelta(days=7)
"""A source that wasn't backed up for longer than this, and than twice its rhythm, was away."""

SETTLING = timedelta(days=7)
"""For how long it must be back before its policy counts again for what was before."""

_RHYTHM_SNAPSHOTS = 3
_FUTURE_TOLERANCE = timedelta(hours=1)
_COMPARE_INTERVAL = timedelta(days=1)


@dataclass(frozen=True)
class Decision:
    """What to do with the snapshots of one source.

    `expire` get their time of expiry, `unexpire` lose it (they are wanted again), `remove` are
    removed for good, `remove_when_full` only while the volume is over its high-water mark; both
    oldest first. `held` says in sentences why something stays that the policy alone would have
    expired.
    """

    expire: tuple[Record, ...] = ()
    unexpire: tuple[Record, ...] = ()
    remove: tuple[Record, ...] = ()
    remove_when_full: tuple[Record, ...] = ()
    held: tuple[str, ...] = ()


def decide(
    records: Sequence[Record],
    policy: Policy,
    now: datetime,
    *,
    floor: int = DEFAULT_FLOOR,
    grace: timedelta = DEFAULT_GRACE,
    clock_problem: str | None = None,
    hold: str | None = None,
    remove_now: bool = False,
) -> Decision:
    """Decide about one source's snapshots; pure.

    Args:
        records: All that lies there of one source, in any order.
        policy: What the source wants kept.
        now: An aware time; its zone is that of the policy's calendar.
        floor: How many of the newest good snapshots always stay.
        grace: For how long an expired snapshot stays restorable.
        clock_problem: Why `now` can't be trusted (see `judge_clock`).
        hold: Why nothing of the source may expire or be removed (see `holds`).
        remove_now: An operator's word that the grace period doesn't count.
    """
    present = sorted(
        (record for record in records if not record.removing),
        key=lambda record: (record.taken_at, record.id),
    )
    kept = {record.id for record in _newest_good(present, floor)}
    kept |= {record.id for record in present if record.protected}
    wanted, held = _wanted(present, policy, now)
    kept |= wanted
    unwanted = [record for record in present if record.id not in kept]
    unexpire = [record for record in present if record.id in kept and record.expired_at]
    expired = [record for record in unwanted if record.expired_at is not None]
    if hold is not None:
        return Decision(unexpire=tuple(unexpire), held=(*held, hold))
    if clock_problem is not None:
        if unwanted:
            held.append(f"Nothing expires: {clock_problem}")
        return Decision(
            unexpire=tuple(unexpire),
            remove=tuple(expired) if remove_now else (),
            remove_when_full=tuple(expired),
            held=tuple(held),
        )
    over = [record for record in expired if remove_now or _is_over(record, now, grace)]
    new = [record for record in unwanted if record.expired_at is None]
    return Decision(
        expire=tuple(new),
        unexpire=tuple(unexpire),
        remove=tuple(over) + (tuple(new) if remove_now or not grace else ()),
        remove_when_full=tuple(record for record in expired if record not in over),
        held=tuple(held),
    )


def _is_over(record: Record, now: datetime, grace: timedelta) -> bool:
    return record.expired_at is not None and now - record.expired_at >= grace


def _newest_good(present: Sequence[Record], floor: int) -> Sequence[Record]:
    """Return the newest good ones; partial ones count where there is nothing better."""
    good = [record for record in present if record.good]
    if not good:
        good = [record for record in present if record.damaged is None]
    return good[-max(floor, 1) :]


def _wanted(present: Sequence[Record], policy: Policy, now: datetime) -> tuple[set[str], list[str]]:
    """Return the ids of what the policy wants, and sentences about what else is held."""
    past = [record for record in present if record.taken_at <= now + _FUTURE_TOLERANCE]
    wanted = {record.id for record in present if record not in past}
    held = []
    if wanted:
        held.append(
            f"{len(wanted)} snapshots are from the future (the newest of "
            f"{present[-1].taken_at:%Y-%m-%d}); they stay until their time has come."
        )
    undamaged = [record for record in past if record.damaged is None]
    if not undamaged:
        return wanted | {record.id for record in past}, held
    by_policy = _kept(undamaged, policy, now)
    by_absence = _kept_from_before(undamaged, policy, now) - by_policy
    if by_absence:
        held.append(
            f"{len(by_absence)} snapshots from before the source was away stay until it has been "
            f"back for {SETTLING.days} days."
        )
    damaged = _kept(past, policy, now) - {record.id for record in undamaged}
    return wanted | by_policy | by_absence | damaged, held


def _kept(records: Sequence[Record], policy: Policy, now: datetime) -> set[str]:
    """Return the ids of what the policy keeps, judged when the newest of them was taken."""
    judged_at = min(now, records[-1].taken_at.astimezone(now.tzinfo))
    times = policy.keep([record.taken_at for record in records], judged_at)
    return {record.id for record in records if record.taken_at in times}


def _kept_from_before(records: Sequence[Record], policy: Policy, now: datetime) -> set[str]:
    """Return the ids of what was kept when the source went away, if it is only just back."""
    kept: set[str] = set()
    end = len(records)
    while end > 1:
        back = _last_return(records[:end])
        if back is None or records[end - 1].taken_at - records[back].taken_at >= SETTLING:
            break
        before = records[:back]
        kept |= {records[back].id} | _kept(before, policy, now)
        end = back
    return kept


def _last_return(records: Sequence[Record]) -> int | None:
    """Return the index of the last snapshot that came after an absence, or None."""
    for index in range(len(records) - 1, 0, -1):
        gap = records[index].taken_at - _before(records, index)
        if gap <= ABSENCE:
            continue
        intervals = [
            records[each].taken_at - _before(records, each)
            for each in range(max(1, index - _RHYTHM_SNAPSHOTS), index)
        ]
        if not intervals or gap > 2 * min(intervals):
            return index
    return None


def _before(records: Sequence[Record], index: int) -> datetime:
    """Return when the snapshot before one was taken, be it here still or not."""
    present = records[index - 1].taken_at
    known = records[index].previous_at
    return present if known is None else max(present, known)


@dataclass(frozen=True)
class Change:
    """One thing that expiry did: the snapshot became `expired`, `committed` again or `removed`."""

    folder: SourceFolder
    record: Record
    state: str


@dataclass(frozen=True)
class ExpiryReport:
    """What one run of expiry did, what it held back, and what went wrong, in sentences."""

    changes: tuple[Change, ...]
    held: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Rules:
    now: datetime
    floor: int
    grace: timedelta
    default_retention: str
    clock_problem: str | None
    remove_now: bool
    dry_run: bool
    tell: Callable[[Change], object]


def run(
    catalogue: Catalogue,
    environment: Environment,
    now: datetime,
    *,
    floor: int = DEFAULT_FLOOR,
    grace: timedelta = DEFAULT_GRACE,
    default_retention: str = DEFAULT_RETENTION,
    machine: str | None = None,
    source: str | None = None,
    remove_now: bool = False,
    dry_run: bool = False,
    trust_clock: bool = False,
    tell: Callable[[Change], object] = lambda change: None,
) -> ExpiryReport:
    """Expire and remove snapshots on all mounted volumes, or of one machine or source.

    Also sweeps what crashes left half-made. One source that can't be handled never stops another;
    a busy one is left for the next run. `trust_clock` is an operator's word that the clock is
    right, which holds for later runs too, but for a dry one's. `tell` hears of each change while
    there is still a trace of it: when it raises, the change is made, and told of, the next time.
    """
    is_right = trust_clock and not dry_run
    volumes = [] if dry_run else catalogue.volumes.mounted()
    for volume in volumes:
        # First of all: what follows writes, maybe to the same file system.
        catalogue.volumes.release_reserve(volume)
    clock_problem = observe_clock(catalogue.state_folder / FILE, now, is_right=is_right)
    rules = _Rules(
        now,
        floor,
        grace,
        default_retention,
        None if trust_clock else clock_problem,
        remove_now,
        dry_run,
        tell,
    )
    changes: list[Change] = []
    held: list[str] = []
    problems: list[str] = list(catalogue.volumes.problems())
    for folders in _by_source(catalogue.folders(machine, source)):
        label = folders[0].label
        try:
            _handle(catalogue, folders, environment, rules, changes, held)
        except SourceBusy as error:
            held.append(str(error))
        except (TurkuError, OSError, ValueError) as error:
            problems.append(f"{label}: {error}")
            for folder in folders:
                trouble.note_if(catalogue.state_folder, folder.volume.name, str(error))
            logger.error("%s: expiry failed: %s", label, error)
    for volume in volumes:
        catalogue.volumes.keep_reserve(volume)
    return ExpiryReport(tuple(changes), tuple(held), tuple(problems))


def _by_source(folders: Sequence[SourceFolder]) -> list[list[SourceFolder]]:
    """Return the folders of each source together: its old layout, its new one, other volumes."""
    grouped: dict[tuple[str, str], list[SourceFolder]] = {}
    for folder in folders:
        grouped.setdefault((folder.machine, folder.source), []).append(folder)
    return list(grouped.values())


def _handle(
    catalogue: Catalogue,
    folders: Sequence[SourceFolder],
    environment: Environment,
    rules: _Rules,
    changes: list[Change],
    held: list[str],
) -> None:
    """Expire the snapshots of one source, wherever they lie."""
    places: dict[Record, SourceFolder] = {}
    for folder in folders:
        if not rules.dry_run:
            _converge(catalogue, folder, environment, rules, changes)
        places |= dict.fromkeys(catalogue.records(folder)[0], folder)
    decision = decide(
        list(places),
        _policy(folders, list(places), rules),
        rules.now,
        floor=rules.floor,
        grace=rules.grace,
        clock_problem=rules.clock_problem,
        hold=_hold(folders),
        remove_now=rules.remove_now,
    )
    held += [f"{folders[0].label}: {sentence}" for sentence in decision.held]
    carry_out = _dry if rules.dry_run else _carry_out
    carry_out(catalogue, places, environment, rules, decision, changes)


def _hold(folders: Iterable[SourceFolder]) -> str | None:
    hold = holds.find(folders)
    return None if hold is None else f"Nothing expires, because of a suspicious change: {hold}"


def _converge(
    catalogue: Catalogue,
    folder: SourceFolder,
    environment: Environment,
    rules: _Rules,
    changes: list[Change],
) -> None:
    """Sweep a source, and once a day compare its records with the repository."""

    def tell(record: Record) -> None:
        change = Change(folder, record, "removed")
        if record.removing:
            _tell(rules, change, changes)
        else:
            # A bare mirror that has been pulled to again: that is no doing of expiry's.
            rules.tell(change)

    now = rules.now
    compared_at = folder.state().compared_at
    due = compared_at is None or abs(now - compared_at) >= _COMPARE_INTERVAL
    converge(
        catalogue,
        folder,
        environment,
        repository=due,
        tell=tell,
    )
    if due and not folder.old_layout and folder.repository.is_dir():
        with folder.lock():
            folder.write_state(dataclasses.replace(folder.state(), compared_at=now))


def _policy(folders: Sequence[SourceFolder], records: Sequence[Record], rules: _Rules) -> Policy:
    """Return the policy that was received last; one that can't be read isn't guessed at."""
    received = [state.retention for state in (folder.state() for folder in folders)]
    received += [record.retention for record in sorted(records, key=_newest_first)]
    return Policy.parse(next(filter(None, received), rules.default_retention))


def _newest_first(record: Record) -> float:
    return -record.taken_at.timestamp()


def _dry(
    catalogue: Catalogue,
    places: Mapping[Record, SourceFolder],
    environment: Environment,
    rules: _Rules,
    decision: Decision,
    changes: list[Change],
) -> None:
    """Only tell what would be done."""
    changes += [Change(places[record], record, "committed") for record in decision.unexpire]
    changes += [Change(places[record], record, "expired") for record in decision.expire]
    doomed = list(decision.remove)
    doomed += [
        record
        for record in decision.remove_when_full
        if catalogue.volumes.over_high_water(places[record].volume)
    ]
    changes += [Change(places[record], record, "removed") for record in doomed]


def _carry_out(
    catalogue: Catalogue,
    places: Mapping[Record, SourceFolder],
    environment: Environment,
    rules: _Rules,
    decision: Decision,
    changes: list[Change],
) -> None:
    """Do it, the removals last and one by one; a hold that comes in between is obeyed."""
    for record, expired_at in (
        *((record, None) for record in decision.unexpire),
        *((record, rules.now) for record in decision.expire),
    ):
        folder = places[record]
        changed = dataclasses.replace(record, expired_at=expired_at)
        state = "committed" if expired_at is None else "expired"
        with folder.lock():
            if expired_at is not None and holds.find([folder]) is not None:
                continue
            # Before it is written: one that is written isn't told of again.
            _tell(rules, Change(folder, changed, state), changes)
            catalogue.write(folder, changed)
        logger.info("%s: snapshot %s is %s", folder.label, record.id, state)
    touched: set[tuple[SourceFolder, str]] = set()
    for record in decision.remove:
        _remove(catalogue, places[record], record, environment, rules, changes)
        touched.add((places[record], record.mode))
    for folder, mode in touched:
        with folder.lock():
            get_mode(mode, environment).tidy(folder)
    for record in decision.remove_when_full:
        folder = places[record]
        if catalogue.volumes.over_high_water(folder.volume):
            _remove(catalogue, folder, record, environment, rules, changes)
            with folder.lock():
                # Whether there is room enough now is known only when it is freed.
                get_mode(record.mode, environment).tidy(folder)


def _remove(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    environment: Environment,
    rules: _Rules,
    changes: list[Change],
) -> None:
    change = Change(folder, record, "removed")
    with folder.lock():
        if holds.find([folder]) is None:
            remove(catalogue, folder, record, environment, lambda _: _tell(rules, change, changes))


def _tell(rules: _Rules, change: Change, changes: list[Change]) -> None:
    rules.tell(change)
    changes.append(change)
