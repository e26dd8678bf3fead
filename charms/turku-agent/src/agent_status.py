"""What an operator reads of an agent unit in `juju status`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta, timezone

import ops

from turku_charm.statuses import one_line, status_of
from turku_core.agent.status import Status
from turku_core.errors import TurkuError
from turku_core.protocol.status import SourceStatus

SILENT_AFTER = timedelta(hours=2)
"""The agent asks for its sources' state every hour and after each backup."""

_AT_WORK = ("ok", "new", "running")


def unit_status(
    problems: Sequence[TurkuError],
    remarks: Sequence[str],
    sources: Collection[str],
    status: Status | None,
    since: datetime,
    now: datetime,
) -> ops.StatusBase:
    """Return the unit's status: what somebody has to mend, what is waited for, or all is well.

    Args:
        problems: What this event could not do.
        remarks: What is worth knowing.
        sources: The names of the machine's sources.
        status: How they fare, as far as the API has said.
        since: When the unit came to its machine, aware.
        now: The time, aware.
    """
    known = {} if status is None else status.sources
    fates = {name: known[name] for name in sorted(sources) if name in known}
    behind = [_behind(name, fate) for name, fate in fates.items() if fate.is_behind]
    to_mend = [str(each) for each in problems if isinstance(status_of(each), ops.BlockedStatus)]
    if to_mend or behind:
        return ops.BlockedStatus(_together([*to_mend, *behind]))
    if problems:
        return ops.WaitingStatus(one_line(" ".join(str(each) for each in problems)))
    if not sources:
        return ops.WaitingStatus(
            "Waiting for a source: set the option sources, or let the principal name some."
        )
    words = one_line(" ".join([_last_good(fates), *_put_aside(fates), *_troubled(fates), *remarks]))
    heard = since if status is None else status.asked_at
    if now - heard > SILENT_AFTER:
        return ops.WaitingStatus(
            one_line(f"The API has not answered since {_time(heard)}: run check. {words}")
        )
    return ops.ActiveStatus(words)


def _together(problems: Sequence[str]) -> str:
    """Return the problems as one line; when it is cut, it still says how many there are."""
    count = f"{len(problems)} problems: " if len(problems) > 1 else ""
    return one_line(count + " ".join(problems))


def _behind(name: str, fate: SourceStatus) -> str:
    since = "" if fate.overdue_since is None else f" since {_time(fate.overdue_since)}"
    last = "never backed up" if fate.last_good is None else f"last {_time(fate.last_good)}"
    problem = f": {fate.problem.rstrip('.')}" if fate.problem else ""
    return f"Source {name} is {fate.state}{since} ({last}){problem}."


def _last_good(fates: dict[str, SourceStatus]) -> str:
    times = [fate.last_good for fate in fates.values() if fate.last_good is not None]
    return f"Last good backup {_time(max(times))}." if times else "No backup yet."


def _put_aside(fates: dict[str, SourceStatus]) -> list[str]:
    """Say which sources the API doesn't want backed up at all: they are paused, or retired."""
    kinds: dict[str, list[str]] = {}
    for name, fate in fates.items():
        if fate.state not in _AT_WORK:
            kinds.setdefault(fate.state, []).append(name)
    return [f"{state.capitalize()}: {', '.join(names)}." for state, names in kinds.items()]


def _troubled(fates: dict[str, SourceStatus]) -> list[str]:
    """Say what keeps sources that aren't late yet from being backed up."""
    return [
        f"Source {name}: {fate.problem.rstrip('.')}."
        for name, fate in fates.items()
        if fate.problem and fate.state in _AT_WORK
    ]


def _time(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
