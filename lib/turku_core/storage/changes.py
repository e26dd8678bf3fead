"""What changed between two snapshots, and whether it is more than a source is used to.

A machine whose files turned to noise, or are mostly gone, shows in the share of the snapshot
before that isn't there any more as it was. Files that came anew don't count, so nobody can hide
the loss of the old ones behind many new ones.
"""

from __future__ import annotations

import re
import secrets
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from turku_core.storage.manifest import Line

FILES_MIN = 25
"""Fewer files changed or gone are never suspicious, whatever share of the source they are."""

FORMER_MIN = 4
"""A source with fewer generations before this one has no habits yet."""

SHARE_MARGIN = 0.3
"""How much more than usual may change, as a share of all files."""

SPREADS = 6
"""How many times further than it usually is from the median a change may be."""

AGAIN = 3
AGAIN_MARGIN = 0.1
"""What has happened so many times of late, or nearly that, is usual too: a weekly release."""

HISTORY = timedelta(days=35)
HISTORY_MIN = 10
HISTORY_MAX = 1000
"""What is looked back upon: the generations of so long, of them at least and at most so many."""

DAY = timedelta(days=1)
OFTEN = 4
"""Who backs up so many times a day is also judged by what changed in a whole day."""

DISTINCT_MAX = 1_000_000
"""So many names are told apart when a pull's log is read; what comes after is only counted."""

_LOGGED = re.compile(rb"^\S+ \S+ \[\d+\] (?P<mark>[0-9a-f]{32}) (?P<item>\S{9,11}) +(?P<name>.*)$")


@dataclass(frozen=True)
class Changed:
    """What became of the files of the snapshot before: `files` of `of` were changed or removed."""

    files: int
    of: int

    @property
    def share(self) -> float:
        """From 0 to 1; nothing can change where nothing was."""
        return min(self.files / self.of, 1.0) if self.of else 0.0


@dataclass(frozen=True)
class Generation:
    """One snapshot in a source's history.

    Attributes:
        changed: None where there was nothing to compare it with.
        entries: How many files, links and devices it has.
    """

    snapshot: str
    taken_at: datetime
    changed: Changed | None
    entries: int | None = None


def suspicion(
    former: Sequence[Generation], new: Generation, *, is_switch: bool = False
) -> str | None:
    """Return why a new snapshot changed more than its source usually does, or None; pure.

    Args:
        former: What is known of the snapshots before, oldest first.
        new: The one that is to be judged.
        is_switch: It is of another mode, asked for from outside, and so can't be compared.
    """
    known = [(each.taken_at, each.changed) for each in former if each.changed is not None]
    if len(known) < FORMER_MIN or new.changed is None:
        return None
    is_many = new.changed.files >= FILES_MIN
    if is_switch and is_many:
        return (
            "The machine, or the API, asked for another snapshot mode, so that it can't be told "
            "what else changed since the snapshot before."
        )
    shares = [changed.share for _, changed in known]
    share = new.changed.share
    if share > _limit(shares) and is_many:
        return (
            f"{new.changed.files} of the {new.changed.of} files of the snapshot before "
            f"({share:.0%}) were changed or are gone; usually {statistics.median(shares):.0%} are."
        )
    *days, (files, count, share) = _days([*known, (new.taken_at, new.changed)])
    if count < OFTEN or files < FILES_MIN:
        return None
    if share > _limit([each[2] for each in days]):
        return (
            f"In {count} snapshots within a day {files} files ({share:.0%}) were changed or are "
            "gone; that is far more than usual."
        )
    return None


def _limit(shares: Sequence[float]) -> float:
    """Return the largest share that is no news after these."""
    median = statistics.median(shares)
    spread = statistics.median(abs(share - median) for share in shares)
    limit = median + max(SHARE_MARGIN, SPREADS * spread)
    if len(shares) > AGAIN:
        limit = max(limit, sorted(shares)[-AGAIN] + AGAIN_MARGIN)
    return limit


def _days(known: Sequence[tuple[datetime, Changed]]) -> list[tuple[int, int, float]]:
    """Return for each snapshot what changed in the day up to it: files, snapshots, share."""
    sums = []
    first = files = 0
    share = 0.0
    for index, (taken_at, changed) in enumerate(known):
        files += changed.files
        share += changed.share
        # Whichever way a clock has jumped in between.
        while abs(taken_at - known[first][0]) >= DAY:
            files -= known[first][1].files
            share -= known[first][1].share
            first += 1
        sums.append((files, index - first + 1, min(share, 1.0)))
    return sums


def recent(generations: Sequence[Generation]) -> list[Generation]:
    """Return what of a history, oldest first, is looked back upon from its end."""
    if not generations:
        return []
    begin = generations[-1].taken_at - HISTORY
    first = bisect_right([each.taken_at for each in generations], begin)
    first = min(first, max(len(generations) - HISTORY_MIN, 0))
    return list(generations[max(first, len(generations) - HISTORY_MAX) :])


def compare_manifests(former: Mapping[str, Line], listed: Mapping[str, Line]) -> Changed:
    """Return what of a former manifest's files isn't there any more, or with other content."""
    files = {path: line.content for path, line in former.items() if line.content}
    kept = sum(
        1 for path, content in files.items() if path in listed and listed[path].content == content
    )
    return Changed(len(files) - kept, len(files))


# What rsync logs while it pulls into a mirror that keeps the state of the snapshot before. The log
# is kept, and added to, until the mirror is a snapshot: so also what a broken-off pull changed
# counts. It begins with a mark that only we know and that each line of ours bears: rsync also logs
# what the machine says.


def begin_log(path: Path) -> str:
    """Make sure that a pull's log is there, and return the mark of its lines. Raises OSError."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        known = re.fullmatch(rb"([0-9a-f]{32})\n", file.readline(64))
        if known is not None:
            return known[1].decode()
    mark = secrets.token_hex(16)
    path.write_text(f"{mark}\n")
    return mark


def read_log(path: Path, entries: int) -> Changed | None:
    """Return what changed by the pulls of a log, or None where there is no log.

    Args:
        path: The log.
        entries: How many files, links and devices there are now.
    """
    # For each name: whether the first that was heard of it is that it came anew, and whether the
    # last is that it was removed.
    heard: dict[int, tuple[bool, bool]] = {}
    came = went = 0
    try:
        with path.open("rb") as file:
            mark = file.readline(64).strip()
            for line in file:
                found = _LOGGED.match(line)
                if found is None or found["mark"] != mark:
                    continue
                event = _event(found["item"], found["name"])
                if event is None:
                    continue
                is_new, is_gone = event
                key = hash(found["name"])
                if key in heard or len(heard) < DISTINCT_MAX:
                    heard[key] = heard.get(key, event)[0], is_gone
                elif is_new:
                    came += 1
                else:
                    went += 1
                    entries += is_gone
    except FileNotFoundError:
        return None
    for was_new, is_gone in heard.values():
        if was_new:
            came += not is_gone
        else:
            went += 1
            entries += is_gone
    return Changed(went, max(entries - came, went, 0))


def _event(item: bytes, name: bytes) -> tuple[bool, bool] | None:
    """Return of an itemized change (rsync(1)) whether a file came, and whether it went.

    Folders, and changes to no more than the attributes, are no change of a file.
    """
    if item == b"*deleting":
        return None if name.endswith(b"/") else (False, True)
    if len(item) != 11 or item[1:2] == b"d" or item[:1] not in b"<>ch":
        return None
    return item[2:] == b"+" * 9, False
