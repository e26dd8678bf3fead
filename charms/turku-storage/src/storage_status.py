"""What `juju status` says of a storage unit, from what `turku-storage usage --json` tells."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import ops

from turku_charm.statuses import one_line
from turku_core.commandline import human_size

ON_ROOT_DISK = "backups lie on the root disk: attach volumes or data"
_OF_A_LOOP = re.compile("The worker's [^:]+: ")
"""How the program introduces what a loop of the worker could not do."""

_OF_THE_API = ("config", "reports")
"""The worker's loops that talk to the API: what is wrong with them, time mends, or the API."""

_PASSING = timedelta(seconds=60)
"""What is wrong with these for less than it, such as while the API starts again, isn't told: it
would be read until the next update-status."""


def statuses(
    usage: Mapping[str, Any],
    on_root_disk: bool,
    now: datetime,
    explained: Collection[str] = (),
) -> list[ops.StatusBase]:
    """Return what there is to say; Juju shows the worst.

    Args:
        usage: What the program answered.
        on_root_disk: New backups go to the root disk.
        now: Aware.
        explained: The volumes of which it has been said already why they aren't mounted.
    """
    found: list[ops.StatusBase] = []
    later = {_loop_problem(usage, name): _is_passing(usage, name, now) for name in _OF_THE_API}
    known = tuple(f"Volume {name!r}:" for name in explained)
    for problem in usage["problems"]:
        if _OF_A_LOOP.sub("", problem).startswith(known) or later.get(problem):
            continue
        kind = ops.WaitingStatus if problem in later else ops.BlockedStatus
        found.append(kind(one_line(problem)))
    remark = [ON_ROOT_DISK] if on_root_disk else []
    found.append(ops.ActiveStatus(one_line("; ".join([*remark, *_facts(usage)]))))
    return found


def _loop_problem(usage: Mapping[str, Any], name: str) -> str | None:
    """Return the sentence that the program makes of a loop's error."""
    loop = usage["work"]["worker"].get(name)
    return f"The worker's {name}: {loop['error']}" if loop and loop.get("error") else None


def _is_passing(usage: Mapping[str, Any], name: str, now: datetime) -> bool:
    """Say whether a loop has begun to fail only just now."""
    since = usage["work"]["worker"].get(name, {}).get("failing_since")
    return since is not None and 0 <= now.timestamp() - since < _PASSING.total_seconds()


def _facts(usage: Mapping[str, Any]) -> list[str]:
    work = usage["work"]
    facts = [_volume(volume) for volume in usage["volumes"]]
    if work["sessions"]:
        facts.append(f"{_count(work['sessions'], 'session')} at work")
    if work["jobs"]:
        facts.append(f"{_count(work['jobs'], 'commit')} waiting")
    if work["reports_waiting"]:
        facts.append(f"{work['reports_waiting']} reports waiting for the API")
    return facts


def _volume(volume: Mapping[str, Any]) -> str:
    if not volume["mounted"]:
        return f"{volume['name']}: not mounted"
    words = f"{volume['name']}: {volume['used_pct']:.0f} % of {human_size(volume['bytes_total'])}"
    if volume["over_high_water"]:
        return f"{words}, over its mark"
    return words if volume["accept_new"] else f"{words}, takes nothing new"


def _count(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
